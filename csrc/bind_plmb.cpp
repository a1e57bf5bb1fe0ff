#include "bindings.h"
#include "plmb.h"

namespace py = pybind11;

namespace fastreid_al {

namespace {

LabelBank label_bank(Address rows, int id_bytes, Address counts, int64_t n, int64_t capacity) {
    return {at<void>(rows), id_bytes, at<int32_t>(counts), n, capacity};
}

LabelBatch label_batch(Address rows, int64_t size, Address indptr, Address indices, int64_t labels,
                       Address similarity) {
    return {at<const int64_t>(rows),    size,   at<const int64_t>(indptr),
            at<const int64_t>(indices), labels, at<const float>(similarity)};
}

#ifdef FASTREID_AL_CUDA
void bind_plmb_cuda(py::module_& m) {
    m.def(
        "plmb_update_cuda",
        [](const LabelBank& bank, const LabelBatch& batch, Address dropped, Address scratch,
           Address stream) {
            plmb_update_cuda(bank, batch, at<int64_t>(dropped), at<int32_t>(scratch),
                             at<void>(stream));
        },
        Release());
    m.def(
        "plmb_count_cuda",
        [](const LabelBank& bank, Address rows, int64_t batch, Address out, Address stream) {
            plmb_count_cuda(bank, at<const int64_t>(rows), batch, at<int64_t>(out),
                            at<void>(stream));
        },
        Release());
    m.def(
        "plmb_list_cuda",
        [](const LabelBank& bank, Address rows, int64_t batch, Address indptr, Address out,
           Address stream) {
            plmb_list_cuda(bank, at<const int64_t>(rows), batch, at<const int64_t>(indptr),
                           at<int64_t>(out), at<void>(stream));
        },
        Release());
    m.def(
        "plmb_bits_cuda",
        [](const LabelBank& bank, Address rows, int64_t batch, Address out, Address stream) {
            plmb_bits_cuda(bank, at<const int64_t>(rows), batch, at<uint32_t>(out),
                           at<void>(stream));
        },
        Release());
    m.def(
        "plmb_lookup_cuda",
        [](const LabelBank& bank, Address rows, int64_t batch, int64_t most, Address state,
           Address indptr, Address out, Address stream) {
            plmb_lookup_cuda(bank, at<const int64_t>(rows), batch, most,
                             at<unsigned long long>(state), at<int64_t>(indptr), at<int64_t>(out),
                             at<void>(stream));
        },
        Release());
}
#endif

}  // namespace

void bind_plmb(py::module_& m) {
    py::class_<LabelBank>(m, "LabelBank", py::module_local())
        .def(py::init(&label_bank), py::arg("rows"), py::arg("id_bytes"), py::arg("counts"),
             py::arg("n"), py::arg("capacity"));
    py::class_<LabelBatch>(m, "LabelBatch", py::module_local())
        .def(py::init(&label_batch), py::arg("rows"), py::arg("size"), py::arg("indptr"),
             py::arg("indices"), py::arg("labels"), py::arg("similarity") = Address{0});
    m.def("plmb_fits", &plmb_fits_cpu, Release());
    m.def(
        "plmb_update",
        [](const LabelBank& bank, const LabelBatch& batch, Address dropped, int threads) {
            plmb_update_cpu(bank, batch, at<int64_t>(dropped), threads);
        },
        Release());
    m.def(
        "plmb_count",
        [](const LabelBank& bank, Address rows, int64_t batch, Address out, int threads) {
            plmb_count_cpu(bank, at<const int64_t>(rows), batch, at<int64_t>(out), threads);
        },
        Release());
    m.def(
        "plmb_list",
        [](const LabelBank& bank, Address rows, int64_t batch, Address indptr, Address out,
           int threads) {
            plmb_list_cpu(bank, at<const int64_t>(rows), batch, at<const int64_t>(indptr),
                          at<int64_t>(out), threads);
        },
        Release());
    m.def(
        "plmb_bits",
        [](const LabelBank& bank, Address rows, int64_t batch, Address out, int threads) {
            plmb_bits_cpu(bank, at<const int64_t>(rows), batch, at<uint32_t>(out), threads);
        },
        Release());
#ifdef FASTREID_AL_CUDA
    bind_plmb_cuda(m);
#endif
}

}  // namespace fastreid_al
