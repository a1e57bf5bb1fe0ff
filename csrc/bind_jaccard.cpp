#include <algorithm>
#include <string>

#include "bindings.h"
#include "jaccard.h"

namespace py = pybind11;

namespace fastreid_al {

namespace {

// Copy rows into arrays of the caller, whose column type may be wider.
template <class Column, class Value>
void write_rows(const SparseRows<Value>& rows, Address starts, Address columns, Address values) {
    std::copy(rows.starts.begin(), rows.starts.end(), at<int64_t>(starts));
    std::copy(rows.columns.begin(), rows.columns.end(), at<Column>(columns));
    std::copy(rows.values.begin(), rows.values.end(), at<Value>(values));
}

template <class Value>
void bind_rows(py::module_& m, const std::string& name) {
    using Rows = SparseRows<Value>;
    py::class_<Rows>(m, name.c_str(), py::module_local())
        .def_property_readonly("count", [](const Rows& rows) { return rows.columns.size(); })
        .def("write", &write_rows<int32_t, Value>, Release());
}

template <class T>
void bind_edges(py::module_& m, const char* name, const char* function) {
    using Edges = SparseRows<T>;
    py::class_<Edges>(m, name, py::module_local())
        .def_property_readonly("count", [](const Edges& edges) { return edges.columns.size(); })
        .def(
            "write",
            [](const Edges& edges, Address starts, Address columns, Address values) {
                symmetric(edges, at<int64_t>(starts), at<int64_t>(columns), at<T>(values));
            },
            Release())
        .def("write_rows", &write_rows<int64_t, T>, Release());
    m.def(
        function,
        [](Address neighbours, int64_t n, int32_t k1, int32_t half, int32_t k2, Address features,
           int64_t width, T max_distance, int threads) {
            const JaccardArguments arguments{
                at<const int64_t>(neighbours), n, k1, half, k2, width, threads};
            return upper_edges<T>(arguments, at<const T>(features), max_distance);
        },
        py::arg("neighbours"), py::arg("n"), py::arg("k1"), py::arg("half"), py::arg("k2"),
        py::arg("features"), py::arg("width"), py::arg("max_distance"), py::arg("threads"),
        Release());
}

template <class Value>
RowsOf<Value> rows_of(Address starts, Address columns, Address values) {
    return {at<const int64_t>(starts), at<const int32_t>(columns), at<const Value>(values)};
}

// The steps of the graph, for rows whose neighbours may lie on other ranks.
template <class T>
void bind_steps(py::module_& m, const std::string& dtype) {
    using Weight = typename FixedPoint<T>::Weight;
    bind_rows<Weight>(m, "Weights_" + dtype);
    m.def(
        ("products_" + dtype).c_str(),
        [](Address starts, Address columns, int64_t rows, Address features, Address others,
           int64_t first, int64_t count, int64_t width, Address out, int threads) {
            products(rows_of<T>(starts, columns, 0), rows, at<const T>(features),
                     at<const T>(others), first, count, width, at<T>(out), threads);
        },
        Release());
    m.def(
        ("softmax_weights_" + dtype).c_str(),
        [](Address starts, int64_t rows, Address similarities, Address out, int threads) {
            softmax_weights(at<const int64_t>(starts), rows, at<const T>(similarities),
                            at<Weight>(out), threads);
        },
        Release());
    m.def(
        ("averaged_" + dtype).c_str(),
        [](Address lists, int64_t rows, int32_t k2, Address starts, Address columns, Address values,
           int64_t n, int threads) {
            return averaged(at<const int64_t>(lists), rows, k2, k2,
                            rows_of<Weight>(starts, columns, values), n, threads);
        },
        Release());
    m.def(
        ("near_pairs_" + dtype).c_str(),
        [](Address ids, int64_t rows, Address row_starts, Address places, Address row_values,
           Address starts, Address columns, Address values, int64_t n, T max_distance,
           int threads) {
            return near_pairs<T>(at<const int64_t>(ids), rows,
                                 rows_of<Weight>(row_starts, places, row_values),
                                 rows_of<Weight>(starts, columns, values), n, max_distance,
                                 threads);
        },
        Release());
}

#ifdef FASTREID_AL_CUDA
OverlapArguments overlap_arguments(Address row_starts, Address row_columns, Address row_weights,
                                   Address column_starts, Address column_rows,
                                   Address column_weights, int64_t n, uint32_t least_overlap,
                                   Address keys, Address overlaps, int64_t capacity,
                                   Address found) {
    return {at<const int64_t>(row_starts),
            at<const int32_t>(row_columns),
            at<const uint32_t>(row_weights),
            at<const int64_t>(column_starts),
            at<const int32_t>(column_rows),
            at<const uint32_t>(column_weights),
            n,
            least_overlap,
            at<int64_t>(keys),
            at<uint32_t>(overlaps),
            capacity,
            at<unsigned long long>(found)};
}

void bind_jaccard_cuda(py::module_& m) {
    py::class_<OverlapArguments>(m, "OverlapArguments", py::module_local())
        .def(py::init(&overlap_arguments), py::arg("row_starts"), py::arg("row_columns"),
             py::arg("row_weights"), py::arg("column_starts"), py::arg("column_rows"),
             py::arg("column_weights"), py::arg("n"), py::arg("least_overlap"), py::arg("keys"),
             py::arg("overlaps"), py::arg("capacity"), py::arg("found"));
    m.def(
        "overlaps_cuda",
        [](const OverlapArguments& a, int32_t slots, Address spilled, Address spills,
           Address stream) {
            overlaps_cuda(a, slots, at<int32_t>(spilled), at<unsigned long long>(spills),
                          at<void>(stream));
        },
        Release());
    m.def(
        "spilled_overlaps_cuda",
        [](const OverlapArguments& a, Address rows, int64_t count, Address sums, int64_t pools,
           Address stream) {
            spilled_overlaps_cuda(a, at<const int32_t>(rows), count, at<uint32_t>(sums), pools,
                                  at<void>(stream));
        },
        Release());
}
#endif

}  // namespace

void bind_jaccard(py::module_& m) {
    bind_edges<float>(m, "EdgesFloat32", "jaccard_edges_float32");
    bind_edges<double>(m, "EdgesFloat64", "jaccard_edges_float64");
    bind_rows<uint8_t>(m, "Sets");
    bind_steps<float>(m, "float32");
    bind_steps<double>(m, "float64");
    m.def(
        "expanded_sets",
        [](int64_t rows, Address row_starts, Address members, Address places, Address starts,
           Address columns, int64_t n, int threads) {
            return expanded_sets(rows, rows_of<int32_t>(row_starts, members, places),
                                 rows_of<uint8_t>(starts, columns, 0), n, threads);
        },
        Release());
#ifdef FASTREID_AL_CUDA
    bind_jaccard_cuda(m);
#endif
}

}  // namespace fastreid_al
