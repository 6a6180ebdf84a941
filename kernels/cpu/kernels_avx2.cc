// Kernels for x86-64 with AVX2 and FMA.

#define SRIGL_TARGET avx2
#define SRIGL_WIDTH 8
#include "training_by_inputs-inl.h"
#include "topology-inl.h"
#include "attention-inl.h"
#include "depthwise-inl.h"
#include "max_pool-inl.h"

namespace srigl {

const Kernels kAvx2Kernels = {"avx2",
                              avx2::TileOfAny,
                              nullptr,
                              avx2::Constant,
                              avx2::ValuesGradientOfRange,
                              avx2::Gather,
                              avx2::TrainCut,
                              avx2::TrainForward,
                              avx2::TrainInputGradient,
                              avx2::TrainInputGradientByInputs,
                              avx2::TrainValuesGradient,
                              avx2::ConvProductsOf,
                              avx2::ConvDotsOf,
                              avx2::GradientKeys,
                              avx2::FindReaching,
                              8,
                              avx2::Quantize,
                              avx2::RangeOf,
                              avx2::AttendTo,
                              avx2::DepthwiseLines,
                              avx2::MaxPoolTiles};

}  // namespace srigl
