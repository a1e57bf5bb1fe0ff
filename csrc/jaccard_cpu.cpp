#include "jaccard.h"

#include <algorithm>
#include <utility>

#include "parallel.h"
#include "rows.h"

namespace fastreid_al {

namespace {

// Rows that one thread takes at a time, and whose results are kept together until all are known.
constexpr int64_t kRows = 128;

// Fill rows in parallel, each range into arrays of its own, and put them one behind another.
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

// R(i, k) of every row for a short k, `half` places each and a count.
struct ShortLists {
    std::vector<int32_t> members;
    std::vector<int32_t> counts;
};

bool lists(const int32_t* list, int32_t length, int32_t wanted) {
    bool found = false;
    for (int32_t x = 0; x < length; ++x) found |= list[x] == wanted;
    return found;
}

ShortLists reciprocal(const std::vector<int32_t>& neighbours, int64_t n, int32_t k1, int32_t half, int threads) {
    ShortLists out{std::vector<int32_t>(n * half), std::vector<int32_t>(n)};
    parallel_for(threads, n, 4 * kRows, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int32_t count = 0;
            for (int32_t x = 0; x < half; ++x) {
                const int32_t j = neighbours[i * k1 + x];
                if (lists(&neighbours[static_cast<int64_t>(j) * k1], half, static_cast<int32_t>(i)))
                    out.members[i * half + count++] = j;
            }
            out.counts[i] = count;
        }
    });
    return out;
}

// Add to the members of R(i, k1), marked `own` in `seen`, those of R_half(q) of each member q that lies in it by more than two
// thirds, marked `own` + 1. Then all ascend.
template <class List>
void expand(std::vector<int64_t>& seen, int64_t own, std::vector<int32_t>& members, List&& half_of) {
    const int64_t added = own + 1;
    const size_t unexpanded = members.size();
    for (size_t x = 0; x < unexpanded; ++x) {
        const auto [list, count] = half_of(x);
        int64_t common = 0;
        for (int64_t y = 0; y < count; ++y) common += seen[list[y]] == own;
        // In whole numbers: the test is strict, and 2/3 is not a float.
        if (3 * common <= 2 * count) continue;
        for (int64_t y = 0; y < count; ++y) {
            if (seen[list[y]] == own || seen[list[y]] == added) continue;
            seen[list[y]] = added;
            members.push_back(list[y]);
        }
    }
    std::sort(members.begin(), members.end());
}

template <class T>
double raised(T similarity) {
    return std::exp(2 * static_cast<double>(similarity) - 2);
}

template <class T>
typename Unit<T>::Share share_of(double raised, double total) {
    return static_cast<typename Unit<T>::Share>(std::llrint(std::ldexp(raised / total, Unit<T>::kBits)));
}

// V: the softmax of similarities over each row's expanded k-reciprocal set.
template <class T>
SparseRows<typename Unit<T>::Share> weights(const JaccardArguments& a, const std::vector<int32_t>& neighbours, const T* features) {
    using Share = typename Unit<T>::Share;
    const ShortLists halves = reciprocal(neighbours, a.n, a.k1, a.half, a.threads);
    struct Scratch {
        std::vector<int64_t> seen;  // by column: 2 i + 1 in R(i, k1), 2 i + 2 added to it
        std::vector<int32_t> members;
        std::vector<double> shares;
    };
    auto make = [&] { return Scratch{std::vector<int64_t>(a.n), {}, {}}; };
    return rows_in_parallel<Share>(a.n, a.threads, make, [&](Scratch& scratch, int64_t i, auto& columns, auto& values) {
        auto& seen = scratch.seen;
        auto& members = scratch.members;
        members.clear();
        const int64_t own = 2 * i + 1;
        for (int32_t x = 0; x < a.k1; ++x) {
            const int32_t j = neighbours[i * a.k1 + x];
            if (!lists(&neighbours[static_cast<int64_t>(j) * a.k1], a.k1, static_cast<int32_t>(i))) continue;
            seen[j] = own;
            members.push_back(j);
        }
        expand(seen, own, members, [&](size_t x) {
            const int64_t q = members[x];
            return std::make_pair(&halves.members[q * a.half], static_cast<int64_t>(halves.counts[q]));
        });
        scratch.shares.clear();
        double total = 0;
        for (int32_t j : members) {
            const T s = dot(features + i * a.width, features + static_cast<int64_t>(j) * a.width, a.width);
            const double share = raised(s);
            scratch.shares.push_back(share);
            total += share;
        }
        for (size_t x = 0; x < members.size(); ++x) {
            const Share share = share_of<T>(scratch.shares[x], total);
            if (!share) continue;
            columns.push_back(members[x]);
            values.push_back(share);
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
            const int64_t place = next[rows.columns[x]]++;
            out.columns[place] = static_cast<int32_t>(i);
            out.values[place] = rows.values[x];
        }
    return out;
}

// No overlap below this has a distance of `most` or less; a little less than exact, since distances are rounded.
template <class T>
typename Unit<T>::Share least_overlap(T most) {
    const double m = 2.0 * (1.0 - static_cast<double>(most)) / (2.0 - static_cast<double>(most));
    return static_cast<typename Unit<T>::Share>(std::ldexp(std::max(0.0, m - 1e-6), Unit<T>::kBits));
}

template <class Value>
RowsOf<Value> view(const SparseRows<Value>& rows) {
    return {rows.starts.data(), rows.columns.data(), rows.values.data()};
}

// Of each row of `rows` the partners j, other than id(i), with a distance of at most `most`: what its columns name as partners from
// first(i, t) on. Both ascend.
template <class T, class Id, class First>
SparseRows<T> pairs(Id&& id, int64_t count, const RowsOf<typename Unit<T>::Share>& v,
                    const RowsOf<typename Unit<T>::Share>& by_column, First&& first, int64_t n, T most, int threads) {
    using Share = typename Unit<T>::Share;
    const Share least = std::max<Share>(1, least_overlap(most));
    struct Scratch {
        std::vector<Share> overlaps;
        std::vector<int32_t> touched;
    };
    auto make = [&] { return Scratch{std::vector<Share>(n), std::vector<int32_t>(n + 1)}; };
    return rows_in_parallel<T>(count, threads, make, [&](Scratch& scratch, int64_t i, auto& columns, auto& values) {
        Share* overlaps = scratch.overlaps.data();
        int32_t* touched = scratch.touched.data();
        int64_t found = 0;
        for (int64_t x = v.starts[i]; x < v.starts[i + 1]; ++x) {
            const int64_t t = v.columns[x];
            const Share share = v.values[x];
            const int32_t* partners = by_column.columns;
            const Share* shares = by_column.values;
            const int64_t end = by_column.starts[t + 1];
            for (int64_t y = first(i, t); y < end; ++y) {
                const int32_t j = partners[y];
                // Without a branch, which would be guessed wrong half of the time.
                const Share before = overlaps[j];
                touched[found] = j;
                found += before == 0;
                overlaps[j] = before + std::min(share, shares[y]);
            }
        }
        const size_t begin = columns.size();
        for (int64_t x = 0; x < found; ++x) {
            const int32_t j = touched[x];
            if (j != id(i) && overlaps[j] >= least && jaccard_distance<T>(overlaps[j]) <= most) {
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

template <class Index, class Share>
SparseRows<Share> averaged(const Index* lists, int64_t rows, int32_t stride, int32_t k2, const RowsOf<Share>& v, int64_t n,
                           int threads) {
    struct Scratch {
        std::vector<uint64_t> sums;
        std::vector<int32_t> touched;
    };
    auto make = [&] { return Scratch{std::vector<uint64_t>(n), {}}; };
    return rows_in_parallel<Share>(rows, threads, make, [&](Scratch& scratch, int64_t i, auto& columns, auto& values) {
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
            const auto share = static_cast<Share>((scratch.sums[t] + k2 / 2) / k2);
            scratch.sums[t] = 0;
            if (!share) continue;
            columns.push_back(t);
            values.push_back(share);
        }
    });
}

template <class T>
SparseRows<T> upper_edges(const JaccardArguments& a, const T* features, T most) {
    using Share = typename Unit<T>::Share;
    const std::vector<int32_t> neighbours(a.neighbours, a.neighbours + a.n * a.k1);
    const SparseRows<Share> own = weights(a, neighbours, features);
    const SparseRows<Share> v =
        averaged(neighbours.data(), a.n, a.k1, std::min(a.k2, a.k1), view(own), a.n, a.threads);
    const SparseRows<Share> by_column = transposed(v, a.n);
    // From the first row behind i on.
    auto first = [&](int64_t i, int64_t t) {
        const int32_t* rows = by_column.columns.data();
        const int32_t* end = rows + by_column.starts[t + 1];
        return std::upper_bound(rows + by_column.starts[t], end, static_cast<int32_t>(i)) - rows;
    };
    return pairs<T>([](int64_t i) { return i; }, a.n, view(v), view(by_column), first, a.n, most, a.threads);
}

SparseRows<uint8_t> expanded_sets(int64_t rows, const RowsOf<int32_t>& sets, const RowsOf<uint8_t>& halves, int64_t n,
                                  int threads) {
    struct Scratch {
        std::vector<int64_t> seen;  // as for `expand`
        std::vector<int32_t> members;
    };
    auto make = [&] { return Scratch{std::vector<int64_t>(n), {}}; };
    return rows_in_parallel<uint8_t>(rows, threads, make, [&](Scratch& scratch, int64_t i, auto& columns, auto&) {
        const int64_t start = sets.starts[i], own = 2 * i + 1;
        scratch.members.assign(sets.columns + start, sets.columns + sets.starts[i + 1]);
        for (int32_t j : scratch.members) scratch.seen[j] = own;
        expand(scratch.seen, own, scratch.members, [&](size_t x) {
            const int64_t* place = halves.starts + sets.values[start + x];
            return std::make_pair(halves.columns + place[0], place[1] - place[0]);
        });
        columns.insert(columns.end(), scratch.members.begin(), scratch.members.end());
    });
}

template <class T>
void products(const RowsOf<T>& sets, int64_t rows, const T* features, const T* others, int64_t first, int64_t count,
              int64_t width, T* out, int threads) {
    parallel_for(threads, rows, kRows, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            for (int64_t x = sets.starts[i]; x < sets.starts[i + 1]; ++x) {
                const int64_t other = sets.columns[x] - first;
                if (other >= 0 && other < count) out[x] = dot(features + i * width, others + other * width, width);
            }
    });
}

template <class T>
void shares(const int64_t* starts, int64_t rows, const T* similarities, typename Unit<T>::Share* out, int threads) {
    parallel_for(threads, rows, kRows, [] { return std::vector<double>(); }, [&](auto& room, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            room.clear();
            double total = 0;
            for (int64_t x = starts[i]; x < starts[i + 1]; ++x) {
                room.push_back(raised(similarities[x]));
                total += room.back();
            }
            for (int64_t x = starts[i]; x < starts[i + 1]; ++x) out[x] = share_of<T>(room[x - starts[i]], total);
        }
    });
}

template <class T>
SparseRows<T> near_pairs(const int64_t* ids, int64_t count, const RowsOf<typename Unit<T>::Share>& rows,
                         const RowsOf<typename Unit<T>::Share>& columns, int64_t n, T most, int threads) {
    auto first = [&](int64_t, int64_t t) { return columns.starts[t]; };
    return pairs<T>([&](int64_t i) { return ids[i]; }, count, rows, columns, first, n, most, threads);
}

template <class T>
void symmetric(const SparseRows<T>& upper, int64_t* starts, int64_t* columns, T* values) {
    const int64_t n = static_cast<int64_t>(upper.starts.size()) - 1;
    std::fill(starts, starts + n + 1, 0);
    for (int64_t i = 0; i < n; ++i) starts[i + 1] += upper.starts[i + 1] - upper.starts[i];
    for (int32_t j : upper.columns) ++starts[j + 1];
    for (int64_t i = 0; i < n; ++i) starts[i + 1] += starts[i];
    std::vector<int64_t> next(starts, starts + n);
    // By ascending row the lower half of each row comes in order, and before its upper half.
    for (int64_t i = 0; i < n; ++i)
        for (int64_t x = upper.starts[i]; x < upper.starts[i + 1]; ++x) {
            const int64_t place = next[upper.columns[x]]++;
            columns[place] = i;
            values[place] = upper.values[x];
        }
    for (int64_t i = 0; i < n; ++i) {
        const int64_t x = upper.starts[i], count = upper.starts[i + 1] - x;
        std::copy_n(upper.columns.begin() + x, count, columns + next[i]);
        std::copy_n(upper.values.begin() + x, count, values + next[i]);
    }
}

template SparseRows<uint32_t> averaged(const int64_t*, int64_t, int32_t, int32_t, const RowsOf<uint32_t>&, int64_t, int);
template SparseRows<uint64_t> averaged(const int64_t*, int64_t, int32_t, int32_t, const RowsOf<uint64_t>&, int64_t, int);
template void products(const RowsOf<float>&, int64_t, const float*, const float*, int64_t, int64_t, int64_t, float*, int);
template void products(const RowsOf<double>&, int64_t, const double*, const double*, int64_t, int64_t, int64_t, double*, int);
template void shares(const int64_t*, int64_t, const float*, uint32_t*, int);
template void shares(const int64_t*, int64_t, const double*, uint64_t*, int);
template SparseRows<float> near_pairs(const int64_t*, int64_t, const RowsOf<uint32_t>&, const RowsOf<uint32_t>&, int64_t, float,
                                      int);
template SparseRows<double> near_pairs(const int64_t*, int64_t, const RowsOf<uint64_t>&, const RowsOf<uint64_t>&, int64_t,
                                       double, int);
template SparseRows<float> upper_edges(const JaccardArguments&, const float*, float);
template SparseRows<double> upper_edges(const JaccardArguments&, const double*, double);
template void symmetric(const SparseRows<float>&, int64_t*, int64_t*, float*);
template void symmetric(const SparseRows<double>&, int64_t*, int64_t*, double*);

}  // namespace fastreid_al
