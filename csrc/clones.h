// Hot loops are compiled once per instruction set, and the loader chooses one when the library is
// loaded: one build serves every machine. Sanitizers do not support this choice (ifunc), so they
// get one version.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FASTREID_AL_CLONES \
    __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
// For functions that have a different body for AVX-512.
#define FASTREID_AL_AVX512 __attribute__((target("avx512f,avx512bw")))
#define FASTREID_AL_OTHERS __attribute__((target("default")))
#else
#define FASTREID_AL_OTHERS
#define FASTREID_AL_CLONES
#endif
