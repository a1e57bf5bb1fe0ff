// The pseudo-label memory bank: rows of labels, as bits or as lists of ids. What is done to one row is written once, for a
// team of threads that share it: a block on a GPU, one thread alone on a CPU.
//
// A team has `rank` and `size`; sync(); sum(value), the total over the team; before(value), the total over lower ranks;
// set(word, mask), an or that others may do to the same word; sort(x, length, less). All of a team come to each of these,
// but for set.
#pragma once

#include <cstdint>

#include "portable.h"

#ifdef __CUDACC__
// What nvcc compiles is for blocks alone.
#define FASTREID_AL_FOR_TEAMS __device__ inline
#else
#define FASTREID_AL_FOR_TEAMS inline
#endif

namespace fastreid_al {

// A bank of n rows. With id_bytes 0 `rows` are bits, ceil(n / 32) words each; with 4 or 8 they are `capacity` ids each, the
// first counts[row] of them ascending and the rest -1.
struct LabelBank {
    void* rows;
    int id_bytes;
    int32_t* counts;
    int64_t n;
    int64_t capacity;
};

// Labels of a batch: those of rows[b] are indices[indptr[b]] to indices[indptr[b + 1]], `likeness` theirs, or null.
struct LabelBatch {
    const int64_t* rows;
    int64_t size;
    const int64_t* indptr;
    const int64_t* indices;
    int64_t labels;
    const float* likeness;
};

// Whether all rows and labels lie in [0, n), and indptr goes from 0 to the number of labels without a fall.
bool plmb_fits_cpu(const LabelBatch&, int64_t n);

// update: each row's last occurrence in the batch replaces it; what lists have no room for is added to `dropped` (bits: null).
// count, list: labels of rows, the latter ascending, those of rows[b] from out[indptr[b]] on. bits: the same as bit rows.
void plmb_update_cpu(const LabelBank&, const LabelBatch&, int64_t* dropped, int threads);
void plmb_count_cpu(const LabelBank&, const int64_t* rows, int64_t batch, int64_t* out, int threads);
void plmb_list_cpu(const LabelBank&, const int64_t* rows, int64_t batch, const int64_t* indptr, int64_t* out,
                   int threads);
void plmb_bits_cpu(const LabelBank&, const int64_t* rows, int64_t batch, uint32_t* out, int threads);

// Rows and labels that lie outside the bank are left out, and give nothing. `scratch`: one for each label, or null where no
// row has more than PLMB_SHORT of them.
constexpr int PLMB_SHORT = 2048;
void plmb_update_cuda(const LabelBank&, const LabelBatch&, int64_t* dropped, int32_t* scratch, void* stream);
void plmb_count_cuda(const LabelBank&, const int64_t* rows, int64_t batch, int64_t* out, void* stream);
void plmb_list_cuda(const LabelBank&, const int64_t* rows, int64_t batch, const int64_t* indptr, int64_t* out,
                    void* stream);
void plmb_bits_cuda(const LabelBank&, const int64_t* rows, int64_t batch, uint32_t* out, void* stream);

FASTREID_AL_PORTABLE bool within(int64_t x, int64_t n) { return x >= 0 && x < n; }

FASTREID_AL_PORTABLE int64_t words_of(int64_t n) { return (n + 31) / 32; }

FASTREID_AL_PORTABLE int count_ones(uint32_t word) {
#ifdef __CUDA_ARCH__
    return __popc(word);
#else
    return __builtin_popcount(word);
#endif
}

FASTREID_AL_PORTABLE int lowest_one(uint32_t word) {
#ifdef __CUDA_ARCH__
    return __ffs(word) - 1;
#else
    return __builtin_ctz(word);
#endif
}

// From `begin` to before `end`.
struct Places {
    int64_t begin, end;
};

// Of the labels of batch row b, inside the batch whatever indptr says.
FASTREID_AL_PORTABLE Places places_of(const LabelBatch& batch, int64_t b) {
    const int64_t begin = batch.indptr[b] < 0 ? 0 : batch.indptr[b];
    const int64_t end = batch.indptr[b + 1] < batch.labels ? batch.indptr[b + 1] : batch.labels;
    return {begin, end < begin ? begin : end};
}

// Make a bit row of ids.
template <class Team, class Id>
FASTREID_AL_FOR_TEAMS void write_bits(const Team& team, uint32_t* row, int64_t n, const Id* ids, int64_t count) {
    for (int64_t w = team.rank; w < words_of(n); w += team.size) row[w] = 0;
    team.sync();
    for (int64_t p = team.rank; p < count; p += team.size)
        if (within(ids[p], n)) team.set(row + ids[p] / 32, uint32_t{1} << ids[p] % 32);
}

// An order of the places of a row's labels. ~p stands for a place p that is left out, and comes behind all others.
struct ById {
    const LabelBatch& batch;

    FASTREID_AL_PORTABLE float likeness(int32_t p) const {
        // NaN is the least.
        return batch.likeness[p] == batch.likeness[p] ? batch.likeness[p] : -__builtin_huge_valf();
    }

    FASTREID_AL_PORTABLE bool liker(int32_t p, int32_t q) const {
        if (batch.likeness != nullptr && likeness(p) != likeness(q)) return likeness(p) > likeness(q);
        return p < q;
    }

    FASTREID_AL_PORTABLE bool operator()(int32_t p, int32_t q) const {
        if (p < 0 || q < 0) return p > q;
        if (batch.indices[p] != batch.indices[q]) return batch.indices[p] < batch.indices[q];
        return liker(p, q);
    }
};

struct ByLikeness {
    ById by_id;

    FASTREID_AL_PORTABLE bool operator()(int32_t p, int32_t q) const {
        return p < 0 || q < 0 ? p > q : by_id.liker(p, q);
    }
};

// Replace a list by the labels at `places`, each once, the `capacity` of greatest likeness if there are more; how many
// were left out so. `order` has room for the places.
template <class Team, class Id>
FASTREID_AL_FOR_TEAMS int64_t write_list(const Team& team, Id* row, int32_t* count, const LabelBank& bank,
                                         const LabelBatch& batch, Places places, int32_t* order) {
    const int64_t length = places.end - places.begin;
    const ById by_id{batch};
    for (int64_t p = team.rank; p < length; p += team.size) {
        const int32_t place = static_cast<int32_t>(places.begin + p);
        order[p] = within(batch.indices[place], bank.n) ? place : ~place;
    }
    team.sync();
    team.sort(order, length, by_id);
    int mine = 0;
    for (int64_t start = 0; start < length; start += team.size) {
        const int64_t p = start + team.rank;
        const int32_t place = p < length ? order[p] : -1;
        bool again = false;
        if (place >= 0 && p > 0) {
            // Left out it may be, but as an equal label.
            const int32_t last = order[p - 1];
            again = batch.indices[last < 0 ? ~last : last] == batch.indices[place];
        }
        mine += place >= 0 && !again;
        team.sync();
        if (again) order[p] = ~place;
        team.sync();
    }
    const int64_t distinct = team.sum(mine);
    const int64_t kept = distinct < bank.capacity ? distinct : bank.capacity;
    if (kept < distinct) {
        team.sort(order, length, ByLikeness{by_id});
        for (int64_t p = kept + team.rank; p < distinct; p += team.size) order[p] = ~order[p];
        team.sync();
    }
    if (kept < length) team.sort(order, length, by_id);
    for (int64_t c = team.rank; c < bank.capacity; c += team.size) {
        // Below 0 where a wrong indptr made rows share their places.
        const int32_t place = c < kept ? order[c] : -1;
        row[c] = place < 0 ? Id{-1} : static_cast<Id>(batch.indices[place]);
    }
    if (team.rank == 0) *count = static_cast<int32_t>(kept);
    return distinct - kept;
}

// Rows of bits.
struct BitRows {
    LabelBank bank;

    FASTREID_AL_PORTABLE int64_t n() const { return bank.n; }

    FASTREID_AL_PORTABLE uint32_t* row(int64_t i) const {
        return static_cast<uint32_t*>(bank.rows) + i * words_of(bank.n);
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS int64_t write(const Team& team, int64_t i, const LabelBatch& batch, Places places,
                                        int32_t*) const {
        write_bits(team, row(i), bank.n, batch.indices + places.begin, places.end - places.begin);
        return 0;
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS int64_t count(const Team& team, int64_t i) const {
        return team.sum(count_run(row(i), run_of(team)));
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS void list(const Team& team, int64_t i, int64_t* out) const {
        const uint32_t* from = row(i);
        const Places run = run_of(team);
        // Alone, nothing comes before.
        out += team.before(team.size > 1 ? count_run(from, run) : 0);
        for (int64_t w = next_word(from, run.begin, run.end); w < run.end; w = next_word(from, w + 1, run.end))
            for (uint32_t word = from[w]; word; word &= word - 1) *out++ = w * 32 + lowest_one(word);
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS void bits(const Team& team, int64_t i, uint32_t* out) const {
        for (int64_t w = team.rank; w < words_of(bank.n); w += team.size) out[w] = row(i)[w];
    }

  private:
    // Words that this one of the team reads.
    template <class Team>
    FASTREID_AL_FOR_TEAMS Places run_of(const Team& team) const {
        const int64_t words = words_of(bank.n), run = (words + team.size - 1) / team.size;
        const int64_t begin = team.rank * run < words ? team.rank * run : words;
        return {begin, begin + run < words ? begin + run : words};
    }

    // The first word from w on that is not zero, or the end. Nearly all are zero.
    FASTREID_AL_FOR_TEAMS static int64_t next_word(const uint32_t* from, int64_t w, int64_t end) {
        for (; w + 16 <= end; w += 16) {
            uint32_t any = 0;
            for (int k = 0; k < 16; ++k) any |= from[w + k];
            if (any) break;
        }
        while (w < end && !from[w]) ++w;
        return w;
    }

    FASTREID_AL_FOR_TEAMS static int count_run(const uint32_t* from, Places run) {
        int ones = 0;
        for (int64_t w = next_word(from, run.begin, run.end); w < run.end; w = next_word(from, w + 1, run.end))
            ones += count_ones(from[w]);
        return ones;
    }
};

// Rows of ids.
template <class Id>
struct IdRows {
    LabelBank bank;

    FASTREID_AL_PORTABLE int64_t n() const { return bank.n; }

    FASTREID_AL_PORTABLE Id* row(int64_t i) const { return static_cast<Id*>(bank.rows) + i * bank.capacity; }

    template <class Team>
    FASTREID_AL_FOR_TEAMS int64_t write(const Team& team, int64_t i, const LabelBatch& batch, Places places,
                                        int32_t* order) const {
        return write_list(team, row(i), bank.counts + i, bank, batch, places, order);
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS int64_t count(const Team&, int64_t i) const {
        return bank.counts[i];
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS void list(const Team& team, int64_t i, int64_t* out) const {
        for (int64_t c = team.rank; c < bank.counts[i]; c += team.size) out[c] = row(i)[c];
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS void bits(const Team& team, int64_t i, uint32_t* out) const {
        write_bits(team, out, bank.n, row(i), bank.counts[i]);
    }
};

// Call work with the bank's rows in their layout.
template <class Work>
void with_layout(const LabelBank& bank, Work&& work) {
    if (bank.id_bytes == 0)
        work(BitRows{bank});
    else if (bank.id_bytes == 4)
        work(IdRows<int32_t>{bank});
    else
        work(IdRows<int64_t>{bank});
}

}  // namespace fastreid_al
