// XLA FFI handlers of what reads and writes activations in tiles: convolutions and max-poolings.

#include "activation_tiles.h"
#include "ffi_conv_common.h"
#include "max_pool.h"

namespace srigl {
namespace {

// Whether it is the (height, width, channels) of images that are not empty.
bool IsSize(Numbers size) {
  constexpr int64_t kMost = 1 << 20;  // products of three do not overflow
  return size.size() == 3 && std::all_of(size.begin(), size.end(),
                                         [](int64_t n) { return n > 0 && n <= kMost; });
}

// Sets the number of images of an array, which is [..., height, width, channels] of this size or, in
// tiles, [..., floats of an image]. False where its shape is another one.
bool ReadImages(Numbers dims, Numbers size, bool is_tiled, int64_t* images) {
  const ActivationTiles tiles = {size[0] * size[1], size[2]};
  const size_t own = is_tiled ? 1 : 3;
  if (dims.size() < own) return false;
  const int64_t* const last = dims.begin() + (dims.size() - own);
  *images = 1;
  for (size_t i = 0; i + own < dims.size(); ++i) *images *= dims[i];
  return is_tiled ? *last == tiles.ImageFloats() : std::equal(last, last + own, size.begin());
}

// As CondensedConvHandler, in float32. `x_size` and `y_size` are (height, width, channels); x, residual
// and y are [..., *size] or, where `tiled` (x, residual, y) is not 0, in tiles; no residual is [0].
ffi::Error TiledConvHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                            ffi::Buffer<ffi::U8> tile_pattern, ffi::AnyBuffer tile_values,
                            ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> residual,
                            ffi::ResultBuffer<ffi::F32> y, int64_t activation, Numbers kernel,
                            Numbers strides, Numbers dilation, Numbers padding, Numbers x_size,
                            Numbers y_size, Numbers tiled) {
  if (!IsSize(x_size) || !IsSize(y_size) || tiled.size() != 3) {
    return ffi::Error::InvalidArgument("The sizes of x and y must be three numbers of 1..2**20.");
  }
  int64_t images, y_images, residual_images;
  if (!ReadImages(x.dimensions(), x_size, tiled[0] != 0, &images) ||
      !ReadImages(y->dimensions(), y_size, tiled[2] != 0, &y_images) || images != y_images) {
    return ffi::Error::InvalidArgument("x and y do not have the shapes that their sizes tell.");
  }
  const bool has_residual = residual.element_count() > 0;
  if (has_residual && (!ReadImages(residual.dimensions(), y_size, tiled[1] != 0, &residual_images) ||
                       residual_images != images)) {
    return ffi::Error::InvalidArgument("The residual must have the size of y, or be none.");
  }
  const int64_t x_dims[] = {images, x_size[0], x_size[1], x_size[2]};
  const int64_t y_dims[] = {images, y_size[0], y_size[1], y_size[2]};
  Conv conv = {};
  if (const char* error = ReadConv(Numbers(x_dims, 4), Numbers(y_dims, 4), kernel, strides,
                                   dilation, padding, bias, activation, &conv)) {
    return ffi::Error::InvalidArgument(error);
  }
  conv.x = x.typed_data();
  conv.residual = has_residual ? residual.typed_data() : nullptr;
  conv.out = y->typed_data();
  conv.x_is_tiled = tiled[0] != 0;
  conv.residual_is_tiled = has_residual && tiled[1] != 0;
  conv.out_is_tiled = tiled[2] != 0;
  PackedLayer layer = {AsBytes(tile_pattern), AsBytes(tile_values), {}, {}, ValueType::kFloat32, {}};
  if (!AsValueType(tile_values.element_type(), &layer.value_type)) {
    return ffi::Error::InvalidArgument("Packed values must be float32 or bfloat16.");
  }
  return RunConv(layer, conv, y, pool);
}

// x and y: images in tiles, of sizes (height, width, channels). Of the other attributes, kernel and strides
// are (y, x), and the padding is (top, bottom, left, right).
ffi::Error TiledMaxPoolHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                               ffi::ResultBuffer<ffi::F32> y, Numbers kernel, Numbers strides,
                               Numbers padding, Numbers x_size, Numbers y_size) {
  int64_t images, y_images;
  if (!IsSize(x_size) || !IsSize(y_size) || !ReadImages(x.dimensions(), x_size, true, &images) ||
      !ReadImages(y->dimensions(), y_size, true, &y_images) || images != y_images) {
    return ffi::Error::InvalidArgument("x and y do not have the shapes that their sizes tell.");
  }
  const int64_t x_dims[] = {images, x_size[0], x_size[1], x_size[2]};
  const int64_t y_dims[] = {images, y_size[0], y_size[1], y_size[2]};
  const int64_t dilation[] = {1, 1};
  Conv conv = {};
  if (const char* error = ReadSizes(Numbers(x_dims, 4), Numbers(y_dims, 4), kernel, strides,
                                    Numbers(dilation, 2), padding, &conv)) {
    return ffi::Error::InvalidArgument(error);
  }
  conv.x = x.typed_data();
  conv.out = y->typed_data();
  AdviseHugePages(*y);
  PoolExecutor executor(pool);
  if (const char* error = TiledMaxPool(conv, &executor)) {
    return ffi::Error::InvalidArgument(std::string("Max-pooling: ") + error + ".");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_tiled_conv(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_tiled_conv, srigl::TiledConvHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // x
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()   // tile pattern
                                  .Arg<xla::ffi::AnyBuffer>()              // tile values
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // bias
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // residual
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()  // y
                                  .Attr<int64_t>("activation")
                                  .Attr<srigl::Numbers>("kernel")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("dilation")
                                  .Attr<srigl::Numbers>("padding")
                                  .Attr<srigl::Numbers>("x_size")
                                  .Attr<srigl::Numbers>("y_size")
                                  .Attr<srigl::Numbers>("tiled"));

SRIGL_EXPORT XLA_FFI_Error* srigl_tiled_max_pool(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_tiled_max_pool, srigl::TiledMaxPoolHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()  // x
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()  // y
                                  .Attr<srigl::Numbers>("kernel")
                                  .Attr<srigl::Numbers>("strides")
                                  .Attr<srigl::Numbers>("padding")
                                  .Attr<srigl::Numbers>("x_size")
                                  .Attr<srigl::Numbers>("y_size"));
