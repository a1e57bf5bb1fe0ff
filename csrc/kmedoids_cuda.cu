#include <algorithm>

#include "device.h"
#include "kmedoids.h"

namespace fastreid_al {
namespace {

constexpr int threads = 256;

// The buffers of one cluster, in the dynamic shared memory of its thread block.
struct Work {
    double *best, *second;  // (m) similarity to the most similar medoid and to the next
    double* scores;         // (k) of each group
    int64_t* medoids;       // (k)
    int32_t* group;         // (m) of each point
    int32_t *order, *starts;  // points by group, see `sort_points`
    double* s;              // (m, m) similarities, if they fit
};

__host__ __device__ inline size_t rounded_up(size_t bytes) { return (bytes + 15) / 16 * 16; }

__host__ __device__ inline size_t bytes_without_similarities(int64_t m, int64_t k) {
    return rounded_up(2 * m * sizeof(double) + k * (sizeof(double) + sizeof(int64_t)) +
                      (2 * m + k + 1) * sizeof(int32_t));
}

__device__ Work work_of(int64_t m, int64_t k) {
    Work x;
    x.best = dynamic_shared<double>();
    x.second = x.best + m;
    x.scores = x.second + m;
    x.medoids = reinterpret_cast<int64_t*>(x.scores + k);
    x.group = reinterpret_cast<int32_t*>(x.medoids + k);
    x.order = x.group + m;
    x.starts = x.order + m;
    x.s = dynamic_shared<double>() + bytes_without_similarities(m, k) / sizeof(double);
    return x;
}

// The similarities: a copy in shared memory if `bytes` of it suffice. Synchronises the block.
__device__ const double* in_shared_memory(const double* similarity, const MedoidBlock& block,
                                          const Work& x, int64_t bytes) {
    const double* from = similarity + block.similarity_offset;
    const int64_t count = block.size * block.size;
    const size_t needed =
        bytes_without_similarities(block.size, block.k_max) + count * sizeof(double);
    const bool fits = static_cast<int64_t>(needed) <= bytes;
    if (fits)
        for (int64_t i = threadIdx.x; i < count; i += threads) x.s[i] = from[i];
    __syncthreads();
    return fits ? x.s : from;
}

// The greatest sum so far: its value rounded for comparison, its exact value, and its candidate.
struct Top {
    double rounded, exact;
    int64_t index;
};

__device__ inline bool before(const Top& a, const Top& b) {
    return a.rounded > b.rounded || (a.rounded == b.rounded && a.index < b.index);
}

__device__ inline void offer(Top& top, double exact, int64_t index) {
    const Top other{rounded(exact, sum_decimals), exact, index};
    if (before(other, top)) top = other;
}

__device__ inline Top none() { return Top{-INFINITY, -INFINITY, INT64_MAX}; }

// The first of the greatest over all threads, returned to all of them.
__device__ Top block_top(Top mine) {
    __shared__ Top tops[threads];
    tops[threadIdx.x] = mine;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        const bool lower_half = static_cast<int>(threadIdx.x) < half;
        if (lower_half && before(tops[threadIdx.x + half], tops[threadIdx.x]))
            tops[threadIdx.x] = tops[threadIdx.x + half];
        __syncthreads();
    }
    const Top found = tops[0];
    __syncthreads();
    return found;
}

// The sum over all threads, in a fixed order.
__device__ double block_sum(double mine) {
    __shared__ double sums[threads];
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const double found = sums[0];
    __syncthreads();
    return found;
}

// BUILD of one cluster: its first k_max medoids, written to its part of `medoids`.
__global__ void build_kernel(const double* similarity, const MedoidBlock* blocks, int64_t bytes,
                             int64_t* medoids) {
    const MedoidBlock block = blocks[blockIdx.x];
    const int64_t m = block.size;
    const Work x = work_of(m, block.k_max);
    const double* s = in_shared_memory(similarity, block, x, bytes);
    for (int64_t i = threadIdx.x; i < m; i += threads) x.group[i] = 0;
    for (int64_t p = 0; p < block.k_max; ++p) {
        Top top = none();
        for (int64_t i = threadIdx.x; i < m; i += threads) {
            double gain = 0;
            if (p == 0)
                for (int64_t j = 0; j < m; ++j) gain += s[j * m + i];
            else
                for (int64_t j = 0; j < m; ++j) gain += fmax(s[j * m + i] - x.best[j], 0.0);
            // While this kernel runs, x.group marks the medoids; they are not chosen again.
            offer(top, x.group[i] ? -1.0 : gain, i);
        }
        top = block_top(top);
        for (int64_t j = threadIdx.x; j < m; j += threads) {
            const double value = s[top.index * m + j];
            x.best[j] = p == 0 ? value : fmax(x.best[j], value);
            if (j == top.index) x.group[j] = 1;
        }
        if (threadIdx.x == 0) medoids[block.medoid_offset + p] = top.index;
        __syncthreads();
    }
}

// Sort points by group: those of group p are order[starts[p]] to order[starts[p + 1] - 1],
// ascending.
__device__ void sort_points(const Work& x, int32_t m, int32_t k) {
    for (int32_t p = threadIdx.x; p <= k; p += threads) {
        int32_t lower = 0;
        for (int32_t j = 0; j < m; ++j) lower += x.group[j] < p;
        x.starts[p] = lower;
    }
    __syncthreads();
    for (int32_t j = threadIdx.x; j < m; j += threads) {
        int32_t slot = x.starts[x.group[j]];
        for (int32_t i = 0; i < j; ++i) slot += x.group[i] == x.group[j];
        x.order[slot] = j;
    }
    __syncthreads();
}

__device__ double swap(const double* s, const Work& x, int64_t m, int64_t k) {
    double reached = -INFINITY;
    for (int64_t replaced = 0, removed = -1;;) {
        double mine = 0;
        for (int64_t j = threadIdx.x; j < m; j += threads) {
            const Nearest near = nearest_medoids(s, m, x.medoids, k, j);
            x.best[j] = near.best;
            x.second[j] = near.second;
            x.group[j] = static_cast<int32_t>(near.group);
            mine += near.best;
        }
        const double total = block_sum(mine);
        // Where sums are large, the promised gain can be a rounding error. Undo such an exchange,
        // or the loop could repeat it for ever.
        if (removed >= 0 && !(total > reached)) {
            if (threadIdx.x == 0) x.medoids[replaced] = removed;
            __syncthreads();
            for (int64_t j = threadIdx.x; j < m; j += threads)
                x.group[j] = static_cast<int32_t>(nearest_medoids(s, m, x.medoids, k, j).group);
            __syncthreads();
            return reached;
        }
        reached = total;
        sort_points(x, static_cast<int32_t>(m), static_cast<int32_t>(k));
        Top top = none();
        for (int64_t i = threadIdx.x; i < m; i += threads) {
            bool is_medoid = false;
            for (int64_t p = 0; p < k; ++p) is_medoid |= x.medoids[p] == i;
            if (is_medoid) continue;
            // The sum with i as one more medoid, and how it changes when medoid p is removed.
            double sum = 0;
            for (int64_t j = 0; j < m; ++j) sum += fmax(s[j * m + i], x.best[j]);
            for (int64_t p = 0; p < k; ++p) {
                double change = 0;
                for (int32_t t = x.starts[p]; t < x.starts[p + 1]; ++t) {
                    const int64_t j = x.order[t];
                    const double value = s[j * m + i];
                    change += fmax(value, x.second[j]) - fmax(value, x.best[j]);
                }
                offer(top, sum + change, i * k + p);
            }
        }
        top = block_top(top);
        if (!(top.exact > total + least_gain)) return total;
        replaced = top.index % k;
        removed = x.medoids[replaced];
        __syncthreads();
        if (threadIdx.x == 0) x.medoids[replaced] = top.index / k;
        __syncthreads();
    }
}

// Eq. 4 of the groups of the medoids; only the first thread's result counts.
__device__ double group_scores(const double* s, const Work& x, int64_t m, int64_t k) {
    for (int64_t p = threadIdx.x; p < k; p += threads)
        x.group[x.medoids[p]] = static_cast<int32_t>(p);
    // SWAP is done with these buffers: they now hold each point's least similarity inside its group
    // and its greatest outside.
    double *least_inside = x.best, *most_outside = x.second;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < m; i += threads) {
        double inside = INFINITY, outside = -INFINITY;
        for (int64_t j = 0; j < m; ++j) {
            const double value = s[j * m + i];
            if (x.group[j] == x.group[i])
                inside = fmin(inside, value);
            else
                outside = fmax(outside, value);
        }
        least_inside[i] = inside;
        most_outside[i] = outside;
    }
    __syncthreads();
    for (int64_t p = threadIdx.x; p < k; p += threads) {
        double inside = INFINITY, outside = -INFINITY;
        int64_t size = 0;
        for (int64_t i = 0; i < m; ++i)
            if (x.group[i] == p) {
                inside = fmin(inside, least_inside[i]);
                outside = fmax(outside, most_outside[i]);
                ++size;
            }
        x.scores[p] = group_score(size, inside, outside);
    }
    __syncthreads();
    double total = 0;
    for (int64_t p = 0; p < k; ++p) total += x.scores[p];
    return total;
}

// Where the medoids of k groups begin in the scratch, which holds those of k_min to k_max.
FASTREID_AL_PORTABLE int64_t task_offset(const MedoidBlock& block, int64_t k_min, int64_t k) {
    return block.scratch_offset + (k * (k - 1) - k_min * (k_min - 1)) / 2;
}

// SWAP of one cluster for one k.
__global__ void swap_kernel(const double* similarity, const MedoidBlock* blocks, int64_t k_min,
                            const int64_t* tasks, int64_t bytes, const int64_t* built,
                            int64_t* task_medoids, double* totals, double* scores) {
    const MedoidBlock block = blocks[tasks[2 * blockIdx.x]];
    const int64_t m = block.size, k = tasks[2 * blockIdx.x + 1];
    // Buffers for k_max medoids, so that it does not depend on k whether the similarities fit.
    const Work x = work_of(m, block.k_max);
    for (int64_t p = threadIdx.x; p < k; p += threads)
        x.medoids[p] = built[block.medoid_offset + p];
    const double* s = in_shared_memory(similarity, block, x, bytes);
    const double total = swap(s, x, m, k);
    const double score = group_scores(s, x, m, k);
    for (int64_t p = threadIdx.x; p < k; p += threads)
        task_medoids[task_offset(block, k_min, k) + p] = x.medoids[p];
    if (threadIdx.x == 0) {
        totals[block.score_offset + k - k_min] = total;
        scores[block.score_offset + k - k_min] = score;
    }
}

// The k of each cluster with the greatest score, its medoids and its labels.
__global__ void choose_kernel(const double* similarity, const MedoidBlock* blocks, int64_t k_min,
                              const int64_t* task_medoids, MedoidResults out) {
    const MedoidBlock block = blocks[blockIdx.x];
    const int64_t k = k_min + best_score(out.scores + block.score_offset, block.k_max - k_min + 1);
    const int64_t* medoids = task_medoids + task_offset(block, k_min, k);
    if (threadIdx.x == 0) out.k[block.cluster] = k;
    for (int64_t p = threadIdx.x; p < k; p += threads)
        out.medoids[block.medoid_offset + p] = medoids[p];
    for (int64_t j = threadIdx.x; j < block.size; j += threads) {
        const double* s = similarity + block.similarity_offset;
        int64_t group = nearest_medoids(s, block.size, medoids, k, j).group;
        for (int64_t p = 0; p < k; ++p)
            if (medoids[p] == j) group = p;
        out.labels[block.label_offset + j] = group;
    }
}

// Bytes of dynamic shared memory that a block may use; the kernels have static arrays too.
size_t usable_bytes() {
    const size_t reserved = threads * (sizeof(Top) + sizeof(double)) + 1024;
    const size_t most = most_shared_bytes();
    return most > reserved ? most - reserved : 0;
}

}  // namespace

int64_t kmedoids_cuda_max_points(int64_t k_max) {
    const size_t usable = usable_bytes();
    int64_t most = 0;
    for (int64_t step = int64_t{1} << 20; step > 0; step /= 2)
        if (bytes_without_similarities(most + step, k_max) <= usable) most += step;
    return most;
}

void kmedoids_cuda(const double* similarity, const MedoidBlock* blocks, int64_t count,
                   int64_t k_min, const int64_t* tasks, int64_t task_count, int64_t largest,
                   int64_t k_largest, int64_t* task_medoids, MedoidResults out, void* stream) {
    const size_t least = bytes_without_similarities(largest, k_largest);
    const size_t bytes = std::min(usable_bytes(), least + largest * largest * sizeof(double));
    launch(build_kernel, count, threads, bytes, stream, similarity, blocks,
           static_cast<int64_t>(bytes), out.medoids);
    launch(swap_kernel, task_count, threads, bytes, stream, similarity, blocks, k_min, tasks,
           static_cast<int64_t>(bytes), out.medoids, task_medoids, out.totals, out.scores);
    launch(choose_kernel, count, threads, size_t{0}, stream, similarity, blocks, k_min,
           task_medoids, out);
}

}  // namespace fastreid_al
