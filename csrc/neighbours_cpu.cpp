#include "neighbours.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "clones.h"
#include "parallel.h"
#include "rows.h"

#ifdef FASTREID_AL_AVX512
#include <immintrin.h>
#endif

namespace fastreid_al {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Similarities that are compared at a time, before single ones are read.
constexpr int kChunk = 64;

inline float widened(float value) { return value; }

inline float widened(uint16_t upper_half) {
    const uint32_t bits = static_cast<uint32_t>(upper_half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The nearest bfloat16, as a float.
float rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits += 0x7fff + ((bits >> 16) & 1);
    return widened(static_cast<uint16_t>(bits >> 16));
}

// The next lower bfloat16 of a finite bfloat16, as a float.
float below(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint16_t upper = static_cast<uint16_t>(bits >> 16);
    if (value == 0) return widened(static_cast<uint16_t>(0x8001));
    upper = static_cast<uint16_t>(value > 0 ? upper - 1 : upper + 1);
    return widened(upper);
}

// The least approximate similarity that one of the first k can have if the k-th approximate one is
// `kth`: kth before its own rounding, less the margin. Rounded down, so that no candidate is lost.
template <class T>
float lowest_candidate(float kth, float margin) {
    if (std::is_same<T, float>::value) return std::nextafter(kth - margin, -kInfinity);
    // What was rounded to kth is at least the midpoint between kth and the next lower bfloat16.
    const float lowest = (kth + below(kth)) / 2 - margin;
    return rounded(std::nextafter(lowest, -kInfinity));
}

// Bit x is set if the x-th similarity of a chunk is at least the threshold, common or its own.
template <class T, class Threshold>
uint64_t compared(const T* values, Threshold threshold) {
    uint64_t hits = 0;
    for (int x = 0; x < kChunk; ++x)
        hits |= static_cast<uint64_t>(widened(values[x]) >= threshold(x)) << x;
    return hits;
}

FASTREID_AL_OTHERS uint64_t reaching(const float* values, float threshold) {
    return compared(values, [=](int) { return threshold; });
}
FASTREID_AL_OTHERS uint64_t reaching(const uint16_t* values, float threshold) {
    return compared(values, [=](int) { return threshold; });
}
FASTREID_AL_OTHERS uint64_t reaching(const float* values, const float* thresholds) {
    return compared(values, [=](int x) { return thresholds[x]; });
}
FASTREID_AL_OTHERS uint64_t reaching(const uint16_t* values, const float* thresholds) {
    return compared(values, [=](int x) { return thresholds[x]; });
}

#ifdef FASTREID_AL_AVX512
FASTREID_AL_AVX512 inline __m512 sixteen(const float* values) { return _mm512_loadu_ps(values); }
FASTREID_AL_AVX512 inline __m512 sixteen(const uint16_t* values) {
    const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    // The variants without a mask are equivalent, but GCC 12 warns about them.
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff,
                                                       _mm512_maskz_cvtepu16_epi32(0xffff, upper),
                                                       16));
}

template <class T>
FASTREID_AL_AVX512 inline uint64_t compared512(const T* values, float threshold) {
    const __m512 limit = _mm512_set1_ps(threshold);
    uint64_t hits = 0;
    for (int x = 0; x < kChunk; x += 16) {
        const __mmask16 mask = _mm512_cmp_ps_mask(sixteen(values + x), limit, _CMP_GE_OQ);
        hits |= static_cast<uint64_t>(mask) << x;
    }
    return hits;
}
template <class T>
FASTREID_AL_AVX512 inline uint64_t compared512(const T* values, const float* thresholds) {
    uint64_t hits = 0;
    for (int x = 0; x < kChunk; x += 16) {
        const __m512 limits = sixteen(thresholds + x);
        const __mmask16 mask = _mm512_cmp_ps_mask(sixteen(values + x), limits, _CMP_GE_OQ);
        hits |= static_cast<uint64_t>(mask) << x;
    }
    return hits;
}

FASTREID_AL_AVX512 uint64_t reaching(const float* values, float threshold) {
    return compared512(values, threshold);
}
FASTREID_AL_AVX512 uint64_t reaching(const uint16_t* values, float threshold) {
    return compared512(values, threshold);
}
FASTREID_AL_AVX512 uint64_t reaching(const float* values, const float* thresholds) {
    return compared512(values, thresholds);
}
FASTREID_AL_AVX512 uint64_t reaching(const uint16_t* values, const float* thresholds) {
    return compared512(values, thresholds);
}
#endif

// Raise a row's threshold as far as its candidates allow, and drop those below.
template <class T>
void tighten(const Candidates& c, int64_t row, std::vector<float>& scratch) {
    float* values = c.values + row * c.capacity;
    int32_t* columns = c.columns + row * c.capacity;
    const int32_t count = c.counts[row];
    if (count < c.k) return;
    scratch.assign(values, values + count);
    std::nth_element(scratch.begin(), scratch.begin() + (c.k - 1), scratch.end(),
                     std::greater<float>());
    const float threshold =
        std::max(c.thresholds[row], lowest_candidate<T>(scratch[c.k - 1], c.margins[row]));
    int32_t kept = 0;
    for (int32_t x = 0; x < count; ++x) {
        if (!(values[x] >= threshold)) continue;
        values[kept] = values[x];
        columns[kept++] = columns[x];
    }
    c.counts[row] = kept;
    c.thresholds[row] = threshold;
}

template <class T>
void add(const Candidates& c, int64_t row, int64_t column, float value,
         std::vector<float>& scratch) {
    if ((c.symmetric && row == column) || !(value >= c.thresholds[row]) || c.counts[row] < 0)
        return;
    if (c.counts[row] == c.capacity) {
        tighten<T>(c, row, scratch);
        // Tightening must free some room. A row of near equals is given up here; the caller
        // searches it exactly.
        if (c.counts[row] > c.capacity - c.capacity / 8) {
            c.counts[row] = -1;
            c.thresholds[row] = kInfinity;
        }
        if (!(value >= c.thresholds[row])) return;
    }
    const int64_t slot = row * c.capacity + c.counts[row]++;
    c.values[slot] = value;
    c.columns[slot] = static_cast<int32_t>(column);
}

template <class T>
void add_rows_and_columns(const Candidates& c, const T* tile, int64_t row, int64_t rows,
                          int64_t column, int64_t columns, int threads) {
    auto scratch = [&] { return std::vector<float>(c.capacity); };
    parallel_for(threads, rows, 16, scratch,
                 [&](std::vector<float>& scratch_values, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const T* values = tile + r * columns;
            const int64_t i = row + r;
            int64_t x = 0;
            for (; x + kChunk <= columns; x += kChunk)
                for (uint64_t hits = reaching(values + x, c.thresholds[i]); hits;
                     hits &= hits - 1) {
                    const int64_t y = x + __builtin_ctzll(hits);
                    add<T>(c, i, column + y, widened(values[y]), scratch_values);
                }
            for (; x < columns; ++x) add<T>(c, i, column + x, widened(values[x]), scratch_values);
        }
    });
    if (!c.symmetric) return;
    // One thread processes all rows of a column, so candidates are added in a fixed order.
    const int64_t first = std::max<int64_t>(0, row + rows - column);
    parallel_for(threads, columns - first, 4 * kChunk, scratch,
                 [&](std::vector<float>& scratch_values, int64_t begin, int64_t end) {
        for (int64_t r = 0; r < rows; ++r) {
            const T* values = tile + r * columns;
            int64_t x = first + begin;
            for (; x + kChunk <= first + end; x += kChunk)
                for (uint64_t hits = reaching(values + x, c.thresholds + column + x); hits;
                     hits &= hits - 1) {
                    const int64_t y = x + __builtin_ctzll(hits);
                    add<T>(c, column + y, row + r, widened(values[y]), scratch_values);
                }
            for (; x < first + end; ++x)
                add<T>(c, column + x, row + r, widened(values[x]), scratch_values);
        }
    });
}

}  // namespace

void add_tile(const Candidates& c, const float* tile, int64_t row, int64_t rows, int64_t column,
              int64_t columns, int threads) {
    add_rows_and_columns(c, tile, row, rows, column, columns, threads);
}

void add_tile(const Candidates& c, const uint16_t* tile, int64_t row, int64_t rows, int64_t column,
              int64_t columns, int threads) {
    add_rows_and_columns(c, tile, row, rows, column, columns, threads);
}

void finish(const Candidates& c, bool bfloat16, const float* features, int64_t width,
            int64_t* neighbours, int threads) {
    using Neighbour = std::pair<float, int32_t>;
    struct Scratch {
        std::vector<float> values;
        std::vector<Neighbour> found;
    };
    auto nearer = [](const Neighbour& a, const Neighbour& b) {
        return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    auto make = [] { return Scratch(); };
    parallel_for(threads, c.n, 64, make, [&](Scratch& scratch, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t* out = neighbours + i * (c.k + 1);
            out[0] = i;
            if (bfloat16)
                tighten<uint16_t>(c, i, scratch.values);
            else
                tighten<float>(c, i, scratch.values);
            if (c.counts[i] < c.k) {
                std::fill(out + 1, out + 1 + c.k, -1);
                continue;
            }
            const int32_t* columns = c.columns + i * c.capacity;
            scratch.found.clear();
            for (int32_t x = 0; x < c.counts[i]; ++x) {
                const int32_t j = columns[x];
                const float similarity = dot(features + i * width, features + j * width, width);
                scratch.found.emplace_back(similarity, j);
            }
            std::partial_sort(scratch.found.begin(), scratch.found.begin() + c.k,
                              scratch.found.end(), nearer);
            for (int32_t x = 0; x < c.k; ++x) out[1 + x] = scratch.found[x].second;
        }
    });
}

void merge(const Candidates& c, const float* features, const float* others, int64_t offset,
           int64_t width, float* similarities, int64_t* columns, int threads) {
    using Neighbour = std::pair<float, int64_t>;
    auto nearer = [](const Neighbour& a, const Neighbour& b) {
        return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    auto make = [] { return std::vector<Neighbour>(); };
    parallel_for(threads, c.n, 64, make, [&](auto& found, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (c.counts[i] <= 0) continue;
            float* known = similarities + i * c.k;
            int64_t* neighbours = columns + i * c.k;
            found.clear();
            for (int32_t x = 0; x < c.k && neighbours[x] >= 0; ++x)
                found.emplace_back(known[x], neighbours[x]);
            const int32_t* candidates = c.columns + i * c.capacity;
            for (int32_t x = 0; x < c.counts[i]; ++x) {
                const int32_t j = candidates[x];
                const float similarity = dot(features + i * width, others + j * width, width);
                found.emplace_back(similarity, offset + j);
            }
            const size_t count = std::min<size_t>(c.k, found.size());
            std::partial_sort(found.begin(), found.begin() + count, found.end(), nearer);
            for (size_t x = 0; x < count; ++x) {
                known[x] = found[x].first;
                neighbours[x] = found[x].second;
            }
        }
    });
}

}  // namespace fastreid_al
