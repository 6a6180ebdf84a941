// What a topology update needs of each target. Included by each target's translation unit after
// tile-inl.h, whose rules hold here too.

namespace srigl {
namespace SRIGL_TARGET {
namespace {

typedef uint32_t KeyVec __attribute__((vector_size(4 * SRIGL_WIDTH)));

// Ranking keys of |gradient|, as srigl_jax/topk.py has them.
inline KeyVec Keys(Vec gradient) {
  const KeyVec bits = reinterpret_cast<KeyVec>(gradient) & 0x7fffffff;
  return (bits < kLargestKey - 2 ? bits : KeyVec{} + (kLargestKey - 2)) + 1;
}

// kRows neurons times kVecs registers of inputs. Each gradient is one sum over the batch in order,
// the same whenever it is formed.
template <int kRows, int kVecs>
__attribute__((noinline)) void GradientTile(const float* x, const float* g, int64_t batch,
                                            uint32_t* keys, int64_t stride) {
  Vec sums[kRows][kVecs] = {};
  for (int64_t b = 0; b < batch; ++b) {
    Vec inputs[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) inputs[v] = Load(x + b * kPanelInputs + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec value = g[b * kGradientNeurons + r] - Vec{};
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] += inputs[v] * value;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const KeyVec found = Keys(sums[r][v]);
      memcpy(keys + r * stride + v * kWidth, &found, sizeof(found));
    }
  }
}

void GradientKeys(const float* panels, int64_t num_panels, const float* g, int64_t batch,
                  int64_t num_neurons, uint32_t* keys) {
  constexpr int kRows = kWidth == 16 ? 8 : 4, kVecs = 3;
  const int64_t stride = num_panels * kPanelInputs;
  for (int64_t p = 0; p < num_panels; ++p) {
    const float* x = panels + p * batch * kPanelInputs;
    for (int64_t n = 0; n < num_neurons; n += kRows) {
      for (int64_t i = 0; i < kPanelInputs; i += kVecs * kWidth) {
        GradientTile<kRows, kVecs>(x + i, g + n, batch, keys + n * stride + p * kPanelInputs + i,
                                   stride);
      }
    }
  }
}

int64_t FindReaching(const uint32_t* keys, int64_t count, uint32_t least, int32_t* found) {
  int64_t n = 0, i = 0;
#if SRIGL_WIDTH == 16
  const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(least));
  __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + 16 <= count; i += 16) {
    const __mmask16 reach = _mm512_cmpge_epu32_mask(_mm512_loadu_si512(keys + i), limit);
    _mm512_storeu_si512(found + n, _mm512_maskz_compress_epi32(reach, places));
    n += __builtin_popcount(reach);
    places = _mm512_add_epi32(places, _mm512_set1_epi32(16));
  }
#endif
  for (; i < count; ++i) {
    found[n] = static_cast<int32_t>(i);
    n += keys[i] >= least;
  }
  return n;
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
