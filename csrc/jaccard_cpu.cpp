#include "jaccard.h"

#include <algorithm>
#include <utility>

#include "parallel.h"
#include "rows.h"

namespace fastreid_al {

namespace {

// Rows that a thread processes at a time; their results form one part until all are joined.
constexpr int64_t kRows = 128;

// Fill rows in parallel, each range into its own arrays, and concatenate them in order.
template <class Value, class Make, class Fill>
SparseRows<Value> rows_in_parallel(int64_t n, int threads, Make&& make, Fill&& fill) {
    struct Part {
        std::vector<int32_t> columns;
        std::vector<Value> values;
    };
    std::vector<Part> parts((n + kRows - 1) / kRows);
    SparseRows<Value> out;
    out.starts.assign(n + 1, 0);
    parallel_for(threads, n, kRows, make, [&](auto& scratch, int64_t begin, int64_t end) {
        Part& part = parts[begin / kRows];
        for (int64_t i = begin; i < end; ++i) {
            fill(scratch, i, part.columns, part.values);
            out.starts[i + 1] = static_cast<int64_t>(part.columns.size());
        }
    });
    for (int64_t i = 0, before = 0; i < n; ++i) {
        if (i && i % kRows == 0) before = out.starts[i];
        out.starts[i + 1] += before;
    }
    out.columns.reserve(out.starts[n]);
    out.values.reserve(out.starts[n]);
    for (Part& part : parts) {
        out.columns.insert(out.columns.end(), part.columns.begin(), part.columns.end());
        out.values.insert(out.values.end(), part.values.begin(), part.values.end());
        part = Part();
    }
    return out;
}

// R(i, k1 / 2) of every row: room for `half` members each, and their number.
struct ShortLists {
    std::vector<int32_t> members;
    std::vector<int32_t> counts;
};

bool contains(const int32_t* list, int32_t length, int32_t index) {
    bool found = false;
    for (int32_t x = 0; x < length; ++x) found |= list[x] == index;
    return found;
}

ShortLists reciprocal(const std::vector<int32_t>& neighbours, int64_t n, int32_t k1, int32_t half,
                      int threads) {
    ShortLists out{std::vector<int32_t>(n * half), std::vector<int32_t>(n)};
    parallel_for(threads, n, 4 * kRows, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int32_t count = 0;
            for (int32_t x = 0; x < half; ++x) {
                const int32_t j = neighbours[i * k1 + x];
                if (contains(&neighbours[static_cast<int64_t>(j) * k1], half,
                             static_cast<int32_t>(i)))
                    out.members[i * half + count++] = j;
            }
            out.counts[i] = count;
        }
    });
    return out;
}

// Expand R(i, k1): for each member q of which more than two thirds of R(q, k1 / 2) lie in R(i, k1),
// add R(q, k1 / 2). Then sort. In `seen` the members of R(i, k1) are marked `mark`, those added
// `mark` + 1: marks differ between rows, so `seen` is never cleared.
template <class List>
void expand(std::vector<int64_t>& seen, int64_t mark, std::vector<int32_t>& members,
            List&& half_of) {
    const int64_t added = mark + 1;
    const size_t unexpanded = members.size();
    for (size_t x = 0; x < unexpanded; ++x) {
        const auto [list, count] = half_of(x);
        int64_t common = 0;
        for (int64_t y = 0; y < count; ++y) common += seen[list[y]] == mark;
        // In integers: the test is strict, and 2/3 is not a float.
        if (3 * common <= 2 * count) continue;
        for (int64_t y = 0; y < count; ++y) {
            if (seen[list[y]] == mark || seen[list[y]] == added) continue;
            seen[list[y]] = added;
            members.push_back(list[y]);
        }
    }
    std::sort(members.begin(), members.end());
}

template <class T>
double exponential(T similarity) {
    return std::exp(2 * static_cast<double>(similarity) - 2);
}

template <class T>
typename FixedPoint<T>::Weight fixed_point(double part, double total) {
    const double scaled = std::ldexp(part / total, FixedPoint<T>::kBits);
    return static_cast<typename FixedPoint<T>::Weight>(std::llrint(scaled));
}

// V: the softmax of the similarities over each row's expanded k-reciprocal set.
template <class T>
SparseRows<typename FixedPoint<T>::Weight> reciprocal_weights(
    const JaccardArguments& a, const std::vector<int32_t>& neighbours, const T* features) {
    using Weight = typename FixedPoint<T>::Weight;
    const ShortLists halves = reciprocal(neighbours, a.n, a.k1, a.half, a.threads);
    struct Scratch {
        std::vector<int64_t> seen;  // by column: 2 i + 1 in R(i, k1), 2 i + 2 added to it
        std::vector<int32_t> members;
        std::vector<double> exponentials;
    };
    auto make = [&] { return Scratch{std::vector<int64_t>(a.n), {}, {}}; };
    return rows_in_parallel<Weight>(a.n, a.threads, make,
                                    [&](Scratch& scratch, int64_t i, auto& columns, auto& values) {
        auto& seen = scratch.seen;
        auto& members = scratch.members;
        members.clear();
        const int64_t mark = 2 * i + 1;
        for (int32_t x = 0; x < a.k1; ++x) {
            const int32_t j = neighbours[i * a.k1 + x];
            const int32_t* list_of_j = &neighbours[static_cast<int64_t>(j) * a.k1];
            if (!contains(list_of_j, a.k1, static_cast<int32_t>(i))) continue;
            seen[j] = mark;
            members.push_back(j);
        }
        expand(seen, mark, members, [&](size_t x) {
            const int64_t q = members[x];
            return std::make_pair(&halves.members[q * a.half],
                                  static_cast<int64_t>(halves.counts[q]));
        });
        scratch.exponentials.clear();
        double total = 0;
        for (int32_t j : members) {
            const T s =
                dot(features + i * a.width, features + static_cast<int64_t>(j) * a.width, a.width);
            scratch.exponentials.push_back(exponential(s));
            total += scratch.exponentials.back();
        }
        for (size_t x = 0; x < members.size(); ++x) {
            const Weight weight = fixed_point<T>(scratch.exponentials[x], total);
            if (!weight) continue;
            columns.push_back(members[x]);
            values.push_back(weight);
        }
    });
}

template <class Value>
SparseRows<Value> transposed(const SparseRows<Value>& rows, int64_t n) {
    SparseRows<Value> out;
    out.starts.assign(n + 1, 0);
    for (int32_t t : rows.columns) ++out.starts[t + 1];
    for (int64_t t = 0; t < n; ++t) out.starts[t + 1] += out.starts[t];
    out.columns.resize(rows.columns.size());
    out.values.resize(rows.values.size());
    std::vector<int64_t> next(out.starts.begin(), out.starts.end() - 1);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t x = rows.starts[i]; x < rows.starts[i + 1]; ++x) {
            const int64_t slot = next[rows.columns[x]]++;
            out.columns[slot] = static_cast<int32_t>(i);
            out.values[slot] = rows.values[x];
        }
    return out;
}

// No smaller overlap has a distance of at most `max_distance`. A little less than the exact bound,
// because distances are rounded.
template <class T>
typename FixedPoint<T>::Weight smallest_overlap(T max_distance) {
    const double distance = static_cast<double>(max_distance);
    const double m = 2.0 * (1.0 - distance) / (2.0 - distance);
    const double scaled = std::ldexp(std::max(0.0, m - 1e-6), FixedPoint<T>::kBits);
    return static_cast<typename FixedPoint<T>::Weight>(scaled);
}

template <class Value>
RowsOf<Value> view(const SparseRows<Value>& rows) {
    return {rows.starts.data(), rows.columns.data(), rows.values.data()};
}

// For each row i of `v`, the rows j other than id(i) with a distance of at most `max_distance`,
// ascending. For each column t of row i, the rows with column t are read in `by_column`, from
// index first(i, t) on.
template <class T, class Id, class First>
SparseRows<T> pairs(Id&& id, int64_t count, const RowsOf<typename FixedPoint<T>::Weight>& v,
                    const RowsOf<typename FixedPoint<T>::Weight>& by_column, First&& first,
                        int64_t n, T max_distance, int threads) {
    using Weight = typename FixedPoint<T>::Weight;
    const Weight least = std::max<Weight>(1, smallest_overlap(max_distance));
    struct Scratch {
        std::vector<Weight> overlaps;  // with every row; zero between rows
        std::vector<int32_t> touched;
    };
    auto make = [&] { return Scratch{std::vector<Weight>(n), std::vector<int32_t>(n + 1)}; };
    return rows_in_parallel<T>(count, threads, make,
                               [&](Scratch& scratch, int64_t i, auto& columns, auto& values) {
        Weight* overlaps = scratch.overlaps.data();
        int32_t* touched = scratch.touched.data();
        int64_t found = 0;
        for (int64_t x = v.starts[i]; x < v.starts[i + 1]; ++x) {
            const int64_t t = v.columns[x];
            const Weight weight = v.values[x];
            const int32_t* partners = by_column.columns;
            const Weight* weights = by_column.values;
            const int64_t end = by_column.starts[t + 1];
            for (int64_t y = first(i, t); y < end; ++y) {
                const int32_t j = partners[y];
                // Without a branch, which would be mispredicted half of the time.
                const Weight before = overlaps[j];
                touched[found] = j;
                found += before == 0;
                overlaps[j] = before + std::min(weight, weights[y]);
            }
        }
        const size_t begin = columns.size();
        for (int64_t x = 0; x < found; ++x) {
            const int32_t j = touched[x];
            const bool near =
                overlaps[j] >= least && jaccard_distance<T>(overlaps[j]) <= max_distance;
            if (near && j != id(i)) {
                columns.push_back(j);
            } else {
                overlaps[j] = 0;
            }
        }
        std::sort(columns.begin() + begin, columns.end());
        for (size_t x = begin; x < columns.size(); ++x) {
            values.push_back(jaccard_distance<T>(overlaps[columns[x]]));
            overlaps[columns[x]] = 0;
        }
    });
}

}  // namespace

template <class Index, class Weight>
SparseRows<Weight> averaged(const Index* lists, int64_t rows, int32_t stride, int32_t k2,
                            const RowsOf<Weight>& v, int64_t n, int threads) {
    struct Scratch {
        std::vector<uint64_t> sums;
        std::vector<int32_t> touched;
    };
    auto make = [&] { return Scratch{std::vector<uint64_t>(n), {}}; };
    return rows_in_parallel<Weight>(rows, threads, make,
                                    [&](Scratch& scratch, int64_t i, auto& columns, auto& values) {
        scratch.touched.clear();
        for (int32_t x = 0; x < k2; ++x) {
            const int64_t j = lists[i * stride + x];
            for (int64_t y = v.starts[j]; y < v.starts[j + 1]; ++y) {
                uint64_t& sum = scratch.sums[v.columns[y]];
                if (!sum) scratch.touched.push_back(v.columns[y]);
                sum += v.values[y];
            }
        }
        std::sort(scratch.touched.begin(), scratch.touched.end());
        for (int32_t t : scratch.touched) {
            const auto weight = static_cast<Weight>((scratch.sums[t] + k2 / 2) / k2);
            scratch.sums[t] = 0;
            if (!weight) continue;
            columns.push_back(t);
            values.push_back(weight);
        }
    });
}

template <class T>
SparseRows<T> upper_edges(const JaccardArguments& a, const T* features, T max_distance) {
    using Weight = typename FixedPoint<T>::Weight;
    const std::vector<int32_t> neighbours(a.neighbours, a.neighbours + a.n * a.k1);
    const SparseRows<Weight> unaveraged = reciprocal_weights(a, neighbours, features);
    const int32_t k2 = std::min(a.k2, a.k1);
    const SparseRows<Weight> v =
        averaged(neighbours.data(), a.n, a.k1, k2, view(unaveraged), a.n, a.threads);
    const SparseRows<Weight> by_column = transposed(v, a.n);
    // Only rows after i.
    auto first = [&](int64_t i, int64_t t) {
        const int32_t* rows = by_column.columns.data();
        const int32_t* end = rows + by_column.starts[t + 1];
        return std::upper_bound(rows + by_column.starts[t], end, static_cast<int32_t>(i)) - rows;
    };
    return pairs<T>([](int64_t i) { return i; }, a.n, view(v), view(by_column), first, a.n,
                    max_distance, a.threads);
}

SparseRows<uint8_t> expanded_sets(int64_t rows, const RowsOf<int32_t>& sets,
                                  const RowsOf<uint8_t>& halves, int64_t n, int threads) {
    struct Scratch {
        std::vector<int64_t> seen;  // as for `expand`
        std::vector<int32_t> members;
    };
    auto make = [&] { return Scratch{std::vector<int64_t>(n), {}}; };
    return rows_in_parallel<uint8_t>(rows, threads, make,
                                     [&](Scratch& scratch, int64_t i, auto& columns, auto&) {
        const int64_t start = sets.starts[i], mark = 2 * i + 1;
        scratch.members.assign(sets.columns + start, sets.columns + sets.starts[i + 1]);
        for (int32_t j : scratch.members) scratch.seen[j] = mark;
        expand(scratch.seen, mark, scratch.members, [&](size_t x) {
            const int64_t* half = halves.starts + sets.values[start + x];
            return std::make_pair(halves.columns + half[0], half[1] - half[0]);
        });
        columns.insert(columns.end(), scratch.members.begin(), scratch.members.end());
    });
}

template <class T>
void products(const RowsOf<T>& sets, int64_t rows, const T* features, const T* others,
              int64_t first, int64_t count, int64_t width, T* out, int threads) {
    parallel_for(threads, rows, kRows, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            for (int64_t x = sets.starts[i]; x < sets.starts[i + 1]; ++x) {
                const int64_t other = sets.columns[x] - first;
                if (other >= 0 && other < count)
                    out[x] = dot(features + i * width, others + other * width, width);
            }
    });
}

template <class T>
void softmax_weights(const int64_t* starts, int64_t rows, const T* similarities,
                     typename FixedPoint<T>::Weight* out, int threads) {
    auto make = [] { return std::vector<double>(); };
    parallel_for(threads, rows, kRows, make, [&](auto& exponentials, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            exponentials.clear();
            double total = 0;
            for (int64_t x = starts[i]; x < starts[i + 1]; ++x) {
                exponentials.push_back(exponential(similarities[x]));
                total += exponentials.back();
            }
            for (int64_t x = starts[i]; x < starts[i + 1]; ++x)
                out[x] = fixed_point<T>(exponentials[x - starts[i]], total);
        }
    });
}

template <class T>
SparseRows<T> near_pairs(const int64_t* ids, int64_t count,
                         const RowsOf<typename FixedPoint<T>::Weight>& rows,
                         const RowsOf<typename FixedPoint<T>::Weight>& columns, int64_t n,
                         T max_distance, int threads) {
    auto first = [&](int64_t, int64_t t) { return columns.starts[t]; };
    return pairs<T>([&](int64_t i) { return ids[i]; }, count, rows, columns, first, n,
                    max_distance, threads);
}

template <class T>
void symmetric(const SparseRows<T>& upper, int64_t* starts, int64_t* columns, T* values) {
    const int64_t n = static_cast<int64_t>(upper.starts.size()) - 1;
    std::fill(starts, starts + n + 1, 0);
    for (int64_t i = 0; i < n; ++i) starts[i + 1] += upper.starts[i + 1] - upper.starts[i];
    for (int32_t j : upper.columns) ++starts[j + 1];
    for (int64_t i = 0; i < n; ++i) starts[i + 1] += starts[i];
    std::vector<int64_t> next(starts, starts + n);
    // Rows ascend, so each row's lower columns are written in order, and before its upper columns.
    for (int64_t i = 0; i < n; ++i)
        for (int64_t x = upper.starts[i]; x < upper.starts[i + 1]; ++x) {
            const int64_t slot = next[upper.columns[x]]++;
            columns[slot] = i;
            values[slot] = upper.values[x];
        }
    for (int64_t i = 0; i < n; ++i) {
        const int64_t x = upper.starts[i], count = upper.starts[i + 1] - x;
        std::copy_n(upper.columns.begin() + x, count, columns + next[i]);
        std::copy_n(upper.values.begin() + x, count, values + next[i]);
    }
}

template SparseRows<uint32_t> averaged(const int64_t*, int64_t, int32_t, int32_t,
                                       const RowsOf<uint32_t>&, int64_t, int);
template SparseRows<uint64_t> averaged(const int64_t*, int64_t, int32_t, int32_t,
                                       const RowsOf<uint64_t>&, int64_t, int);
template void products(const RowsOf<float>&, int64_t, const float*, const float*, int64_t, int64_t,
                       int64_t, float*, int);
template void products(const RowsOf<double>&, int64_t, const double*, const double*, int64_t,
                       int64_t, int64_t, double*, int);
template void softmax_weights(const int64_t*, int64_t, const float*, uint32_t*, int);
template void softmax_weights(const int64_t*, int64_t, const double*, uint64_t*, int);
template SparseRows<float> near_pairs(const int64_t*, int64_t, const RowsOf<uint32_t>&,
                                      const RowsOf<uint32_t>&, int64_t, float, int);
template SparseRows<double> near_pairs(const int64_t*, int64_t, const RowsOf<uint64_t>&,
                                       const RowsOf<uint64_t>&, int64_t, double, int);
template SparseRows<float> upper_edges(const JaccardArguments&, const float*, float);
template SparseRows<double> upper_edges(const JaccardArguments&, const double*, double);
template void symmetric(const SparseRows<float>&, int64_t*, int64_t*, float*);
template void symmetric(const SparseRows<double>&, int64_t*, int64_t*, double*);

}  // namespace fastreid_al
