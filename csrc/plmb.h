// The pseudo-label memory bank (PLMB): rows of labels, as bits or as lists of ids. The operations
// on one row are written once, for a team of threads: a thread block on a GPU, a single thread on a
// CPU.
//
// A team has `rank` and `size`; sync(); sum(value), the total over the team; before(value), the
// total over lower ranks; set(word, mask), an atomic or; sort(x, length, less). All threads of a
// team must call each of these together, except set.
#pragma once

#include <cstdint>

#include "portable.h"

#ifdef __CUDACC__
// nvcc compiles these for thread blocks only.
#define FASTREID_AL_FOR_TEAMS __device__ inline
#else
#define FASTREID_AL_FOR_TEAMS inline
#endif

namespace fastreid_al {

// A bank of rows of labels in [0, n). With id_bytes 0, rows are bits: ceil(n / 32) words each. With
// 4 or 8, rows are `capacity` ids each: the first counts[row] of them ascend, the rest are -1.
struct LabelBank {
    void* rows;
    int id_bytes;
    int32_t* counts;
    int64_t n;
    int64_t capacity;
};

// Labels of a batch: those of rows[b] are indices[indptr[b]] to indices[indptr[b + 1] - 1].
// `similarity` has a value for each, or is null.
struct LabelBatch {
    const int64_t* rows;
    int64_t size;
    const int64_t* indptr;
    const int64_t* indices;
    int64_t labels;
    const float* similarity;
};

// Whether all rows and labels lie in [0, n), and indptr ascends from 0 to the number of labels.
bool plmb_fits_cpu(const LabelBatch&, int64_t n);

// update: the last occurrence of a row in the batch replaces the row. The number of labels that
// lists have no room for is added to `dropped` (bits: null).
// count, list: number of labels of rows, and the labels, ascending, those of rows[b] from
// out[indptr[b]] on. bits: the labels as bit rows.
void plmb_update_cpu(const LabelBank&, const LabelBatch&, int64_t* dropped, int threads);
void plmb_count_cpu(const LabelBank&, const int64_t* rows, int64_t batch, int64_t* out,
                    int threads);
void plmb_list_cpu(const LabelBank&, const int64_t* rows, int64_t batch, const int64_t* indptr,
                   int64_t* out, int threads);
void plmb_bits_cpu(const LabelBank&, const int64_t* rows, int64_t batch, uint32_t* out,
                   int threads);

// Rows and labels outside the bank are ignored. `scratch`: one value per label, or null if no row
// has more than PLMB_SHORT labels.
constexpr int PLMB_SHORT = 2048;
void plmb_update_cuda(const LabelBank&, const LabelBatch&, int64_t* dropped, int32_t* scratch,
                      void* stream);
void plmb_count_cuda(const LabelBank&, const int64_t* rows, int64_t batch, int64_t* out,
                     void* stream);
void plmb_list_cuda(const LabelBank&, const int64_t* rows, int64_t batch, const int64_t* indptr,
                    int64_t* out, void* stream);
void plmb_bits_cuda(const LabelBank&, const int64_t* rows, int64_t batch, uint32_t* out,
                    void* stream);

// count, sum and list in one launch, into `out` of `most` places, the unused ones of which get -1.
// indptr: batch + 1 values, those of all labels even if they do not fit; a row that ends after
// `most`, and all rows with labels behind it, are left out. state: batch + 1 zeros. A block waits
// for the counts of the rows before its own: batch^2 / 2 loads in all.
void plmb_lookup_cuda(const LabelBank&, const int64_t* rows, int64_t batch, int64_t most,
                      unsigned long long* state, int64_t* indptr, int64_t* out, void* stream);

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

// The range [begin, end).
struct Span {
    int64_t begin, end;
};

// The labels of batch row b, clipped to the batch even if indptr is wrong.
FASTREID_AL_PORTABLE Span labels_of(const LabelBatch& batch, int64_t b) {
    const int64_t begin = batch.indptr[b] < 0 ? 0 : batch.indptr[b];
    const int64_t end = batch.indptr[b + 1] < batch.labels ? batch.indptr[b + 1] : batch.labels;
    return {begin, end < begin ? begin : end};
}

// Write ids as a bit row.
template <class Team, class Id>
FASTREID_AL_FOR_TEAMS void write_bits(const Team& team, uint32_t* row, int64_t n, const Id* ids,
                                      int64_t count) {
    for (int64_t w = team.rank; w < words_of(n); w += team.size) row[w] = 0;
    team.sync();
    for (int64_t p = team.rank; p < count; p += team.size)
        if (within(ids[p], n)) team.set(row + ids[p] / 32, uint32_t{1} << ids[p] % 32);
}

// An order of the entries (indices into batch.indices) of a row's labels. An entry p that is
// left out is stored as ~p and comes after all others.
struct ById {
    const LabelBatch& batch;

    FASTREID_AL_PORTABLE float similarity(int32_t p) const {
        // NaN counts as the least.
        const float value = batch.similarity[p];
        return value == value ? value : -__builtin_huge_valf();
    }

    FASTREID_AL_PORTABLE bool more_similar(int32_t p, int32_t q) const {
        if (batch.similarity != nullptr && similarity(p) != similarity(q))
            return similarity(p) > similarity(q);
        return p < q;
    }

    FASTREID_AL_PORTABLE bool operator()(int32_t p, int32_t q) const {
        if (p < 0 || q < 0) return p > q;
        if (batch.indices[p] != batch.indices[q]) return batch.indices[p] < batch.indices[q];
        return more_similar(p, q);
    }
};

struct BySimilarity {
    ById by_id;

    FASTREID_AL_PORTABLE bool operator()(int32_t p, int32_t q) const {
        return p < 0 || q < 0 ? p > q : by_id.more_similar(p, q);
    }
};

// Replace a list by the distinct labels of `span`; if there are more than `capacity`, by those of
// greatest similarity. Returns the number of labels that had no room. `order` has room for the
// entries of `span`.
template <class Team, class Id>
FASTREID_AL_FOR_TEAMS int64_t write_list(const Team& team, Id* row, int32_t* count,
                                         const LabelBank& bank, const LabelBatch& batch, Span span,
                                         int32_t* order) {
    const int64_t length = span.end - span.begin;
    const ById by_id{batch};
    for (int64_t p = team.rank; p < length; p += team.size) {
        const int32_t entry = static_cast<int32_t>(span.begin + p);
        order[p] = within(batch.indices[entry], bank.n) ? entry : ~entry;
    }
    team.sync();
    team.sort(order, length, by_id);
    int mine = 0;
    for (int64_t start = 0; start < length; start += team.size) {
        const int64_t p = start + team.rank;
        const int32_t entry = p < length ? order[p] : -1;
        bool repeated = false;
        if (entry >= 0 && p > 0) {
            // The previous entry may be marked as repeated (~); its label counts all the same.
            const int32_t previous = order[p - 1];
            repeated =
                batch.indices[previous < 0 ? ~previous : previous] == batch.indices[entry];
        }
        mine += entry >= 0 && !repeated;
        team.sync();
        if (repeated) order[p] = ~entry;
        team.sync();
    }
    const int64_t distinct = team.sum(mine);
    const int64_t kept = distinct < bank.capacity ? distinct : bank.capacity;
    if (kept < distinct) {
        team.sort(order, length, BySimilarity{by_id});
        for (int64_t p = kept + team.rank; p < distinct; p += team.size) order[p] = ~order[p];
        team.sync();
    }
    if (kept < length) team.sort(order, length, by_id);
    for (int64_t c = team.rank; c < bank.capacity; c += team.size) {
        // Negative if a wrong indptr made two rows share entries of `order`.
        const int32_t entry = c < kept ? order[c] : -1;
        row[c] = entry < 0 ? Id{-1} : static_cast<Id>(batch.indices[entry]);
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
    FASTREID_AL_FOR_TEAMS int64_t write(const Team& team, int64_t i, const LabelBatch& batch,
                                        Span span, int32_t*) const {
        write_bits(team, row(i), bank.n, batch.indices + span.begin, span.end - span.begin);
        return 0;
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS int64_t count(const Team& team, int64_t i) const {
        return team.sum(count_run(row(i), run_of(team)));
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS void list(const Team& team, int64_t i, int64_t* out) const {
        const uint32_t* from = row(i);
        const Span run = run_of(team);
        // In a team of one nothing comes before.
        out += team.before(team.size > 1 ? count_run(from, run) : 0);
        for (int64_t w = next_word(from, run.begin, run.end); w < run.end;
             w = next_word(from, w + 1, run.end))
            for (uint32_t word = from[w]; word; word &= word - 1)
                *out++ = w * 32 + lowest_one(word);
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS void bits(const Team& team, int64_t i, uint32_t* out) const {
        for (int64_t w = team.rank; w < words_of(bank.n); w += team.size) out[w] = row(i)[w];
    }

  private:
    // The words that this thread of the team reads.
    template <class Team>
    FASTREID_AL_FOR_TEAMS Span run_of(const Team& team) const {
        const int64_t words = words_of(bank.n), run = (words + team.size - 1) / team.size;
        const int64_t begin = team.rank * run < words ? team.rank * run : words;
        return {begin, begin + run < words ? begin + run : words};
    }

    // The first nonzero word from w on, or the end. Nearly all are zero, so 16 are tested at a
    // time.
    FASTREID_AL_FOR_TEAMS static int64_t next_word(const uint32_t* from, int64_t w, int64_t end) {
        for (; w + 16 <= end; w += 16) {
            uint32_t any = 0;
            for (int k = 0; k < 16; ++k) any |= from[w + k];
            if (any) break;
        }
        while (w < end && !from[w]) ++w;
        return w;
    }

    FASTREID_AL_FOR_TEAMS static int count_run(const uint32_t* from, Span run) {
        int ones = 0;
        for (int64_t w = next_word(from, run.begin, run.end); w < run.end;
             w = next_word(from, w + 1, run.end))
            ones += count_ones(from[w]);
        return ones;
    }
};

// Rows of ids.
template <class Id>
struct IdRows {
    LabelBank bank;

    FASTREID_AL_PORTABLE int64_t n() const { return bank.n; }

    FASTREID_AL_PORTABLE Id* row(int64_t i) const {
        return static_cast<Id*>(bank.rows) + i * bank.capacity;
    }

    template <class Team>
    FASTREID_AL_FOR_TEAMS int64_t write(const Team& team, int64_t i, const LabelBatch& batch,
                                        Span span, int32_t* order) const {
        return write_list(team, row(i), bank.counts + i, bank, batch, span, order);
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

// Call work with the bank's rows, typed by their layout.
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
