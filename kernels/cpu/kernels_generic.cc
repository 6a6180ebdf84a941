// Kernels for any CPU: four-lane vectors as the compiler provides them.

#define SRIGL_TARGET generic
#define SRIGL_WIDTH 4
#include "training_by_inputs-inl.h"
#include "topology-inl.h"
#include "attention-inl.h"
#include "depthwise-inl.h"
#include "max_pool-inl.h"

namespace srigl {

const Kernels kGenericKernels = {"generic",
                                 generic::TileOfAny,
                                 nullptr,
                                 generic::Constant,
                                 generic::ValuesGradientOfRange,
                                 generic::Gather,
                                 generic::TrainCut,
                                 generic::TrainForward,
                                 generic::TrainInputGradient,
                                 generic::TrainInputGradientByInputs,
                                 generic::TrainValuesGradient,
                                 generic::ConvProductsOf,
                                 generic::ConvDotsOf,
                                 generic::GradientKeys,
                                 generic::FindReaching,
                                 4,
                                 generic::Quantize,
                                 generic::RangeOf,
                                 generic::AttendTo,
                                 generic::DepthwiseLines,
                                 generic::MaxPoolTiles};

}  // namespace srigl
