#include "bank_contrast.h"
#include "bindings.h"

namespace fastreid_al {

#ifdef FASTREID_AL_CUDA

namespace {

BankContrast bank_contrast(Address features, Address bank, Address targets, int64_t batch,
                           int64_t n, int64_t dim, int64_t features_stride, int64_t bank_stride,
                           int64_t ignore_index, float scale, bool float16) {
    return {at<const uint16_t>(features),
            at<const uint16_t>(bank),
            at<const int64_t>(targets),
            batch,
            n,
            dim,
            features_stride,
            bank_stride,
            ignore_index,
            scale,
            float16};
}

}  // namespace

void bind_bank_contrast(pybind11::module_& m) {
    pybind11::class_<BankContrast>(m, "BankContrast", pybind11::module_local())
        .def(pybind11::init(&bank_contrast));
    m.def("bank_contrast_cuda_parts", &bank_contrast_cuda_parts, Release());
    // `heads`: (3, parts, batch). `sums`: (parts, batch, dim).
    m.def(
        "bank_contrast_cuda",
        [](const BankContrast& problem, int64_t parts, Address heads, Address sums, Address losses,
           Address log_sums, Address slopes, Address stream) {
            float* top = at<float>(heads);
            const int64_t values = parts * problem.batch;
            bank_contrast_cuda(
                problem, {parts, top, top + values, top + 2 * values, at<float>(sums)},
                {at<float>(losses), at<float>(log_sums), at<float>(slopes)}, at<void>(stream));
        },
        Release());
}

#else

void bind_bank_contrast(pybind11::module_&) {}

#endif

}  // namespace fastreid_al
