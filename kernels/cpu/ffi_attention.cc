// XLA FFI handler of attention.

#include <algorithm>
#include <string>

#include "attention.h"
#include "ffi_common.h"

namespace srigl {
namespace {

using Numbers = ffi::Span<const int64_t>;

// Reads where an array has the axes of the batch, its rows and its columns, the last of all axes; -1 for
// one that it lacks, which has one place then. `sizes` are of the batch, the rows and the columns; those
// that are 0 are set. False where axes or sizes do not fit.
bool ReadAxes(ffi::Span<const int64_t> dims, Numbers axes, size_t batch, int64_t* sizes,
              AttentionStrides* strides, bool covers) {
  const size_t rank = dims.size(), count = batch + 2;
  if (axes.size() != count || axes[count - 1] != static_cast<int64_t>(rank) - 1) return false;
  int64_t used = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t axis = axes[i];
    if (axis < -1 || axis >= static_cast<int64_t>(rank)) return false;
    if (axis < 0) continue;
    if (used >> axis & 1) return false;
    used |= int64_t{1} << axis;
    if (sizes[i] < 0) sizes[i] = dims[axis];
    if (sizes[i] != dims[axis]) return false;
    int64_t stride = 1;
    for (size_t j = axis + 1; j < rank; ++j) stride *= dims[j];
    if (i < batch) strides->batch[i] = stride;
    if (i == batch) strides->row = stride;
  }
  for (size_t axis = 0; covers && axis < rank; ++axis) {
    if (dims[axis] != 1 && !(used >> axis & 1)) return false;
  }
  return true;
}

// Whether what lies from an offset on, along the axes that ReadAxes found, lies within the array.
bool LiesWithin(ffi::Span<const int64_t> dims, Numbers axes, int64_t offset) {
  int64_t size = 1, last = 0;
  for (size_t i = dims.size(); i-- > 0;) {
    if (dims[i] == 0) return offset == 0;
    if (std::find(axes.begin(), axes.end(), static_cast<int64_t>(i)) != axes.end()) {
      last += (dims[i] - 1) * size;
    }
    size *= dims[i];
  }
  return offset >= 0 && offset < size - last;
}

// q: [.., depth], k: [.., depth], v and out: [.., width] float32, mask: [.., keys] bool, or [0] for none.
// Of each array, `axes` are those of the batch, then of its rows (queries or keys), then its last. k and
// v begin at the offsets; the rows of their tails follow, [0] for none.
ffi::Error AttentionHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> k,
                            ffi::Buffer<ffi::F32> v, ffi::Buffer<ffi::PRED> mask,
                            ffi::Buffer<ffi::F32> k_tail, ffi::Buffer<ffi::F32> v_tail,
                            ffi::ResultBuffer<ffi::F32> out, Numbers q_axes, Numbers k_axes,
                            Numbers v_axes, Numbers mask_axes, Numbers k_tail_axes,
                            Numbers v_tail_axes, Numbers out_axes, Numbers offsets, float scale,
                            float fill) {
  const size_t batch = out_axes.size() - 2;
  if (out_axes.size() < 2 || batch > kAttentionAxes || out->dimensions().size() > 62) {
    return ffi::Error::InvalidArgument("Attention has at most four axes of a batch.");
  }
  Attention call = {};
  int64_t sizes[kAttentionAxes + 2];  // of the batch, the queries and the width
  std::fill_n(sizes, kAttentionAxes + 2, -1);
  bool fits = ReadAxes(out->dimensions(), out_axes, batch, sizes, &call.out_strides, true);
  for (size_t i = 0; i < batch + 1; ++i) sizes[i] = std::max<int64_t>(sizes[i], out_axes[i] < 0 ? 1 : 0);
  call.queries = sizes[batch];
  call.width = sizes[batch + 1];
  sizes[batch + 1] = -1;  // the depth
  fits = fits && ReadAxes(q.dimensions(), q_axes, batch, sizes, &call.q_strides, false);
  call.depth = sizes[batch + 1];
  sizes[batch] = -1;  // the keys
  fits = fits && ReadAxes(k.dimensions(), k_axes, batch, sizes, &call.k_strides, false);
  call.keys = sizes[batch];
  sizes[batch + 1] = call.width;
  fits = fits && ReadAxes(v.dimensions(), v_axes, batch, sizes, &call.v_strides, false);
  // What lacks the axis of its rows has one of them.
  fits = fits && (q_axes[batch] >= 0 || call.queries == 1) && k_axes[batch] >= 0 && v_axes[batch] >= 0;
  fits = fits && offsets.size() == 2 && LiesWithin(k.dimensions(), k_axes, offsets[0]) &&
         LiesWithin(v.dimensions(), v_axes, offsets[1]);
  if (fits && k_tail_axes.size() > 0) {
    sizes[batch] = -1;
    sizes[batch + 1] = call.depth;
    fits = ReadAxes(k_tail.dimensions(), k_tail_axes, batch, sizes, &call.k_tail_strides, false);
    call.tail = sizes[batch];
    sizes[batch + 1] = call.width;
    fits = fits &&
           ReadAxes(v_tail.dimensions(), v_tail_axes, batch, sizes, &call.v_tail_strides, false) &&
           k_tail_axes[batch] >= 0 && v_tail_axes[batch] >= 0;
    call.keys += call.tail;
  }
  if (mask.element_count() > 0) {
    sizes[batch] = call.queries;
    sizes[batch + 1] = call.keys;
    fits = fits && ReadAxes(mask.dimensions(), mask_axes, batch, sizes, &call.mask_strides, false);
    call.mask = reinterpret_cast<const uint8_t*>(mask.typed_data());
  }
  if (!fits) return ffi::Error::InvalidArgument("The arrays of an attention do not fit each other.");
  std::fill_n(call.batch, kAttentionAxes, 1);
  std::copy_n(sizes, batch, call.batch);
  call.q = q.typed_data();
  call.k = k.typed_data() + offsets[0];
  call.v = v.typed_data() + offsets[1];
  call.k_tail = k_tail.typed_data();
  call.v_tail = v_tail.typed_data();
  call.out = out->typed_data();
  call.scale = scale;
  call.fill = fill;
  AdviseHugePages(*out);
  PoolExecutor executor(pool);
  if (const char* error = RunAttention(call, &executor)) {
    return ffi::Error::InvalidArgument(std::string("Attention: ") + error + ".");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace srigl

SRIGL_EXPORT XLA_FFI_Error* srigl_attention(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(srigl_attention, srigl::AttentionHandler,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()   // q
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()   // k
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()   // v
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()  // mask
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()   // k tail
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()   // v tail
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()   // out
                                  .Attr<srigl::Numbers>("q_axes")
                                  .Attr<srigl::Numbers>("k_axes")
                                  .Attr<srigl::Numbers>("v_axes")
                                  .Attr<srigl::Numbers>("mask_axes")
                                  .Attr<srigl::Numbers>("k_tail_axes")
                                  .Attr<srigl::Numbers>("v_tail_axes")
                                  .Attr<srigl::Numbers>("out_axes")
                                  .Attr<srigl::Numbers>("offsets")
                                  .Attr<float>("scale")
                                  .Attr<float>("fill"));
