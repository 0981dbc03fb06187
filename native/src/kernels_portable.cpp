#include "simd/portable.h"

#define MATRYO_ISA "portable"
#define MATRYO_KERNELS portable_kernels
#include "kernels.inc.h"
