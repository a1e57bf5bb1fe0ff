// The Python module fastreid_al._native. Addresses cross as integers: the Python face has checked device, dtype, contiguity,
// shapes and bounds before. Nothing here knows PyTorch, so one build serves every version of it.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "parallel.h"
#include "plmb.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

fastreid_al::LabelBank label_bank(Address rows, int id_bytes, Address counts, int64_t n, int64_t capacity) {
    return {at<void>(rows), id_bytes, at<int32_t>(counts), n, capacity};
}

fastreid_al::LabelBatch label_batch(Address rows, int64_t size, Address indptr, Address indices, int64_t labels,
                                    Address likeness) {
    return {at<int64_t>(rows), size, at<int64_t>(indptr), at<int64_t>(indices), labels, at<float>(likeness)};
}

void define_plmb(py::module_& m) {
    using namespace fastreid_al;
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
    define_plmb(m);
}
