// The Python module fastreid_al._native. Addresses cross as integers: the Python face has checked device, dtype, contiguity,
// shapes and bounds before. Nothing here knows PyTorch, so one build serves every version of it.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "components.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "C++ and CUDA parts of fastreid_al.";
#ifdef FASTREID_AL_CUDA
    m.attr("cuda") = true;
    m.attr("cuda_architectures") = FASTREID_AL_CUDA_ARCHITECTURES;
#else
    m.attr("cuda") = false;
    m.attr("cuda_architectures") = "";
#endif
    m.attr("compiler") = __VERSION__;
#ifdef FASTREID_AL_STD_THREADS
    m.attr("openmp") = false;
#else
    m.attr("openmp") = true;
#endif
    m.def(
        "dbscan",
        [](Address indptr, Address indices, Address distances, bool doubles, int64_t n, Address eps, int64_t count,
           int64_t min_samples, Address labels, int threads) {
            if (doubles)
                fastreid_al::dbscan(at<const int64_t>(indptr), at<const int64_t>(indices), at<const double>(distances), n,
                                    at<const double>(eps), count, min_samples, at<int64_t>(labels), threads);
            else
                fastreid_al::dbscan(at<const int64_t>(indptr), at<const int64_t>(indices), at<const float>(distances), n,
                                    at<const float>(eps), count, min_samples, at<int64_t>(labels), threads);
        },
        Release());
}
