// Products and gradients of a layer whose values and pattern change, in plain C++, independent of
// JAX: nothing is packed beforehand. Sizes, active neurons and every index are checked; on an error
// the result may be partly written.

#ifndef SRIGL_KERNELS_CPU_TRAINING_H_
#define SRIGL_KERNELS_CPU_TRAINING_H_

#include "kernels.h"
#include "matmul.h"

namespace srigl {

// Each fills one result of `call` from the operands that it names, and returns nullptr, or what is
// wrong. Sums do not depend on the number of threads.

// y from x; 0, or the bias, for ablated neurons.
const char* TrainingForward(const Training& call, Executor* executor);

// dx from g.
const char* TrainingInputGradient(const Training& call, Executor* executor);

// dvalues from g and x.
const char* TrainingValuesGradient(const Training& call, Executor* executor);

// What a pattern says of its sizes.
struct PatternSizes {
  const int32_t* active;  // [num_active]
  int64_t num_active, fan_in, in_features, out_features;
  bool wide_indices;
};

// nullptr, or what is wrong with them.
const char* CheckPattern(const PatternSizes& sizes);

// Scratch memory of the calling thread, 64-aligned, kept for its next call.
float* TrainingScratch(size_t floats);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_TRAINING_H_
