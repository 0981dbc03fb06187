#include "simd/neon.h"

#define MATRYO_ISA "neon-dotprod"
#define MATRYO_KERNELS neon_kernels
#include "kernels.inc.h"
