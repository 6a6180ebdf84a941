// The plain C++ layer: packed layer times batch, on any CPU target, independent of JAX.

#ifndef SRIGL_KERNELS_CPU_MATMUL_H_
#define SRIGL_KERNELS_CPU_MATMUL_H_

#include <stdint.h>

#include "kernels.h"
#include "layout.h"

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

// Bytes at whose multiples the windows of dot patterns had better begin on this CPU: a register is
// loaded in halves of so many, or 1. Such windows reach less far, and so a pattern has more steps.
int64_t WindowAlignment();

// Runs tasks 0..num_tasks-1, each once, on up to `max_threads` threads, and returns when all are
// done.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int64_t num_threads() const = 0;
  virtual void Run(int64_t num_tasks, int64_t max_threads, void (*task)(const void*, int64_t),
                   const void* context) = 0;
};

class SerialExecutor : public Executor {
 public:
  int64_t num_threads() const override { return 1; }
  void Run(int64_t num_tasks, int64_t max_threads, void (*task)(const void*, int64_t),
           const void* context) override;
};

// Kernels of the target in use.
const Kernels& CurrentKernels();
const DotKernels& CurrentDots();

// Scratch memory of the calling thread, kept for the thread's life: 344 KB, and 1 MB that only
// convolutions touch.
float* Scratch();

// On how many threads so many products of a weight and a batch row are worth computing.
int64_t ThreadsFor(double work, const Executor& executor);

// Whether all of `columns` lie within 0..width - 1.
bool WithinWidth(const int32_t* columns, int64_t num_columns, int64_t width);

// A packed layer as it comes in: the window and the dot pattern may be empty, and are not used then.
struct PackedLayer {
  Bytes tile_pattern, tile_values;
  Bytes window_pattern, window_values;
  ValueType value_type;
  Bytes dot_pattern = {nullptr, 0};
};

// y = activation(x times the layer + bias + residual). Returns nullptr, or what is wrong; y is then untouched.
const char* CondensedMatMul(const PackedLayer& layer, const MatMul& call, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_MATMUL_H_
