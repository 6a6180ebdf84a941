// What the shared library exports: XLA FFI handlers. They check shapes and types, and start kernels
// on XLA's stream; nothing else, so that XLA may record them in a CUDA graph.

#include <algorithm>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace srigl {
namespace {

namespace ffi = xla::ffi;

#ifdef SRIGL_EMULATION  // runs as a handler for CPUs, which have no stream
#define SRIGL_BIND() xla::ffi::Ffi::Bind()
#define SRIGL_STREAM
constexpr cudaStream_t stream = nullptr;
#else
#define SRIGL_BIND() xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
#define SRIGL_STREAM cudaStream_t stream,
#endif

using Array = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

int64_t Size(const Array& array, size_t axis) { return array.dimensions()[axis]; }

bool HasShape(const Array& array, std::initializer_list<int64_t> shape) {
  const auto dims = array.dimensions();
  return dims.size() == shape.size() && std::equal(shape.begin(), shape.end(), dims.begin());
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

ffi::Error Invalid(const char* what) { return ffi::Error::InvalidArgument(what); }

ffi::Error AsError(cudaError_t error) {
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("srigl's CUDA kernel: ") + cudaGetErrorString(error));
}

// Calls `run` with a null pointer to the type of both arrays.
template <typename Run>
ffi::Error ForType(const Array& x, const Array& values, Run run) {
  if (x.element_type() != values.element_type()) return Invalid("types of x and values differ");
  if (x.element_type() == ffi::DataType::F32) return AsError(run(static_cast<float*>(nullptr)));
  if (x.element_type() == ffi::DataType::BF16) return AsError(run(static_cast<BFloat16*>(nullptr)));
  return Invalid("x must be float32 or bfloat16");
}

bool IsTyped(const Array& array, ffi::DataType type) { return array.element_type() == type; }

// Fills in where results go; a message if the arrays do not fit.
const char* SetOutput(const Array& x, const Array& active, const Array* rows, const Array& bias,
                      Result& y, int64_t activation, Output* out) {
  if (x.dimensions().size() != 2 || y->dimensions().size() != 2) return "x and y must be matrices";
  out->batch = Size(x, 0);
  out->num_outputs = Size(*y, 1);
  out->num_rows = active.element_count();
  if (out->num_rows == 0) out->num_rows = out->num_outputs;  // row r is column r
  const int64_t num_biases = bias.element_count();
  if (Size(*y, 0) != out->batch || y->element_type() != x.element_type()) return "y does not fit x";
  if (out->batch < 1 || out->num_rows < 1) return "no rows: there is nothing to start";
  if (!IsTyped(active, ffi::DataType::S32) || !IsTyped(bias, ffi::DataType::F32) ||
      (rows && !IsTyped(*rows, ffi::DataType::S32))) {
    return "types of active, rows or bias";
  }
  if (rows && !HasShape(*rows, {active.element_count() ? out->num_outputs : 0})) return "rows must name all columns of y";
  if (num_biases != 0 && num_biases != out->num_outputs) return "the bias must have one number a column";
  if (activation < 0 || activation > 2) return "unknown activation";
  if (active.element_count() > 0) {
    out->active = static_cast<const int32_t*>(active.untyped_data());
    out->rows = rows ? static_cast<const int32_t*>(rows->untyped_data()) : nullptr;
  }
  out->bias = num_biases == 0 ? nullptr : static_cast<const float*>(bias.untyped_data());
  out->y = y->untyped_data();
  out->activation = static_cast<int>(activation);
  return nullptr;
}

ffi::Error Gather(SRIGL_STREAM Array x, Array values, Array indices, Array active, Array bias,
                  Result y, int64_t activation) {
  Output out = {};
  if (const char* message = SetOutput(x, active, nullptr, bias, y, activation, &out)) {
    return Invalid(message);
  }
  if (values.dimensions().size() != 2 || Size(values, 1) % 8 != 0 || Size(values, 1) < 8 ||
      !HasShape(values, {out.num_rows, Size(values, 1)}) ||
      !HasShape(indices, {out.num_rows, Size(values, 1)})) {
    return Invalid("values and indices must be [A, K], K filled up to a multiple of 8");
  }
  const bool wide = IsTyped(indices, ffi::DataType::S32);
  if (!wide && !IsTyped(indices, ffi::DataType::U16)) return Invalid("type of indices");
  return ForType(x, values, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    GatherArgs<T> args = {};
    args.x = static_cast<const T*>(x.untyped_data());
    args.values = static_cast<const T*>(values.untyped_data());
    args.indices = indices.untyped_data();
    args.wide = wide;
    args.num_inputs = Size(x, 1);
    args.row_vectors = static_cast<int>(Size(values, 1) / 8);
    args.out = out;
    return GatherSums<T>(args, stream);
  });
}

// What tiles and products share of their arguments; a message if they do not fit.
const char* CheckTiles(const Array& positions, const Array& starts, int64_t num_rows,
                       int64_t num_inputs, int64_t mode) {
  if (!IsTyped(positions, ffi::DataType::U16) || !IsTyped(starts, ffi::DataType::S32)) {
    return "types of positions or starts";
  }
  if (positions.element_count() % 8 != 0) return "positions must be filled up to a multiple of 8";
  const int64_t tiles = CeilDivide(num_rows, kTileRows) * CeilDivide(num_inputs, kTileColumns);
  if (!HasShape(starts, {tiles + 1})) return "starts must have one number a tile, and one more";
  if (mode < 0 || mode > static_cast<int64_t>(Mode::k3xTf32)) return "unknown mode";
  return nullptr;
}

ffi::Error Tiles(SRIGL_STREAM Array x, Array values, Array positions, Array starts, Array active,
                 Array rows, Array bias, Result y, Result sums, int64_t activation, int64_t mode,
                 int64_t batch_tile) {
  Output out = {};
  const char* message = SetOutput(x, active, &rows, bias, y, activation, &out);
  if (!message) message = CheckTiles(positions, starts, out.num_rows, Size(x, 1), mode);
  if (message) return Invalid(message);
  if (values.element_count() != positions.element_count()) return Invalid("values, positions");
  const int64_t splits = Size(*sums, 0);
  if (!IsTyped(*sums, ffi::DataType::F32) ||
      !(splits == 0 || HasShape(*sums, {splits, out.batch, out.num_rows}))) {
    return Invalid("partial sums must be [splits, B, A] float32, or empty");
  }
  return ForType(x, values, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    TilesArgs<T> args = {};
    args.x = static_cast<const T*>(x.untyped_data());
    args.values = static_cast<const T*>(values.untyped_data());
    args.positions = static_cast<const uint16_t*>(positions.untyped_data());
    args.starts = static_cast<const int32_t*>(starts.untyped_data());
    args.sums = static_cast<float*>(sums->untyped_data());
    args.num_inputs = Size(x, 1);
    args.num_chunks = static_cast<int>(CeilDivide(Size(x, 1), kTileColumns));
    args.batch_tile = static_cast<int>(batch_tile);
    args.splits = splits > 1 ? static_cast<int>(splits) : 1;
    args.out = out;
    return TileSums<T>(args, static_cast<Mode>(mode), stream);
  });
}

// rows of the pattern are those of `active`, or all; places: [G, steps * 16]; starts: [G, chunks + 1]
ffi::Error Grouped(SRIGL_STREAM Array x, Array fragments, Array places, Array starts, Array active,
                   Array rows, Array bias, Result y, int64_t activation, int64_t mode,
                   int64_t group_size) {
  Output out = {};
  const char* message = SetOutput(x, active, &rows, bias, y, activation, &out);
  if (message) return Invalid(message);
  if (group_size != 16 && group_size != 32 && group_size != 64) return Invalid("size of groups");
  const int64_t groups = CeilDivide(out.num_rows, group_size);
  const int64_t chunks = CeilDivide(Size(x, 1), kGroupChunk);
  if (!IsTyped(places, ffi::DataType::U16) || places.dimensions().size() != 2 ||
      Size(places, 0) != groups || Size(places, 1) % kGroupStep != 0) {
    return Invalid("places must be [G, 16 steps] uint16");
  }
  if (!IsTyped(starts, ffi::DataType::S32) || !HasShape(starts, {groups, chunks + 1})) {
    return Invalid("starts must be [G, chunks + 1] int32");
  }
  const int64_t num_values = static_cast<int64_t>(fragments.element_count());
  if (num_values != Size(places, 0) * Size(places, 1) * group_size) return Invalid("fragments");
  if (mode < 0 || mode > static_cast<int64_t>(Mode::k3xTf32)) return Invalid("unknown mode");
  return ForType(x, fragments, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    GroupedArgs<T> args = {};
    args.x = static_cast<const T*>(x.untyped_data());
    args.fragments = static_cast<const uint4*>(fragments.untyped_data());
    args.places = static_cast<const uint16_t*>(places.untyped_data());
    args.starts = static_cast<const int32_t*>(starts.untyped_data());
    args.num_inputs = Size(x, 1);
    args.num_groups = static_cast<int>(groups);
    args.group_size = static_cast<int>(group_size);
    args.num_chunks = static_cast<int>(chunks);
    args.num_steps = static_cast<int>(Size(places, 1) / kGroupStep);
    args.out = out;
    return GroupedSums<T>(args, static_cast<Mode>(mode), stream);
  });
}

ffi::Error ProductsOfPairs(SRIGL_STREAM Array g, Array x, Array positions, Array starts,
                           Array sources, Result dvalues, int64_t mode) {
  if (g.dimensions().size() != 2 || x.dimensions().size() != 2 ||
      dvalues->dimensions().size() != 2 || Size(g, 0) != Size(x, 0) ||
      dvalues->element_type() != x.element_type() || Size(g, 1) < Size(*dvalues, 0)) {
    return Invalid("g [B, A], x [B, I] and dvalues [A, K] do not fit");
  }
  const int64_t num_rows = Size(*dvalues, 0);
  if (const char* message = CheckTiles(positions, starts, num_rows, Size(x, 1), mode)) {
    return Invalid(message);
  }
  if (num_rows < 1 || !IsTyped(sources, ffi::DataType::S32) ||
      sources.element_count() != positions.element_count()) {
    return Invalid("positions and sources must be of one size");
  }
  return ForType(g, x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    ProductsArgs<T> args = {};
    args.g = static_cast<const T*>(g.untyped_data());
    args.x = static_cast<const T*>(x.untyped_data());
    args.positions = static_cast<const uint16_t*>(positions.untyped_data());
    args.starts = static_cast<const int32_t*>(starts.untyped_data());
    args.sources = static_cast<const int32_t*>(sources.untyped_data());
    args.dvalues = static_cast<T*>(dvalues->untyped_data());
    args.g_columns = Size(g, 1);
    args.num_rows = num_rows;
    args.num_inputs = Size(x, 1);
    args.num_values = static_cast<int64_t>(dvalues->element_count());
    args.batch = Size(x, 0);
    args.num_chunks = static_cast<int>(CeilDivide(Size(x, 1), kTileColumns));
    return PatternProducts<T>(args, static_cast<Mode>(mode), stream);
  });
}

}  // namespace
}  // namespace srigl

#define SRIGL_EXPORT extern "C" __attribute__((visibility("default")))

// The platform that the handlers are for, as `jax.ffi.register_ffi_target` calls it.
SRIGL_EXPORT const char* srigl_cuda_platform() {
#ifdef SRIGL_EMULATION
  return "cpu";
#else
  return "CUDA";
#endif
}

SRIGL_EXPORT XLA_FFI_Error* srigl_cuda_gather(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_cuda_tiles(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_cuda_grouped(XLA_FFI_CallFrame* frame);
SRIGL_EXPORT XLA_FFI_Error* srigl_cuda_products(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_cuda_gather, srigl::Gather,
                              SRIGL_BIND()
                                  .Arg<xla::ffi::AnyBuffer>()  // x
                                  .Arg<xla::ffi::AnyBuffer>()  // values
                                  .Arg<xla::ffi::AnyBuffer>()  // indices
                                  .Arg<xla::ffi::AnyBuffer>()  // active
                                  .Arg<xla::ffi::AnyBuffer>()  // bias
                                  .Ret<xla::ffi::AnyBuffer>()  // y
                                  .Attr<int64_t>("activation"),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_cuda_tiles, srigl::Tiles,
                              SRIGL_BIND()
                                  .Arg<xla::ffi::AnyBuffer>()  // x
                                  .Arg<xla::ffi::AnyBuffer>()  // values
                                  .Arg<xla::ffi::AnyBuffer>()  // positions
                                  .Arg<xla::ffi::AnyBuffer>()  // starts
                                  .Arg<xla::ffi::AnyBuffer>()  // active
                                  .Arg<xla::ffi::AnyBuffer>()  // rows
                                  .Arg<xla::ffi::AnyBuffer>()  // bias
                                  .Ret<xla::ffi::AnyBuffer>()  // y
                                  .Ret<xla::ffi::AnyBuffer>()  // partial sums
                                  .Attr<int64_t>("activation")
                                  .Attr<int64_t>("mode")
                                  .Attr<int64_t>("batch_tile"),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_cuda_grouped, srigl::Grouped,
                              SRIGL_BIND()
                                  .Arg<xla::ffi::AnyBuffer>()  // x
                                  .Arg<xla::ffi::AnyBuffer>()  // fragments
                                  .Arg<xla::ffi::AnyBuffer>()  // places
                                  .Arg<xla::ffi::AnyBuffer>()  // starts
                                  .Arg<xla::ffi::AnyBuffer>()  // active
                                  .Arg<xla::ffi::AnyBuffer>()  // rows
                                  .Arg<xla::ffi::AnyBuffer>()  // bias
                                  .Ret<xla::ffi::AnyBuffer>()  // y
                                  .Attr<int64_t>("activation")
                                  .Attr<int64_t>("mode")
                                  .Attr<int64_t>("group_size"),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_cuda_products, srigl::ProductsOfPairs,
                              SRIGL_BIND()
                                  .Arg<xla::ffi::AnyBuffer>()  // g
                                  .Arg<xla::ffi::AnyBuffer>()  // x
                                  .Arg<xla::ffi::AnyBuffer>()  // positions
                                  .Arg<xla::ffi::AnyBuffer>()  // starts
                                  .Arg<xla::ffi::AnyBuffer>()  // sources
                                  .Ret<xla::ffi::AnyBuffer>()  // dvalues
                                  .Attr<int64_t>("mode"),
                              {xla::ffi::Traits::kCmdBufferCompatible});
