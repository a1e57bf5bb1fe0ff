// The pseudo-label memory bank on a GPU: one thread block per row of the batch.

#include "device.h"
#include "plmb.h"
#include "portable.h"

namespace fastreid_al {

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr unsigned ALL = 0xffffffffu;

// The threads of a block.
struct Block {
    int64_t rank, size;
    int* totals;  // in shared memory, one per warp

    __device__ void sync() const { __syncthreads(); }

    // Returns the sum of the values of lower ranks, and in `all` that of all ranks.
    __device__ int sums(int value, int* all) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int through = value;
        for (int d = 1; d < 32; d *= 2) {
            const int lower = __shfl_sync(ALL, through, lane >= d ? lane - d : lane);
            if (lane >= d) through += lower;
        }
        if (lane == 31) totals[warp] = through;
        __syncthreads();
        int before = through - value;
        *all = 0;
        for (int w = 0; w < WARPS; ++w) {
            if (w < warp) before += totals[w];
            *all += totals[w];
        }
        __syncthreads();
        return before;
    }

    __device__ int64_t sum(int value) const {
        int all;
        sums(value, &all);
        return all;
    }

    __device__ int64_t before(int value) const {
        int all;
        return sums(value, &all);
    }

    __device__ void set(uint32_t* word, uint32_t mask) const { atomicOr(word, mask); }

    // Bitonic sort in which every exchange has the same direction. Elements past the end count as
    // the greatest, so they never move and need no storage.
    template <class Less>
    __device__ void sort(int32_t* x, int64_t length, const Less& less) const {
        for (int64_t run = 1; run < length; run *= 2) {
            for (int64_t t = rank;; t += size) {
                const int64_t offset = t & (run - 1), start = 2 * (t - offset);
                if (start >= length) break;
                exchange(x, start + offset, start + 2 * run - 1 - offset, length, less);
            }
            __syncthreads();
            for (int64_t step = run / 2; step > 0; step /= 2) {
                for (int64_t t = rank;; t += size) {
                    const int64_t offset = t & (step - 1), start = 2 * (t - offset);
                    if (start >= length) break;
                    exchange(x, start + offset, start + offset + step, length, less);
                }
                __syncthreads();
            }
        }
    }

    template <class Less>
    __device__ static void exchange(int32_t* x, int64_t left, int64_t right, int64_t length,
                                    const Less& less) {
        if (right >= length) return;
        const int32_t a = x[left], b = x[right];
        if (!less(b, a)) return;
        x[left] = b;
        x[right] = a;
    }
};

__device__ Block block_of(int* totals) { return {threadIdx.x, THREADS, totals}; }

template <class Rows>
__global__ void update_rows(Rows bank, LabelBatch batch, int64_t* dropped, int32_t* scratch) {
    __shared__ int totals[WARPS];
    __shared__ int32_t short_order[PLMB_SHORT];
    const Block block = block_of(totals);
    const int64_t b = blockIdx.x, row = batch.rows[b];
    if (!within(row, bank.n())) return;
    int later = 0;
    for (int64_t c = b + 1 + block.rank; c < batch.size; c += block.size)
        later |= batch.rows[c] == row;
    if (block.sum(later)) return;
    const Span span = labels_of(batch, b);
    int32_t* order = span.end - span.begin <= PLMB_SHORT ? short_order : scratch + span.begin;
    const int64_t overflow = bank.write(block, row, batch, span, order);
    if (overflow && block.rank == 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(dropped),
                  static_cast<unsigned long long>(overflow));
}

template <class Rows>
__global__ void count_rows(Rows bank, const int64_t* rows, int64_t* out) {
    __shared__ int totals[WARPS];
    const Block block = block_of(totals);
    const int64_t row = rows[blockIdx.x];
    const int64_t count = within(row, bank.n()) ? bank.count(block, row) : 0;
    if (block.rank == 0) out[blockIdx.x] = count;
}

template <class Rows>
__global__ void list_rows(Rows bank, const int64_t* rows, const int64_t* indptr, int64_t* out) {
    __shared__ int totals[WARPS];
    const int64_t row = rows[blockIdx.x];
    if (within(row, bank.n())) bank.list(block_of(totals), row, out + indptr[blockIdx.x]);
}

template <class Rows>
__global__ void bit_rows(Rows bank, const int64_t* rows, uint32_t* out) {
    __shared__ int totals[WARPS];
    const Block block = block_of(totals);
    const int64_t row = rows[blockIdx.x];
    out += blockIdx.x * words_of(bank.n());
    if (within(row, bank.n()))
        bank.bits(block, row, out);
    else
        write_bits(block, out, bank.n(), rows, 0);
}

}  // namespace

void plmb_update_cuda(const LabelBank& bank, const LabelBatch& batch, int64_t* dropped,
                      int32_t* scratch, void* stream) {
    with_layout(bank, [&](auto rows) {
        launch(update_rows<decltype(rows)>, batch.size, THREADS, 0, stream, rows, batch, dropped,
               scratch);
    });
}

void plmb_count_cuda(const LabelBank& bank, const int64_t* rows, int64_t batch, int64_t* out,
                     void* stream) {
    with_layout(bank, [&](auto from) {
        launch(count_rows<decltype(from)>, batch, THREADS, 0, stream, from, rows, out);
    });
}

void plmb_list_cuda(const LabelBank& bank, const int64_t* rows, int64_t batch,
                    const int64_t* indptr, int64_t* out, void* stream) {
    with_layout(bank, [&](auto from) {
        launch(list_rows<decltype(from)>, batch, THREADS, 0, stream, from, rows, indptr, out);
    });
}

void plmb_bits_cuda(const LabelBank& bank, const int64_t* rows, int64_t batch, uint32_t* out,
                    void* stream) {
    with_layout(bank, [&](auto from) {
        launch(bit_rows<decltype(from)>, batch, THREADS, 0, stream, from, rows, out);
    });
}

}  // namespace fastreid_al
