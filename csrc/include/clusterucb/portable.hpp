// What lets one header serve the C++ compiler and nvcc.
#pragma once

// Internal linkage on the host: each translation unit is compiled for its own instruction set and keeps its
// own copy, so that the linker can never put code with AVX2 where it must run everywhere.
#ifdef __CUDACC__
#define CLUSTERUCB_HD static inline __host__ __device__
#else
#define CLUSTERUCB_HD static inline
#endif
