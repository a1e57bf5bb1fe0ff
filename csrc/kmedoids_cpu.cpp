#include "kmedoids.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "parallel.h"

// The hot loops are written once and compiled twice where it pays: for every x86-64, and for those with AVX2 and FMA.
#if defined(__x86_64__) && defined(__GNUC__)
#define FASTREID_AL_TWO_TARGETS
#endif
#define FASTREID_AL_INLINE inline __attribute__((always_inline))

namespace fastreid_al {
namespace {

// Vectors never cross a call: whoever takes or gives one is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

constexpr int64_t lanes = 4;
typedef double Lanes __attribute__((vector_size(lanes * sizeof(double)), aligned(sizeof(double)), may_alias));

constexpr double infinite = std::numeric_limits<double>::infinity();
// Values of a row that are multiplied before the next row is taken: what a tile reads stays in the first cache.
constexpr int64_t chunk = 256;
// Rows and columns of a tile of dot products, whose sums are kept in registers.
constexpr int tile_rows = 4, tile_columns = 3;

FASTREID_AL_INLINE Lanes load(const double* from) { return *reinterpret_cast<const Lanes*>(from); }
FASTREID_AL_INLINE void store(double* to, Lanes values) { *reinterpret_cast<Lanes*>(to) = values; }
FASTREID_AL_INLINE Lanes all(double value) { return Lanes{value, value, value, value}; }
FASTREID_AL_INLINE Lanes greater(Lanes a, Lanes b) { return a > b ? a : b; }
FASTREID_AL_INLINE Lanes lesser(Lanes a, Lanes b) { return a < b ? a : b; }

struct Scratch {
    std::vector<double> s;  // the matrix, its rows padded to whole lanes
    std::vector<double> best, second;
    std::vector<double> sums, changes, top, least;
    std::vector<int64_t> place, order, starts, built, medoids;
    int64_t m = 0, stride = 0;

    void take(const double* similarity, const MedoidBlock& block) {
        m = block.size;
        stride = (m + lanes - 1) / lanes * lanes;
        const int64_t k = block.k_max;
        grow(s, m * stride);
        for (auto* one : {&best, &second, &sums, &top}) grow(*one, stride);
        for (auto* one : {&changes, &least}) grow(*one, k * stride);
        for (auto* one : {&place, &order}) grow(*one, m);
        for (auto* one : {&starts, &built, &medoids}) grow(*one, k + 1);
        for (int64_t j = 0; j < m; ++j) {
            std::copy_n(similarity + block.offset + j * m, m, s.data() + j * stride);
            std::fill_n(s.data() + j * stride + m, stride - m, 0.0);
        }
    }

    // Points by the place of their medoid: those of place p are order[starts[p]] to order[starts[p + 1] - 1].
    void sort(int64_t k) {
        std::fill_n(starts.begin(), k + 1, 0);
        for (int64_t j = 0; j < m; ++j) ++starts[place[j] + 1];
        std::partial_sum(starts.begin(), starts.begin() + k + 1, starts.begin());
        for (int64_t j = 0; j < m; ++j) order[starts[place[j]]++] = j;
        for (int64_t p = k; p > 0; --p) starts[p] = starts[p - 1];
        starts[0] = 0;
    }

    template <class T>
    static void grow(std::vector<T>& values, int64_t size) {
        if (static_cast<int64_t>(values.size()) < size) values.resize(size);
    }
};

// Candidates from `from` to `from` + W * lanes: what each would add to the sum, or its own sum where there is no medoid yet.
template <int W, bool First>
FASTREID_AL_INLINE void gains(Scratch& x, int64_t from) {
    const double* row = x.s.data() + from;
    Lanes sum[W] = {};
    for (int64_t j = 0; j < x.m; ++j, row += x.stride) {
        const Lanes best = all(First ? 0.0 : x.best[j]);
        for (int w = 0; w < W; ++w) {
            const Lanes value = load(row + w * lanes) - best;
            sum[w] += First ? value : greater(value, Lanes{});
        }
    }
    for (int w = 0; w < W; ++w) store(x.sums.data() + from + w * lanes, sum[w]);
}

template <bool First>
FASTREID_AL_INLINE void all_gains(Scratch& x) {
    int64_t from = 0;
    for (; from + 4 * lanes <= x.stride; from += 4 * lanes) gains<4, First>(x, from);
    for (; from < x.stride; from += lanes) gains<1, First>(x, from);
}

// For each candidate i: sums[i], the sum with i as one more medoid; changes[p][i], what that loses when the medoid at place p
// goes; top[i], the greatest of them (FastPAM's decomposition). best and second stand in the order of `order`.
template <int W>
FASTREID_AL_INLINE void exchanges(Scratch& x, int64_t k, int64_t from) {
    Lanes sum[W] = {}, top[W];
    for (int w = 0; w < W; ++w) top[w] = all(-infinite);
    for (int64_t p = 0; p < k; ++p) {
        Lanes with[W] = {}, without[W] = {};
        for (int64_t t = x.starts[p]; t < x.starts[p + 1]; ++t) {
            const double* row = x.s.data() + x.order[t] * x.stride + from;
            const Lanes best = all(x.best[t]), second = all(x.second[t]);
            for (int w = 0; w < W; ++w) {
                const Lanes value = load(row + w * lanes);
                with[w] += greater(value, best);
                without[w] += greater(value, second);
            }
        }
        for (int w = 0; w < W; ++w) {
            const Lanes change = without[w] - with[w];
            store(x.changes.data() + p * x.stride + from + w * lanes, change);
            top[w] = greater(change, top[w]);
            sum[w] += with[w];
        }
    }
    for (int w = 0; w < W; ++w) {
        store(x.sums.data() + from + w * lanes, sum[w]);
        store(x.top.data() + from + w * lanes, top[w]);
    }
}

// changes[p][i] and least[p][i]: the greatest and the least similarity of point i to the group at place p.
template <int W>
FASTREID_AL_INLINE void extremes(Scratch& x, int64_t k, int64_t from) {
    for (int64_t p = 0; p < k; ++p) {
        Lanes most[W], least[W];
        for (int w = 0; w < W; ++w) {
            most[w] = all(-infinite);
            least[w] = all(infinite);
        }
        for (int64_t t = x.starts[p]; t < x.starts[p + 1]; ++t) {
            const double* row = x.s.data() + x.order[t] * x.stride + from;
            for (int w = 0; w < W; ++w) {
                const Lanes value = load(row + w * lanes);
                most[w] = greater(value, most[w]);
                least[w] = lesser(value, least[w]);
            }
        }
        for (int w = 0; w < W; ++w) {
            store(x.changes.data() + p * x.stride + from + w * lanes, most[w]);
            store(x.least.data() + p * x.stride + from + w * lanes, least[w]);
        }
    }
}

// The first index of the greatest sum, to the decimals that count.
FASTREID_AL_INLINE int64_t first_greatest(const double* values, int64_t count) {
    const double greatest = rounded(*std::max_element(values, values + count), sum_decimals);
    // What is much less needs no rounding to be told apart.
    const double near = greatest - 4 / sum_decimals - 1e-12 * std::abs(greatest);
    for (int64_t i = 0; i < count; ++i)
        if (!(values[i] < near) && rounded(values[i], sum_decimals) == greatest) return i;
    return 0;
}

FASTREID_AL_INLINE void build(Scratch& x, int64_t k) {
    all_gains<true>(x);
    x.built[0] = first_greatest(x.sums.data(), x.m);
    std::copy_n(x.s.data() + x.built[0] * x.stride, x.m, x.best.data());
    for (int64_t p = 1; p < k; ++p) {
        all_gains<false>(x);
        for (int64_t q = 0; q < p; ++q) x.sums[x.built[q]] = -1;
        x.built[p] = first_greatest(x.sums.data(), x.m);
        const double* row = x.s.data() + x.built[p] * x.stride;
        for (int64_t j = 0; j < x.m; ++j) x.best[j] = std::max(x.best[j], row[j]);
    }
}

// Exchange medoids until nothing is gained; the sum that is reached. Places are left in x.place.
FASTREID_AL_INLINE double swap(Scratch& x, int64_t k) {
    double reached = -infinite;
    for (int64_t place = 0, left = -1;;) {
        double total = 0;
        for (int64_t j = 0; j < x.m; ++j) {
            const Nearest near = nearest_medoids(x.s.data(), x.stride, x.medoids.data(), k, j);
            x.place[j] = near.place;
            // Until the points are in order.
            x.sums[j] = near.best;
            x.top[j] = near.second;
            total += near.best;
        }
        // Where sums are large, what their rounding promised is no gain: without this it could go round for ever.
        if (left >= 0 && !(total > reached)) {
            x.medoids[place] = left;
            for (int64_t j = 0; j < x.m; ++j)
                x.place[j] = nearest_medoids(x.s.data(), x.stride, x.medoids.data(), k, j).place;
            return reached;
        }
        reached = total;
        x.sort(k);
        for (int64_t t = 0; t < x.m; ++t) {
            x.best[t] = x.sums[x.order[t]];
            x.second[t] = x.top[x.order[t]];
        }
        int64_t from = 0;
        for (; from + 4 * lanes <= x.stride; from += 4 * lanes) exchanges<4>(x, k, from);
        for (; from < x.stride; from += lanes) exchanges<1>(x, k, from);
        for (int64_t i = 0; i < x.m; ++i) x.top[i] += x.sums[i];
        for (int64_t p = 0; p < k; ++p) x.top[x.medoids[p]] = -infinite;
        const int64_t point = first_greatest(x.top.data(), x.m);
        const double greatest = rounded(x.top[point], sum_decimals);
        place = 0;
        while (place + 1 < k && rounded(x.sums[point] + x.changes[place * x.stride + point], sum_decimals) != greatest) ++place;
        const double promised = x.top[point] == -infinite ? -infinite : x.sums[point] + x.changes[place * x.stride + point];
        if (!(promised > total + least_gain)) return total;
        left = x.medoids[place];
        x.medoids[place] = point;
    }
}

// Eq. 4 for the groups in x.place.
FASTREID_AL_INLINE double score(Scratch& x, int64_t k) {
    x.sort(k);
    int64_t from = 0;
    for (; from + 4 * lanes <= x.stride; from += 4 * lanes) extremes<4>(x, k, from);
    for (; from < x.stride; from += lanes) extremes<1>(x, k, from);
    double worth = 0;
    for (int64_t p = 0; p < k; ++p) {
        double inside = infinite, outside = -infinite;
        for (int64_t t = x.starts[p]; t < x.starts[p + 1]; ++t) {
            const int64_t i = x.order[t];
            inside = std::min(inside, x.least[p * x.stride + i]);
            for (int64_t q = 0; q < k; ++q)
                if (q != p) outside = std::max(outside, x.changes[q * x.stride + i]);
        }
        worth += group_worth(x.starts[p + 1] - x.starts[p], inside, outside);
    }
    return worth;
}

FASTREID_AL_INLINE void one_block_body(const double* similarity, const MedoidBlock& block, int64_t k_min,
                                       const int64_t* start, const MedoidResults& out, Scratch& x) {
    x.take(similarity, block);
    if (start) {
        std::copy_n(start, block.k_max, x.built.data());
    } else {
        build(x, block.k_max);
    }
    double* scores = out.scores + block.way;
    double greatest = -infinite;
    for (int64_t k = k_min; k <= block.k_max; ++k) {
        std::copy_n(x.built.data(), k, x.medoids.data());
        out.totals[block.way + k - k_min] = swap(x, k);
        for (int64_t p = 0; p < k; ++p) x.place[x.medoids[p]] = p;
        scores[k - k_min] = score(x, k);
        const double value = rounded(scores[k - k_min], score_decimals);
        if (k > k_min && !(value > greatest)) continue;
        greatest = value;
        out.k[block.cluster] = k;
        std::copy_n(x.medoids.data(), k, out.medoids + block.medoid);
        std::copy_n(x.place.data(), x.m, out.labels + block.point);
    }
}

// Sums of one tile over a chunk, added to what the chunks before gave, below the diagonal.
FASTREID_AL_INLINE void tile(const double* rows, int64_t width, int64_t i, int64_t j, int64_t m, bool first, double* out) {
    Lanes sum[tile_rows][tile_columns] = {};
    const double *a = rows + i * chunk, *b = rows + j * chunk;
    for (int64_t d = 0; d < width; d += lanes) {
        Lanes right[tile_columns];
        for (int c = 0; c < tile_columns; ++c) right[c] = load(b + c * chunk + d);
        for (int r = 0; r < tile_rows; ++r) {
            const Lanes left = load(a + r * chunk + d);
            for (int c = 0; c < tile_columns; ++c) sum[r][c] += left * right[c];
        }
    }
    for (int r = 0; r < tile_rows && i + r < m; ++r)
        for (int c = 0; c < tile_columns && j + c <= i + r; ++c) {
            const Lanes x = sum[r][c];
            const double value = (x[0] + x[1]) + (x[2] + x[3]);
            double& at = out[(i + r) * m + j + c];
            at = first ? value : at + value;
        }
}

template <class T>
FASTREID_AL_INLINE void one_product_body(const T* features, int64_t dim, const int64_t* members, int64_t m,
                                         std::vector<double>& rows, double* out) {
    Scratch::grow(rows, (m + tile_rows + tile_columns) * chunk);
    // Rows past the last are multiplied too, and left out.
    std::fill_n(rows.begin() + m * chunk, (tile_rows + tile_columns) * chunk, 0.0);
    for (int64_t begin = 0; begin == 0 || begin < dim; begin += chunk) {
        const int64_t width = std::min(chunk, dim - begin), padded = (width + lanes - 1) / lanes * lanes;
        for (int64_t i = 0; i < m; ++i) {
            const T* from = features + members[i] * dim + begin;
            double* to = rows.data() + i * chunk;
            for (int64_t d = 0; d < width; ++d) to[d] = static_cast<double>(from[d]);
            // The next chunk comes in while this one is multiplied.
            const int64_t next = std::min(chunk, dim - begin - width);
            for (int64_t d = 0; d < next; d += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + width + d);
            for (int64_t d = width; d < padded; ++d) to[d] = 0;
        }
        for (int64_t i = 0; i < m; i += tile_rows)
            for (int64_t j = 0; j < std::min(m, i + tile_rows); j += tile_columns) tile(rows.data(), padded, i, j, m, begin == 0, out);
    }
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < i; ++j) out[j * m + i] = out[i * m + j];
}

void one_block(const double* similarity, const MedoidBlock& block, int64_t k_min, const int64_t* start,
               const MedoidResults& out, Scratch& x) {
    one_block_body(similarity, block, k_min, start, out, x);
}

template <class T>
void one_product(const T* features, int64_t dim, const int64_t* members, int64_t m, std::vector<double>& rows, double* out) {
    one_product_body(features, dim, members, m, rows, out);
}

#ifdef FASTREID_AL_TWO_TARGETS
__attribute__((target("avx2,fma"))) void one_block_avx2(const double* similarity, const MedoidBlock& block, int64_t k_min, const int64_t* start, const MedoidResults& out,
                                                        Scratch& x) {
    one_block_body(similarity, block, k_min, start, out, x);
}

template <class T>
__attribute__((target("avx2,fma"))) void one_product_avx2(const T* features, int64_t dim, const int64_t* members, int64_t m,
                                                          std::vector<double>& rows, double* out) {
    one_product_body(features, dim, members, m, rows, out);
}

bool has_avx2() {
    static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has;
}
#endif

// 0 to count - 1, those of the largest cost first: no thread is left with a large one at the end.
template <class Cost>
std::vector<int64_t> large_first(int64_t count, Cost cost) {
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    return order;
}

}  // namespace

void kmedoids_cpu(const double* similarity, const MedoidBlock* blocks, int64_t count, int64_t k_min, const int64_t* start,
                  MedoidResults out, int threads) {
    const auto order = large_first(count, [&](int64_t b) { return blocks[b].size * blocks[b].size * blocks[b].k_max; });
    auto run = one_block;
#ifdef FASTREID_AL_TWO_TARGETS
    if (has_avx2()) run = one_block_avx2;
#endif
    parallel_for(
        threads, count, 1, [] { return Scratch(); },
        [&](Scratch& x, int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at) run(similarity, blocks[order[at]], k_min, start, out, x);
        });
}

template <class T>
void dot_products_cpu(const T* features, int64_t dim, const int64_t* members, const int64_t* first, const int64_t* sizes,
                      const int64_t* offsets, int64_t count, double* out, int threads) {
    const auto order = large_first(count, [&](int64_t c) { return sizes[c]; });
    auto run = one_product<T>;
#ifdef FASTREID_AL_TWO_TARGETS
    if (has_avx2()) run = one_product_avx2<T>;
#endif
    parallel_for(
        threads, count, 1, [] { return std::vector<double>(); },
        [&](std::vector<double>& rows, int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at) {
                const int64_t c = order[at];
                run(features, dim, members + first[c], sizes[c], rows, out + offsets[c]);
            }
        });
}

template void dot_products_cpu<float>(const float*, int64_t, const int64_t*, const int64_t*, const int64_t*, const int64_t*,
                                      int64_t, double*, int);
template void dot_products_cpu<double>(const double*, int64_t, const int64_t*, const int64_t*, const int64_t*, const int64_t*,
                                       int64_t, double*, int);

}  // namespace fastreid_al
