// Shared by the bind_*.cpp files, which define the Python module fastreid_al._native.
//
// Addresses are passed as integers. The Python callers have checked device, dtype, contiguity,
// shapes and bounds. Nothing here includes PyTorch, so one build works with every version of it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastreid_al {

using Address = std::uintptr_t;
using Release = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void bind_bank_contrast(pybind11::module_& m);
void bind_components(pybind11::module_& m);
void bind_jaccard(pybind11::module_& m);
void bind_kmedoids(pybind11::module_& m);
void bind_linkage(pybind11::module_& m);
void bind_neighbours(pybind11::module_& m);
void bind_plmb(pybind11::module_& m);

}  // namespace fastreid_al
