// k-medoids by PAM (BUILD, then SWAP) of many small similarity matrices in one call: each for every
// k of a range, with the score of each grouping (UCAL, Eq. 2 to 4).
//
// Matrices are symmetric, so the similarities of all points to one candidate are read along rows:
// neighbouring candidates lie in neighbouring lanes and threads, and every sum has a fixed order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "portable.h"

namespace fastreid_al {

// Where the values of one cluster begin. The Python caller fills an int64 table with these rows
// (_Table in clustering/kmedoids.py has the same columns in the same order).
struct MedoidBlock {
    int64_t similarity_offset;  // of size * size similarities
    int64_t size;
    int64_t k_max;
    int64_t cluster;        // index of the cluster, and of its best k
    int64_t label_offset;   // of size labels
    // of k_max medoids; only the first ones, as many as the best k, are used
    int64_t medoid_offset;
    int64_t score_offset;   // of one total and one score for each k
    int64_t scratch_offset;  // of the medoids of every k, one k after the other; used on CUDA only
};

struct MedoidResults {
    int64_t* k;
    int64_t* medoids;
    int64_t* labels;
    double* totals;
    double* scores;
};

// Sums and scores that agree to this many decimals are ties.
constexpr double sum_decimals = 1e9, score_decimals = 1e12;
// An exchange must gain more than this.
constexpr double least_gain = 1e-9;

FASTREID_AL_PORTABLE double rounded(double value, double decimals) {
    return rint(value * decimals) / decimals;
}

// The group of a point's most similar medoid (the first of equals), and the point's similarity to
// that medoid and to the next best.
struct Nearest {
    double best, second;
    int64_t group;
};

FASTREID_AL_PORTABLE Nearest nearest_medoids(const double* s, int64_t stride,
                                             const int64_t* medoids, int64_t k, int64_t point) {
    Nearest found{s[medoids[0] * stride + point], -INFINITY, 0};
    for (int64_t p = 1; p < k; ++p) {
        const double value = s[medoids[p] * stride + point];
        if (value > found.best) {
            found.second = found.best;
            found.best = value;
            found.group = p;
        } else if (value > found.second) {
            found.second = value;
        }
    }
    return found;
}

// The term of one group in Eq. 4: its least inner similarity (1 for a single point) times one minus
// its greatest similarity to another group. Both are clamped to [0, 1].
FASTREID_AL_PORTABLE double group_score(int64_t size, double inside, double outside) {
    const double compactness = size > 1 ? fmax(0.0, fmin(1.0, inside)) : 1.0;
    return compactness * (1.0 - fmax(0.0, fmin(1.0, outside)));
}

// Index of the first of the greatest scores.
FASTREID_AL_PORTABLE int64_t best_score(const double* scores, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; ++i)
        if (rounded(scores[i], score_decimals) > rounded(scores[best], score_decimals)) best = i;
    return best;
}

// `start`: k_max medoids of one block, from which SWAP starts instead of BUILD's, or null.
void kmedoids_cpu(const double* similarity, const MedoidBlock* blocks, int64_t count, int64_t k_min,
                  const int64_t* start, MedoidResults out, int threads);

// Dot products, summed in float64, of all pairs of a cluster's rows of `features` (n, dim). Cluster
// c has rows members[first[c]] to members[first[c] + sizes[c] - 1]; its symmetric matrix is written
// from out[offsets[c]] on. Equal rows have equal products.
template <class T>
void dot_products_cpu(const T* features, int64_t dim, const int64_t* members, const int64_t* first,
                      const int64_t* sizes, const int64_t* offsets, int64_t count, double* out,
                      int threads);

// Most points of a cluster that the current device can process with k_max medoids.
int64_t kmedoids_cuda_max_points(int64_t k_max);

// `tasks`: (task_count, 2), the block and the k of each run of SWAP. `largest` and `k_largest`: the
// most points and medoids of a block. `task_medoids`: scratch for the medoids of every task.
void kmedoids_cuda(const double* similarity, const MedoidBlock* blocks, int64_t count,
                   int64_t k_min, const int64_t* tasks, int64_t task_count, int64_t largest,
                   int64_t k_largest, int64_t* task_medoids, MedoidResults out, void* stream);

}  // namespace fastreid_al
