// The gradient in the inputs of a layer in training, for any target, from the layer by its inputs:
// each input's gradient stays in registers while the neurons of a chunk that read it are added up,
// where the layer by neurons loads and stores it for every entry. Included by each target's
// translation unit; the rules of tile-inl.h hold here too.

#include "training_conv-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

template <int kVecs, typename Element>
void GatherTile(const Training& call, const ByInputs& layer, int64_t row_begin, int64_t num_rows,
                int64_t begin, int64_t end, float* scratch) {
  constexpr int kLanes = kVecs * kWidth;
  float* dx = scratch;
  float* g = dx + (end - begin + kWidth) * kLanes;
  memset(dx, 0, (end - begin + kWidth) * kLanes * sizeof(float));
  for (int64_t chunk = 0; chunk < layer.num_chunks; ++chunk) {
    const int64_t first = chunk * layer.chunk;
    PackColumns<kVecs>(static_cast<const Element*>(call.g), call.out_features, call.active + first,
                       Min(call.num_active - first, layer.chunk), row_begin, num_rows, g);
    const BlockRow* rows = layer.rows + chunk * call.in_features;
    for (int64_t input = begin; input < end; input += layer.block) {
      const int64_t start = layer.starts[chunk * layer.num_blocks + input / layer.block];
      MultiplyRows<kVecs>(rows + input, Min(end - input, layer.block), layer.neurons + start,
                          layer.values + start, g, dx + (input - begin) * kLanes);
    }
  }
  WriteInputs<kVecs, Element>(call, row_begin, num_rows, begin, end, dx);
}

template <typename Element>
void GatherRows(const Training& call, const ByInputs& layer, int64_t row_begin, int64_t row_end,
                int64_t begin, int64_t end, float* scratch) {
  const int64_t rows = row_end - row_begin;
  const auto gather = rows <= kWidth       ? GatherTile<1, Element>
                      : rows <= 2 * kWidth ? GatherTile<2, Element>
                      : kWidth == 16 || rows <= 4 * kWidth
                          ? GatherTile<4, Element>
                          : GatherTile<kWidth == 16 ? 4 : 8, Element>;
  gather(call, layer, row_begin, rows, begin, end, scratch);
}

void TrainInputGradientByInputs(const Training& call, const ByInputs& layer, int64_t row_begin,
                                int64_t row_end, int64_t begin, int64_t end, float* scratch) {
  const auto gather = call.bfloat16 ? GatherRows<uint16_t> : GatherRows<float>;
  // Tiles as wide as registers allow, so that the last one is no wider than its rows need.
  constexpr int64_t kWidest = kWidth < 16 ? 8 * kWidth : 4 * kWidth;
  for (int64_t row = row_begin; row < row_end; row += kWidest) {
    gather(call, layer, row, Min(row + kWidest, row_end), begin, end, scratch);
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
