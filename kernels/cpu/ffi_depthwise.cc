// XLA FFI handler of depthwise convolutions.

#include <algorithm>
#include <string>

#include "depthwise.h"
#include "ffi_common.h"

namespace srigl {
namespace {

using Numbers = ffi::Span<const int64_t>;

// x: [..., height, width, channels]; kernel: [y, x, 1, channels]; bias: [channels], or [0] for none; y
// and residual: [..., height, width, channels], or [0] for none. Of the attributes, strides and dilation
// are (y, x), and the padding is (top, bottom, left, right).
ffi::Error DepthwiseConvHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                                ffi::Buffer<ffi::F32> kernel, ffi::Buffer<ffi::F32> bias,
                                ffi::Buffer<ffi::F32> residual, ffi::ResultBuffer<ffi::F32> y,
                                int64_t activation, Numbers strides, Numbers dilation,
                                Numbers padding) {
  const auto x_dims = x.dimensions(), y_dims = y->dimensions(), taps = kernel.dimensions();
  const size_t leading = x_dims.size() - 3;
  if (x_dims.size() < 3 || y_dims.size() != x_dims.size() ||
      !std::equal(x_dims.begin(), x_dims.begin() + leading, y_dims.begin())) {
    return ffi::Error::InvalidArgument("x and y must have the same leading dimensions.");
  }
  if (taps.size() != 4 || taps[2] != 1 || taps[3] != x_dims[leading + 2] || strides.size() != 2 ||
      dilation.size() != 2 || padding.size() != 4) {
    return ffi::Error::InvalidArgument("The convolution must be depthwise, of two dimensions.");
  }
  if (activation < 0 || activation > static_cast<int64_t>(Activation::kLast)) {
    return ffi::Error::InvalidArgument("Unknown activation.");
  }
  Conv conv = {};
  conv.images = 1;
  for (size_t i = 0; i < leading; ++i) conv.images *= x_dims[i];
  conv.patches.y = {x_dims[leading], y_dims[leading], taps[0], strides[0], dilation[0], padding[0]};
  conv.patches.x = {x_dims[leading + 1], y_dims[leading + 1], taps[1], strides[1], dilation[1],
                    padding[2]};
  conv.padding_after[0] = padding[1];
  conv.padding_after[1] = padding[3];
  conv.patches.channels = x_dims[leading + 2];
  conv.out_features = y_dims[leading + 2];
  const int64_t bias_size = static_cast<int64_t>(bias.element_count());
  if (bias_size != 0 && bias_size != conv.out_features) {
    return ffi::Error::InvalidArgument("The bias must have one number per output, or none.");
  }
  const auto residual_dims = residual.dimensions();
  const bool has_residual = residual_dims.size() != 1 || residual_dims[0] != 0;
  if (has_residual && (residual_dims.size() != y_dims.size() ||
                       !std::equal(y_dims.begin(), y_dims.end(), residual_dims.begin()))) {
    return ffi::Error::InvalidArgument("The residual must have the shape of y, or be none.");
  }
  conv.x = x.typed_data();
  conv.bias = bias_size == 0 ? nullptr : bias.typed_data();
  conv.residual = has_residual ? residual.typed_data() : nullptr;
  conv.out = y->typed_data();
  conv.activation = static_cast<Activation>(activation);
  AdviseHugePages(*y);
  PoolExecutor executor(pool);
  if (const char* error = DepthwiseConv(conv, kernel.typed_data(), &executor)) {
    return ffi::Error::InvalidArgument(std::string("Depthwise convolution: ") + error + ".");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_depthwise_conv(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_depthwise_conv, srigl::DepthwiseConvHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // x
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // kernel
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // bias
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // residual
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()  // y
                                  .Attr<int64_t>("activation")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("dilation")
                                  .Attr<srigl::Numbers>("padding"));
