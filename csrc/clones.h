// Hot loops are compiled once per instruction set and chosen when the library is loaded, so that one build serves every machine.
// Sanitizers cannot follow that choice.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define FASTREID_AL_CLONES __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define FASTREID_AL_CLONES
#endif
