// Chooses the kernels of this CPU.

#include <cstdlib>
#include <cstring>

#include "kernels.h"
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace matryo {

extern const Kernels portable_kernels;
extern const Kernels avx2_kernels, avx512_kernels;  // defined on x86-64
extern const Kernels neon_kernels;                  // defined on 64-bit ARM

namespace {

#if defined(__x86_64__)
bool has_avx512() {
#if defined(MATRYO_EMULATE_AVX512)
  return true;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#endif
}
#elif defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every 64-bit ARM CPU of Apple has them
#endif
}
#endif

// The kernels that this CPU can run, the fastest first, then null.
const Kernels* const* candidates() {
  static const Kernels* found[4] = {};
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_avx512()) found[n++] = &avx512_kernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[n++] = &avx2_kernels;
#elif defined(__aarch64__)
  if (has_dot_products()) found[n++] = &neon_kernels;
#endif
  found[n++] = &portable_kernels;
  return found;
}

const Kernels* choose() {
  const Kernels* const* known = candidates();
  const char* wanted = std::getenv("MATRYO_NATIVE_ISA");
  if (!wanted || !*wanted) return *known;
  while (*known && std::strcmp((*known)->isa, wanted)) known++;
  return *known;
}

}  // namespace

const Kernels* kernels() {
  static const Kernels* chosen = choose();
  return chosen;
}

}  // namespace matryo

// The name of the kernels that this process uses, such as "avx2"; null if there are none.
extern "C" __attribute__((visibility("default"))) const char* matryo_native_isa() {
  const matryo::Kernels* chosen = matryo::kernels();
  return chosen ? chosen->isa : nullptr;
}
