// The nearest neighbours of every row among all rows, from tiles of approximate similarities that are known to within a bound.
//
// Similarity is symmetric: the tiles cover the pairs i <= j, and each serves its rows and its columns. A row keeps what may still
// belong to its first k; the exact similarities of that decide. Of rows among others, which lie on another rank, the tiles serve
// their rows alone.
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
    bool symmetric;  // the columns are the rows: each pair is seen once, and a row is no candidate of its own
};

// Take in a tile of similarities of rows [row, row + rows) and columns [column, column + columns), float32 or, as its upper 16
// bits, bfloat16. Where the candidates are symmetric, columns from `row + rows` on take the rows for candidates too.
void take_tile(const Candidates& c, const float* tile, int64_t row, int64_t rows, int64_t column, int64_t columns, int threads);
void take_tile(const Candidates& c, const uint16_t* tile, int64_t row, int64_t rows, int64_t column, int64_t columns,
               int threads);

// The first k of each row's candidates by exact similarity, ties to the lowest column, behind the row itself: neighbours (n, k + 1).
// A row that has no complete list keeps -1 in its second place.
void finish(const Candidates& c, bool bfloat16, const float* features, int64_t width, int64_t* neighbours, int threads);

// Put the candidates among the first k that are known: similarities (n, k), descending, and columns (n, k), ties to the lowest,
// -inf and -1 where there are fewer. Candidates are rows of `others`, of which the first is column `offset`. A row that was given
// up (-1 candidates) is left as it is.
void merge(const Candidates& c, const float* features, const float* others, int64_t offset, int64_t width, float* similarities,
           int64_t* columns, int threads);

}  // namespace fastreid_al
