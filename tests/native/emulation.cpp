// Kernels that test that cuda_on_cpu.h behaves like CUDA: `emulation NAME` runs one and prints
// errors.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "device.h"

using namespace fastreid_al;

namespace {

// Sum each block's part of x by a tree in dynamic shared memory. Without `all_there`, threads do
// not wait for each other.
template <bool all_there>
__global__ void block_sums(const int* __restrict__ x, int n, int* sums) {
    int* partial = dynamic_shared<int>();
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    partial[threadIdx.x] = i < n ? __ldg(x + i) : 0;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (all_there) __syncthreads();
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

int sums(bool all_there) {
    std::vector<int> x(300 * 128 - 57), found(300, -1);
    std::iota(x.begin(), x.end(), 0);
    launch(all_there ? block_sums<true> : block_sums<false>, 300, 128, 128 * sizeof(int), nullptr,
           x.data(), x.size(), found.data());
    for (size_t b = 0; b < found.size(); ++b) {
        int expected = 0;
        for (size_t i = 128 * b; i < std::min(x.size(), 128 * b + 128); ++i) expected += x[i];
        if (found[b] != expected)
            return std::printf("block %zu: got %d, expected %d\n", b, found[b], expected);
    }
    return 0;
}

__global__ void shuffles(long long* out) {
    const int lane = threadIdx.x % 32;
    const unsigned all = 0xFFFFFFFFu;
    long long sum = threadIdx.x;
    for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(all, sum, d);
    sum = __shfl_sync(all, sum, 0);
    float most = static_cast<float>(threadIdx.x * 7 % 32);
    for (int d = 1; d < 32; d *= 2) most = max(most, __shfl_xor_sync(all, most, d));
    const unsigned odd = __ballot_sync(all, lane % 2);
    // The lower half diverges; the mask names the lanes that take part.
    int neighbour = -1;
    if (lane < 16) neighbour = __shfl_down_sync(0x0000FFFFu, lane, 1, 4);
    const int any = __any_sync(all, lane == 31);
    out[threadIdx.x] = sum + static_cast<long long>(1e6f * most) +
                       1000000000LL * (odd == 0xAAAAAAAAu) + 10000000000LL * neighbour +
                       1000000000000LL * any + 2000000000000LL * __popc(odd) +
                       (__ffs(odd) == 2) + (__clz(1 << lane) == 31 - lane);
}

int shuffled() {
    std::vector<long long> found(96);
    launch(shuffles, 1, 96, 0, nullptr, found.data());
    for (int t = 0; t < 96; ++t) {
        const int lane = t % 32, first = t - lane;
        const long long neighbour = lane >= 16 ? -1 : lane % 4 == 3 ? lane : lane + 1;
        const long long expected = 32LL * first + 496 + 31000000LL + 1000000000LL +
                                 10000000000LL * neighbour + 1000000000000LL +
                                 2000000000000LL * 16 + 2;
        if (found[t] != expected)
            return std::printf("thread %d: got %lld, expected %lld\n", t, found[t], expected);
    }
    return 0;
}

__global__ void histogram(const int* x, int n, unsigned* counts, unsigned long long* sum,
                          int* least, int* most, unsigned* seen) {
    __shared__ unsigned local[64];
    for (unsigned i = threadIdx.x; i < 64; i += blockDim.x) local[i] = 0;
    __syncthreads();
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    // Threads past the end return before the others wait; CUDA allows that.
    if (i < n) {
        atomicAdd(&local[x[i] % 64], 1);
        atomicAdd(sum, static_cast<unsigned long long>(x[i]));
        atomicMin(least, x[i]);
        atomicMax(most, x[i]);
        atomicOr(&seen[x[i] / 32], 1u << x[i] % 32);
    }
    __syncthreads();
    if (threadIdx.x >= 64) return;
    if (local[threadIdx.x]) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) atomicCAS(&counts[64], 0u, blockIdx.x + 1);
}

int counted() {
    const int n = 5000;
    std::vector<int> x(n);
    for (int i = 0; i < n; ++i) x[i] = (i * 7919LL + 13) % 4096;
    std::vector<unsigned> found(65), expected(64), seen(128), expected_seen(128);
    unsigned long long sum = 0, expected_sum = 0;
    int least = 1 << 30, most = -1;
    cudaMemsetAsync(found.data(), 0, found.size() * sizeof(unsigned), nullptr);
    launch(histogram, (n + 127) / 128, 128, 0, nullptr, x.data(), n, found.data(), &sum, &least,
           &most, seen.data());
    for (int value : x) {
        ++expected[value % 64];
        expected_sum += value;
        expected_seen[value / 32] |= 1u << value % 32;
    }
    const bool same = std::equal(expected.begin(), expected.end(), found.begin()) &&
                      sum == expected_sum && seen == expected_seen &&
                      least == *std::min_element(x.begin(), x.end()) &&
                      most == *std::max_element(x.begin(), x.end());
    return same && found[64] != 0 ? 0 : std::printf("a count differs\n");
}

// Lane 0 reads what the other lanes of its warp wrote. Without `all_there`, it does not wait for
// them.
template <bool all_there>
__global__ void through_memory(int* out) {
    __shared__ int values[64];
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (all_there)
        __syncwarp();
    else
        __shfl_sync(0xFFFFFFFFu, 0, 0);
    if (threadIdx.x % 32 == 0) {
        int sum = 0;
        for (int l = 0; l < 32; ++l) sum += values[threadIdx.x + l];
        out[threadIdx.x / 32] = sum;
    }
}

int in_warps(bool all_there) {
    int found[2] = {};
    launch(all_there ? through_memory<true> : through_memory<false>, 3, 64, 0, nullptr, found);
    return found[0] == 496 && found[1] == 1520 ? 0
        : std::printf("found %d, %d\n", found[0], found[1]);
}

__global__ void link_neighbours(int* parents, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 1 >= n) return;
    int a = i, b = i + 1;
    while (a != b) {
        if (a > b) {
            const int lower = b;
            b = a;
            a = lower;
        }
        const int above = atomicMin(&parents[b], a);
        b = above == b ? a : above;
    }
}

__global__ void follow(int* parents, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    int root = i;
    for (int up; (up = relaxed_load(parents + root)) != root;) root = up;
    relaxed_store(parents + i, root);
}

int linked() {
    std::vector<int> parents(1000);
    std::iota(parents.begin(), parents.end(), 0);
    launch(link_neighbours, 10, 100, 0, nullptr, parents.data(), 1000);
    launch(follow, 10, 100, 0, nullptr, parents.data(), 1000);
    return parents == std::vector<int>(1000, 0) ? 0 : std::printf("not all are linked\n");
}

__global__ void half_waits(int* out) {
    if (threadIdx.x < 16) __syncwarp(0xFFFFFFFFu);
    if (threadIdx.x >= 16) __syncthreads();
    *out = 1;
}

int stuck() {
    int out = 0;
    try {
        launch(half_waits, 1, 32, 0, nullptr, &out);
    } catch (const std::runtime_error& error) {
        // The next launch works.
        if (!std::strstr(error.what(), "16: __syncthreads, 16: __syncwarp"))
            return std::printf("%s\n", error.what());
        return sums(true);
    }
    return std::printf("nobody noticed\n");
}

__global__ void past_the_end(int* out) {
    int* values = dynamic_shared<int>();
    values[threadIdx.x + 8] = 1;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

int overflow() {
    int out[32] = {};
    try {
        launch(past_the_end, 1, 32, 32 * sizeof(int), nullptr, out);
    } catch (const std::runtime_error& error) {
        return std::strstr(error.what(), "past its dynamic shared memory") ? 0
            : std::printf("%s\n", error.what());
    }
    return std::printf("nobody noticed\n");
}

int refused() {
    int out[32] = {};
    try {
        launch(past_the_end, 1, 32, most_shared_bytes() + 1, nullptr, out);
    } catch (const std::runtime_error& error) {
        return std::strstr(error.what(), "shared memory") ? 0 : std::printf("%s\n", error.what());
    }
    return std::printf("nobody noticed\n");
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    if (name == "sums") return sums(true) != 0;
    if (name == "sums-without-waiting") return sums(false) != 0;
    if (name == "shuffles") return shuffled() != 0;
    if (name == "histogram") return counted() != 0;
    if (name == "warps") return in_warps(true) != 0;
    if (name == "warps-without-waiting") return in_warps(false) != 0;
    if (name == "links") return linked() != 0;
    if (name == "stuck") return stuck() != 0;
    if (name == "overflow") return overflow() != 0;
    if (name == "refused") return refused() != 0;
    return 2;
}
