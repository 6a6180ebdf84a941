// Which CPU target is in use, and what is told of the CPU beside it.

#ifndef SRIGL_KERNELS_CPU_ISA_H_
#define SRIGL_KERNELS_CPU_ISA_H_

#include <stdint.h>

#include "kernels.h"

namespace srigl {

// CPU targets, from the one every machine has to the most special.
enum class Isa : int32_t {
  kGeneric = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Vnni = 3,  // dot products of int8, and permutations of bytes
  kAvx512Bf16 = 4,  // and dot products of bfloat16
  kAvx512Fp16 = 5,  // and arithmetic in float16
};
inline constexpr int kNumIsas = 6;

const char* IsaName(Isa isa);
bool IsaSupported(Isa isa);

// The target in use: the best one supported, or the one that the environment variable SRIGL_ISA
// names (read once; a name that is unknown or not supported is reported and ignored).
Isa CurrentIsa();

// Changes the target in use, for tests. False when the CPU does not support it.
bool SetIsa(Isa isa);

// Kernels of the target in use.
const Kernels& CurrentKernels();
const DotKernels& CurrentDots();

// Bytes at whose multiples the windows of dot patterns had better begin on this CPU: a register is
// loaded in halves of so many, or 1. Such windows reach less far, and so a pattern has more steps.
int64_t WindowAlignment();

// Whether dot products of bfloat16 take several times as long as products and sums of float32: Intel's.
bool HasSlowBFloat16();

// From which density on a dense product in float32 is faster than one with places, on AVX-512.
double DenseShare();

// What a dense step of a dot pattern takes, in steps with places.
double DenseStepCost();

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_ISA_H_
