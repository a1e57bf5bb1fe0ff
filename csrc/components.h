// DBSCAN on a graph of distances in CSR form.
#pragma once

#include <cstdint>

namespace fastreid_al {

// Labels (count, n) for `count` radii. Clusters are numbered by their lowest core node. A node that
// is not a core gets the lowest-numbered cluster of its core neighbours, or -1 if it has none. The
// graph is symmetric and has no loops; pairs that are not in it are farther apart than every
// radius. Uses one byte per node in addition to the labels.
template <class Real>
void dbscan(const int64_t* indptr, const int64_t* indices, const Real* distances, int64_t n,
            const Real* eps, int64_t count, int64_t min_samples, int64_t* labels, int threads);

}  // namespace fastreid_al
