#include <vector>

#include "bindings.h"
#include "linkage.h"

namespace py = pybind11;

namespace fastreid_al {

namespace {

struct Merges {
    std::vector<Merge> rows;
};

// Copy the fields into arrays of int64: (m) each, and (m, 2) for the sizes.
void write_merges(const Merges& merges, Address first, Address second, Address sizes,
                  Address sums) {
    for (size_t m = 0; m < merges.rows.size(); ++m) {
        const Merge& merge = merges.rows[m];
        at<int64_t>(first)[m] = merge.first;
        at<int64_t>(second)[m] = merge.second;
        at<int64_t>(sizes)[2 * m] = merge.first_size;
        at<int64_t>(sizes)[2 * m + 1] = merge.second_size;
        at<int64_t>(sums)[m] = merge.sum;
    }
}

template <class Real>
void bind_function(py::module_& m, const char* name) {
    m.def(
        name,
        [](Address indptr, Address indices, Address distances, int64_t n, Address groups,
           Address cannot_links, int64_t cannot_link_count, int64_t threshold, int threads) {
            const LinkageArguments arguments{at<const int64_t>(indptr),
                                             at<const int64_t>(indices),
                                             n,
                                             at<const int64_t>(groups),
                                             at<const int64_t>(cannot_links),
                                             cannot_link_count,
                                             threshold,
                                             threads};
            return Merges{average_linkage(arguments, at<const Real>(distances))};
        },
        py::arg("indptr"), py::arg("indices"), py::arg("distances"), py::arg("n"),
        py::arg("groups"), py::arg("cannot_links"), py::arg("cannot_link_count"),
        py::arg("threshold"), py::arg("threads"), Release());
}

}  // namespace

void bind_linkage(py::module_& m) {
    py::class_<Merges>(m, "Merges", py::module_local())
        .def_property_readonly("count", [](const Merges& merges) { return merges.rows.size(); })
        .def("write", &write_merges, Release());
    bind_function<float>(m, "average_linkage_float32");
    bind_function<double>(m, "average_linkage_float64");
}

}  // namespace fastreid_al
