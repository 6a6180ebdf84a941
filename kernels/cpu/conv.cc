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

const char* CondensedConv(const PackedLayer& layer, const Conv& conv, Executor* executor) {
  const Axis &y = conv.patches.y, &x = conv.patches.x;
  if (const char* error = CheckAxis(y, conv.padding_after[0])) return error;
  if (const char* error = CheckAxis(x, conv.padding_after[1])) return error;
  MatMul call = {};
  int64_t lines;  // of all padded images
  if (conv.images < 0 || conv.patches.channels < 0 ||
      __builtin_mul_overflow(y.kernel, x.kernel, &call.in_features) ||
      __builtin_mul_overflow(call.in_features, conv.patches.channels, &call.in_features) ||
      __builtin_mul_overflow(conv.images, 4 * kMaxSize, &lines) ||
      __builtin_mul_overflow(y.out, x.out, &call.batch) ||
      __builtin_mul_overflow(call.batch, conv.images, &call.batch)) {
    return "the sizes of the convolution are out of range";
  }
  call.x = conv.x;
  call.bias = conv.bias;
  call.y = conv.out;
  call.out_features = conv.out_features;
  call.activation = conv.activation;
  call.patches = &conv.patches;
  return CondensedMatMul(layer, call, executor);
}

}  // namespace srigl
