// Chooses the kernels of this CPU.

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace matryo {

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
}  // namespace matryo
#include <asm/hwcap.h>
#include <sys/auxv.h>
namespace matryo {
#endif

namespace {

// The kernels that this CPU can run, the fastest first, then null.
const Kernels* const* candidates() {
  static const Kernels* found[4] = {};
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni")) {
    found[n++] = &avx512_kernels;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[n++] = &avx2_kernels;
#elif defined(__aarch64__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found[n++] = &neon_kernels;
#endif
  found[n++] = &portable_kernels;
  return found;
}

const Kernels& choose() {
  const Kernels* const* known = candidates();
  const char* wanted = std::getenv("MATRYO_NATIVE_ISA");
  for (int i = 0; wanted && known[i]; i++) {
    if (!std::strcmp(known[i]->isa, wanted)) return *known[i];
  }
  return *known[0];
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace matryo

// The name of the kernels that this process uses, such as "avx2".
extern "C" __attribute__((visibility("default"))) const char* matryo_native_isa() {
  return matryo::kernels().isa;
}
