// How sums become outputs: scales, bias, residual and activation, and maybe 8 bits. Included by the
// kernels, after quantize-inl.h; the rules of vectors-inl.h apply.

#include "activation_tiles.h"

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

// Writes registers of outputs of neighbouring batch rows: `Whole` kWidth of them, of as many rows.
struct AnyRows {
  const MatMul& call;

  void Some(const Vec* sums, int64_t row, int64_t num_rows, int64_t output, int64_t count) const {
    for (int64_t i = 0; i < num_rows; ++i) Finish(sums[i], call, row + i, output, count);
  }
  void Whole(const Vec* sums, int64_t row, int64_t output) const {
    Some(sums, row, kWidth, output, kWidth);
  }
};

// The same of a linear or a relu layer without scales: what there is to do is decided once, and is the
// same bit for bit.
template <bool kResidual, bool kStreamed>
struct PlainRows {
  const MatMul& call;

  void Some(const Vec* sums, int64_t row, int64_t num_rows, int64_t output, int64_t count) const {
    AnyRows{call}.Some(sums, row, num_rows, output, count);
  }
  void Whole(const Vec* sums, int64_t row, int64_t output) const {
    const int64_t stride = call.out_features, at = row * stride + output;
    const float* const residual = call.residual + (kResidual ? at : 0);
    float* const y = call.y + at;
    const Vec bias = call.bias == nullptr ? Vec{} - 0.0f : Load(call.bias + output);  // -0 stays
    const Vec least = Vec{} + (call.activation == Activation::kRelu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      Vec out = sums[i] + bias;
      if constexpr (kResidual) out += Load(residual + i * stride);
      out = out < least ? least : out;
      kStreamed ? Stream(y + i * stride, out) : Store(y + i * stride, out);
    }
  }
};

// A residual in tiles: of an output, numbers [lane].
struct TiledResidual {
  const float* first;  // or nullptr
  int64_t stride;
};

// Turns the sums [lane] of outputs, each where its `source` is, around and has them written. All of
// them are for sixteen lanes, say, before the next ones: what is written lies together.
template <typename Write>
inline void TurnOutputs(const float* const* source, int64_t output_begin, int64_t output_end,
                        int64_t row_begin, int64_t num_rows, const TiledResidual& residual,
                        const Write& write) {
  for (int64_t lane = 0; lane < num_rows; lane += kWidth) {
    const int64_t rows_left = Min(num_rows - lane, kWidth);
    int64_t count;
    for (int64_t o = output_begin; o < output_end; o += count) {
      count = Min(kWidth - o % kWidth, output_end - o);  // the next chunks are aligned as y is
      const float* const* const from = source + (o - output_begin);
      if (count == kWidth && rows_left == kWidth) {
        Vec rows[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = Load(from[i] + lane);
        if (residual.first != nullptr) {
          const float* const summand = residual.first + o * residual.stride + lane;
#pragma GCC unroll 16
          for (int i = 0; i < kWidth; ++i) rows[i] += Load(summand + i * residual.stride);
        }
        Transpose(rows);
        write.Whole(rows, row_begin + lane, o);
        continue;
      }
      Vec rows[kWidth] = {};
      for (int i = 0; i < count; ++i) rows[i] = Load(from[i] + lane);
      for (int i = 0; residual.first != nullptr && i < count; ++i) {
        rows[i] += Load(residual.first + (o + i) * residual.stride + lane);
      }
      Transpose(rows);
      write.Some(rows, row_begin + lane, rows_left, o, count);
    }
  }
}

// Writes output `o` of a tile from its sums [lane]: `lanes` of them, of which some may have no pixel.
template <int kVecs, typename Activate>
inline void WriteTile(const MatMul& call, const float* sums, float bias, const float* residual,
                      int64_t lanes, const Activate& activate, float* y) {
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    if (v > 0 && v * kWidth >= lanes) break;
    Vec out = Load(sums + v * kWidth) + bias;
    if (residual != nullptr) out += Load(residual + v * kWidth);
    out = activate(out);
    call.streamed ? Stream(y + v * kWidth, out) : Store(y + v * kWidth, out);
  }
}

// As WriteOutputs, to a tile.
template <int kVecs, typename Source>
void WriteTiles(const MatMul& call, int64_t row_begin, int64_t output_begin, int64_t output_end,
                const Source& source) {
  const int64_t pixels = call.patches->y.out * call.patches->x.out, pixel = row_begin % pixels;
  const auto place =
      ActivationTiles{pixels, call.out_features}.At(row_begin / pixels, pixel);
  const int64_t lanes = place.stride - pixel % ActivationTiles::kWidth;
  const auto write = [&](const auto& activate) {
    for (int64_t o = output_begin; o < output_end; ++o) {
      const int64_t at = place.offset + o * place.stride;
      WriteTile<kVecs>(call, source(o), call.bias == nullptr ? -0.0f : call.bias[o],
                       call.residual == nullptr ? nullptr : call.residual + at, lanes, activate,
                       call.y + at);
    }
  };
  if (call.activation == Activation::kNone) {
    write([](Vec v) { return v; });
  } else if (call.activation == Activation::kRelu) {
    write([](Vec v) { return v < 0.0f ? Vec{} : v; });
  } else {
    write([&call](Vec v) { return Activate(v, call.activation); });
  }
}

// Turns sums [row, lane] around and writes outputs [output_begin, output_end).
template <int kVecs>
void WriteOutputs(const TileView& view, const MatMul& call, int64_t row_begin, int64_t num_rows,
                  int64_t first_row, int64_t last_row, int64_t output_begin, int64_t output_end,
                  const float* sums, const float* zeros) {
  constexpr int64_t kLanes = kVecs * kWidth, kMost = 256;
  const bool is_plain =
      call.scales == nullptr && call.row_scales == nullptr && call.y8.integers == nullptr &&
      call.residual8.integers == nullptr &&
      (call.activation == Activation::kNone || call.activation == Activation::kRelu);
  const auto source_of = [&](int64_t output) {
    const int64_t row = view.output_rows[output];
    return row >= first_row && row < last_row ? sums + (row - first_row) * kLanes : zeros;
  };
  if (call.y_is_tiled) {
    return WriteTiles<kVecs>(call, row_begin, output_begin, output_end, source_of);
  }
  TiledResidual tiled = {nullptr, 0};
  MatMul rows = call;
  if (call.residual_is_tiled) {
    const int64_t pixels = call.patches->y.out * call.patches->x.out;
    const auto place =
        ActivationTiles{pixels, call.out_features}.At(row_begin / pixels, row_begin % pixels);
    tiled = {call.residual + place.offset, place.stride};
    rows.residual = nullptr;
  }
  const bool has_residual = rows.residual != nullptr;
  for (int64_t begin = output_begin; begin < output_end;) {
    const int64_t end = Min(begin - begin % kMost + kMost, output_end);
    const float* source[kMost];
    for (int64_t o = begin; o < end; ++o) source[o - begin] = source_of(o);
    const auto turn = [&](const auto& write) {
      TurnOutputs(source, begin, end, row_begin, num_rows, tiled, write);
    };
    if (!is_plain) {
      turn(AnyRows{rows});
    } else if (call.streamed) {
      has_residual ? turn(PlainRows<true, true>{rows}) : turn(PlainRows<false, true>{rows});
    } else {
      has_residual ? turn(PlainRows<true, false>{rows}) : turn(PlainRows<false, false>{rows});
    }
    begin = end;
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
