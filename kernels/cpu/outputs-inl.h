// How sums become outputs: scales, bias, residual and activation, and maybe 8 bits. Included by the
// kernels, after quantize-inl.h; the rules of vectors-inl.h apply.

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// Writes `count` (at most kWidth) outputs of one batch row: scaled, bias and residual added.
inline void Finish(Vec sums, const MatMul& call, int64_t row, int64_t output, int64_t count) {
  if (call.scales != nullptr) {
    const float row_scale = call.row_scales == nullptr ? 1.0f : call.row_scales[row];
    sums *= LoadSome(call.scales + output, count) * row_scale;
    SRIGL_ROUND(sums);
  } else if (call.row_scales != nullptr) {
    sums *= call.row_scales[row];
  }
  if (call.bias != nullptr) sums += LoadSome(call.bias + output, count);
  if (call.residual != nullptr) {
    sums += LoadSome(call.residual + row * call.out_features + output, count);
  } else if (call.residual8.integers != nullptr) {
    sums += LoadQuantized(call.residual8, row, call.out_features, output, count);
  }
  if (call.y8.integers != nullptr) {
    return StoreQuantized(call.y8, row, call.out_features, output, count,
                          Activate(sums, call.activation));
  }
  float* y = call.y + row * call.out_features + output;
  if (count == kWidth) {
    const Vec out = Activate(sums, call.activation);
    return call.streamed && output % kWidth == 0 ? Stream(y, out) : Store(y, out);
  }
  float buffer[kWidth];
  Store(buffer, Activate(sums, call.activation));
  memcpy(y, buffer, count * sizeof(float));
}

// As `Finish` for a register of outputs of neighbouring batch rows, of a linear or a relu layer without
// scales: what there is to do is decided once, and is the same bit for bit.
template <bool kResidual, bool kStreamed>
inline void FinishRows(const Vec* sums, const MatMul& call, int64_t row, int64_t num_rows,
                       int64_t output) {
  const Vec bias = call.bias == nullptr ? Vec{} : Load(call.bias + output);
  const Vec least = Vec{} + (call.activation == Activation::kRelu ? 0.0f : -__builtin_inff());
  const int64_t at = row * call.out_features + output;
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i >= num_rows) return;
    Vec out = sums[i];
    if (call.bias != nullptr) out += bias;  // -0 stays
    if constexpr (kResidual) out += Load(call.residual + at + i * call.out_features);
    out = out < least ? least : out;
    float* y = call.y + at + i * call.out_features;
    kStreamed ? Stream(y, out) : Store(y, out);
  }
}

// What there is of it for a call, or nullptr.
using FinishRowsOf = void (*)(const Vec*, const MatMul&, int64_t, int64_t, int64_t);
inline FinishRowsOf FindFinishRows(const MatMul& call) {
  if (call.scales != nullptr || call.row_scales != nullptr || call.y8.integers != nullptr ||
      call.residual8.integers != nullptr ||
      (call.activation != Activation::kNone && call.activation != Activation::kRelu)) {
    return nullptr;
  }
  if (call.residual != nullptr) {
    return call.streamed ? FinishRows<true, true> : FinishRows<true, false>;
  }
  return call.streamed ? FinishRows<false, true> : FinishRows<false, false>;
}

// Turns sums [row, lane] around and writes outputs [output_begin, output_end). The outputs of a
// layer may be many: then its lanes are done together, as looking up their rows takes time. Those
// of a convolution are few, and are written as they lie in memory, a register's lanes at a time.
template <int kVecs>
void WriteOutputs(const TileView& view, const MatMul& call, int64_t row_begin, int64_t num_rows,
                  int64_t first_row, int64_t last_row, int64_t output_begin, int64_t output_end,
                  const float* sums, const float* zeros) {
  constexpr int kLanes = kVecs * kWidth;
  const int64_t step = call.patches == nullptr ? kLanes : kWidth;
  const FinishRowsOf finish_rows = FindFinishRows(call);
  for (int64_t lane_begin = 0; lane_begin < num_rows; lane_begin += step) {
    const int64_t lane_end = Min(lane_begin + step, num_rows);
    int64_t count;
    for (int64_t o = output_begin; o < output_end; o += count) {
      count = kWidth - o % kWidth;  // the next chunks are aligned as the outputs are
      if (count > output_end - o) count = output_end - o;
      const float* source[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int64_t row = i < count ? view.output_rows[o + i] : -1;
        source[i] =
            row >= first_row && row < last_row ? sums + (row - first_row) * kLanes : zeros;
      }
      for (int64_t lane = lane_begin; lane < lane_end; lane += kWidth) {
        Vec rows[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = Load(source[i] + lane);
        Transpose(rows);
        const int64_t rows_left = Min(num_rows - lane, kWidth);
        if (finish_rows != nullptr && count == kWidth) {
          finish_rows(rows, call, row_begin + lane, rows_left, o);
          continue;
        }
        for (int i = 0; i < rows_left; ++i) Finish(rows[i], call, row_begin + lane + i, o, count);
      }
    }
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
