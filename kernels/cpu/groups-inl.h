// Where the sums of a group go, for AVX-512. Included after quantize-inl.h; the rules of vectors-inl.h
// apply.

namespace srigl {
namespace avx512 {
namespace {

// Some of sixteen outputs with the residual and the activation, where they belong.
inline void Put(const MatMul& call, int64_t row, int64_t output, __mmask16 inside, __m512 out) {
  const int64_t at = row * call.out_features + output;
  if (call.residual != nullptr) {
    out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(inside, call.residual + at));
  } else if (call.residual8.integers != nullptr) {
    const __m128i bytes = _mm_maskz_loadu_epi8(inside, call.residual8.integers + at);
    const __m512i integers = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes),
                                              _mm512_set1_epi32(call.residual8.zero));
    __m512 residual = _mm512_mul_ps(_mm512_cvtepi32_ps(integers),
                                    _mm512_set1_ps(call.residual8.scales[row]));
    asm("" : "+v"(residual));  // rounded, as on other targets
    out = _mm512_add_ps(out, residual);
  }
  out = Activate(out, call.activation);
  if (call.y8.integers == nullptr) {
    _mm512_mask_storeu_ps(call.y + at, inside, out);
    return;
  }
  const Steps& steps = call.y8.steps;
  if (_mm512_mask_cmp_ps_mask(inside, out, out, _CMP_UNORD_Q) != 0) MarkNaN(call.y8, row);
  __m512 v = _mm512_mul_ps(out, _mm512_set1_ps(steps.inverse));
  // Of NaN and a number these give the second operand.
  v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(steps.low)), _mm512_set1_ps(steps.high));
  const __m512i integers =
      _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(ZeroOf(steps)));
  _mm_mask_storeu_epi8(call.y8.integers + at, inside, _mm512_cvtepi32_epi8(integers));
}

// Spreads the sums of one group over the outputs it owns, ablated neurons between them.
template <typename View>
inline void WriteGroup(const View& view, const MatMul& call, int64_t g, int64_t row, __m512 sums) {
  const int64_t begin = view.groups[g].output_begin;
  if (view.groups[g + 1].output_begin - begin == kGroupRows &&
      view.masks[view.groups[g].mask_begin] == 0xffff) {  // none ablated
    if (call.scales != nullptr) sums = _mm512_mul_ps(sums, _mm512_loadu_ps(call.scales + begin));
    if (call.bias != nullptr) sums = _mm512_add_ps(sums, _mm512_loadu_ps(call.bias + begin));
    return Put(call, row, begin, 0xffff, sums);
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
    Put(call, row, o, inside, out);
  }
}

enum class Rows { kNone, kFloats, kBytes };  // what a residual, or the outputs, consist of

// As WriteGroupRows, for a whole group of a linear or a relu layer: what there is to do is decided once,
// not for each row as by `Put`, and is the same bit for bit.
template <Rows kResidual, Rows kOutput>
inline void WriteWholeGroup(const MatMul& call, int64_t output, int64_t row, int64_t count,
                            const float* sums, __m512 scales, const float* row_scales,
                            __m512 bias) {
  // In registers: the compiler has to expect that a byte written is a part of `call`.
  const Steps steps = call.y8.steps;
  const bool is_relu = call.activation == Activation::kRelu;
  const bool streamed = call.streamed && output % kGroupRows == 0;
  const __m512 inverse = _mm512_set1_ps(steps.inverse), most = _mm512_set1_ps(steps.high);
  const __m512 least = _mm512_set1_ps(is_relu ? 0 : steps.low);
  const __m512i zero = _mm512_set1_epi32(ZeroOf(steps));
  const __m512i residual_zero = _mm512_set1_epi32(call.residual8.zero);
  const int64_t stride = call.out_features, first = row * stride + output;
  const float* const residual = call.residual + (kResidual == Rows::kFloats ? first : 0);
  const bool has_bytes = kResidual == Rows::kBytes, writes_bytes = kOutput == Rows::kBytes;
  const uint8_t* const residual8 = call.residual8.integers + (has_bytes ? first : 0);
  const float* const residual_scales = call.residual8.scales + (has_bytes ? row : 0);
  float* const y = call.y + (writes_bytes ? 0 : first);
  uint8_t* const y8 = call.y8.integers + (writes_bytes ? first : 0);
  const auto output_of = [&](int64_t r) {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(row_scales[r]));
    __m512 out = _mm512_mul_ps(_mm512_loadu_ps(sums + r * kGroupRows), scale);
    asm("" : "+v"(out));  // rounded, as by WriteGroup
    out = _mm512_add_ps(out, bias);
    if constexpr (kResidual == Rows::kFloats) {
      out = _mm512_add_ps(out, _mm512_loadu_ps(residual + r * stride));
    } else if constexpr (kResidual == Rows::kBytes) {
      const __m128i bytes =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(residual8 + r * stride));
      const __m512i integers = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), residual_zero);
      __m512 added =
          _mm512_mul_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(residual_scales[r]));
      asm("" : "+v"(added));
      out = _mm512_add_ps(out, added);
    }
    return out;
  };
  __mmask16 nan = 0;
  for (int64_t r = 0; r < count; ++r) {
    __m512 out = output_of(r);
    if constexpr (kOutput == Rows::kFloats) {
      if (is_relu) out = Activate(out, Activation::kRelu);
      if (streamed) {
        Stream(y + r * stride, out);
      } else {
        Store(y + r * stride, out);
      }
    } else {
      nan = _kor_mask16(nan, _mm512_cmp_ps_mask(out, out, _CMP_UNORD_Q));
      const __m512 v = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(out, inverse), least), most);
      const __m512i integers = _mm512_add_epi32(_mm512_cvtps_epi32(v), zero);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y8 + r * stride),
                       _mm512_cvtepi32_epi8(integers));
    }
  }
  for (int64_t r = 0; nan != 0 && r < count; ++r) {
    const __m512 out = output_of(r);
    if (_mm512_cmp_ps_mask(out, out, _CMP_UNORD_Q) != 0) MarkNaN(call.y8, row + r);
  }
}

// As WriteGroup for neighbouring rows: of `count` rows from `row` on, `sums` are [count][kGroupRows],
// to be multiplied by `weight_scales` of the neurons times `row_scales` of the rows.
template <typename View>
inline void WriteGroupRows(const View& view, const MatMul& call, int64_t g, int64_t row,
                           int64_t count, const float* sums, const float* weight_scales,
                           const float* row_scales) {
  const __m512 scales = _mm512_loadu_ps(weight_scales);
  const int64_t begin = view.groups[g].output_begin;
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
  if (call.activation == Activation::kNone || call.activation == Activation::kRelu) {
    using Write = void (*)(const MatMul&, int64_t, int64_t, int64_t, const float*, __m512,
                           const float*, __m512);
    static constexpr Write kWrite[3][2] = {
        {WriteWholeGroup<Rows::kNone, Rows::kFloats>, WriteWholeGroup<Rows::kNone, Rows::kBytes>},
        {WriteWholeGroup<Rows::kFloats, Rows::kFloats>,
         WriteWholeGroup<Rows::kFloats, Rows::kBytes>},
        {WriteWholeGroup<Rows::kBytes, Rows::kFloats>,
         WriteWholeGroup<Rows::kBytes, Rows::kBytes>}};
    const int residual = call.residual != nullptr ? 1 : call.residual8.integers != nullptr ? 2 : 0;
    return kWrite[residual][call.y8.integers != nullptr](call, begin, row, count, sums, scales,
                                                         row_scales, bias);
  }
  for (int64_t r = 0; r < count; ++r) {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(row_scales[r]));
    __m512 out = _mm512_mul_ps(_mm512_loadu_ps(sums + r * kGroupRows), scale);
    asm("" : "+v"(out));  // rounded, as by WriteGroup
    Put(call, row + r, begin, 0xffff, _mm512_add_ps(out, bias));
  }
}

}  // namespace
}  // namespace avx512
}  // namespace srigl
