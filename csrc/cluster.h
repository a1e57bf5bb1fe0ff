// Clusters of thread blocks, asynchronous copies to shared memory, and products of a warp on tensor
// cores, as functions whose bodies are single PTX instructions. For compute capability 9.0 and
// later. With FASTREID_AL_EMULATED, tests replace them by tests/native/matrices_on_cpu.h.
//
// cluster_rank(): number of this block in its cluster. cluster_arrive<RELEASE>(), cluster_wait():
// the halves of a barrier of the cluster, called by whole warps. What a thread that releases wrote
// before the first, or knew to be written, is seen after the second, in the shared memory of other
// blocks too. To release, a warp waits until its writes have arrived; after __syncthreads it is
// enough if one warp of a block does. in_block(own, rank): the address, in another block's shared
// memory, of what lies at `own` in that of this block.
//
// copy_async(to, from, valid): begin to copy 16 bytes to shared memory, or to write zeros unless
// `valid`. commit_copies() ends a group of copies; wait_for_copies<P>() waits for all groups but
// the last P.
//
// load_matrices<TRANSPOSED>: ldmatrix.x4 of four 8 x 8 matrices of 16-bit values. Lane 8 m + r has
// the address of row r of matrix m. multiply_add: mma.m16n8k16 with float32 sums.
// rounded_pair: two values rounded to 16 bits, the first in the low half.
#pragma once

#include "device.h"

#ifdef FASTREID_AL_EMULATED
#include "matrices_on_cpu.h"
#else

namespace fastreid_al {

__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

template <bool RELEASE>
__device__ __forceinline__ void cluster_arrive() {
    if (RELEASE)
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    else
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

template <class T>
__device__ __forceinline__ T* in_block(T* own, int rank) {
    uint64_t address;
    asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(own), "r"(rank));
    return reinterpret_cast<T*>(address);
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(shared_address(row)));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(shared_address(row)));
}

struct Bfloat16 {
    __device__ static float widened(uint16_t bits) {
        return __uint_as_float(static_cast<unsigned>(bits) << 16);
    }

    __device__ static uint32_t pair(float low, float high) {
        uint32_t word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }

    __device__ __forceinline__ static void multiply_add(float (&sums)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct Float16 {
    __device__ static float widened(uint16_t bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }

    __device__ static uint32_t pair(float low, float high) {
        uint32_t word;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }

    __device__ __forceinline__ static void multiply_add(float (&sums)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <class Half>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    Half::multiply_add(sums, a, b0, b1);
}

template <class Half>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
    return Half::pair(low, high);
}

// A launch of `clusters` clusters of `cluster` blocks with `shared_bytes` of dynamic shared memory.
// It points to `attribute`.
inline cudaLaunchConfig_t cluster_launch(cudaLaunchAttribute& attribute, int64_t clusters,
                                         int cluster, int threads, size_t shared_bytes) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return config;
}

// Launch a kernel in clusters of `cluster` blocks.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int64_t clusters, int cluster, int threads,
                     size_t shared_bytes, void* stream, Arguments... arguments) {
    if (clusters <= 0) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory");
    cudaLaunchAttribute attribute{};
    auto config = cluster_launch(attribute, clusters, cluster, threads, shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
          "kernel launch");
}

// Clusters of a kernel that the current device runs at a time; 0 where it cannot run.
template <class... Parameters>
int64_t most_clusters(void (*kernel)(Parameters...), int cluster, int threads,
                      size_t shared_bytes) {
    int device = 0, clusters_exist = 0;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&clusters_exist, cudaDevAttrClusterLaunch, device),
          "device attribute");
    if (!clusters_exist || shared_bytes > most_shared_bytes()) return 0;
    cudaFuncAttributes known{};
    check(cudaFuncGetAttributes(&known, kernel), "kernel attributes");
    // A build for an earlier architecture has the kernel without its body.
    if (known.ptxVersion < 90) return 0;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory");
    cudaLaunchAttribute attribute{};
    const auto config = cluster_launch(attribute, 1, cluster, threads, shared_bytes);
    int found = 0;
    check(cudaOccupancyMaxActiveClusters(&found, kernel, &config), "clusters at a time");
    return found;
}

}  // namespace fastreid_al
#endif
