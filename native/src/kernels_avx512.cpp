#include "simd/avx512.h"

#define MATRYO_ISA "avx512-vnni"
#define MATRYO_KERNELS avx512_kernels
#include "kernels.inc.h"
