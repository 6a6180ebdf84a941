// XLA FFI handler of the convolution.

#include "ffi_conv_common.h"

namespace srigl {
namespace {

// x: [..., height, width, channels]; bias, scales: [out], or [0] for none; range: [2], or [0] for that
// of each image; y and residual: [..., height, width, out], or [0] for none.
// Of the attributes, kernel, strides and dilation are (y, x), and the padding is (top, bottom,
// left, right).
ffi::Error CondensedConvHandler(ffi::ThreadPool pool, ffi::AnyBuffer x,
                                ffi::Buffer<ffi::U8> tile_pattern, ffi::AnyBuffer tile_values,
                                ffi::Buffer<ffi::U8> dot_pattern, ffi::Buffer<ffi::F32> bias,
                                ffi::Buffer<ffi::F32> scales, ffi::Buffer<ffi::F32> range,
                                ffi::AnyBuffer residual, ffi::Buffer<ffi::F32> x_scales,
                                ffi::Buffer<ffi::F32> residual_scales,
                                ffi::Buffer<ffi::F32> residual_range,
                                ffi::Buffer<ffi::F32> y_range, ffi::Result<ffi::AnyBuffer> y,
                                ffi::ResultBuffer<ffi::F32> y_scales,
                                int64_t activation, bool quantized,
                                Numbers kernel, Numbers strides, Numbers dilation,
                                Numbers padding) {
  Conv conv = {};
  if (const char* error = ReadConv(x.dimensions(), y->dimensions(), kernel, strides, dilation,
                                   padding, bias, activation, &conv)) {
    return ffi::Error::InvalidArgument(error);
  }
  const int64_t num_scales = static_cast<int64_t>(scales.element_count());
  if (num_scales != 0 && num_scales != conv.out_features) {
    return ffi::Error::InvalidArgument("There must be one scale per output, or none.");
  }
  if (!AsResidual(residual, residual_scales, residual_range, y, &conv.residual,
                  &conv.residual8)) {
    return ffi::Error::InvalidArgument("The residual must have the shape of y, or be none.");
  }
  if (range.element_count() != 0 && range.element_count() != 2) {
    return ffi::Error::InvalidArgument("The range of the inputs must be two numbers, or none.");
  }
  conv.scales = num_scales == 0 ? nullptr : scales.typed_data();
  conv.range = range.element_count() == 0 ? nullptr : range.typed_data();
  conv.quantized = quantized;
  if (!AsRows(x, x_scales, range, &conv.x, &conv.x8) ||
      !AsResult(y, y_scales, y_range, &conv.out, &conv.y8)) {
    return ffi::Error::InvalidArgument(
        "x and y must be float32, or uint8 with a range, and a scale for each row.");
  }

  PackedLayer layer = {AsBytes(tile_pattern), AsBytes(tile_values), {}, {}, ValueType::kFloat32,
                       AsBytes(dot_pattern)};
  if (!AsWeightType(tile_values.element_type(), &layer.value_type)) {
    return ffi::Error::InvalidArgument("Packed values must be float32, bfloat16 or int8.");
  }
  return RunConv(layer, conv, y, pool);
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_condensed_conv(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_condensed_conv, srigl::CondensedConvHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()              // x
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()   // tile pattern
                                  .Arg<xla::ffi::AnyBuffer>()              // tile values
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
                                  .Attr<bool>("quantized")
                                  .Attr<srigl::Numbers>("kernel")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("dilation")
                                  .Attr<srigl::Numbers>("padding"));
