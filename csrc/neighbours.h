// The nearest neighbours of every row among all rows, from tiles of approximate similarities that are known to within a bound.
//
// Similarity is symmetric: the tiles cover the pairs i <= j, and each serves its rows and its columns. A row keeps what may still
// belong to its first k; the exact similarities of that decide.
#pragma once

#include <cstdint>

namespace fastreid_al {

// Candidates of n rows, `capacity` places each.
struct Candidates {
    float* values;      // (n, capacity) approximate similarities
    int32_t* columns;   // (n, capacity)
    int32_t* counts;    // (n,) places filled; -1 once more than fit are too close to tell apart
    float* thresholds;  // (n,) what is below is not among the first k; -inf at the beginning
    const float* margins;  // (n,) how far two approximate similarities of a row may be from their exact order
    int64_t n;
    int32_t capacity;
    int32_t k;
};

// Take in a tile of similarities of rows [row, row + rows) and columns [column, column + columns), float32 or, as its upper 16
// bits, bfloat16. Columns from `row + rows` on take the rows for candidates too.
void take_tile(const Candidates& c, const float* tile, int64_t row, int64_t rows, int64_t column, int64_t columns, int threads);
void take_tile(const Candidates& c, const uint16_t* tile, int64_t row, int64_t rows, int64_t column, int64_t columns,
               int threads);

// The first k of each row's candidates by exact similarity, ties to the lowest column, behind the row itself: ranks (n, k + 1).
// A row that has no complete list keeps -1 in its second place.
void finish(const Candidates& c, bool bfloat16, const float* features, int64_t width, int64_t* ranks, int threads);

}  // namespace fastreid_al
