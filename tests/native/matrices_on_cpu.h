// The functions of csrc/cluster.h for tests/native/cuda_on_cpu.h: clusters, asynchronous copies and
// products of a warp, in plain C++.
//
// Lanes show each other their registers and wait for each other, which orders no memory, as on a
// GPU. The element of each lane and register is that of the PTX ISA's ldmatrix and mma.m16n8k16.
#pragma once

#include "cuda_on_cpu.h"

namespace fastreid_al {

namespace emulated {

constexpr unsigned all_lanes = 0xFFFFFFFFu;

// Show three values to the other lanes of the warp; return those of all lanes when all have done
// so. They stay valid until the lane's next exchange but one.
using Shown = const uint64_t (*)[3];

FASTREID_AL_UNSEEN Shown exchange(uint64_t x, uint64_t y, uint64_t z) {
    Thread& self = machine.threads[machine.current];
    uint64_t(*shown)[3] = machine.warps[machine.current / 32].shown[self.exchanges++ & 1];
    uint64_t* own = shown[machine.current % 32];
    own[0] = x;
    own[1] = y;
    own[2] = z;
    wait_for_lanes(Wait::vote, all_lanes, 0, 0);
    return shown;
}

FASTREID_AL_UNSEEN uint64_t shown_by(Shown shown, int lane, int value) {
    return shown[lane][value];
}

// A 16-bit register of those that a lane shows, two in each 32 bits.
inline uint16_t part_of(Shown shown, int lane, int value, int part) {
    return static_cast<uint16_t>(shown_by(shown, lane, value) >> (16 * part));
}

__attribute__((noinline)) inline void copy(const Copy& work) {
    memcpy(work.to, work.from, work.bytes);
    memset(static_cast<char*>(work.to) + work.bytes, 0, work.room - work.bytes);
}

}  // namespace emulated

// The sign, exponent and mantissa of IEEE's 16-bit format.
inline float float_of_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                  : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                  : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    return bits >> 15 ? -value : value;
}

inline uint16_t half_of_float(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    value = std::fabs(value);
    if (std::isnan(value)) return 0x7FFF;
    if (value >= 65520.0f) return sign | 0x7C00;
    int exponent = value == 0.0f ? -14 : std::max(std::ilogb(value), -14);
    // To the nearest multiple of the last place, ties to even.
    const int units = static_cast<int>(std::nearbyint(std::ldexp(value, 10 - exponent)));
    return static_cast<uint16_t>(sign | (units < 1024 ? units : units + ((exponent + 14) << 10)));
}

struct Bfloat16 {
    static float widened(uint16_t bits) {
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &word, 4);
        return value;
    }

    static uint16_t rounded(float value) {
        uint32_t word;
        memcpy(&word, &value, 4);
        if (std::isnan(value)) return 0x7FFF;
        return static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
    }
};

struct Float16 {
    static float widened(uint16_t bits) { return float_of_half(bits); }
    static uint16_t rounded(float value) { return half_of_float(value); }
};

inline int cluster_rank() { return emulated::block_rank(); }

template <bool RELEASE>
void cluster_arrive() {
    emulated::arrive_at_cluster(RELEASE);
}

inline void cluster_wait() { emulated::wait_for_cluster(); }

template <class T>
T* in_block(T* own, int rank) {
    using namespace emulated;
    unsigned char* mine = machine.blocks[block_rank()].pool;
    return reinterpret_cast<T*>(machine.blocks[rank].pool +
                                (reinterpret_cast<unsigned char*>(own) - mine));
}

inline void copy_async(void* to, const void* from, bool valid) {
    const emulated::Copy work{to, from, valid ? size_t{16} : 0, 16, 0};
    if (emulated::begin_copy(work)) emulated::copy(work);
}

inline void commit_copies() { emulated::end_copy_group(); }

template <int PENDING>
void wait_for_copies() {
    emulated::Copy work;
    while (emulated::take_copy(PENDING, &work)) emulated::copy(work);
}

template <bool TRANSPOSED>
void load_matrices(uint32_t (&out)[4], const void* row) {
    using namespace emulated;
    const Shown rows = exchange(reinterpret_cast<uint64_t>(row), 0, 0);
    const int up = lane() / 4, along = 2 * (lane() % 4);
    for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
            const int from = TRANSPOSED ? along + i : up, column = TRANSPOSED ? up : along + i;
            pair[i] = reinterpret_cast<const uint16_t*>(
                shown_by(rows, 8 * matrix + from, 0))[column];
        }
        out[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
}

template <class Half>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    using namespace emulated;
    const Shown shown = exchange(a[0] | static_cast<uint64_t>(a[1]) << 32,
                                 a[2] | static_cast<uint64_t>(a[3]) << 32,
                                 b0 | static_cast<uint64_t>(b1) << 32);
    const int up = lane() / 4, along = 2 * (lane() % 4);
    for (int i = 0; i < 4; ++i) {
        const int column = along + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int owner = k % 8 / 2;
            const uint16_t x = part_of(shown, 4 * up + owner, k / 8, 2 * (i / 2) + k % 2);
            const uint16_t y = part_of(shown, 4 * column + owner, 2, 2 * (k / 8) + k % 2);
            sums[i] += Half::widened(x) * Half::widened(y);
        }
    }
}

template <class Half>
uint32_t rounded_pair(float low, float high) {
    return Half::rounded(low) | static_cast<uint32_t>(Half::rounded(high)) << 16;
}

}  // namespace fastreid_al
