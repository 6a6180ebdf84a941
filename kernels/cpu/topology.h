// One SRigL topology update of a layer in training, in plain C++, independent of JAX; what it does is
// said at srigl_jax/condensed_training/update.py. The dense gradient exists a few neurons at a time, and
// that of a small layer whole.

#ifndef SRIGL_KERNELS_CPU_TOPOLOGY_H_
#define SRIGL_KERNELS_CPU_TOPOLOGY_H_

#include "kernels.h"
#include "matmul.h"

namespace srigl {

struct TopologyUpdate {
  const float* values;    // [num_active, fan_in]
  const void* indices;    // [num_active, fan_in], ascending in each neuron: uint16, or int32
  const int32_t* active;  // [num_active], ascending, each within 0..out_features - 1
  const float* x;         // [batch, in_features]
  const float* g;         // [batch, out_features]
  const float* scores;    // [in_features, out_features] to rank growth by in place of x^T g, or nullptr
  int64_t capacity;       // the layer's budget
  int64_t batch;
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
  int64_t fan_in;
  int64_t num_pruned;  // entries, at most num_active * fan_in
  int64_t required;    // salient weights of a neuron that stays, before the floor; 0: all stay
  bool wide_indices;   // int32, of the results too

  void* new_indices;    // [capacity], 0 if not in use
  int32_t* new_active;  // [out_features], ascending, then out_features
  int32_t* new_sizes;   // active neurons, and their fan-in
  int32_t* source;      // [capacity] the entry that was the same connection, -1 if there was none
};

// Returns nullptr, or what is wrong: sizes, active neurons and indices are checked. The pattern does
// not depend on the number of threads.
const char* UpdateTopology(const TopologyUpdate& update, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_TOPOLOGY_H_
