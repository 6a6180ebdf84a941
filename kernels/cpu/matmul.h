// The plain C++ layer: packed layer times batch, on any CPU target, independent of JAX.

#ifndef SRIGL_KERNELS_CPU_MATMUL_H_
#define SRIGL_KERNELS_CPU_MATMUL_H_

#include <stdint.h>

#include "isa.h"
#include "kernels.h"
#include "layout.h"

namespace srigl {

// Of what threads that do the tasks of a call have a part each, and all of the other.
enum class SharedOut { kRows, kWeights };

// Runs tasks 0..num_tasks-1, each once, on up to `max_threads` threads, and returns when all are
// done.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int64_t num_threads() const = 0;
  virtual void Run(int64_t num_tasks, int64_t max_threads, void (*task)(const void*, int64_t),
                   const void* context, SharedOut shared_out = SharedOut::kRows) = 0;
};

class SerialExecutor : public Executor {
 public:
  int64_t num_threads() const override { return 1; }
  void Run(int64_t num_tasks, int64_t max_threads, void (*task)(const void*, int64_t),
           const void* context, SharedOut shared_out) override;
};

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
