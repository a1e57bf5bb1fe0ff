// The pseudo-label memory bank on a CPU: rows are divided among threads, and each row has one
// thread.

#include "plmb.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace fastreid_al {

namespace {

// Words or labels that are worth starting a thread for.
constexpr int64_t GRAIN = 1 << 18;

// A team of one.
struct SingleThread {
    static constexpr int64_t rank = 0, size = 1;

    void sync() const {}
    int64_t sum(int value) const { return value; }
    int64_t before(int) const { return 0; }
    void set(uint32_t* word, uint32_t mask) const { *word |= mask; }

    template <class Less>
    void sort(int32_t* x, int64_t length, const Less& less) const {
        std::sort(x, x + length, less);
    }
};

// For each entry of the batch, whether it is the last one of its row.
std::vector<char> is_last_of_its_row(const int64_t* rows, int64_t batch) {
    std::vector<int64_t> order(batch);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return rows[a] != rows[b] ? rows[a] < rows[b] : a < b; });
    std::vector<char> last(batch);
    for (int64_t k = 0; k < batch; ++k)
        last[order[k]] = k + 1 == batch || rows[order[k]] != rows[order[k + 1]];
    return last;
}

// Rows that are worth starting a thread for, if each takes `steps`.
int64_t rows_at_a_time(int64_t steps) {
    return std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, steps));
}

int64_t steps_of(const LabelBank& bank) {
    return bank.id_bytes == 0 ? words_of(bank.n) : bank.capacity;
}

}  // namespace

bool plmb_fits_cpu(const LabelBatch& batch, int64_t n) {
    bool fits = batch.indptr[0] == 0 && batch.indptr[batch.size] == batch.labels;
    for (int64_t b = 0; b < batch.size; ++b)
        fits &= within(batch.rows[b], n) && batch.indptr[b] <= batch.indptr[b + 1];
    for (int64_t p = 0; p < batch.labels; ++p) fits &= within(batch.indices[p], n);
    return fits;
}

void plmb_update_cpu(const LabelBank& bank, const LabelBatch& batch, int64_t* dropped,
                     int threads) {
    if (batch.size == 0) return;
    const std::vector<char> last = is_last_of_its_row(batch.rows, batch.size);
    std::atomic<int64_t> overflow{0};
    // Labels are sorted, which costs more than reading a word.
    const int64_t grain = rows_at_a_time(steps_of(bank) + 16 * batch.labels / batch.size);
    with_layout(bank, [&](auto rows) {
        parallel_for(
            threads, batch.size, grain, [] { return std::vector<int32_t>(); },
            [&](std::vector<int32_t>& order, int64_t begin, int64_t end) {
                for (int64_t b = begin; b < end; ++b) {
                    if (!last[b]) continue;
                    const Span span = labels_of(batch, b);
                    order.resize(span.end - span.begin);
                    overflow +=
                        rows.write(SingleThread(), batch.rows[b], batch, span, order.data());
                }
            });
    });
    if (overflow) *dropped += overflow;
}

void plmb_count_cpu(const LabelBank& bank, const int64_t* rows, int64_t batch, int64_t* out,
                    int threads) {
    with_layout(bank, [&](auto from) {
        parallel_for(threads, batch, rows_at_a_time(steps_of(bank)),
                     [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) out[b] = from.count(SingleThread(), rows[b]);
        });
    });
}

void plmb_list_cpu(const LabelBank& bank, const int64_t* rows, int64_t batch,
                   const int64_t* indptr, int64_t* out, int threads) {
    with_layout(bank, [&](auto from) {
        parallel_for(threads, batch, rows_at_a_time(steps_of(bank)),
                     [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b)
                from.list(SingleThread(), rows[b], out + indptr[b]);
        });
    });
}

void plmb_bits_cpu(const LabelBank& bank, const int64_t* rows, int64_t batch, uint32_t* out,
                   int threads) {
    const int64_t words = words_of(bank.n);
    with_layout(bank, [&](auto from) {
        parallel_for(threads, batch, rows_at_a_time(words), [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b)
                from.bits(SingleThread(), rows[b], out + b * words);
        });
    });
}

}  // namespace fastreid_al
