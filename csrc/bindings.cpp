// The Python module fastreid_al._native. Addresses cross as integers: the Python face has checked device, dtype, contiguity,
// shapes and bounds before. Nothing here knows PyTorch, so one build serves every version of it.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "jaccard.h"
#include "neighbours.h"

namespace py = pybind11;
using namespace fastreid_al;

namespace {

using Address = std::uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

Candidates candidates(Address values, Address columns, Address counts, Address thresholds, Address margins, int64_t n,
                      int32_t capacity, int32_t k) {
    return {at<float>(values),     at<int32_t>(columns),     at<int32_t>(counts), at<float>(thresholds),
            at<const float>(margins), n, capacity, k};
}

#ifdef FASTREID_AL_CUDA
OverlapArguments overlap_arguments(Address row_starts, Address row_columns, Address row_shares, Address column_starts,
                                   Address column_rows, Address column_shares, int64_t n, uint32_t least, Address keys,
                                   Address overlaps, int64_t capacity, Address found) {
    return {at<const int64_t>(row_starts), at<const int32_t>(row_columns), at<const uint32_t>(row_shares),
            at<const int64_t>(column_starts), at<const int32_t>(column_rows), at<const uint32_t>(column_shares), n, least,
            at<int64_t>(keys), at<uint32_t>(overlaps), capacity, at<unsigned long long>(found)};
}
#endif

template <class T>
void bind_edges(py::module_& m, const char* name, const char* function) {
    using Edges = SparseRows<T>;
    py::class_<Edges>(m, name, py::module_local())
        .def_property_readonly("count", [](const Edges& e) { return e.columns.size(); })
        .def(
            "write",
            [](const Edges& e, Address starts, Address columns, Address values) {
                symmetric(e, at<int64_t>(starts), at<int64_t>(columns), at<T>(values));
            },
            Release());
    m.def(
        function,
        [](Address ranks, int64_t n, int32_t k1, int32_t half, int32_t k2, Address features, int64_t width, T most, int threads) {
            return upper_edges<T>({at<const int64_t>(ranks), n, k1, half, k2, width, threads}, at<const T>(features), most);
        },
        py::arg("ranks"), py::arg("n"), py::arg("k1"), py::arg("half"), py::arg("k2"), py::arg("features"), py::arg("width"),
        py::arg("most"), py::arg("threads"), Release());
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

    // Nearest neighbours.
    py::class_<Candidates>(m, "Candidates", py::module_local())
        .def(py::init(&candidates), py::arg("values"), py::arg("columns"), py::arg("counts"), py::arg("thresholds"),
             py::arg("margins"), py::arg("n"), py::arg("capacity"), py::arg("k"));
    m.def(
        "take_tile",
        [](const Candidates& c, Address tile, bool bfloat16, int64_t row, int64_t rows, int64_t column, int64_t columns,
           int threads) {
            if (bfloat16)
                take_tile(c, at<const uint16_t>(tile), row, rows, column, columns, threads);
            else
                take_tile(c, at<const float>(tile), row, rows, column, columns, threads);
        },
        Release());
    m.def(
        "finish",
        [](const Candidates& c, bool bfloat16, Address features, int64_t width, Address ranks, int threads) {
            finish(c, bfloat16, at<const float>(features), width, at<int64_t>(ranks), threads);
        },
        Release());

    // Jaccard graph.
    bind_edges<float>(m, "EdgesFloat32", "jaccard_edges_float32");
    bind_edges<double>(m, "EdgesFloat64", "jaccard_edges_float64");
#ifdef FASTREID_AL_CUDA
    py::class_<OverlapArguments>(m, "OverlapArguments", py::module_local())
        .def(py::init(&overlap_arguments), py::arg("row_starts"), py::arg("row_columns"), py::arg("row_shares"),
             py::arg("column_starts"), py::arg("column_rows"), py::arg("column_shares"), py::arg("n"), py::arg("least"),
             py::arg("keys"), py::arg("overlaps"), py::arg("capacity"), py::arg("found"));
    m.def(
        "overlaps_cuda",
        [](const OverlapArguments& a, int32_t slots, Address spilled, Address spills, Address stream) {
            overlaps_cuda(a, slots, at<int32_t>(spilled), at<unsigned long long>(spills), at<void>(stream));
        },
        Release());
    m.def(
        "spilled_overlaps_cuda",
        [](const OverlapArguments& a, Address rows, int64_t count, Address sums, int64_t pools, Address stream) {
            spilled_overlaps_cuda(a, at<const int32_t>(rows), count, at<uint32_t>(sums), pools, at<void>(stream));
        },
        Release());
#endif
}
