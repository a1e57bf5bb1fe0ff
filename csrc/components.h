// DBSCAN on a graph of distances in CSR form.
#pragma once

#include <cstdint>

namespace fastreid_al {

// Labels (count, n) of `count` radii: clusters numbered by their lowest core node, a node that is no core in the lowest-numbered
// cluster among its core neighbours, -1 where there is none. The graph is symmetric and without loops; a pair that is not in it
// is far. One byte a node beside the labels.
template <class Real>
void dbscan(const int64_t* indptr, const int64_t* indices, const Real* distances, int64_t n, const Real* eps, int64_t count,
            int64_t min_samples, int64_t* labels, int threads);

}  // namespace fastreid_al
