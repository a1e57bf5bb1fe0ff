// The parts of the CUDA runtime that the CUDA sources use. With FASTREID_AL_EMULATED, tests replace
// them by tests/native/cuda_on_cpu.h and run the same kernels on CPU threads.
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
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Launch a kernel on the current device, with `shared_bytes` of dynamic shared memory.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
            void* stream, Arguments... arguments) {
    if (blocks <= 0) return;
    // The default limit is 48 KiB, which includes the kernel's static arrays; more must be
    // requested.
    if (shared_bytes > 0)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              "shared memory");
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, cuda_stream>>>(
        static_cast<Parameters>(arguments)...);
    check(cudaGetLastError(), "kernel launch");
}

// Bytes of shared memory that a block of the current device may request.
inline size_t most_shared_bytes() {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "device attribute");
    return static_cast<size_t>(bytes);
}

// The block's dynamic shared memory.
template <class T>
__device__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char pool[];
    return reinterpret_cast<T*>(pool);
}

// Load or store a value that other threads of the same launch change with atomics.
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
