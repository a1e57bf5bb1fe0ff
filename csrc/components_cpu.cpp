#include "components.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "union_find.h"

namespace fastreid_al {

namespace {

constexpr int64_t kGrain = 512;
// Radii that are processed in one pass over the edges: one bit each.
constexpr int64_t kBits = 8;

// Bit e is set if the distance is at most the e-th radius.
template <class Real>
unsigned near_bits(Real distance, const Real* eps, int64_t count) {
    unsigned bits = 0;
    for (int64_t e = 0; e < count; ++e) bits |= static_cast<unsigned>(distance <= eps[e]) << e;
    return bits;
}

template <class Real>
void label_radii(const int64_t* indptr, const int64_t* indices, const Real* distances, int64_t n,
                 const Real* eps, int64_t count, int64_t min_samples, int64_t* labels,
                 std::vector<uint8_t>& core, int threads) {
    // Core nodes. Until the clusters are numbered, `labels` holds the parents.
    parallel_for(threads, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t neighbours[kBits] = {};
            for (int64_t p = indptr[i]; p < indptr[i + 1]; ++p)
                for (int64_t e = 0; e < count; ++e) neighbours[e] += distances[p] <= eps[e];
            unsigned bits = 0;
            for (int64_t e = 0; e < count; ++e) {
                bits |= static_cast<unsigned>(neighbours[e] + 1 >= min_samples) << e;
                labels[e * n + i] = i;
            }
            core[i] = static_cast<uint8_t>(bits);
        }
    });
    // Join core nodes that are near each other.
    parallel_for(threads, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (!core[i]) continue;
            for (int64_t p = indptr[i]; p < indptr[i + 1]; ++p) {
                const int64_t j = indices[p];
                if (j >= i) continue;
                const unsigned both = core[i] & core[j];
                if (!both) continue;
                const unsigned bits = both & near_bits(distances[p], eps, count);
                for (int64_t e = 0; e < count; ++e)
                    if (bits >> e & 1) unite(labels + e * n, i, j);
            }
        }
    });
    parallel_for(threads, count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e) {
            int64_t* parents = labels + e * n;
            int64_t clusters = 0;
            // In place: a parent is lower than its child, so it already holds its cluster's number.
            for (int64_t i = 0; i < n; ++i)
                if (core[i] >> e & 1)
                    parents[i] = parents[i] == i ? clusters++ : parents[parents[i]];
        }
    });
    // Nodes that are not cores.
    parallel_for(threads, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t lowest[kBits];
            std::fill_n(lowest, kBits, n);
            const unsigned borders = ~static_cast<unsigned>(core[i]) & ((1u << count) - 1);
            if (!borders) continue;
            for (int64_t p = indptr[i]; p < indptr[i + 1]; ++p) {
                const int64_t j = indices[p];
                const unsigned to_core = borders & core[j];
                if (!to_core) continue;
                const unsigned bits = to_core & near_bits(distances[p], eps, count);
                for (int64_t e = 0; e < count; ++e)
                    if (bits >> e & 1) lowest[e] = std::min(lowest[e], labels[e * n + j]);
            }
            for (int64_t e = 0; e < count; ++e)
                if (borders >> e & 1) labels[e * n + i] = lowest[e] < n ? lowest[e] : -1;
        }
    });
}

}  // namespace

template <class Real>
void dbscan(const int64_t* indptr, const int64_t* indices, const Real* distances, int64_t n,
            const Real* eps, int64_t count, int64_t min_samples, int64_t* labels, int threads) {
    std::vector<uint8_t> core(static_cast<size_t>(n));
    for (int64_t e = 0; e < count; e += kBits)
        label_radii(indptr, indices, distances, n, eps + e, std::min(kBits, count - e),
                    min_samples, labels + e * n, core,
                   threads);
}

template void dbscan(const int64_t*, const int64_t*, const float*, int64_t, const float*, int64_t,
                     int64_t, int64_t*, int);
template void dbscan(const int64_t*, const int64_t*, const double*, int64_t, const double*,
                     int64_t, int64_t, int64_t*, int);

}  // namespace fastreid_al
