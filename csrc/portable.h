// Row logic that the CPU and the CUDA part share is written once, in headers, and marked FASTREID_AL_PORTABLE.
#pragma once

#ifdef __CUDACC__
#define FASTREID_AL_PORTABLE __host__ __device__ inline
#else
#define FASTREID_AL_PORTABLE inline
#endif
