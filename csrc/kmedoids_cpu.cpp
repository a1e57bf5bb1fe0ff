#include "kmedoids.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "parallel.h"

// The hot loops are written once and compiled twice on x86-64: for every processor, and for those
// with AVX2 and FMA.
#if defined(__x86_64__) && defined(__GNUC__)
#define FASTREID_AL_TWO_TARGETS
#endif
#define FASTREID_AL_INLINE inline __attribute__((always_inline))

namespace fastreid_al {
namespace {

// GCC warns that the ABI of vectors depends on the target. Every function that takes or returns one
// is inlined, so no vector is passed in a call.
#pragma GCC diagnostic ignored "-Wpsabi"

constexpr int64_t lanes = 4;
typedef double Lanes __attribute__((vector_size(lanes * sizeof(double)), aligned(sizeof(double)),
                                    may_alias));

constexpr double infinite = std::numeric_limits<double>::infinity();
// Columns of features that are multiplied at a time, so that what a tile reads stays in the L1
// cache.
constexpr int64_t chunk = 256;
// Rows and columns of a tile of dot products, whose sums fit in registers.
constexpr int tile_rows = 4, tile_columns = 3;

FASTREID_AL_INLINE Lanes load(const double* from) { return *reinterpret_cast<const Lanes*>(from); }
FASTREID_AL_INLINE void store(double* to, Lanes values) { *reinterpret_cast<Lanes*>(to) = values; }
FASTREID_AL_INLINE Lanes all(double value) { return Lanes{value, value, value, value}; }
FASTREID_AL_INLINE Lanes greater(Lanes a, Lanes b) { return a > b ? a : b; }
FASTREID_AL_INLINE Lanes lesser(Lanes a, Lanes b) { return a < b ? a : b; }

// Buffers of one thread, for the cluster that it works on. Rows of `stride` values are padded to
// whole lanes. Points are i or j, groups (medoids) are p.
struct Scratch {
    std::vector<double> s;  // (m, stride) similarities
    // A point's similarity to its most similar medoid and to the next. BUILD: by point. SWAP: in
    // the order of `order`, so that a group's points are read one after the other.
    std::vector<double> best, second;
    std::vector<double> best_of_point, second_of_point;  // the same, by point, in SWAP too
    std::vector<double> sums;         // (stride): of candidate i, see `gains` and `exchanges`
    std::vector<double> changes;      // (k, stride): see `exchanges`
    std::vector<double> best_change;  // (stride): see `exchanges`
    std::vector<double> most, least;  // (k, stride): see `extremes`
    std::vector<int64_t> group;       // of each point
    std::vector<int64_t> order, starts;  // points by group, see `sort`
    std::vector<int64_t> built, medoids;
    int64_t m = 0, stride = 0;

    void load_block(const double* similarity, const MedoidBlock& block) {
        m = block.size;
        stride = (m + lanes - 1) / lanes * lanes;
        const int64_t k = block.k_max;
        grow(s, m * stride);
        for (auto* buffer : {&best, &second, &best_of_point, &second_of_point, &sums, &best_change})
            grow(*buffer, stride);
        for (auto* buffer : {&changes, &most, &least}) grow(*buffer, k * stride);
        for (auto* buffer : {&group, &order}) grow(*buffer, m);
        for (auto* buffer : {&starts, &built, &medoids}) grow(*buffer, k + 1);
        for (int64_t j = 0; j < m; ++j) {
            std::copy_n(similarity + block.similarity_offset + j * m, m, s.data() + j * stride);
            std::fill_n(s.data() + j * stride + m, stride - m, 0.0);
        }
    }

    // Counting sort of the points by group: those of group p are order[starts[p]] to
    // order[starts[p + 1] - 1], ascending.
    void sort(int64_t k) {
        std::fill_n(starts.begin(), k + 1, 0);
        for (int64_t j = 0; j < m; ++j) ++starts[group[j] + 1];
        std::partial_sum(starts.begin(), starts.begin() + k + 1, starts.begin());
        for (int64_t j = 0; j < m; ++j) order[starts[group[j]]++] = j;
        for (int64_t p = k; p > 0; --p) starts[p] = starts[p - 1];
        starts[0] = 0;
    }

    template <class T>
    static void grow(std::vector<T>& values, int64_t size) {
        if (static_cast<int64_t>(values.size()) < size) values.resize(size);
    }
};

// sums[i] of the W * lanes candidates from `from` on: what candidate i adds to the sum of
// similarities, or, while there is no medoid (First), its own sum.
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

// For each candidate i: sums[i], the sum with i as one more medoid; changes[p][i], how that changes
// when medoid p is removed; best_change[i], the greatest of those (FastPAM's decomposition). This
// way one pass over the points rates all k exchanges of a candidate. best and second are in the
// order of `order`.
template <int W>
FASTREID_AL_INLINE void exchanges(Scratch& x, int64_t k, int64_t from) {
    Lanes sum[W] = {}, best_change[W];
    for (int w = 0; w < W; ++w) best_change[w] = all(-infinite);
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
            best_change[w] = greater(change, best_change[w]);
            sum[w] += with[w];
        }
    }
    for (int w = 0; w < W; ++w) {
        store(x.sums.data() + from + w * lanes, sum[w]);
        store(x.best_change.data() + from + w * lanes, best_change[w]);
    }
}

// most[p][i] and least[p][i]: the greatest and the least similarity of point i to group p.
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
            store(x.most.data() + p * x.stride + from + w * lanes, most[w]);
            store(x.least.data() + p * x.stride + from + w * lanes, least[w]);
        }
    }
}

// The first index of the greatest sum, where sums that agree to sum_decimals are ties.
FASTREID_AL_INLINE int64_t first_greatest(const double* values, int64_t count) {
    const double greatest = rounded(*std::max_element(values, values + count), sum_decimals);
    // Rounding is slow, and not needed for values that are clearly less.
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

// Exchange medoids until nothing is gained. Returns the sum; x.group then holds the groups.
FASTREID_AL_INLINE double swap(Scratch& x, int64_t k) {
    double reached = -infinite;
    for (int64_t replaced = 0, removed = -1;;) {
        double total = 0;
        for (int64_t j = 0; j < x.m; ++j) {
            const Nearest near = nearest_medoids(x.s.data(), x.stride, x.medoids.data(), k, j);
            x.group[j] = near.group;
            x.best_of_point[j] = near.best;
            x.second_of_point[j] = near.second;
            total += near.best;
        }
        // Where sums are large, the promised gain can be a rounding error. Undo such an exchange,
        // or the loop could repeat it for ever.
        if (removed >= 0 && !(total > reached)) {
            x.medoids[replaced] = removed;
            for (int64_t j = 0; j < x.m; ++j)
                x.group[j] = nearest_medoids(x.s.data(), x.stride, x.medoids.data(), k, j).group;
            return reached;
        }
        reached = total;
        x.sort(k);
        for (int64_t t = 0; t < x.m; ++t) {
            x.best[t] = x.best_of_point[x.order[t]];
            x.second[t] = x.second_of_point[x.order[t]];
        }
        int64_t from = 0;
        for (; from + 4 * lanes <= x.stride; from += 4 * lanes) exchanges<4>(x, k, from);
        for (; from < x.stride; from += lanes) exchanges<1>(x, k, from);
        double* best_total = x.best_change.data();
        for (int64_t i = 0; i < x.m; ++i) best_total[i] += x.sums[i];
        for (int64_t p = 0; p < k; ++p) best_total[x.medoids[p]] = -infinite;
        const int64_t point = first_greatest(best_total, x.m);
        const double greatest = rounded(best_total[point], sum_decimals);
        const auto total_without = [&](int64_t p) {
            return x.sums[point] + x.changes[p * x.stride + point];
        };
        replaced = 0;
        while (replaced + 1 < k && rounded(total_without(replaced), sum_decimals) != greatest)
            ++replaced;
        const double promised =
            best_total[point] == -infinite ? -infinite : total_without(replaced);
        if (!(promised > total + least_gain)) return total;
        removed = x.medoids[replaced];
        x.medoids[replaced] = point;
    }
}

// Eq. 4 of the groups in x.group.
FASTREID_AL_INLINE double score(Scratch& x, int64_t k) {
    x.sort(k);
    int64_t from = 0;
    for (; from + 4 * lanes <= x.stride; from += 4 * lanes) extremes<4>(x, k, from);
    for (; from < x.stride; from += lanes) extremes<1>(x, k, from);
    double total = 0;
    for (int64_t p = 0; p < k; ++p) {
        double inside = infinite, outside = -infinite;
        for (int64_t t = x.starts[p]; t < x.starts[p + 1]; ++t) {
            const int64_t i = x.order[t];
            inside = std::min(inside, x.least[p * x.stride + i]);
            for (int64_t q = 0; q < k; ++q)
                if (q != p) outside = std::max(outside, x.most[q * x.stride + i]);
        }
        total += group_score(x.starts[p + 1] - x.starts[p], inside, outside);
    }
    return total;
}

FASTREID_AL_INLINE void one_block_body(const double* similarity, const MedoidBlock& block,
                                       int64_t k_min, const int64_t* start,
                                       const MedoidResults& out, Scratch& x) {
    x.load_block(similarity, block);
    if (start) {
        std::copy_n(start, block.k_max, x.built.data());
    } else {
        build(x, block.k_max);
    }
    double* scores = out.scores + block.score_offset;
    double greatest = -infinite;
    for (int64_t k = k_min; k <= block.k_max; ++k) {
        std::copy_n(x.built.data(), k, x.medoids.data());
        out.totals[block.score_offset + k - k_min] = swap(x, k);
        for (int64_t p = 0; p < k; ++p) x.group[x.medoids[p]] = p;
        scores[k - k_min] = score(x, k);
        const double value = rounded(scores[k - k_min], score_decimals);
        if (k > k_min && !(value > greatest)) continue;
        greatest = value;
        out.k[block.cluster] = k;
        std::copy_n(x.medoids.data(), k, out.medoids + block.medoid_offset);
        std::copy_n(x.group.data(), x.m, out.labels + block.label_offset);
    }
}

// Dot products of one tile over a chunk of columns, added to those of the chunks before. Only what
// lies on or below the diagonal is written.
FASTREID_AL_INLINE void tile(const double* rows, int64_t width, int64_t i, int64_t j, int64_t m,
                             bool first, double* out) {
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
            const Lanes parts = sum[r][c];
            const double value = (parts[0] + parts[1]) + (parts[2] + parts[3]);
            double& product = out[(i + r) * m + j + c];
            product = first ? value : product + value;
        }
}

template <class T>
FASTREID_AL_INLINE void one_product_body(const T* features, int64_t dim, const int64_t* members,
                                         int64_t m, std::vector<double>& rows, double* out) {
    Scratch::grow(rows, (m + tile_rows + tile_columns) * chunk);
    // The last tile multiplies rows past the end too; their products are not written.
    std::fill_n(rows.begin() + m * chunk, (tile_rows + tile_columns) * chunk, 0.0);
    for (int64_t begin = 0; begin == 0 || begin < dim; begin += chunk) {
        const int64_t width = std::min(chunk, dim - begin);
        const int64_t padded = (width + lanes - 1) / lanes * lanes;
        for (int64_t i = 0; i < m; ++i) {
            const T* from = features + members[i] * dim + begin;
            double* to = rows.data() + i * chunk;
            for (int64_t d = 0; d < width; ++d) to[d] = static_cast<double>(from[d]);
            // Prefetch the next chunk, so that it arrives while this one is multiplied.
            const int64_t next = std::min(chunk, dim - begin - width);
            for (int64_t d = 0; d < next; d += 64 / static_cast<int64_t>(sizeof(T)))
                __builtin_prefetch(from + width + d);
            for (int64_t d = width; d < padded; ++d) to[d] = 0;
        }
        for (int64_t i = 0; i < m; i += tile_rows)
            for (int64_t j = 0; j < std::min(m, i + tile_rows); j += tile_columns)
                tile(rows.data(), padded, i, j, m, begin == 0, out);
    }
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < i; ++j) out[j * m + i] = out[i * m + j];
}

void one_block(const double* similarity, const MedoidBlock& block, int64_t k_min,
               const int64_t* start, const MedoidResults& out, Scratch& x) {
    one_block_body(similarity, block, k_min, start, out, x);
}

template <class T>
void one_product(const T* features, int64_t dim, const int64_t* members, int64_t m,
                 std::vector<double>& rows, double* out) {
    one_product_body(features, dim, members, m, rows, out);
}

#ifdef FASTREID_AL_TWO_TARGETS
__attribute__((target("avx2,fma"))) void one_block_avx2(const double* similarity,
                                                        const MedoidBlock& block, int64_t k_min,
                                                        const int64_t* start,
                                                        const MedoidResults& out, Scratch& x) {
    one_block_body(similarity, block, k_min, start, out, x);
}

template <class T>
__attribute__((target("avx2,fma"))) void one_product_avx2(const T* features, int64_t dim,
                                                          const int64_t* members, int64_t m,
                                                          std::vector<double>& rows, double* out) {
    one_product_body(features, dim, members, m, rows, out);
}

bool has_avx2() {
    static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has;
}
#endif

// 0 to count - 1 by falling cost, so that no thread starts an expensive one at the end.
template <class Cost>
std::vector<int64_t> large_first(int64_t count, Cost cost) {
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    return order;
}

}  // namespace

void kmedoids_cpu(const double* similarity, const MedoidBlock* blocks, int64_t count,
                  int64_t k_min, const int64_t* start, MedoidResults out, int threads) {
    const auto order = large_first(count, [&](int64_t b) {
        return blocks[b].size * blocks[b].size * blocks[b].k_max;
    });
    auto run = one_block;
#ifdef FASTREID_AL_TWO_TARGETS
    if (has_avx2()) run = one_block_avx2;
#endif
    parallel_for(
        threads, count, 1, [] { return Scratch(); },
        [&](Scratch& x, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                run(similarity, blocks[order[i]], k_min, start, out, x);
        });
}

template <class T>
void dot_products_cpu(const T* features, int64_t dim, const int64_t* members, const int64_t* first,
                      const int64_t* sizes, const int64_t* offsets, int64_t count, double* out,
                      int threads) {
    const auto order = large_first(count, [&](int64_t c) { return sizes[c]; });
    auto run = one_product<T>;
#ifdef FASTREID_AL_TWO_TARGETS
    if (has_avx2()) run = one_product_avx2<T>;
#endif
    parallel_for(
        threads, count, 1, [] { return std::vector<double>(); },
        [&](std::vector<double>& rows, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t c = order[i];
                run(features, dim, members + first[c], sizes[c], rows, out + offsets[c]);
            }
        });
}

template void dot_products_cpu<float>(const float*, int64_t, const int64_t*, const int64_t*,
                                      const int64_t*, const int64_t*, int64_t, double*, int);
template void dot_products_cpu<double>(const double*, int64_t, const int64_t*, const int64_t*,
                                       const int64_t*, const int64_t*, int64_t, double*, int);

}  // namespace fastreid_al
