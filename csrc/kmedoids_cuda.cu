#include <algorithm>

#include "device.h"
#include "kmedoids.h"

namespace fastreid_al {
namespace {

constexpr int threads = 256;

// What a block of threads keeps of one cluster, in its dynamic shared memory.
struct Work {
    double *best, *second;          // of each point; later its least similarity inside its group and its greatest outside
    double* worth;                  // of each group
    int64_t* medoids;
    int32_t *place, *order, *starts;
    double* s;                      // the similarities, where there is room
};

__host__ __device__ inline size_t rounded_up(size_t bytes) { return (bytes + 15) / 16 * 16; }

__host__ __device__ inline size_t bytes_without_similarities(int64_t m, int64_t k) {
    return rounded_up(2 * m * sizeof(double) + k * (sizeof(double) + sizeof(int64_t)) + (2 * m + k + 1) * sizeof(int32_t));
}

__device__ Work take(int64_t m, int64_t k) {
    Work x;
    x.best = dynamic_shared<double>();
    x.second = x.best + m;
    x.worth = x.second + m;
    x.medoids = reinterpret_cast<int64_t*>(x.worth + k);
    x.place = reinterpret_cast<int32_t*>(x.medoids + k);
    x.order = x.place + m;
    x.starts = x.order + m;
    x.s = dynamic_shared<double>() + bytes_without_similarities(m, k) / sizeof(double);
    return x;
}

// The similarities, copied into shared memory where `bytes` of it are enough for them too. All threads wait for each other.
__device__ const double* nearby(const double* similarity, const MedoidBlock& block, const Work& x, int64_t bytes) {
    const double* from = similarity + block.offset;
    const int64_t count = block.size * block.size;
    const bool fits = static_cast<int64_t>(bytes_without_similarities(block.size, block.k_max) + count * sizeof(double)) <= bytes;
    if (fits)
        for (int64_t at = threadIdx.x; at < count; at += threads) x.s[at] = from[at];
    __syncthreads();
    return fits ? x.s : from;
}

// A sum, what it counts as, and whose it is.
struct Top {
    double rounded, exact;
    int64_t at;
};

__device__ inline bool before(const Top& a, const Top& b) {
    return a.rounded > b.rounded || (a.rounded == b.rounded && a.at < b.at);
}

__device__ inline void offer(Top& top, double exact, int64_t at) {
    const Top other{rounded(exact, sum_decimals), exact, at};
    if (before(other, top)) top = other;
}

__device__ inline Top none() { return Top{-INFINITY, -INFINITY, INT64_MAX}; }

// The first of the greatest of all threads, known to all of them.
__device__ Top block_top(Top mine) {
    __shared__ Top tops[threads];
    tops[threadIdx.x] = mine;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half && before(tops[threadIdx.x + half], tops[threadIdx.x]))
            tops[threadIdx.x] = tops[threadIdx.x + half];
        __syncthreads();
    }
    const Top found = tops[0];
    __syncthreads();
    return found;
}

// The sum over all threads, in one order.
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

// BUILD: the first k_max medoids of one cluster, left where its medoids belong.
__global__ void build_kernel(const double* similarity, const MedoidBlock* blocks, int64_t bytes, int64_t* medoids) {
    const MedoidBlock block = blocks[blockIdx.x];
    const int64_t m = block.size;
    const Work x = take(m, block.k_max);
    const double* s = nearby(similarity, block, x, bytes);
    for (int64_t i = threadIdx.x; i < m; i += threads) x.place[i] = 0;
    for (int64_t p = 0; p < block.k_max; ++p) {
        Top top = none();
        for (int64_t i = threadIdx.x; i < m; i += threads) {
            double gain = 0;
            if (p == 0)
                for (int64_t j = 0; j < m; ++j) gain += s[j * m + i];
            else
                for (int64_t j = 0; j < m; ++j) gain += fmax(s[j * m + i] - x.best[j], 0.0);
            // A medoid is none again.
            offer(top, x.place[i] ? -1.0 : gain, i);
        }
        top = block_top(top);
        for (int64_t j = threadIdx.x; j < m; j += threads) {
            const double value = s[top.at * m + j];
            x.best[j] = p == 0 ? value : fmax(x.best[j], value);
            if (j == top.at) x.place[j] = 1;
        }
        if (threadIdx.x == 0) medoids[block.medoid + p] = top.at;
        __syncthreads();
    }
}

// Points by the place of their medoid: those of place p are order[starts[p]] to order[starts[p + 1] - 1], ascending.
__device__ void sort_points(const Work& x, int32_t m, int32_t k) {
    for (int32_t p = threadIdx.x; p <= k; p += threads) {
        int32_t before_it = 0;
        for (int32_t j = 0; j < m; ++j) before_it += x.place[j] < p;
        x.starts[p] = before_it;
    }
    __syncthreads();
    for (int32_t j = threadIdx.x; j < m; j += threads) {
        int32_t at = x.starts[x.place[j]];
        for (int32_t i = 0; i < j; ++i) at += x.place[i] == x.place[j];
        x.order[at] = j;
    }
    __syncthreads();
}

__device__ double swap(const double* s, const Work& x, int64_t m, int64_t k) {
    double reached = -INFINITY;
    for (int64_t place = 0, left = -1;;) {
        double mine = 0;
        for (int64_t j = threadIdx.x; j < m; j += threads) {
            const Nearest near = nearest_medoids(s, m, x.medoids, k, j);
            x.best[j] = near.best;
            x.second[j] = near.second;
            x.place[j] = static_cast<int32_t>(near.place);
            mine += near.best;
        }
        const double total = block_sum(mine);
        // Where sums are large, what their rounding promised is no gain: without this it could go round for ever.
        if (left >= 0 && !(total > reached)) {
            if (threadIdx.x == 0) x.medoids[place] = left;
            __syncthreads();
            for (int64_t j = threadIdx.x; j < m; j += threads)
                x.place[j] = static_cast<int32_t>(nearest_medoids(s, m, x.medoids, k, j).place);
            __syncthreads();
            return reached;
        }
        reached = total;
        sort_points(x, static_cast<int32_t>(m), static_cast<int32_t>(k));
        Top top = none();
        for (int64_t i = threadIdx.x; i < m; i += threads) {
            bool inside = false;
            for (int64_t p = 0; p < k; ++p) inside |= x.medoids[p] == i;
            if (inside) continue;
            // The sum with i as one more medoid, and what that loses when the medoid at place p goes.
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
        place = top.at % k;
        left = x.medoids[place];
        __syncthreads();
        if (threadIdx.x == 0) x.medoids[place] = top.at / k;
        __syncthreads();
    }
}

// Eq. 4 for the groups that the medoids make; known to the first thread.
__device__ double score(const double* s, const Work& x, int64_t m, int64_t k) {
    for (int64_t p = threadIdx.x; p < k; p += threads) x.place[x.medoids[p]] = static_cast<int32_t>(p);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < m; i += threads) {
        double inside = INFINITY, outside = -INFINITY;
        for (int64_t j = 0; j < m; ++j) {
            const double value = s[j * m + i];
            if (x.place[j] == x.place[i])
                inside = fmin(inside, value);
            else
                outside = fmax(outside, value);
        }
        x.best[i] = inside;
        x.second[i] = outside;
    }
    __syncthreads();
    for (int64_t p = threadIdx.x; p < k; p += threads) {
        double inside = INFINITY, outside = -INFINITY;
        int64_t size = 0;
        for (int64_t i = 0; i < m; ++i)
            if (x.place[i] == p) {
                inside = fmin(inside, x.best[i]);
                outside = fmax(outside, x.second[i]);
                ++size;
            }
        x.worth[p] = group_worth(size, inside, outside);
    }
    __syncthreads();
    double worth = 0;
    for (int64_t p = 0; p < k; ++p) worth += x.worth[p];
    return worth;
}

// Where the medoids of k groups lie among those of every k from k_min on.
FASTREID_AL_PORTABLE int64_t place_of(const MedoidBlock& block, int64_t k_min, int64_t k) {
    return block.every + (k * (k - 1) - k_min * (k_min - 1)) / 2;
}

// SWAP of one cluster for one k.
__global__ void swap_kernel(const double* similarity, const MedoidBlock* blocks, int64_t k_min, const int64_t* ways, int64_t bytes,
                            const int64_t* built, int64_t* every, double* totals, double* scores) {
    const MedoidBlock block = blocks[ways[2 * blockIdx.x]];
    const int64_t m = block.size, k = ways[2 * blockIdx.x + 1];
    // Its own room for k_max of them, so that what fits does not hang on k.
    const Work x = take(m, block.k_max);
    for (int64_t p = threadIdx.x; p < k; p += threads) x.medoids[p] = built[block.medoid + p];
    const double* s = nearby(similarity, block, x, bytes);
    const double total = swap(s, x, m, k);
    const double worth = score(s, x, m, k);
    for (int64_t p = threadIdx.x; p < k; p += threads) every[place_of(block, k_min, k) + p] = x.medoids[p];
    if (threadIdx.x == 0) {
        totals[block.way + k - k_min] = total;
        scores[block.way + k - k_min] = worth;
    }
}

// The k of each cluster that is worth most, its medoids and its labels.
__global__ void choose_kernel(const double* similarity, const MedoidBlock* blocks, int64_t k_min, const int64_t* every,
                              MedoidResults out) {
    const MedoidBlock block = blocks[blockIdx.x];
    const int64_t k = k_min + best_way(out.scores + block.way, block.k_max - k_min + 1);
    const int64_t* medoids = every + place_of(block, k_min, k);
    if (threadIdx.x == 0) out.k[block.cluster] = k;
    for (int64_t p = threadIdx.x; p < k; p += threads) out.medoids[block.medoid + p] = medoids[p];
    for (int64_t j = threadIdx.x; j < block.size; j += threads) {
        int64_t place = nearest_medoids(similarity + block.offset, block.size, medoids, k, j).place;
        for (int64_t p = 0; p < k; ++p)
            if (medoids[p] == j) place = p;
        out.labels[block.point + j] = place;
    }
}

// Dynamic shared memory of a block: kernels hold static arrays too.
size_t usable_bytes() {
    const size_t reserved = threads * (sizeof(Top) + sizeof(double)) + 1024, most = most_shared_bytes();
    return most > reserved ? most - reserved : 0;
}

}  // namespace

int64_t kmedoids_cuda_most(int64_t k_max) {
    const size_t usable = usable_bytes();
    int64_t most = 0;
    for (int64_t step = int64_t{1} << 20; step > 0; step /= 2)
        if (bytes_without_similarities(most + step, k_max) <= usable) most += step;
    return most;
}

void kmedoids_cuda(const double* similarity, const MedoidBlock* blocks, int64_t count, int64_t k_min, const int64_t* ways,
                   int64_t way_count, int64_t largest, int64_t k_largest, int64_t* every, MedoidResults out, void* stream) {
    const size_t least = bytes_without_similarities(largest, k_largest);
    const size_t bytes = std::min(usable_bytes(), least + largest * largest * sizeof(double));
    launch(build_kernel, count, threads, bytes, stream, similarity, blocks, static_cast<int64_t>(bytes), out.medoids);
    launch(swap_kernel, way_count, threads, bytes, stream, similarity, blocks, k_min, ways, static_cast<int64_t>(bytes),
           out.medoids, every, out.totals, out.scores);
    launch(choose_kernel, count, threads, size_t{0}, stream, similarity, blocks, k_min, every, out);
}

}  // namespace fastreid_al
