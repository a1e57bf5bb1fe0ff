// k-medoids by PAM (BUILD, then SWAP) of many small similarity matrices at once, each for every k of a range, and what each
// grouping is worth to UCAL's split (its Eq. 2 to 4). Matrices are symmetric, so that the points that a candidate would serve
// are read along rows: neighbouring candidates lie in neighbouring lanes and threads, and every sum is in a fixed order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "portable.h"

namespace fastreid_al {

// Where a cluster's values begin: a row of the table that the Python face fills.
struct MedoidBlock {
    int64_t offset;  // of size * size similarities
    int64_t size;
    int64_t k_max;
    int64_t cluster;  // of its k
    int64_t point;    // of size labels
    int64_t medoid;   // of k_max medoids, as many of them in use as the best k
    int64_t way;      // of a total and a score for each k
    int64_t every;    // of the medoids of every k, one k after the other; used on CUDA
};

struct MedoidResults {
    int64_t* k;
    int64_t* medoids;
    int64_t* labels;
    double* totals;
    double* scores;
};

// Sums that agree to so many decimals are ties.
constexpr double sum_decimals = 1e9, score_decimals = 1e12;
// An exchange that gains no more is none.
constexpr double least_gain = 1e-9;

FASTREID_AL_PORTABLE double rounded(double value, double decimals) { return rint(value * decimals) / decimals; }

// A point's most similar medoid (the first of equals), and its similarity to that and to the next.
struct Nearest {
    double best, second;
    int64_t place;
};

FASTREID_AL_PORTABLE Nearest nearest_medoids(const double* s, int64_t stride, const int64_t* medoids, int64_t k, int64_t point) {
    Nearest found{s[medoids[0] * stride + point], -INFINITY, 0};
    for (int64_t p = 1; p < k; ++p) {
        const double value = s[medoids[p] * stride + point];
        if (value > found.best) {
            found.second = found.best;
            found.best = value;
            found.place = p;
        } else if (value > found.second) {
            found.second = value;
        }
    }
    return found;
}

// Eq. 4's share of one group: its least similarity inside (1 when alone) and the greatest to another group, clamped to [0, 1].
FASTREID_AL_PORTABLE double group_worth(int64_t size, double inside, double outside) {
    const double compactness = size > 1 ? fmax(0.0, fmin(1.0, inside)) : 1.0;
    return compactness * (1.0 - fmax(0.0, fmin(1.0, outside)));
}

// The first of the greatest scores.
FASTREID_AL_PORTABLE int64_t best_way(const double* scores, int64_t count) {
    int64_t best = 0;
    for (int64_t w = 1; w < count; ++w)
        if (rounded(scores[w], score_decimals) > rounded(scores[best], score_decimals)) best = w;
    return best;
}

// `start`: k_max medoids of one block to begin SWAP from in place of BUILD's, or null.
void kmedoids_cpu(const double* similarity, const MedoidBlock* blocks, int64_t count, int64_t k_min, const int64_t* start,
                  MedoidResults out, int threads);

// Dot products, summed in float64, of all pairs of a cluster's rows of `features` (n, dim): for cluster c, of rows
// members[first[c]] to members[first[c] + sizes[c] - 1], symmetric, from out[offsets[c]] on. Equal rows give equal products.
template <class T>
void dot_products_cpu(const T* features, int64_t dim, const int64_t* members, const int64_t* first, const int64_t* sizes,
                      const int64_t* offsets, int64_t count, double* out, int threads);

// Points of the largest cluster that the current device takes, at k_max medoids.
int64_t kmedoids_cuda_most(int64_t k_max);

// `ways`: the block and the k of each of way_count totals; `largest` and `k_largest`: the most points and medoids of a block;
// `every`: scratch.
void kmedoids_cuda(const double* similarity, const MedoidBlock* blocks, int64_t count, int64_t k_min, const int64_t* ways,
                   int64_t way_count, int64_t largest, int64_t k_largest, int64_t* every, MedoidResults out, void* stream);

}  // namespace fastreid_al
