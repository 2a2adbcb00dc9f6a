// Defines CLUSTERUCB_HD, which lets both the C++ compiler and nvcc compile the same header.
#pragma once

// Functions have internal linkage on the host. Each translation unit is compiled for its own instruction set
// and keeps its own copy, so that the linker can never pick an AVX2 copy for code that must run everywhere.
#ifdef __CUDACC__
#define CLUSTERUCB_HD static inline __host__ __device__
#else
#define CLUSTERUCB_HD static inline
#endif
