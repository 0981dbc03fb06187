// The kernels, over sixteen lanes. Each CPU class compiles this file for itself, after its header
// in simd/, and defines MATRYO_KERNELS, the name of its table.
//
// Everything is in an unnamed namespace, and nothing of the standard library is called: the linker
// would merge equal functions of two classes, and an older CPU would run the newer one's code.

#include "kernels.h"

#define MATRYO_UNROLL _Pragma("GCC unroll 16")

#include "parts/attention.h"
#include "parts/layer_norm.h"
#include "parts/linear.h"

namespace matryo {

extern const Kernels MATRYO_KERNELS;
const Kernels MATRYO_KERNELS = {MATRYO_ISA, round_rows, multiply, pack_keys, attend, layer_norm};

}  // namespace matryo
