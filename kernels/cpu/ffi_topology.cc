// XLA FFI handler of topology updates: see topology.h.

#include "topology.h"

#include <string>

#include "ffi_common.h"

namespace srigl {
namespace {

// x: [batch, in]; g: [batch, out], or x: [0, 0] and the scores [in, out] that growth is ranked by;
// values, indices: [capacity]; active: [out]; sizes: the number of active neurons and the fan-in;
// counts: how many entries are pruned, and how many salient weights are required.
ffi::Error TopologyHandler(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> x,
                           ffi::BufferR2<ffi::F32> g, ffi::BufferR1<ffi::F32> values,
                           ffi::AnyBuffer indices, ffi::BufferR1<ffi::S32> active,
                           ffi::BufferR1<ffi::S32> sizes, ffi::BufferR1<ffi::S32> counts,
                           ffi::Result<ffi::AnyBuffer> new_indices,
                           ffi::ResultBufferR1<ffi::S32> new_active,
                           ffi::ResultBufferR1<ffi::S32> new_sizes,
                           ffi::ResultBufferR1<ffi::S32> source) {
  const auto invalid = [](const char* message) {
    return ffi::Error::InvalidArgument(std::string("Topology update: ") + message + ".");
  };
  TopologyUpdate update = {};
  update.capacity = static_cast<int64_t>(values.element_count());
  update.wide_indices = indices.element_type() == ffi::DataType::S32;
  if (!update.wide_indices && indices.element_type() != ffi::DataType::U16) {
    return invalid("indices must be uint16 or int32");
  }
  const bool by_scores = x.dimensions()[1] == 0;
  update.batch = x.dimensions()[0];
  update.in_features = by_scores ? g.dimensions()[0] : x.dimensions()[1];
  update.out_features = g.dimensions()[1];
  const auto has = [](const auto& buffer, int64_t size) {
    return static_cast<int64_t>(buffer.element_count()) == size;
  };
  if (g.dimensions()[0] != (by_scores ? update.in_features : update.batch) || !has(indices, update.capacity) ||
      !has(active, update.out_features) || !has(sizes, 2) || !has(counts, 2) ||
      !has(*new_indices, update.capacity) || !has(*new_active, update.out_features) ||
      !has(*new_sizes, 2) || !has(*source, update.capacity) ||
      new_indices->element_type() != indices.element_type()) {
    return invalid("shapes do not fit each other");
  }
  update.values = values.typed_data();
  update.indices = indices.untyped_data();
  update.active = active.typed_data();
  if (by_scores) {
    update.scores = g.typed_data();
  } else {
    update.x = x.typed_data();
    update.g = g.typed_data();
  }
  update.num_active = sizes.typed_data()[0];
  update.fan_in = sizes.typed_data()[1];
  update.num_pruned = counts.typed_data()[0];
  update.required = counts.typed_data()[1];
  update.new_indices = new_indices->untyped_data();
  update.new_active = new_active->typed_data();
  update.new_sizes = new_sizes->typed_data();
  update.source = source->typed_data();
  PoolExecutor executor(pool);
  AdviseHugePages(*new_indices);
  AdviseHugePages(*source);
  const char* error = UpdateTopology(update, &executor);
  return error == nullptr ? ffi::Error::Success() : invalid(error);
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_update_topology(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_update_topology, srigl::TopologyHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::BufferR2<xla::ffi::F32>>()   // x
                                  .Arg<xla::ffi::BufferR2<xla::ffi::F32>>()   // g
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()   // values
                                  .Arg<xla::ffi::AnyBuffer>()                 // indices
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()   // active
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()   // sizes
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()   // counts
                                  .Ret<xla::ffi::AnyBuffer>()                 // new_indices
                                  .Ret<xla::ffi::BufferR1<xla::ffi::S32>>()   // new_active
                                  .Ret<xla::ffi::BufferR1<xla::ffi::S32>>()   // new_sizes
                                  .Ret<xla::ffi::BufferR1<xla::ffi::S32>>());  // source
