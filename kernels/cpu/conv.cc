#include "conv.h"

namespace srigl {
namespace {

constexpr int64_t kMaxSize = 0x3fffffff;

// A product of two sizes and sums of some cannot overflow.
const char* CheckAxis(const Axis& axis, int64_t padding_after) {
  if (axis.size < 0 || axis.size > kMaxSize || axis.out < 0 || axis.out > kMaxSize) {
    return "an image is larger than 2**30 - 1";
  }
  if (axis.kernel < 1 || axis.kernel > kMaxSize || axis.stride < 1 || axis.stride > kMaxSize ||
      axis.dilation < 1 || axis.dilation > kMaxSize) {
    return "kernel size, stride and dilation must lie in 1..2**30 - 1";
  }
  if (axis.padding < -kMaxSize || axis.padding > kMaxSize || padding_after < -kMaxSize ||
      padding_after > kMaxSize) {
    return "the padding must lie within 2**30 - 1";
  }
  const int64_t reach = (axis.kernel - 1) * axis.dilation + 1;
  const int64_t padded = axis.size + axis.padding + padding_after;
  const int64_t out = padded < reach ? 0 : (padded - reach) / axis.stride + 1;
  if (axis.out != out) return "the output has another size than the convolution";
  return nullptr;
}

}  // namespace

const char* CheckPatches(const Patches& patches, const int64_t (&padding_after)[2], int64_t images,
                         int64_t* pixels, int64_t* inputs) {
  const Axis &y = patches.y, &x = patches.x;
  if (const char* error = CheckAxis(y, padding_after[0])) return error;
  if (const char* error = CheckAxis(x, padding_after[1])) return error;
  int64_t lines;  // of all padded images
  if (images < 0 || patches.channels < 0 || __builtin_mul_overflow(y.kernel, x.kernel, inputs) ||
      __builtin_mul_overflow(*inputs, patches.channels, inputs) ||
      __builtin_mul_overflow(images, 4 * kMaxSize, &lines) ||
      __builtin_mul_overflow(y.out, x.out, pixels) ||
      __builtin_mul_overflow(*pixels, images, pixels)) {
    return "the sizes of the convolution are out of range";
  }
  return nullptr;
}

const char* CondensedConv(const PackedLayer& layer, const Conv& conv, Executor* executor) {
  MatMul call = {};
  const char* error = CheckPatches(conv.patches, conv.padding_after, conv.images, &call.batch,
                                   &call.in_features);
  if (error != nullptr) return error;
  const bool is_tiled = conv.x_is_tiled || conv.residual_is_tiled || conv.out_is_tiled;
  if (is_tiled && (layer.dot_pattern.size > 0 || layer.value_type == ValueType::kInt8)) {
    return "activations in tiles are for tile patterns of floating point numbers";
  }
  if (conv.out_is_tiled && conv.residual != nullptr && !conv.residual_is_tiled) {
    return "a result in tiles needs a residual in tiles";
  }
  call.x = conv.x;
  call.bias = conv.bias;
  call.scales = conv.scales;
  call.residual = conv.residual;
  call.x8 = conv.x8;
  call.residual8 = conv.residual8;
  call.y8 = conv.y8;
  call.quantized = conv.quantized;
  call.range = conv.range;
  call.y = conv.out;
  call.out_features = conv.out_features;
  call.activation = conv.activation;
  call.patches = &conv.patches;
  call.x_is_tiled = conv.x_is_tiled;
  call.residual_is_tiled = conv.residual_is_tiled;
  call.y_is_tiled = conv.out_is_tiled;
  return CondensedMatMul(layer, call, executor);
}

}  // namespace srigl
