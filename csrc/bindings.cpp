#include "bindings.h"

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
    fastreid_al::bind_bank_contrast(m);
    fastreid_al::bind_neighbours(m);
    fastreid_al::bind_jaccard(m);
    fastreid_al::bind_components(m);
    fastreid_al::bind_linkage(m);
    fastreid_al::bind_kmedoids(m);
    fastreid_al::bind_plmb(m);
}
