// XLA FFI handlers of layers in training: see training.h.

#include <string>

#include "ffi_common.h"
#include "training.h"

namespace srigl {
namespace {

// What all three read. indices: [capacity]; active: [capacity of neurons]; sizes: the number
// of active neurons and the fan-in, in that order: data, as both may change while a program runs.
struct Layer {
  const float* values;  // nullptr where only their gradient is wanted
  int64_t capacity;
  ffi::AnyBuffer indices;
  ffi::BufferR1<ffi::S32> active, sizes;
};

struct Features {
  const void* data;
  int64_t batch, features;
};

template <typename Buffer>
bool AsFeatures(Buffer&& buffer, bool* bfloat16, Features* features) {
  const auto dims = buffer.dimensions();
  ValueType type;
  if (dims.size() < 1 || !AsValueType(buffer.element_type(), &type)) return false;
  *bfloat16 = type == ValueType::kBFloat16;
  *features = {buffer.untyped_data(), 1, dims.back()};
  for (size_t i = 0; i + 1 < dims.size(); ++i) features->batch *= dims[i];
  return true;
}

ffi::Error Invalid(const char* message) {
  return ffi::Error::InvalidArgument(std::string("Sparse layer: ") + message + ".");
}

ffi::Error AsError(const char* error) {
  return error == nullptr ? ffi::Error::Success() : Invalid(error);
}

// Fills in the layer; nullptr, or what is wrong.
const char* Read(const Layer& layer, Training* call) {
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

// x: [..., in]; values: [capacity]; bias: [out], or [0] for none; y: [..., out].
ffi::Error ForwardHandler(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::BufferR1<ffi::F32> values,
                          ffi::AnyBuffer indices, ffi::BufferR1<ffi::S32> active,
                          ffi::BufferR1<ffi::S32> sizes, ffi::BufferR1<ffi::F32> bias,
                          ffi::Result<ffi::AnyBuffer> y) {
  Training call = {};
  Features in, out;
  bool same;
  if (!AsFeatures(x, &call.bfloat16, &in) || !AsFeatures(*y, &same, &out) ||
      same != call.bfloat16 || in.batch != out.batch) {
    return Invalid("x and y must have the same leading dimensions and be float32 or bfloat16");
  }
  const int64_t bias_size = static_cast<int64_t>(bias.element_count());
  if (bias_size != 0 && bias_size != out.features) {
    return Invalid("the bias must have one number per output, or none");
  }
  const auto capacity = static_cast<int64_t>(values.element_count());
  const char* error = Read({values.typed_data(), capacity, indices, active, sizes}, &call);
  if (error != nullptr) return Invalid(error);
  call.x = in.data;
  call.bias = bias_size == 0 ? nullptr : bias.typed_data();
  call.y = y->untyped_data();
  call.batch = in.batch;
  call.in_features = in.features;
  call.out_features = out.features;
  PoolExecutor executor(pool);
  AdviseHugePages(*y);
  return AsError(TrainingForward(call, &executor));
}

// g: [..., out]; dx: [..., in].
ffi::Error InputGradientHandler(ffi::ThreadPool pool, ffi::AnyBuffer g,
                                ffi::BufferR1<ffi::F32> values, ffi::AnyBuffer indices,
                                ffi::BufferR1<ffi::S32> active, ffi::BufferR1<ffi::S32> sizes,
                                ffi::Result<ffi::AnyBuffer> dx) {
  Training call = {};
  Features in, out;
  bool same;
  if (!AsFeatures(g, &call.bfloat16, &out) || !AsFeatures(*dx, &same, &in) ||
      same != call.bfloat16 || in.batch != out.batch) {
    return Invalid("g and dx must have the same leading dimensions and be float32 or bfloat16");
  }
  const auto capacity = static_cast<int64_t>(values.element_count());
  const char* error = Read({values.typed_data(), capacity, indices, active, sizes}, &call);
  if (error != nullptr) return Invalid(error);
  call.g = out.data;
  call.dx = dx->untyped_data();
  call.batch = in.batch;
  call.in_features = in.features;
  call.out_features = out.features;
  PoolExecutor executor(pool);
  AdviseHugePages(*dx);
  return AsError(TrainingInputGradient(call, &executor));
}

// g: [..., out]; x: [..., in]; dvalues: [capacity], 0 beyond the layer's entries.
ffi::Error ValuesGradientHandler(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer x,
                                 ffi::AnyBuffer indices, ffi::BufferR1<ffi::S32> active,
                                 ffi::BufferR1<ffi::S32> sizes,
                                 ffi::ResultBufferR1<ffi::F32> dvalues) {
  Training call = {};
  Features in, out;
  bool same;
  if (!AsFeatures(g, &call.bfloat16, &out) || !AsFeatures(x, &same, &in) ||
      same != call.bfloat16 || in.batch != out.batch) {
    return Invalid("g and x must have the same leading dimensions and be float32 or bfloat16");
  }
  const auto capacity = static_cast<int64_t>(dvalues->element_count());
  const char* error = Read({nullptr, capacity, indices, active, sizes}, &call);
  if (error != nullptr) return Invalid(error);
  call.g = out.data;
  call.x = in.data;
  call.dvalues = dvalues->typed_data();
  call.batch = in.batch;
  call.in_features = in.features;
  call.out_features = out.features;
  AdviseHugePages(*dvalues);
  const int64_t used = call.num_active * call.fan_in;
  std::fill(call.dvalues + used, call.dvalues + capacity, 0.0f);
  PoolExecutor executor(pool);
  return AsError(TrainingValuesGradient(call, &executor));
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_training_forward(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_training_input_gradient(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_training_values_gradient(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_training_forward, srigl::ForwardHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()                // x
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()  // values
                                  .Arg<xla::ffi::AnyBuffer>()                // indices
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // active
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // sizes
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()  // bias
                                  .Ret<xla::ffi::AnyBuffer>());              // y

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_training_input_gradient, srigl::InputGradientHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()                // g
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()  // values
                                  .Arg<xla::ffi::AnyBuffer>()                // indices
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // active
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // sizes
                                  .Ret<xla::ffi::AnyBuffer>());              // dx

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_training_values_gradient, srigl::ValuesGradientHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()                // g
                                  .Arg<xla::ffi::AnyBuffer>()                // x
                                  .Arg<xla::ffi::AnyBuffer>()                // indices
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // active
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()  // sizes
                                  .Ret<xla::ffi::BufferR1<xla::ffi::F32>>());  // dvalues
