// Marks functions in headers that both the C++ and the CUDA sources use.
#pragma once

#ifdef __CUDACC__
#define FASTREID_AL_PORTABLE __host__ __device__ inline
#else
#define FASTREID_AL_PORTABLE inline
#endif
