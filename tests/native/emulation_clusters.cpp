// Kernels that test that clusters, asynchronous copies and products of a warp behave like CUDA in
// matrices_on_cpu.h: `emulation_clusters NAME` runs one and prints errors.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cluster.h"

using namespace fastreid_al;

namespace {

constexpr int CLUSTER = 4, THREADS = 64;

// Each block writes its number to all blocks of its cluster, and sums what it got. Without
// `all_there`, it does not wait for the others; without `releases`, its writes need not have
// arrived.
template <bool all_there, bool releases>
__global__ void exchange_numbers(int* sums) {
    int* got = dynamic_shared<int>();
    const int rank = cluster_rank();
    for (int to = 0; to < CLUSTER; ++to)
        if (threadIdx.x == 0) in_block(got, to)[rank] = static_cast<int>(blockIdx.x);
    if (all_there) {
        __syncthreads();
        if (threadIdx.x < 32)
            cluster_arrive<releases>();
        else
            cluster_arrive<false>();
        cluster_wait();
    }
    int sum = 0;
    for (int from = 0; from < CLUSTER; ++from) sum += got[from];
    if (threadIdx.x == 40) sums[blockIdx.x] = sum;
}

int exchanged(void (*kernel)(int*)) {
    std::vector<int> sums(5 * CLUSTER);
    launch_clusters(kernel, 5, CLUSTER, THREADS, CLUSTER * sizeof(int), nullptr, sums.data());
    for (int block = 0; block < 5 * CLUSTER; ++block) {
        const int first = block / CLUSTER * CLUSTER, expected = 4 * first + 6;
        if (sums[block] != expected)
            return std::printf("block %d: got %d, expected %d\n", block, sums[block], expected);
    }
    return 0;
}

// The last block writes to the first, which does not wait for it.
__global__ void write_late(int* turns) {
    int* got = dynamic_shared<int>();
    const int rank = cluster_rank();
    if (rank == 0) return;
    for (int i = 0; i < 100; ++i) atomicAdd(turns, 1);
    *in_block(got, 0) = rank;
}

int late() {
    int turns = 0;
    try {
        launch_clusters(write_late, 20, 2, 32, sizeof(int), nullptr, &turns);
    } catch (const std::runtime_error& error) {
        return std::strstr(error.what(), "writes to one that has returned") == nullptr &&
               std::printf("%s\n", error.what());
    }
    return std::printf("nobody noticed\n");
}

__global__ void one_does_not_come() {
    if (cluster_rank() == 1 && threadIdx.x == 0) {
        __syncthreads();
        return;
    }
    cluster_arrive<true>();
    cluster_wait();
}

int stuck() {
    try {
        launch_clusters(one_does_not_come, 1, 2, 32, 0, nullptr);
    } catch (const std::runtime_error& error) {
        return std::strstr(error.what(), "1: __syncthreads, 63: the cluster") == nullptr &&
               std::printf("%s\n", error.what());
    }
    return std::printf("nobody noticed\n");
}

// Copy three groups of pieces; use the first while the last is on its way.
template <bool waits>
__global__ void copy_groups(const int* x, int* out, int count) {
    int* stages = dynamic_shared<int>();
    for (int group = 0; group < 3; ++group) {
        const int place = 4 * (group * THREADS + static_cast<int>(threadIdx.x));
        copy_async(stages + place, place < count ? x + place : x, place < count);
        commit_copies();
    }
    if (waits) wait_for_copies<1>();
    __syncthreads();
    // The piece of another thread.
    for (int i = 0; i < 4; ++i) {
        const int place = 4 * (THREADS - 1 - static_cast<int>(threadIdx.x)) + i;
        out[place] = stages[place];
        out[4 * THREADS + place] = stages[4 * THREADS + place];
    }
    wait_for_copies<0>();
}

int copied(bool waits) {
    const int count = 6 * THREADS;
    std::vector<int> x(12 * THREADS), out(8 * THREADS, -1);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i) + 1;
    launch(waits ? copy_groups<true> : copy_groups<false>, 1, THREADS, 12 * THREADS * sizeof(int),
           nullptr, x.data(), out.data(), count);
    for (int i = 0; i < 8 * THREADS; ++i)
        if (out[i] != (i < count ? i + 1 : 0))
            return std::printf("place %d: got %d\n", i, out[i]);
    return 0;
}

// A (16 x 16) times B (16 x 8), with B stored by columns (8 x 16) or, transposed, by rows (16 x 8).
template <class Half, bool TRANSPOSED>
__global__ void multiply_once(const uint16_t* a, const uint16_t* b, float* out) {
    const int lane = threadIdx.x % 32;
    uint32_t x[4], y[4];
    load_matrices<false>(x, a + lane % 16 * 16 + lane / 16 * 8);
    // Only the first two matrices are used.
    const int by_rows = lane % 16 * 8, by_columns = lane % 8 * 16 + lane / 8 % 2 * 8;
    load_matrices<TRANSPOSED>(y, b + (TRANSPOSED ? by_rows : by_columns));
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    multiply_add<Half>(sums, x, y[0], y[1]);
    for (int i = 0; i < 4; ++i)
        out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

template <class Half, bool TRANSPOSED>
int multiplied() {
    std::vector<uint16_t> a(16 * 16), b(16 * 8);
    std::vector<float> out(16 * 8);
    for (int i = 0; i < 256; ++i) a[i] = Half::rounded(static_cast<float>(i * 7 % 13 - 6) / 4);
    for (int i = 0; i < 128; ++i) b[i] = Half::rounded(static_cast<float>(i * 5 % 11 - 5) / 8);
    launch(multiply_once<Half, TRANSPOSED>, 1, 32, 0, nullptr, a.data(), b.data(), out.data());
    for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
            float expected = 1.0f;
            for (int k = 0; k < 16; ++k)
                expected += Half::widened(a[row * 16 + k]) *
                            Half::widened(b[TRANSPOSED ? k * 8 + column : column * 16 + k]);
            if (out[row * 8 + column] != expected)
                return std::printf("(%d, %d): got %g, expected %g\n", row, column,
                                   out[row * 8 + column], expected);
        }
    return 0;
}

// All float16 values survive a conversion; halfway values round to even.
int rounded() {
    for (int bits = 0; bits < 0x10000; ++bits) {
        const uint16_t half = static_cast<uint16_t>(bits);
        if (!std::isnan(Float16::widened(half)) && Float16::rounded(Float16::widened(half)) != half)
            return std::printf("float16 %04x\n", bits);
        if (!std::isnan(Bfloat16::widened(half)) &&
            Bfloat16::rounded(Bfloat16::widened(half)) != half)
            return std::printf("bfloat16 %04x\n", bits);
    }
    const bool even = Float16::rounded(1.0f + 0x1p-11f) == 0x3C00 &&
                      Float16::rounded(1.0f + 0x1.8p-10f) == 0x3C02 &&
                      Bfloat16::rounded(1.0f + 0x1p-8f) == 0x3F80 &&
                      Bfloat16::rounded(1.0f + 0x1.8p-7f) == 0x3F82;
    return even ? 0 : std::printf("halfway values\n");
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    if (name == "exchange") return exchanged(exchange_numbers<true, true>) != 0;
    if (name == "exchange-without-waiting") return exchanged(exchange_numbers<false, true>) != 0;
    if (name == "exchange-without-release") return exchanged(exchange_numbers<true, false>) != 0;
    if (name == "late") return late() != 0;
    if (name == "stuck-cluster") return stuck() != 0;
    if (name == "copies") return copied(true) != 0;
    if (name == "copies-without-waiting") return copied(false) != 0;
    if (name == "products")
        return multiplied<Bfloat16, false>() || multiplied<Bfloat16, true>() ||
               multiplied<Float16, false>() || multiplied<Float16, true>();
    if (name == "rounding") return rounded() != 0;
    return 2;
}
