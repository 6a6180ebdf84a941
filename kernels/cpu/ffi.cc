// What the shared library exports: XLA FFI handlers, and C functions that Python calls by ctypes.

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <string>

#include "ffi_common.h"
#include "matmul.h"
#include "pack.h"
#include "xla/ffi/api/ffi.h"

namespace srigl {
namespace {

// x: [..., in]; bias, scales: [out], or [0] for none; range: [2], or [0] for that of each batch row;
// y and residual: [..., out], or [0] for none.
ffi::Error CondensedMatMulHandler(ffi::ThreadPool pool, ffi::AnyBuffer x,
                                  ffi::Buffer<ffi::U8> tile_pattern, ffi::AnyBuffer tile_values,
                                  ffi::Buffer<ffi::U8> window_pattern,
                                  ffi::AnyBuffer window_values,
                                  ffi::Buffer<ffi::U8> dot_pattern, ffi::Buffer<ffi::F32> bias,
                                  ffi::Buffer<ffi::F32> scales, ffi::Buffer<ffi::F32> range,
                                  ffi::AnyBuffer residual, ffi::Buffer<ffi::F32> x_scales,
                                  ffi::Buffer<ffi::F32> residual_scales,
                                  ffi::Buffer<ffi::F32> residual_range,
                                  ffi::Buffer<ffi::F32> y_range, ffi::Result<ffi::AnyBuffer> y,
                                  ffi::ResultBuffer<ffi::F32> y_scales, int64_t activation,
                                  bool quantized) {
  const auto x_dims = x.dimensions();
  const auto y_dims = y->dimensions();
  if (x_dims.size() < 1 || y_dims.size() != x_dims.size() ||
      !std::equal(x_dims.begin(), x_dims.end() - 1, y_dims.begin())) {
    return ffi::Error::InvalidArgument("x and y must have the same leading dimensions.");
  }
  if (activation < 0 || activation > static_cast<int64_t>(Activation::kLast)) {
    return ffi::Error::InvalidArgument("Unknown activation.");
  }
  MatMul call = {};
  call.in_features = x_dims.back();
  call.out_features = y_dims.back();
  call.batch = 1;
  for (size_t i = 0; i + 1 < x_dims.size(); ++i) call.batch *= x_dims[i];
  const int64_t bias_size = static_cast<int64_t>(bias.element_count());
  if (bias_size != 0 && bias_size != call.out_features) {
    return ffi::Error::InvalidArgument("The bias must have one number per output, or none.");
  }
  const int64_t num_scales = static_cast<int64_t>(scales.element_count());
  if (num_scales != 0 && num_scales != call.out_features) {
    return ffi::Error::InvalidArgument("There must be one scale per output, or none.");
  }
  if (range.element_count() != 0 && range.element_count() != 2) {
    return ffi::Error::InvalidArgument("The range of the inputs must be two numbers, or none.");
  }
  if (!AsResidual(residual, residual_scales, residual_range, y, &call.residual,
                  &call.residual8)) {
    return ffi::Error::InvalidArgument("The residual must have the shape of y, or be none.");
  }
  call.scales = num_scales == 0 ? nullptr : scales.typed_data();
  call.range = range.element_count() == 0 ? nullptr : range.typed_data();
  call.quantized = quantized;
  if (!AsRows(x, x_scales, range, &call.x, &call.x8) ||
      !AsResult(y, y_scales, y_range, &call.y, &call.y8)) {
    return ffi::Error::InvalidArgument(
        "x and y must be float32, or uint8 with a range, and a scale for each row.");
  }
  call.bias = bias_size == 0 ? nullptr : bias.typed_data();
  call.activation = static_cast<Activation>(activation);

  PackedLayer layer = {AsBytes(tile_pattern), AsBytes(tile_values), AsBytes(window_pattern),
                       AsBytes(window_values), ValueType::kFloat32, AsBytes(dot_pattern)};
  if (!AsWeightType(tile_values.element_type(), &layer.value_type) ||
      window_values.element_type() != tile_values.element_type()) {
    return ffi::Error::InvalidArgument("Packed values must all be float32, bfloat16 or int8.");
  }
  AdviseHugePages(*y);
  PoolExecutor executor(pool);
  if (const char* error = CondensedMatMul(layer, call, &executor)) {
    return ffi::Error::InvalidArgument(std::string("Packed layer: ") + error + ".");
  }
  return ffi::Error::Success();
}

// Copies a message into a caller's buffer.
void Report(const std::string& message, char* buffer, int64_t size) {
  if (size > 0) snprintf(buffer, static_cast<size_t>(size), "%s", message.c_str());
}

// Two patterns of a layer and what goes with each: its values, or where to find them. Python copies
// them out and frees this.
struct PackResult {
  Pattern patterns[2];
  std::vector<uint8_t> values[2];
};

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_condensed_matmul(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_condensed_matmul, srigl::CondensedMatMulHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()              // x
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()   // tile pattern
                                  .Arg<xla::ffi::AnyBuffer>()              // tile values
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()   // window pattern
                                  .Arg<xla::ffi::AnyBuffer>()              // window values
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()   // dot pattern
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // bias
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // scales
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // range
                                  .Arg<xla::ffi::AnyBuffer>()              // residual
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // x scales
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // residual scales
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // residual range
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // y range
                                  .Ret<xla::ffi::AnyBuffer>()              // y
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()  // y scales
                                  .Attr<int64_t>("activation")
                                  .Attr<bool>("quantized"));

// Changes with what handlers and functions take, so that a library of other sources is not called.
SRIGL_EXPORT int32_t srigl_interface() { return 8; }

// Name of the CPU target in use.
SRIGL_EXPORT const char* srigl_isa() { return srigl::IsaName(srigl::CurrentIsa()); }

// Uses the named CPU target from now on; 0 when it is unknown or the CPU does not support it.
SRIGL_EXPORT int32_t srigl_set_isa(const char* name) {
  for (int i = 0; i < srigl::kNumIsas; ++i) {
    const auto isa = static_cast<srigl::Isa>(i);
    if (strcmp(name, srigl::IsaName(isa)) == 0) return srigl::SetIsa(isa) ? 1 : 0;
  }
  return 0;
}

// Packs a layer: the tile pattern always, the window pattern when `windows` is not 0; when it is 2,
// with the columns in the values, if these can hold them; with `half` for tiles of float16, too.
// Returns nullptr and a message when the layer is not valid or memory runs out.
SRIGL_EXPORT void* srigl_pack_layer(const void* values, const int32_t* indices,
                                    const int32_t* active, int32_t value_type, int64_t num_active,
                                    int64_t fan_in, int64_t in_features, int64_t out_features,
                                    int32_t windows, int32_t half, char* message,
                                    int64_t message_size) {
  try {
    const srigl::Condensed layer = {values, indices, active,
                                    static_cast<srigl::ValueType>(value_type), num_active, fan_in,
                                    in_features, out_features};
    const std::string error = srigl::CheckCondensed(layer);
    if (!error.empty()) {
      srigl::Report(error, message, message_size);
      return nullptr;
    }
    auto result = std::make_unique<srigl::PackResult>();
    const auto tiles = half != 0 ? srigl::Tiles::kHalf
                       : srigl::PairsPay(layer, srigl::CurrentKernels().width)
                           ? srigl::Tiles::kPaired
                           : srigl::Tiles::kPlain;
    result->patterns[0] = srigl::PackTiles(layer, tiles);
    if (windows) result->patterns[1] = srigl::PackWindows(layer, windows == 2 && CanEmbed(layer));
    for (int i = 0; i < 2; ++i) result->values[i] = GatherValues(layer, result->patterns[i]);
    return result.release();
  } catch (const std::exception& e) {
    srigl::Report(e.what(), message, message_size);
    return nullptr;
  }
}

// The dot type of 16 bits that the CPU target in use multiplies fastest, or -1.
SRIGL_EXPORT int32_t srigl_half_dot_type() {
  for (const auto type : {srigl::DotType::kFloat16, srigl::DotType::kBFloat16}) {
    if (srigl::CurrentDots().dots[static_cast<int>(type)] != nullptr) {
      return static_cast<int32_t>(type);
    }
  }
  return -1;
}

// From which density on a dense pattern in float32 is faster than tiles.
SRIGL_EXPORT double srigl_dense_share() { return srigl::DenseShare(); }

// Packs the dot pattern alone: `values` are raw numbers of the type, `scales` one for each active
// neuron. Fails as `srigl_pack_layer` does.
SRIGL_EXPORT void* srigl_pack_dots(const void* values, const int32_t* indices,
                                   const int32_t* active, const float* scales, int32_t dot_type,
                                   int64_t num_active, int64_t fan_in, int64_t in_features,
                                   int64_t out_features, char* message, int64_t message_size) {
  try {
    const srigl::Condensed layer = {values,     indices, active,      srigl::ValueType::kFloat32,
                                    num_active, fan_in,  in_features, out_features};
    const std::string error = srigl::CheckCondensed(layer);
    if (!error.empty()) {
      srigl::Report(error, message, message_size);
      return nullptr;
    }
    auto result = std::make_unique<srigl::PackResult>();
    result->patterns[0].bytes =
        PackDots(layer, static_cast<srigl::DotType>(dot_type), scales,
                 srigl::WindowAlignment(), srigl::DenseStepCost());
    return result.release();
  } catch (const std::exception& e) {
    srigl::Report(e.what(), message, message_size);
    return nullptr;
  }
}

// Packs a layer whose values will change: the tile pattern and that of the transpose, each with the
// places of its values in the flat `values`, as int32. Fails as `srigl_pack_layer`
// does.
SRIGL_EXPORT void* srigl_pack_training(const int32_t* indices, const int32_t* active,
                                       int64_t num_active, int64_t fan_in, int64_t in_features,
                                       int64_t out_features, char* message,
                                       int64_t message_size) {
  try {
    const srigl::Condensed layer = {nullptr,    indices, active,      srigl::ValueType::kFloat32,
                                    num_active, fan_in,  in_features, out_features};
    std::string error = srigl::CheckCondensed(layer);
    if (error.empty() && fan_in > 0 && num_active > 0x7fffffff / fan_in) {
      error = "it has more than 2**31 - 1 weights";
    }
    if (!error.empty()) {
      srigl::Report(error, message, message_size);
      return nullptr;
    }
    auto result = std::make_unique<srigl::PackResult>();
    result->patterns[0] = srigl::PackTiles(layer);
    result->patterns[1] = srigl::PackTransposedTiles(layer);
    for (int i = 0; i < 2; ++i) {
      const std::vector<int32_t> sources(result->patterns[i].sources.begin(),
                                         result->patterns[i].sources.end());
      result->values[i].resize(sources.size() * sizeof(int32_t));
      if (!sources.empty()) {
        memcpy(result->values[i].data(), sources.data(), result->values[i].size());
      }
    }
    return result.release();
  } catch (const std::exception& e) {
    srigl::Report(e.what(), message, message_size);
    return nullptr;
  }
}

// Sizes in bytes: of each of the two patterns, and of what goes with it.
SRIGL_EXPORT void srigl_pack_sizes(const void* result, int64_t* sizes) {
  const auto& packed = *static_cast<const srigl::PackResult*>(result);
  for (int i = 0; i < 2; ++i) {
    sizes[2 * i] = static_cast<int64_t>(packed.patterns[i].bytes.size());
    sizes[2 * i + 1] = static_cast<int64_t>(packed.values[i].size());
  }
}

// Copies the four byte strings into buffers of these sizes.
SRIGL_EXPORT void srigl_pack_copy(const void* result, void* const* buffers) {
  const auto& packed = *static_cast<const srigl::PackResult*>(result);
  const auto copy = [](void* to, const std::vector<uint8_t>& from) {
    if (!from.empty()) memcpy(to, from.data(), from.size());
  };
  for (int i = 0; i < 2; ++i) {
    copy(buffers[2 * i], packed.patterns[i].bytes);
    copy(buffers[2 * i + 1], packed.values[i]);
  }
}

SRIGL_EXPORT void srigl_pack_free(void* result) {
  delete static_cast<srigl::PackResult*>(result);
}
