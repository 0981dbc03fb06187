#include "simd/avx2.h"

#define MATRYO_ISA "avx2"
#define MATRYO_KERNELS avx2_kernels
#include "kernels.inc.h"
