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

// Such rows as they lie in arrays, sparse or listed in others: row r is what stands from starts[r] to starts[r + 1].
template <class Value>
struct RowsOf {
    const int64_t* starts;
    const int32_t* columns;
    const Value* values;
};

struct JaccardArguments {
    const int64_t* neighbours;  // (n, k1), each row's own index first
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

// The parts of which `upper_edges` is made, for some rows while others lie on other ranks. What a row names on other ranks is
// there as rows in the order of a block, and is named by its place there.

// Each row's reciprocal set expanded, ascending: its members (columns, and their places as values), and the members' short lists.
SparseRows<uint8_t> expanded_sets(int64_t rows, const RowsOf<int32_t>& sets, const RowsOf<uint8_t>& halves, int64_t n,
                                  int threads);

// out[x] = the dot product of row i and other row columns[x] - first, for each of row i's columns in [first, first + count).
template <class T>
void products(const RowsOf<T>& sets, int64_t rows, const T* features, const T* others, int64_t first, int64_t count,
              int64_t width, T* out, int threads);

// The softmax of each row's similarities in shares; they may be zero.
template <class T>
void shares(const int64_t* starts, int64_t rows, const T* similarities, typename Unit<T>::Share* out, int threads);

// The mean of the rows of `v` that each list names with its first k2 entries, rounded half up; lists are `stride` long.
template <class Index, class Share>
SparseRows<Share> averaged(const Index* lists, int64_t rows, int32_t stride, int32_t k2, const RowsOf<Share>& v, int64_t n,
                           int threads);

// All pairs (i, j), j other than ids[i], of `rows` and all rows with a distance of at most `most`. The columns of `rows` are
// places in `columns`, which names rows.
template <class T>
SparseRows<T> near_pairs(const int64_t* ids, int64_t count, const RowsOf<typename Unit<T>::Share>& rows,
                         const RowsOf<typename Unit<T>::Share>& columns, int64_t n, T most, int threads);

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
