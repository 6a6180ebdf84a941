#include "isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>

namespace srigl {
namespace {

constexpr const char* kIsaNames[kNumIsas] = {"generic",     "avx2",        "avx512",
                                             "avx512_vnni", "avx512_bf16", "avx512_fp16"};

const Kernels& KernelsOf(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kAvx512Kernels;
  if (isa == Isa::kAvx2) return kAvx2Kernels;
#endif
  (void)isa;
  return kGenericKernels;
}

Isa InitialIsa() {
  Isa best = Isa::kGeneric;
  for (int i = 0; i < kNumIsas; ++i) {
    if (IsaSupported(static_cast<Isa>(i))) best = static_cast<Isa>(i);
  }
  const char* name = getenv("SRIGL_ISA");
  if (name == nullptr || name[0] == '\0') return best;
  for (int i = 0; i < kNumIsas; ++i) {
    if (strcmp(name, kIsaNames[i]) == 0 && IsaSupported(static_cast<Isa>(i))) {
      return static_cast<Isa>(i);
    }
  }
  fprintf(stderr, "SRIGL_ISA=%s is not a target of this CPU (", name);
  for (int i = 0; i < kNumIsas; ++i) {
    if (IsaSupported(static_cast<Isa>(i))) fprintf(stderr, "%s%s", i > 0 ? ", " : "", kIsaNames[i]);
  }
  fprintf(stderr, "): using %s.\n", IsaName(best));
  return best;
}

std::atomic<Isa>& IsaInUse() {
  static std::atomic<Isa> isa{InitialIsa()};
  return isa;
}

#if defined(__x86_64__)
// Whether the CPU is of this vendor, one of cpuid.h's signatures.
bool IsFrom(unsigned int signature) {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0 && ebx == signature;
}

// __builtin_cpu_supports knows of it from GCC 12 on: leaf 7, edx bit 23. That the system saves the
// registers is known of the rest of AVX-512.
bool SupportsFloat16() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 23 & 1) != 0;
}
#endif

// Whether registers of 64 bytes move in halves: AMD's Zen 4, whose data paths have 256 bits and not 512
// (leaf 8000001A of AMD's, eax bits 2 and 3). A load that crosses a line of memory in one of its halves
// takes twice as long there. With windows at multiples of 32 bytes a step of int8 is a third faster, and
// there are a ninth more steps: ViT-B/16's feed-forward pair took 1,620 us at batch 512, and 1,880 with
// windows that begin anywhere.
bool LoadsHalves() {
#if defined(__x86_64__)
  static const bool halves = [] {
    unsigned int eax, ebx, ecx, edx;
    return IsFrom(signature_AMD_ebx) &&
           __get_cpuid(0x8000001a, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 2 & 3) == 1;
  }();
  return halves;
#else
  return false;
#endif
}

}  // namespace

const char* IsaName(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

bool IsaSupported(Isa isa) {
  if (isa == Isa::kGeneric) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  if (isa >= Isa::kAvx512) {
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512vbmi");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    if (isa == Isa::kAvx512) return avx512;
    if (isa == Isa::kAvx512Vnni) return vnni;
    if (isa == Isa::kAvx512Bf16) return bf16;
    return bf16 && SupportsFloat16();
  }
#endif
  return false;
}

int64_t WindowAlignment() { return LoadsHalves() ? 32 : 1; }

bool HasSlowBFloat16() {
#if defined(__x86_64__)
  static const bool is_slow = IsFrom(signature_INTEL_ebx);
  return is_slow;
#else
  return false;
#endif
}

// Where registers of 64 bytes move in halves, loads keep up with products, and a product with places
// reaches three quarters of what a dense one does: 75 and 105 billion products a second on two cores of
// an AMD EPYC. On an Intel Xeon both took the same time at a density of 0.57.
double DenseShare() { return LoadsHalves() ? 0.7 : 0.55; }

// Of bytes, in layers of ResNet-50: on one core of an Intel Xeon 0.15 ns and 0.43 ns for each batch row;
// on an AMD EPYC layers of 28 x 28 at a density of 0.48 took 7 and 16 % less with places.
double DenseStepCost() { return LoadsHalves() ? 0.7 : 0.4; }

const Kernels& CurrentKernels() { return KernelsOf(CurrentIsa()); }

const DotKernels& CurrentDots() {
#if defined(__x86_64__)
  const Isa isa = CurrentIsa();
  if (isa == Isa::kAvx512Fp16) return kFp16Dots;
  if (isa == Isa::kAvx512Bf16) return kBf16Dots;
  if (isa == Isa::kAvx512Vnni) return kVnniDots;
  if (isa == Isa::kAvx512) return kAvx512Dots;
#endif
  static constexpr DotKernels kNone = {};
  return kNone;
}

Isa CurrentIsa() { return IsaInUse().load(std::memory_order_relaxed); }

bool SetIsa(Isa isa) {
  if (static_cast<int>(isa) < 0 || static_cast<int>(isa) >= kNumIsas || !IsaSupported(isa)) {
    return false;
  }
  IsaInUse().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace srigl
