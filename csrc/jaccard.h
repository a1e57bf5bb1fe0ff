// The k-reciprocal Jaccard distance in sparse form.
//
// Weights lie in [0, 1] and are stored in fixed point, in units of 2^-31 (float32 features) or
// 2^-52 (float64). Their sums are exact, so the result depends neither on the order of summation
// nor on the number of threads. Only the rounding of a single weight may differ between devices.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "portable.h"

namespace fastreid_al {

// The fixed-point type of weights for a type of features, and its fractional bits.
template <class T>
struct FixedPoint;
template <>
struct FixedPoint<float> {
    using Weight = uint32_t;
    static constexpr int kBits = 31;
};
template <>
struct FixedPoint<double> {
    using Weight = uint64_t;
    static constexpr int kBits = 52;
};

// max(0, 1 - m / (2 - m)) for an overlap m.
template <class T>
FASTREID_AL_PORTABLE T jaccard_distance(typename FixedPoint<T>::Weight overlap) {
    const double m =
        static_cast<double>(overlap) / static_cast<double>(uint64_t{1} << FixedPoint<T>::kBits);
    const double d = 1.0 - m / (2.0 - m);
    return static_cast<T>(d > 0.0 ? d : 0.0);
}

// Rows of ascending column indices, each with a value.
template <class Value>
struct SparseRows {
    std::vector<int64_t> starts;
    std::vector<int32_t> columns;
    std::vector<Value> values;
};

// A view of such rows in arrays: row r is at [starts[r], starts[r + 1]).
template <class Value>
struct RowsOf {
    const int64_t* starts;
    const int32_t* columns;
    const Value* values;
};

struct JaccardArguments {
    const int64_t* neighbours;  // (n, k1); each list starts with the row's own index
    int64_t n;
    int32_t k1;
    int32_t half;  // length of the lists of R(i, k1 / 2)
    int32_t k2;
    int64_t width;  // of the features
    int threads;
};

// Edges (i, j) with i < j and a distance of at most `max_distance`, row by row.
template <class T>
SparseRows<T> upper_edges(const JaccardArguments& a, const T* features, T max_distance);

// Upper edges in both directions as CSR: starts (n + 1), and twice as many columns and values as
// edges.
template <class T>
void symmetric(const SparseRows<T>& upper, int64_t* starts, int64_t* columns, T* values);

// The steps of `upper_edges`, for the rows of one rank. Rows of other ranks that a row refers to
// have been fetched into a block, and are referred to by their index in it.

// Expand each row's reciprocal set; the result is ascending. `sets` holds the members as columns,
// and as values their indices in `halves`, which holds the members' own half sets.
SparseRows<uint8_t> expanded_sets(int64_t rows, const RowsOf<int32_t>& sets,
                                  const RowsOf<uint8_t>& halves, int64_t n, int threads);

// out[x] = the dot product of features[i] and others[columns[x] - first], for each of row i's
// columns in [first, first + count). Other entries of `out` are left as they are.
template <class T>
void products(const RowsOf<T>& sets, int64_t rows, const T* features, const T* others,
              int64_t first, int64_t count, int64_t width, T* out, int threads);

// The softmax of each row's similarities in fixed point; a weight may be zero.
template <class T>
void softmax_weights(const int64_t* starts, int64_t rows, const T* similarities,
                     typename FixedPoint<T>::Weight* out, int threads);

// For each list, the mean of the rows of `v` that its first k2 entries name, rounded half up. Lists
// are `stride` long.
template <class Index, class Weight>
SparseRows<Weight> averaged(const Index* lists, int64_t rows, int32_t stride, int32_t k2,
                            const RowsOf<Weight>& v, int64_t n,
                           int threads);

// All pairs of row i of `rows` and any row j other than ids[i] with a distance of at most
// `max_distance`. The columns of `rows` are indices in `columns`, whose lists hold rows j.
template <class T>
SparseRows<T> near_pairs(const int64_t* ids, int64_t count,
                         const RowsOf<typename FixedPoint<T>::Weight>& rows,
                         const RowsOf<typename FixedPoint<T>::Weight>& columns, int64_t n,
                         T max_distance, int threads);

// On a GPU: the overlaps of all pairs i < j that are at least `least_overlap`, in any order, as
// keys i * n + j.
struct OverlapArguments {
    // Weights by row and by column; columns and rows ascend.
    const int64_t* row_starts;
    const int32_t* row_columns;
    const uint32_t* row_weights;
    const int64_t* column_starts;
    const int32_t* column_rows;
    const uint32_t* column_weights;
    int64_t n;
    uint32_t least_overlap;
    int64_t* keys;
    uint32_t* overlaps;
    int64_t capacity;           // pairs that fit; more are counted in `found` but not written
    unsigned long long* found;  // number of pairs so far
};

// The pairs of every row whose partners fit a hash table of `slots` (a power of two, 512 or more)
// in shared memory. The other rows are written to `spilled` (n), and their number to `spills`.
void overlaps_cuda(const OverlapArguments& a, int32_t slots, int32_t* spilled,
                   unsigned long long* spills, void* stream);

// The pairs of the `count` rows in `rows`, by `pools` thread blocks with n sums each. The sums are
// zero before and after.
void spilled_overlaps_cuda(const OverlapArguments& a, const int32_t* rows, int64_t count,
                           uint32_t* sums, int64_t pools, void* stream);

}  // namespace fastreid_al
