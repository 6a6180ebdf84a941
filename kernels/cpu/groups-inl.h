// Where the sums of a group go, for AVX-512. Included after vectors-inl.h, whose rules apply.

namespace srigl {
namespace avx512 {
namespace {

// Spreads the sums of one group over the outputs it owns, ablated neurons between them.
template <typename View>
inline void WriteGroup(const View& view, const MatMul& call, int64_t g, int64_t row, __m512 sums) {
  const int64_t begin = view.groups[g].output_begin;
  const float* residual =
      call.residual == nullptr ? nullptr : call.residual + row * call.out_features;
  if (view.groups[g + 1].output_begin - begin == kGroupRows &&
      view.masks[view.groups[g].mask_begin] == 0xffff) {  // none ablated
    if (call.scales != nullptr) sums = _mm512_mul_ps(sums, _mm512_loadu_ps(call.scales + begin));
    if (call.bias != nullptr) sums = _mm512_add_ps(sums, _mm512_loadu_ps(call.bias + begin));
    if (residual != nullptr) sums = _mm512_add_ps(sums, _mm512_loadu_ps(residual + begin));
    _mm512_storeu_ps(call.y + row * call.out_features + begin, Activate(sums, call.activation));
    return;
  }
  float buffer[2 * kGroupRows];
  _mm512_storeu_ps(buffer, sums);
  _mm512_storeu_ps(buffer + kGroupRows, _mm512_setzero_ps());
  const uint16_t* masks = view.masks + view.groups[g].mask_begin;
  const int64_t end = view.groups[g + 1].output_begin;
  int used = 0;
  for (int64_t o = begin; o < end; o += kGroupRows) {
    const __mmask16 active = *masks++;
    const int64_t left = end - o;
    const __mmask16 inside = left >= kGroupRows ? 0xffff : (1 << left) - 1;
    __m512 out = _mm512_maskz_expand_ps(active, _mm512_loadu_ps(buffer + used));
    used += __builtin_popcount(active);
    if (used > kGroupRows) used = kGroupRows;
    if (call.scales != nullptr) {
      out = _mm512_mul_ps(out, _mm512_maskz_loadu_ps(inside, call.scales + o));
    }
    if (call.bias != nullptr) {
      out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(inside, call.bias + o));
    }
    if (residual != nullptr) {
      out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(inside, residual + o));
    }
    if (call.activation != Activation::kNone) out = Activate(out, call.activation);
    _mm512_mask_storeu_ps(call.y + row * call.out_features + o, inside, out);
  }
}

// As WriteGroup for neighbouring rows: of `count` rows from `row` on, `sums` are [count][kGroupRows],
// to be multiplied by `weight_scales` of the neurons times `row_scales` of the rows.
template <typename View>
inline void WriteGroupRows(const View& view, const MatMul& call, int64_t g, int64_t row,
                           int64_t count, const float* sums, const float* weight_scales,
                           const float* row_scales) {
  const __m512 scales = _mm512_loadu_ps(weight_scales);
  const int64_t begin = view.groups[g].output_begin, step = call.out_features;
  if (view.groups[g + 1].output_begin - begin != kGroupRows ||
      view.masks[view.groups[g].mask_begin] != 0xffff || call.scales != nullptr) {
    for (int64_t r = 0; r < count; ++r) {
      const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(row_scales[r]));
      WriteGroup(view, call, g, row + r,
                 _mm512_mul_ps(_mm512_loadu_ps(sums + r * kGroupRows), scale));
    }
    return;
  }
  const __m512 bias =
      call.bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(call.bias + begin);
  const Activation activation = call.activation;
  const float* residual =
      call.residual == nullptr ? nullptr : call.residual + row * step + begin;
  float* y = call.y + row * step + begin;
  for (int64_t r = 0; r < count; ++r, y += step) {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(row_scales[r]));
    __m512 out = _mm512_mul_ps(_mm512_loadu_ps(sums + r * kGroupRows), scale);
    asm("" : "+v"(out));  // rounded, as by WriteGroup
    out = _mm512_add_ps(out, bias);
    if (residual != nullptr) {
      out = _mm512_add_ps(out, _mm512_loadu_ps(residual));
      residual += step;
    }
    _mm512_storeu_ps(y, Activate(out, activation));
  }
}

}  // namespace
}  // namespace avx512
}  // namespace srigl
