// What the FFI handlers of convolutions share.

#ifndef SRIGL_KERNELS_CPU_FFI_CONV_COMMON_H_
#define SRIGL_KERNELS_CPU_FFI_CONV_COMMON_H_

#include <algorithm>
#include <string>

#include "conv.h"
#include "ffi_common.h"

namespace srigl {

using Numbers = ffi::Span<const int64_t>;

// Sets the sizes of a convolution of x [..., height, width, channels] to y [..., height, width, out].
// `kernel`, `strides` and `dilation` are (y, x), and `padding` is (top, bottom, left, right). Returns
// nullptr, or what is wrong.
inline const char* ReadSizes(Numbers x, Numbers y, Numbers kernel, Numbers strides,
                             Numbers dilation, Numbers padding, Conv* conv) {
  if (x.size() < 3 || y.size() != x.size() ||
      !std::equal(x.begin(), x.begin() + (x.size() - 3), y.begin())) {
    return "x and y must have the same leading dimensions.";
  }
  if (kernel.size() != 2 || strides.size() != 2 || dilation.size() != 2 || padding.size() != 4) {
    return "The convolution must have two dimensions.";
  }
  const size_t leading = x.size() - 3;
  conv->images = 1;
  for (size_t i = 0; i < leading; ++i) conv->images *= x[i];
  conv->patches.y = {x[leading], y[leading], kernel[0], strides[0], dilation[0], padding[0]};
  conv->patches.x = {x[leading + 1], y[leading + 1], kernel[1], strides[1], dilation[1],
                     padding[2]};
  conv->padding_after[0] = padding[1];
  conv->padding_after[1] = padding[3];
  conv->patches.channels = x[leading + 2];
  conv->out_features = y[leading + 2];
  return nullptr;
}

// The same, and its bias, [out] or [0] for none, and its activation.
inline const char* ReadConv(Numbers x, Numbers y, Numbers kernel, Numbers strides,
                            Numbers dilation, Numbers padding, const ffi::Buffer<ffi::F32>& bias,
                            int64_t activation, Conv* conv) {
  if (const char* error = ReadSizes(x, y, kernel, strides, dilation, padding, conv)) return error;
  if (activation < 0 || activation > static_cast<int64_t>(Activation::kLast)) {
    return "Unknown activation.";
  }
  const int64_t bias_size = static_cast<int64_t>(bias.element_count());
  if (bias_size != 0 && bias_size != conv->out_features) {
    return "The bias must have one number per output, or none.";
  }
  conv->bias = bias_size == 0 ? nullptr : bias.typed_data();
  conv->activation = static_cast<Activation>(activation);
  return nullptr;
}

// Runs a convolution whose result is a buffer of XLA's.
template <typename Result>
ffi::Error RunConv(const PackedLayer& layer, const Conv& conv, Result& y,
                   ffi::ThreadPool pool) {
  AdviseHugePages(*y);
  PoolExecutor executor(pool);
  if (const char* error = CondensedConv(layer, conv, &executor)) {
    return ffi::Error::InvalidArgument(std::string("Packed layer: ") + error + ".");
  }
  return ffi::Error::Success();
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_FFI_CONV_COMMON_H_
