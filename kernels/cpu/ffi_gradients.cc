// XLA FFI handlers of the gradients, and what packs a layer for training.

#include <stdio.h>
#include <string.h>

#include <string>

#include "ffi_common.h"
#include "gradients.h"
#include "pack.h"

namespace srigl {
namespace {

ffi::Error AsError(const char* error) {
  if (error == nullptr) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(std::string("Packed layer: ") + error + ".");
}

template <typename Dimensions>
int64_t BatchOf(const Dimensions& dims) {
  int64_t batch = 1;
  for (size_t i = 0; i + 1 < dims.size(); ++i) batch *= dims[i];
  return batch;
}

// g: [..., out]; active: [active]; dx: [..., in].
ffi::Error InputGradientHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> g,
                                ffi::Buffer<ffi::U8> pattern, ffi::AnyBuffer values,
                                ffi::BufferR1<ffi::S32> active, ffi::ResultBuffer<ffi::F32> dx) {
  const auto g_dims = g.dimensions();
  const auto dx_dims = dx->dimensions();
  if (g_dims.size() < 1 || dx_dims.size() < 1 || BatchOf(g_dims) != BatchOf(dx_dims)) {
    return ffi::Error::InvalidArgument("g and dx must have the same leading dimensions.");
  }
  ValueType type;
  if (!AsValueType(values.element_type(), &type)) {
    return ffi::Error::InvalidArgument("Packed values must be float32 or bfloat16.");
  }
  InputGradient call = {};
  call.g = g.typed_data();
  call.active = active.typed_data();
  call.dx = dx->typed_data();
  call.batch = BatchOf(g_dims);
  call.in_features = dx_dims.back();
  call.out_features = g_dims.back();
  call.num_active = static_cast<int64_t>(active.element_count());
  PoolExecutor executor(pool);
  return AsError(
      CondensedInputGradient(AsBytes(pattern), AsBytes(values), type, call, &executor));
}

// g: [..., out]; x: [..., in]; active: [active]; dvalues: [active, fan-in].
ffi::Error ValuesGradientHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> g,
                                 ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> pattern,
                                 ffi::BufferR1<ffi::S32> active,
                                 ffi::ResultBufferR2<ffi::F32> dvalues) {
  const auto g_dims = g.dimensions();
  const auto x_dims = x.dimensions();
  const auto dims = dvalues->dimensions();
  if (g_dims.size() < 1 || x_dims.size() < 1 || BatchOf(g_dims) != BatchOf(x_dims)) {
    return ffi::Error::InvalidArgument("g and x must have the same leading dimensions.");
  }
  if (dims[0] != static_cast<int64_t>(active.element_count())) {
    return ffi::Error::InvalidArgument("dvalues must have one row per active neuron.");
  }
  ValuesGradient call = {};
  call.g = g.typed_data();
  call.x = x.typed_data();
  call.active = active.typed_data();
  call.dvalues = dvalues->typed_data();
  call.batch = BatchOf(g_dims);
  call.in_features = x_dims.back();
  call.out_features = g_dims.back();
  call.num_active = dims[0];
  call.fan_in = dims[1];
  PoolExecutor executor(pool);
  return AsError(CondensedValuesGradient(AsBytes(pattern), call, &executor));
}

// values: any shape; sources, packed: [weights].
ffi::Error PackValuesHandler(ffi::ThreadPool pool, ffi::AnyBuffer values,
                             ffi::BufferR1<ffi::S32> sources, ffi::Result<ffi::AnyBuffer> packed) {
  ValueType type;
  if (!AsValueType(values.element_type(), &type) ||
      packed->element_type() != values.element_type()) {
    return ffi::Error::InvalidArgument("Values must be float32 or bfloat16.");
  }
  if (packed->element_count() != sources.element_count()) {
    return ffi::Error::InvalidArgument("There must be one source per packed value.");
  }
  PoolExecutor executor(pool);
  return AsError(PackValues(AsBytes(values), type, sources.typed_data(),
                            static_cast<int64_t>(sources.element_count()),
                            packed->untyped_data(), &executor));
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_input_gradient(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_values_gradient(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_pack_values(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_input_gradient, srigl::InputGradientHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()    // g
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()     // transposed pattern
                                  .Arg<xla::ffi::AnyBuffer>()                // its values
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // active
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());  // dx

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_values_gradient, srigl::ValuesGradientHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()      // g
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()      // x
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()       // tile pattern
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()    // active
                                  .Ret<xla::ffi::BufferR2<xla::ffi::F32>>());  // dvalues

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_pack_values, srigl::PackValuesHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()                // values
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // sources
                                  .Ret<xla::ffi::AnyBuffer>());              // packed

