// XLA FFI handler of depthwise convolutions.

#include <algorithm>
#include <string>

#include "depthwise.h"
#include "ffi_conv_common.h"

namespace srigl {
namespace {

// x: [..., height, width, channels]; kernel: [y, x, 1, channels]; bias: [channels], or [0] for none; y
// and residual: [..., height, width, channels], or [0] for none. Of the attributes, strides and dilation
// are (y, x), and the padding is (top, bottom, left, right).
ffi::Error DepthwiseConvHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                                ffi::Buffer<ffi::F32> kernel, ffi::Buffer<ffi::F32> bias,
                                ffi::Buffer<ffi::F32> residual, ffi::ResultBuffer<ffi::F32> y,
                                int64_t activation, Numbers strides, Numbers dilation,
                                Numbers padding) {
  const auto y_dims = y->dimensions(), taps = kernel.dimensions();
  if (taps.size() != 4 || taps[2] != 1) {
    return ffi::Error::InvalidArgument("The kernel must have one input for each output.");
  }
  const int64_t size[2] = {taps[0], taps[1]};
  Conv conv = {};
  if (const char* error = ReadConv(x.dimensions(), y_dims, Numbers(size, 2), strides, dilation,
                                   padding, bias, activation, &conv)) {
    return ffi::Error::InvalidArgument(error);
  }
  if (taps[3] != conv.patches.channels) {
    return ffi::Error::InvalidArgument("The kernel must have an output for each channel.");
  }
  const auto residual_dims = residual.dimensions();
  const bool has_residual = residual_dims.size() != 1 || residual_dims[0] != 0;
  if (has_residual && (residual_dims.size() != y_dims.size() ||
                       !std::equal(y_dims.begin(), y_dims.end(), residual_dims.begin()))) {
    return ffi::Error::InvalidArgument("The residual must have the shape of y, or be none.");
  }
  conv.x = x.typed_data();
  conv.residual = has_residual ? residual.typed_data() : nullptr;
  conv.out = y->typed_data();
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
