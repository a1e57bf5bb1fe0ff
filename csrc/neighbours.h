// The nearest neighbours of every row among all rows, from tiles of approximate similarities whose
// error is bounded.
//
// Similarity is symmetric: the tiles cover the pairs i <= j, and each adds candidates to its rows
// and to its columns. A row keeps every candidate that may still be among its first k; their exact
// similarities decide at the end. If the columns are rows of another rank, tiles add candidates to
// their rows only.
#pragma once

#include <cstdint>

namespace fastreid_al {

// Candidates of n rows, at most `capacity` for each.
struct Candidates {
    float* values;      // (n, capacity) approximate similarities
    int32_t* columns;   // (n, capacity)
    int32_t* counts;    // (n,) number of candidates; -1 if more than fit are too close to separate
    float* thresholds;  // (n,) lower similarities are not among the first k; -inf at the beginning
    // (n,) two approximate similarities of a row that differ by more are in their exact order.
    const float* margins;
    int64_t n;
    int32_t capacity;
    int32_t k;
    // the columns are the rows: each pair is seen once, a row is not its own candidate
    bool symmetric;
};

// Add a tile of similarities of rows [row, row + rows) and columns [column, column + columns), in
// float32 or bfloat16 (as uint16). If the candidates are symmetric, the rows also become candidates
// of the columns from `row + rows` on.
void add_tile(const Candidates& c, const float* tile, int64_t row, int64_t rows, int64_t column,
              int64_t columns, int threads);
void add_tile(const Candidates& c, const uint16_t* tile, int64_t row, int64_t rows, int64_t column,
              int64_t columns,
               int threads);

// neighbours (n, k + 1): the row itself, then the first k of its candidates by exact similarity,
// ties to the lowest column. A row without a complete list gets -1 in place of its neighbours.
void finish(const Candidates& c, bool bfloat16, const float* features, int64_t width,
            int64_t* neighbours, int threads);

// Merge the candidates into the best k so far: similarities (n, k), descending, and columns (n, k),
// ties to the lowest column, padded with -inf and -1. Candidates are rows of `others`, the first of
// which is column `offset`. A row whose count is -1 is left as it is.
void merge(const Candidates& c, const float* features, const float* others, int64_t offset,
           int64_t width, float* similarities, int64_t* columns, int threads);

}  // namespace fastreid_al
