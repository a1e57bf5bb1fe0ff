// The Python module fastreid_al._native. Addresses cross as integers: the Python face has checked device, dtype, contiguity,
// shapes and bounds before. Nothing here knows PyTorch, so one build serves every version of it.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "components.h"
#include "jaccard.h"
#include "kmedoids.h"
#include "neighbours.h"
#include "plmb.h"

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
                      int32_t capacity, int32_t k, bool symmetric) {
    return {at<float>(values),     at<int32_t>(columns),     at<int32_t>(counts), at<float>(thresholds),
            at<const float>(margins), n, capacity, k, symmetric};
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
            Release())
        .def(
            "write_rows",
            [](const Edges& e, Address starts, Address columns, Address values) {
                std::copy(e.starts.begin(), e.starts.end(), at<int64_t>(starts));
                std::copy(e.columns.begin(), e.columns.end(), at<int64_t>(columns));
                std::copy(e.values.begin(), e.values.end(), at<T>(values));
            },
            Release());
    m.def(
        function,
        [](Address neighbours, int64_t n, int32_t k1, int32_t half, int32_t k2, Address features, int64_t width, T most, int threads) {
            return upper_edges<T>({at<const int64_t>(neighbours), n, k1, half, k2, width, threads}, at<const T>(features), most);
        },
        py::arg("neighbours"), py::arg("n"), py::arg("k1"), py::arg("half"), py::arg("k2"), py::arg("features"), py::arg("width"),
        py::arg("most"), py::arg("threads"), Release());
}

void bind_neighbours(py::module_& m) {
    py::class_<Candidates>(m, "Candidates", py::module_local())
        .def(py::init(&candidates), py::arg("values"), py::arg("columns"), py::arg("counts"), py::arg("thresholds"),
             py::arg("margins"), py::arg("n"), py::arg("capacity"), py::arg("k"), py::arg("symmetric") = true);
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
        [](const Candidates& c, bool bfloat16, Address features, int64_t width, Address neighbours, int threads) {
            finish(c, bfloat16, at<const float>(features), width, at<int64_t>(neighbours), threads);
        },
        Release());
    m.def(
        "merge",
        [](const Candidates& c, Address features, Address others, int64_t offset, int64_t width, Address similarities,
           Address columns, int threads) {
            merge(c, at<const float>(features), at<const float>(others), offset, width, at<float>(similarities),
                  at<int64_t>(columns), threads);
        },
        Release());
}

template <class Value>
RowsOf<Value> rows_of(Address starts, Address columns, Address values) {
    return {at<const int64_t>(starts), at<const int32_t>(columns), at<const Value>(values)};
}

template <class Value>
void bind_rows(py::module_& m, const char* name) {
    using Rows = SparseRows<Value>;
    py::class_<Rows>(m, name, py::module_local())
        .def_property_readonly("count", [](const Rows& r) { return r.columns.size(); })
        .def(
            "write",
            [](const Rows& r, Address starts, Address columns, Address values) {
                std::copy(r.starts.begin(), r.starts.end(), at<int64_t>(starts));
                std::copy(r.columns.begin(), r.columns.end(), at<int32_t>(columns));
                std::copy(r.values.begin(), r.values.end(), at<Value>(values));
            },
            Release());
}

// The parts of the graph, for rows of which others lie on other neighbours.
template <class T>
void bind_parts(py::module_& m, const std::string& dtype) {
    using Share = typename Unit<T>::Share;
    bind_rows<Share>(m, ("Shares_" + dtype).c_str());
    m.def(
        ("products_" + dtype).c_str(),
        [](Address starts, Address columns, int64_t rows, Address features, Address others, int64_t first, int64_t count,
           int64_t width, Address out, int threads) {
            products(rows_of<T>(starts, columns, 0), rows, at<const T>(features), at<const T>(others), first, count, width,
                     at<T>(out), threads);
        },
        Release());
    m.def(
        ("shares_" + dtype).c_str(),
        [](Address starts, int64_t rows, Address similarities, Address out, int threads) {
            shares(at<const int64_t>(starts), rows, at<const T>(similarities), at<Share>(out), threads);
        },
        Release());
    m.def(
        ("averaged_" + dtype).c_str(),
        [](Address lists, int64_t rows, int32_t k2, Address starts, Address columns, Address values, int64_t n, int threads) {
            return averaged(at<const int64_t>(lists), rows, k2, k2, rows_of<Share>(starts, columns, values), n, threads);
        },
        Release());
    m.def(
        ("near_pairs_" + dtype).c_str(),
        [](Address ids, int64_t rows, Address row_starts, Address places, Address row_values, Address starts, Address columns,
           Address values, int64_t n, T most, int threads) {
            return near_pairs<T>(at<const int64_t>(ids), rows, rows_of<Share>(row_starts, places, row_values),
                                 rows_of<Share>(starts, columns, values), n, most, threads);
        },
        Release());
}

void bind_jaccard(py::module_& m) {
    bind_edges<float>(m, "EdgesFloat32", "jaccard_edges_float32");
    bind_edges<double>(m, "EdgesFloat64", "jaccard_edges_float64");
    bind_rows<uint8_t>(m, "Sets");
    bind_parts<float>(m, "float32");
    bind_parts<double>(m, "float64");
    m.def(
        "expanded_sets",
        [](int64_t rows, Address row_starts, Address members, Address places, Address starts, Address columns, int64_t n,
           int threads) {
            return expanded_sets(rows, rows_of<int32_t>(row_starts, members, places), rows_of<uint8_t>(starts, columns, 0), n,
                                 threads);
        },
        Release());
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

void bind_components(py::module_& m) {
    m.def(
        "dbscan",
        [](Address indptr, Address indices, Address distances, bool doubles, int64_t n, Address eps, int64_t count,
           int64_t min_samples, Address labels, int threads) {
            if (doubles)
                dbscan(at<const int64_t>(indptr), at<const int64_t>(indices), at<const double>(distances), n,
                                    at<const double>(eps), count, min_samples, at<int64_t>(labels), threads);
            else
                dbscan(at<const int64_t>(indptr), at<const int64_t>(indices), at<const float>(distances), n,
                                    at<const float>(eps), count, min_samples, at<int64_t>(labels), threads);
        },
        Release());
}

MedoidResults medoid_results(Address k, Address medoids, Address labels, Address totals, Address scores) {
    return {at<int64_t>(k), at<int64_t>(medoids), at<int64_t>(labels), at<double>(totals), at<double>(scores)};
}

void bind_kmedoids(py::module_& m) {
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

LabelBank label_bank(Address rows, int id_bytes, Address counts, int64_t n, int64_t capacity) {
    return {at<void>(rows), id_bytes, at<int32_t>(counts), n, capacity};
}

LabelBatch label_batch(Address rows, int64_t size, Address indptr, Address indices, int64_t labels,
                                    Address likeness) {
    return {at<int64_t>(rows), size, at<int64_t>(indptr), at<int64_t>(indices), labels, at<float>(likeness)};
}

void bind_plmb(py::module_& m) {
    // The bank is (rows, id_bytes, counts, n, capacity).
    m.def(
        "plmb_fits",
        [](Address rows, int64_t batch, Address indptr, Address indices, int64_t labels, int64_t n) {
            return plmb_fits_cpu(label_batch(rows, batch, indptr, indices, labels, 0), n);
        },
        Release());
    m.def(
        "plmb_update",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address indptr, Address indices, int64_t labels, Address likeness, Address dropped, int threads) {
            plmb_update_cpu(label_bank(bank, id_bytes, counts, n, capacity),
                            label_batch(rows, batch, indptr, indices, labels, likeness), at<int64_t>(dropped), threads);
        },
        Release());
    m.def(
        "plmb_count",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address out, int threads) {
            plmb_count_cpu(label_bank(bank, id_bytes, counts, n, capacity), at<int64_t>(rows), batch, at<int64_t>(out),
                           threads);
        },
        Release());
    m.def(
        "plmb_list",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address indptr, Address out, int threads) {
            plmb_list_cpu(label_bank(bank, id_bytes, counts, n, capacity), at<int64_t>(rows), batch,
                          at<int64_t>(indptr), at<int64_t>(out), threads);
        },
        Release());
    m.def(
        "plmb_bits",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address out, int threads) {
            plmb_bits_cpu(label_bank(bank, id_bytes, counts, n, capacity), at<int64_t>(rows), batch, at<uint32_t>(out),
                          threads);
        },
        Release());
#ifdef FASTREID_AL_CUDA
    m.def(
        "plmb_update_cuda",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address indptr, Address indices, int64_t labels, Address likeness, Address dropped, Address scratch,
           Address stream) {
            plmb_update_cuda(label_bank(bank, id_bytes, counts, n, capacity),
                             label_batch(rows, batch, indptr, indices, labels, likeness), at<int64_t>(dropped),
                             at<int32_t>(scratch), at<void>(stream));
        },
        Release());
    m.def(
        "plmb_count_cuda",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address out, Address stream) {
            plmb_count_cuda(label_bank(bank, id_bytes, counts, n, capacity), at<int64_t>(rows), batch, at<int64_t>(out),
                            at<void>(stream));
        },
        Release());
    m.def(
        "plmb_list_cuda",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address indptr, Address out, Address stream) {
            plmb_list_cuda(label_bank(bank, id_bytes, counts, n, capacity), at<int64_t>(rows), batch,
                           at<int64_t>(indptr), at<int64_t>(out), at<void>(stream));
        },
        Release());
    m.def(
        "plmb_bits_cuda",
        [](Address bank, int id_bytes, Address counts, int64_t n, int64_t capacity, Address rows, int64_t batch,
           Address out, Address stream) {
            plmb_bits_cuda(label_bank(bank, id_bytes, counts, n, capacity), at<int64_t>(rows), batch, at<uint32_t>(out),
                           at<void>(stream));
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
    bind_neighbours(m);
    bind_jaccard(m);
    bind_components(m);
    bind_kmedoids(m);
    bind_plmb(m);
}
