// Convolutions of layers whose values and pattern change, in plain C++, independent of JAX.
//
// Nothing is stored per patch: a product takes some output pixels at a time, transposes the lines of
// the images below them once, and puts a block of their patches' inputs together just before it is
// read. What a call reads of the layer it sorts first, by blocks of inputs and rows: that costs a few
// nanoseconds for each connection, of which there are few beside the pixels.

#ifndef SRIGL_KERNELS_CPU_TRAINING_CONV_H_
#define SRIGL_KERNELS_CPU_TRAINING_CONV_H_

#include "kernels.h"
#include "matmul.h"

namespace srigl {

// A layer in training and a batch of images, channels last, all float32. Its inputs are ordered
// (ky, kx, channel); entry e belongs to the active neuron e / fan_in.
struct SparseConv {
  const float* values;    // [num_active, fan_in]
  const void* indices;    // [num_active, fan_in], ascending in each neuron: uint16, or int32
  const int32_t* active;  // [num_active], ascending, each within 0..out_features - 1
  const float* x;         // [images, y.size, x.size, channels]
  const float* g;         // [images, y.out, x.out, out_features]
  float* y;               // as g
  float* dx;              // as x
  float* dvalues;         // [num_active, fan_in]
  int64_t images;
  int64_t out_features;
  int64_t num_active;
  int64_t fan_in;
  Patches patches;
  int64_t padding_after[2];  // beyond the last line and column
  bool wide_indices;         // int32
};

// Each fills one result from the operands that it names, and returns nullptr, or what is wrong: the
// result is then untouched. Sums do not depend on the number of threads.

// y from x; 0 for ablated neurons.
const char* SparseConvForward(const SparseConv& call, Executor* executor);

// dx from g.
const char* SparseConvInputGradient(const SparseConv& call, Executor* executor);

// dvalues from g and x.
const char* SparseConvValuesGradient(const SparseConv& call, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_TRAINING_CONV_H_
