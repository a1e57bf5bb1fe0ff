// What the CUDA sources use of CUDA beyond the language, so that tests can run the same kernels on CPU threads
// (FASTREID_AL_EMULATED: tests/native/cuda_on_cpu.h stands in).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef FASTREID_AL_EMULATED
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>

namespace fastreid_al {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Start blocks x threads of a kernel with so many bytes of dynamic shared memory. The current device is the caller's choice.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, void* stream, Arguments... arguments) {
    if (blocks <= 0) return;
    // Without being asked for, 48 KiB is the most, a kernel's static arrays among them.
    if (shared_bytes > 0)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
              "shared memory");
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        static_cast<Parameters>(arguments)...);
    check(cudaGetLastError(), "kernel launch");
}

// Bytes of shared memory that one block of the current device may ask for.
inline size_t most_shared_bytes() {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device attribute");
    return static_cast<size_t>(bytes);
}

// The block's dynamic shared memory.
template <class T>
__device__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char pool[];
    return reinterpret_cast<T*>(pool);
}

// Read or write what other threads change with atomics in the same launch.
template <class T>
__device__ T relaxed_load(const T* address) {
    return *static_cast<const volatile T*>(address);
}

template <class T>
__device__ void relaxed_store(T* address, T value) {
    *static_cast<volatile T*>(address) = value;
}

}  // namespace fastreid_al
#endif
