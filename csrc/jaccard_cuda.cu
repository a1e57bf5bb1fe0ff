#include "device.h"
#include "jaccard.h"

namespace fastreid_al {

namespace {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int32_t kEmpty = -1;

// The first entry of column t that belongs to a row after i.
__device__ int64_t first_below(const OverlapArguments& a, int64_t t, int32_t i) {
    int64_t low = a.column_starts[t], high = a.column_starts[t + 1];
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (a.column_rows[middle] <= i)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Call meet(j, overlap) for every entry (j, t), j > i, of a column t of row i. One warp processes
// one column t at a time; its lanes read neighbouring entries.
template <class Meet>
__device__ void meetings(const OverlapArguments& a, int32_t i, Meet&& meet) {
    const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
    for (int64_t x = a.row_starts[i] + threadIdx.x / kWarp; x < a.row_starts[i + 1]; x += warps) {
        const int64_t t = a.row_columns[x];
        const uint32_t weight = a.row_weights[x];
        const int64_t end = a.column_starts[t + 1];
        for (int64_t y = first_below(a, t, i) + lane; y < end; y += kWarp)
            meet(a.column_rows[y], min(weight, a.column_weights[y]));
    }
}

__device__ void write_pair(const OverlapArguments& a, int64_t slot, int32_t i, int32_t j,
                           uint32_t overlap) {
    if (slot >= a.capacity) return;
    a.keys[slot] = static_cast<int64_t>(i) * a.n + j;
    a.overlaps[slot] = overlap;
}

// One thread block per row, with a hash table of its partners (open addressing). Sums are integers,
// so the result does not depend on their order.
__global__ void hashed_rows(OverlapArguments a, int32_t slots, int32_t* spilled,
                            unsigned long long* spills) {
    int32_t* partners = dynamic_shared<int32_t>();
    unsigned* sums = reinterpret_cast<unsigned*>(partners + slots);
    __shared__ unsigned taken, reaching;
    __shared__ unsigned long long base;
    const int32_t i = static_cast<int32_t>(blockIdx.x);
    for (int32_t slot = threadIdx.x; slot < slots; slot += blockDim.x) {
        partners[slot] = kEmpty;
        sums[slot] = 0;
    }
    if (threadIdx.x == 0) taken = reaching = 0;
    __syncthreads();

    // All threads may pass the check at once and each take a slot beyond the limit; the quarter
    // above it has room for them.
    const unsigned limit = slots - slots / 4;
    meetings(a, i, [&](int32_t j, uint32_t weight) {
        if (relaxed_load(&taken) > limit) return;
        unsigned slot = (static_cast<unsigned>(j) * 2654435769u) >> 7;
        for (;; ++slot) {
            const int32_t before = atomicCAS(&partners[slot & (slots - 1)], kEmpty, j);
            if (before == kEmpty) atomicAdd(&taken, 1u);
            if (before == kEmpty || before == j) break;
        }
        atomicAdd(&sums[slot & (slots - 1)], weight);
    });
    __syncthreads();
    if (taken > limit) {
        if (threadIdx.x == 0) spilled[atomicAdd(spills, 1ull)] = i;
        return;
    }

    // Reserve room for this row's pairs at once: one atomic on the global counter per row.
    unsigned own = 0;
    for (int32_t slot = threadIdx.x; slot < slots; slot += blockDim.x)
        own += sums[slot] >= a.least_overlap;
    unsigned before = own ? atomicAdd(&reaching, own) : 0;
    __syncthreads();
    if (threadIdx.x == 0 && reaching)
        base = atomicAdd(a.found, static_cast<unsigned long long>(reaching));
    __syncthreads();
    if (!own) return;
    for (int32_t slot = threadIdx.x; slot < slots; slot += blockDim.x)
        if (sums[slot] >= a.least_overlap)
            write_pair(a, static_cast<int64_t>(base + before++), i, partners[slot], sums[slot]);
}

// One thread block per pool of n sums in global memory; each processes every gridDim.x-th row.
__global__ void pooled_rows(OverlapArguments a, const int32_t* rows, int64_t count,
                            unsigned* pools) {
    unsigned* sums = pools + static_cast<int64_t>(blockIdx.x) * a.n;
    for (int64_t x = blockIdx.x; x < count; x += gridDim.x) {
        const int32_t i = rows[x];
        meetings(a, i, [&](int32_t j, uint32_t weight) { atomicAdd(&sums[j], weight); });
        __syncthreads();
        meetings(a, i, [&](int32_t j, uint32_t) {
            const unsigned sum = atomicExch(&sums[j], 0u);
            if (sum >= a.least_overlap)
                write_pair(a, static_cast<int64_t>(atomicAdd(a.found, 1ull)), i, j, sum);
        });
        __syncthreads();
    }
}

}  // namespace

void overlaps_cuda(const OverlapArguments& a, int32_t slots, int32_t* spilled,
                   unsigned long long* spills, void* stream) {
    const size_t bytes = static_cast<size_t>(slots) * (sizeof(int32_t) + sizeof(unsigned));
    launch(hashed_rows, a.n, kThreads, bytes, stream, a, slots, spilled, spills);
}

void spilled_overlaps_cuda(const OverlapArguments& a, const int32_t* rows, int64_t count,
                           uint32_t* sums, int64_t pools, void* stream) {
    launch(pooled_rows, pools, kThreads, 0, stream, a, rows, count, sums);
}

}  // namespace fastreid_al
