// The k-reciprocal Jaccard distance in sparse form.
//
// Weights are whole numbers, shares of one in units of 2^-31 (float32 features) or 2^-52 (float64): sums of them are exact, so
// neither the order nor the number of threads can be seen in the result. What devices may round differently is a single share.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "portable.h"

namespace fastreid_al {

// The whole number that stands for one, by the type of the features.
template <class T>
struct Unit;
template <>
struct Unit<float> {
    using Share = uint32_t;
    static constexpr int kBits = 31;
};
template <>
struct Unit<double> {
    using Share = uint64_t;
    static constexpr int kBits = 52;
};

// 1 - m / (2 - m), at least 0, of an overlap m.
template <class T>
FASTREID_AL_PORTABLE T jaccard_distance(typename Unit<T>::Share overlap) {
    const double m = static_cast<double>(overlap) / static_cast<double>(uint64_t{1} << Unit<T>::kBits);
    const double d = 1.0 - m / (2.0 - m);
    return static_cast<T>(d > 0.0 ? d : 0.0);
}

// Rows of column indices, ascending, with a value each.
template <class Value>
struct SparseRows {
    std::vector<int64_t> starts;
    std::vector<int32_t> columns;
    std::vector<Value> values;
};

struct JaccardArguments {
    const int64_t* ranks;  // (n, k1), each row's own index first
    int64_t n;
    int32_t k1;
    int32_t half;  // columns of the half list
    int32_t k2;
    int64_t width;  // of the features
    int threads;
};

// Edges (i, j) with i < j and a distance of at most `most`, row by row.
template <class T>
SparseRows<T> upper_edges(const JaccardArguments& a, const T* features, T most);

// Both directions of upper edges as CSR: starts (n + 1), columns and values as many as twice the edges.
template <class T>
void symmetric(const SparseRows<T>& upper, int64_t* starts, int64_t* columns, T* values);

// On a GPU: the overlaps of all pairs i < j that reach `least`, in any order, as keys i * n + j.
struct OverlapArguments {
    // Shares by row and by column; columns and rows ascending.
    const int64_t* row_starts;
    const int32_t* row_columns;
    const uint32_t* row_shares;
    const int64_t* column_starts;
    const int32_t* column_rows;
    const uint32_t* column_shares;
    int64_t n;
    uint32_t least;
    int64_t* keys;
    uint32_t* overlaps;
    int64_t capacity;           // pairs that fit; what is found beyond is counted alone
    unsigned long long* found;  // pairs so far
};

// The pairs of every row whose partners fit the table of `slots` (a power of two, 512 at least) in shared memory; the others' ids
// go to `spilled` (n) and their number to `spills`.
void overlaps_cuda(const OverlapArguments& a, int32_t slots, int32_t* spilled, unsigned long long* spills, void* stream);

// The pairs of `rows` (count): `pools` blocks with n sums each, which are zero before and after.
void spilled_overlaps_cuda(const OverlapArguments& a, const int32_t* rows, int64_t count, uint32_t* sums, int64_t pools,
                           void* stream);

}  // namespace fastreid_al
