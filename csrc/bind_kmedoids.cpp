#include "bindings.h"
#include "kmedoids.h"

namespace fastreid_al {

namespace {

MedoidResults medoid_results(Address k, Address medoids, Address labels, Address totals,
                             Address scores) {
    return {at<int64_t>(k), at<int64_t>(medoids), at<int64_t>(labels), at<double>(totals),
            at<double>(scores)};
}

template <class T>
void call_dot_products(Address features, int64_t dim, Address members, Address first, Address sizes,
                       Address offsets, int64_t count, Address out, int threads) {
    dot_products_cpu(at<const T>(features), dim, at<const int64_t>(members),
                     at<const int64_t>(first), at<const int64_t>(sizes), at<const int64_t>(offsets),
                     count, at<double>(out), threads);
}

}  // namespace

void bind_kmedoids(pybind11::module_& m) {
    m.def("dot_products_float32", &call_dot_products<float>, Release());
    m.def("dot_products_float64", &call_dot_products<double>, Release());
    m.def(
        "kmedoids",
        [](Address similarity, Address blocks, int64_t count, int64_t k_min, Address start,
           Address k, Address medoids, Address labels, Address totals, Address scores,
           int threads) {
            kmedoids_cpu(at<const double>(similarity), at<const MedoidBlock>(blocks), count, k_min,
                         at<const int64_t>(start),
                         medoid_results(k, medoids, labels, totals, scores), threads);
        },
        Release());
#ifdef FASTREID_AL_CUDA
    m.def("kmedoids_cuda_max_points", &kmedoids_cuda_max_points);
    m.def(
        "kmedoids_cuda",
        [](Address similarity, Address blocks, int64_t count, int64_t k_min, Address tasks,
           int64_t task_count, int64_t largest, int64_t k_largest, Address task_medoids, Address k,
           Address medoids, Address labels, Address totals, Address scores, Address stream) {
            kmedoids_cuda(at<const double>(similarity), at<const MedoidBlock>(blocks), count, k_min,
                          at<const int64_t>(tasks), task_count, largest, k_largest,
                          at<int64_t>(task_medoids),
                          medoid_results(k, medoids, labels, totals, scores), at<void>(stream));
        },
        Release());
#endif
}

}  // namespace fastreid_al
