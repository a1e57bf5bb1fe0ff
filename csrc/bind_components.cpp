#include "bindings.h"
#include "components.h"

namespace fastreid_al {

namespace {

template <class Real>
void call_dbscan(Address indptr, Address indices, Address distances, int64_t n, Address eps,
                 int64_t count, int64_t min_samples, Address labels, int threads) {
    dbscan(at<const int64_t>(indptr), at<const int64_t>(indices), at<const Real>(distances), n,
           at<const Real>(eps), count, min_samples, at<int64_t>(labels), threads);
}

}  // namespace

void bind_components(pybind11::module_& m) {
    m.def("dbscan_float32", &call_dbscan<float>, Release());
    m.def("dbscan_float64", &call_dbscan<double>, Release());
}

}  // namespace fastreid_al
