// XLA FFI handlers of convolutions in training: see training_conv.h.

#include <algorithm>
#include <string>

#include "ffi_common.h"
#include "training_conv.h"

namespace srigl {
namespace {

using Numbers = ffi::Span<const int64_t>;
using Images = ffi::Buffer<ffi::F32>;
using Integers = ffi::BufferR1<ffi::S32>;

// The layer: values, nullptr where only their gradient is wanted, and its pattern.
struct Layer {
  const float* values;
  int64_t capacity;
  ffi::AnyBuffer indices;
  Integers active, sizes;
};

// Of the attributes, kernel, strides and dilation are (y, x), and the padding is (top, bottom, left,
// right).
struct Geometry {
  Numbers kernel, strides, dilation, padding;
};

ffi::Error Invalid(const char* message) {
  return ffi::Error::InvalidArgument(std::string("Sparse convolution: ") + message + ".");
}

ffi::Error AsError(const char* error) {
  return error == nullptr ? ffi::Error::Success() : Invalid(error);
}

// Fills in sizes and pattern; nullptr, or what is wrong. `x` and `y` are the dimensions of the images
// read and of the outputs, or of the gradients in these.
template <typename Dimensions>
const char* Read(const Layer& layer, const Geometry& geometry, const Dimensions& x,
                 const Dimensions& y, SparseConv* call) {
  if (x.size() < 3 || y.size() != x.size() || !std::equal(x.begin(), x.end() - 3, y.begin())) {
    return "images and outputs must have the same leading dimensions";
  }
  if (geometry.kernel.size() != 2 || geometry.strides.size() != 2 ||
      geometry.dilation.size() != 2 || geometry.padding.size() != 4) {
    return "it must have two dimensions";
  }
  const size_t leading = x.size() - 3;
  call->images = 1;
  for (size_t i = 0; i < leading; ++i) call->images *= x[i];
  Axis* const axes[] = {&call->patches.y, &call->patches.x};
  for (size_t i = 0; i < 2; ++i) {
    *axes[i] = {x[leading + i],       y[leading + i],       geometry.kernel[i],
                geometry.strides[i],  geometry.dilation[i], geometry.padding[2 * i]};
    call->padding_after[i] = geometry.padding[2 * i + 1];
  }
  call->patches.channels = x[leading + 2];
  call->out_features = y[leading + 2];
  const bool wide = layer.indices.element_type() == ffi::DataType::S32;
  if (!wide && layer.indices.element_type() != ffi::DataType::U16) {
    return "indices must be uint16 or int32";
  }
  if (static_cast<int64_t>(layer.indices.element_count()) != layer.capacity) {
    return "there must be one index per value";
  }
  if (layer.sizes.element_count() != 2) return "sizes must be two numbers";
  call->num_active = layer.sizes.typed_data()[0];
  call->fan_in = layer.sizes.typed_data()[1];
  if (call->num_active < 0 || call->fan_in < 0 ||
      call->num_active > static_cast<int64_t>(layer.active.element_count()) ||
      call->num_active * call->fan_in > layer.capacity) {
    return "sizes exceed the capacity";
  }
  call->values = layer.values;
  call->indices = layer.indices.untyped_data();
  call->active = layer.active.typed_data();
  call->wide_indices = wide;
  return nullptr;
}

// x: [..., height, width, channels]; values: [capacity]; y: [..., height, width, out].
ffi::Error ForwardHandler(ffi::ThreadPool pool, Images x, ffi::BufferR1<ffi::F32> values,
                          ffi::AnyBuffer indices, Integers active, Integers sizes,
                          ffi::Result<Images> y, Numbers kernel, Numbers strides,
                          Numbers dilation, Numbers padding) {
  SparseConv call = {};
  const auto capacity = static_cast<int64_t>(values.element_count());
  const char* error = Read({values.typed_data(), capacity, indices, active, sizes},
                           {kernel, strides, dilation, padding}, x.dimensions(), y->dimensions(),
                           &call);
  if (error != nullptr) return Invalid(error);
  call.x = x.typed_data();
  call.y = y->typed_data();
  PoolExecutor executor(pool);
  AdviseHugePages(*y);
  return AsError(SparseConvForward(call, &executor));
}

// g: [..., height, width, out]; dx: [..., height, width, channels].
ffi::Error InputGradientHandler(ffi::ThreadPool pool, Images g, ffi::BufferR1<ffi::F32> values,
                                ffi::AnyBuffer indices, Integers active, Integers sizes,
                                ffi::Result<Images> dx, Numbers kernel, Numbers strides,
                                Numbers dilation, Numbers padding) {
  SparseConv call = {};
  const auto capacity = static_cast<int64_t>(values.element_count());
  const char* error = Read({values.typed_data(), capacity, indices, active, sizes},
                           {kernel, strides, dilation, padding}, dx->dimensions(), g.dimensions(),
                           &call);
  if (error != nullptr) return Invalid(error);
  call.g = g.typed_data();
  call.dx = dx->typed_data();
  PoolExecutor executor(pool);
  AdviseHugePages(*dx);
  return AsError(SparseConvInputGradient(call, &executor));
}

// g and x as above; dvalues: [capacity], 0 where there is no entry.
ffi::Error ValuesGradientHandler(ffi::ThreadPool pool, Images g, Images x, ffi::AnyBuffer indices,
                                 Integers active, Integers sizes,
                                 ffi::Result<ffi::BufferR1<ffi::F32>> dvalues, Numbers kernel,
                                 Numbers strides, Numbers dilation, Numbers padding) {
  SparseConv call = {};
  const auto capacity = static_cast<int64_t>(dvalues->element_count());
  const char* error = Read({nullptr, capacity, indices, active, sizes},
                           {kernel, strides, dilation, padding}, x.dimensions(), g.dimensions(),
                           &call);
  if (error != nullptr) return Invalid(error);
  call.g = g.typed_data();
  call.x = x.typed_data();
  call.dvalues = dvalues->typed_data();
  PoolExecutor executor(pool);
  AdviseHugePages(*dvalues);
  error = SparseConvValuesGradient(call, &executor);
  std::fill(call.dvalues + call.num_active * call.fan_in, call.dvalues + capacity, 0.0f);
  return AsError(error);
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_sparse_conv_forward(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_sparse_conv_input_gradient(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_sparse_conv_values_gradient(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_sparse_conv_forward, srigl::ForwardHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<srigl::Images>()                      // x
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()  // values
                                  .Arg<xla::ffi::AnyBuffer>()                // indices
                                  .Arg<srigl::Integers>()                    // active
                                  .Arg<srigl::Integers>()                    // sizes
                                  .Ret<srigl::Images>()                      // y
                                  .Attr<srigl::Numbers>("kernel")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("dilation")
                                  .Attr<srigl::Numbers>("padding"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_sparse_conv_input_gradient, srigl::InputGradientHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<srigl::Images>()                      // g
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()  // values
                                  .Arg<xla::ffi::AnyBuffer>()                // indices
                                  .Arg<srigl::Integers>()                    // active
                                  .Arg<srigl::Integers>()                    // sizes
                                  .Ret<srigl::Images>()                      // dx
                                  .Attr<srigl::Numbers>("kernel")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("dilation")
                                  .Attr<srigl::Numbers>("padding"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_sparse_conv_values_gradient, srigl::ValuesGradientHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<srigl::Images>()       // g
                                  .Arg<srigl::Images>()       // x
                                  .Arg<xla::ffi::AnyBuffer>() // indices
                                  .Arg<srigl::Integers>()     // active
                                  .Arg<srigl::Integers>()     // sizes
                                  .Ret<xla::ffi::BufferR1<xla::ffi::F32>>()  // dvalues
                                  .Attr<srigl::Numbers>("kernel")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("dilation")
                                  .Attr<srigl::Numbers>("padding"));
