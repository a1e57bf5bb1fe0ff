// The Python module fastreid_al._native. Addresses cross as integers: the Python face has checked device, dtype, contiguity,
// shapes and bounds before. Nothing here knows PyTorch, so one build serves every version of it.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "kmedoids.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

fastreid_al::MedoidResults medoid_results(Address k, Address medoids, Address labels, Address totals, Address scores) {
    return {at<int64_t>(k), at<int64_t>(medoids), at<int64_t>(labels), at<double>(totals), at<double>(scores)};
}

void bind_kmedoids(py::module_& m) {
    using namespace fastreid_al;
    m.def(
        "kmedoids",
        [](Address similarity, Address blocks, int64_t count, int64_t k_min, Address start, Address k, Address medoids,
           Address labels, Address totals, Address scores, int threads) {
            kmedoids_cpu(at<const double>(similarity), at<const MedoidBlock>(blocks), count, k_min, at<const int64_t>(start),
                         medoid_results(k, medoids, labels, totals, scores), threads);
        },
        Release());
    m.def(
        "dot_products",
        [](Address features, bool single, int64_t dim, Address members, Address first, Address sizes, Address offsets,
           int64_t count, Address out, int threads) {
            const auto run = [&](auto* values) {
                dot_products_cpu(values, dim, at<const int64_t>(members), at<const int64_t>(first), at<const int64_t>(sizes),
                                 at<const int64_t>(offsets), count, at<double>(out), threads);
            };
            single ? run(at<const float>(features)) : run(at<const double>(features));
        },
        Release());
#ifdef FASTREID_AL_CUDA
    m.def("kmedoids_cuda_most", &kmedoids_cuda_most);
    m.def(
        "kmedoids_cuda",
        [](Address similarity, Address blocks, int64_t count, int64_t k_min, Address ways, int64_t way_count, int64_t largest,
           int64_t k_largest, Address every, Address k, Address medoids, Address labels, Address totals, Address scores,
           Address stream) {
            kmedoids_cuda(at<const double>(similarity), at<const MedoidBlock>(blocks), count, k_min,
                          at<const int64_t>(ways), way_count, largest, k_largest, at<int64_t>(every),
                          medoid_results(k, medoids, labels, totals, scores), at<void>(stream));
        },
        Release());
#endif
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
    bind_kmedoids(m);
}
