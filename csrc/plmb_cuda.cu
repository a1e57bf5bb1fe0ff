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

// The number of labels of all rows before row b, from their counts + 1 in `known`, which are 0 until
// a block has counted the row.
__device__ int64_t labels_before(const Block& block, const unsigned long long* known, int64_t b,
                                 unsigned long long* total) {
    if (block.rank == 0) *total = 0;
    __syncthreads();
    unsigned long long mine = 0;
    for (int64_t c = block.rank; c < b; c += block.size) {
        unsigned long long value;
        do value = relaxed_load(known + c);
        while (value == 0);
        mine += value - 1;
    }
    if (mine) atomicAdd(total, mine);
    __syncthreads();
    return static_cast<int64_t>(*total);
}

// A block takes the next row when it starts, so that the blocks that it waits for run already.
template <class Rows>
__global__ void look_up_rows(Rows bank, const int64_t* rows, int64_t batch, int64_t most,
                             unsigned long long* state, int64_t* indptr, int64_t* out) {
    __shared__ int totals[WARPS];
    __shared__ unsigned long long taken, before;
    const Block block = block_of(totals);
    if (block.rank == 0) taken = atomicAdd(state + batch, 1ull);
    __syncthreads();
    const int64_t b = static_cast<int64_t>(taken), row = rows[b];
    const int64_t count = within(row, bank.n()) ? bank.count(block, row) : 0;
    if (block.rank == 0) relaxed_store(state + b, static_cast<unsigned long long>(count) + 1);
    const int64_t begin = labels_before(block, state, b, &before), end = begin + count;
    if (block.rank == 0) {
        if (b == 0) indptr[0] = 0;
        indptr[b + 1] = end;
    }
    const bool fits = end <= most;
    if (fits && count > 0) bank.list(block, row, out + begin);
    // The last row that fits, or the first one that does not, is followed by unused places.
    const bool is_last = fits ? b + 1 == batch : begin <= most;
    if (!is_last) return;
    for (int64_t p = (fits ? end : begin) + block.rank; p < most; p += block.size) out[p] = -1;
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

void plmb_lookup_cuda(const LabelBank& bank, const int64_t* rows, int64_t batch, int64_t most,
                      unsigned long long* state, int64_t* indptr, int64_t* out, void* stream) {
    with_layout(bank, [&](auto from) {
        launch(look_up_rows<decltype(from)>, batch, THREADS, 0, stream, from, rows, batch, most,
               state, indptr, out);
    });
}

}  // namespace fastreid_al
