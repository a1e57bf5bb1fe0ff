#include "bindings.h"
#include "neighbours.h"

namespace py = pybind11;

namespace fastreid_al {

namespace {

Candidates candidates(Address values, Address columns, Address counts, Address thresholds,
                      Address margins, int64_t n, int32_t capacity, int32_t k, bool symmetric) {
    return {at<float>(values),         at<int32_t>(columns), at<int32_t>(counts),
            at<float>(thresholds),     at<const float>(margins), n, capacity, k, symmetric};
}

}  // namespace

void bind_neighbours(py::module_& m) {
    py::class_<Candidates>(m, "Candidates", py::module_local())
        .def(py::init(&candidates), py::arg("values"), py::arg("columns"), py::arg("counts"),
             py::arg("thresholds"), py::arg("margins"), py::arg("n"), py::arg("capacity"),
             py::arg("k"), py::arg("symmetric") = true);
    m.def(
        "add_tile",
        [](const Candidates& c, Address tile, bool bfloat16, int64_t row, int64_t rows,
           int64_t column, int64_t columns, int threads) {
            if (bfloat16)
                add_tile(c, at<const uint16_t>(tile), row, rows, column, columns, threads);
            else
                add_tile(c, at<const float>(tile), row, rows, column, columns, threads);
        },
        Release());
    m.def(
        "finish",
        [](const Candidates& c, bool bfloat16, Address features, int64_t width, Address neighbours,
           int threads) {
            finish(c, bfloat16, at<const float>(features), width, at<int64_t>(neighbours), threads);
        },
        Release());
    m.def(
        "merge",
        [](const Candidates& c, Address features, Address others, int64_t offset, int64_t width,
           Address similarities, Address columns, int threads) {
            merge(c, at<const float>(features), at<const float>(others), offset, width,
                  at<float>(similarities), at<int64_t>(columns), threads);
        },
        Release());
}

}  // namespace fastreid_al
