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
    Store(y, Activate(sums, call.activation));
    return;
  }
  float buffer[kWidth];
  Store(buffer, Activate(sums, call.activation));
  memcpy(y, buffer, count * sizeof(float));
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
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          if (lane + i < num_rows) Finish(rows[i], call, row_begin + lane + i, o, count);
        }
      }
    }
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
