// The gradient in the inputs of a layer in training, for batches that are worth sorting the layer for.

#ifndef SRIGL_KERNELS_CPU_TRAINING_BY_INPUTS_H_
#define SRIGL_KERNELS_CPU_TRAINING_BY_INPUTS_H_

#include "kernels.h"
#include "matmul.h"

namespace srigl {

// Whether sorting the layer's entries by their inputs costs less than it saves, in time and in memory.
bool IsWorthSorting(const Training& call);

// As TrainingInputGradient, of checked sizes: sorts the entries of the call, in six bytes for each,
// and multiplies.
const char* InputGradientByInputs(const Training& call, int64_t threads, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_TRAINING_BY_INPUTS_H_
