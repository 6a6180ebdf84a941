// Dot kernels for x86-64 with AVX-512 and, of 8 and 16 bits, with what later processors add to it.

#define SRIGL_TARGET avx512
#define SRIGL_WIDTH 16
#include <immintrin.h>

#include <algorithm>

#include "vectors-inl.h"

#include "quantize-inl.h"
#include "groups-inl.h"
#include "outputs-inl.h"
#include "patch-inl.h"

#include "dots-inl.h"
#ifdef SRIGL_HAS_FP16
#include "half_tile-inl.h"
#endif

namespace srigl {

const DotKernels kAvx512Dots = {{nullptr, nullptr, nullptr, avx512::DotsFloat32}, nullptr};
const DotKernels kVnniDots = {{avx512::DotsInt8, nullptr, nullptr, avx512::DotsFloat32}, nullptr};
const DotKernels kBf16Dots = {
    {avx512::DotsInt8, avx512::DotsBFloat16, nullptr, avx512::DotsFloat32}, nullptr};
#ifdef SRIGL_HAS_FP16
const DotKernels kFp16Dots = {
    {avx512::DotsInt8, avx512::DotsBFloat16, avx512::DotsFloat16, avx512::DotsFloat32},
    avx512::HalfTile};
#else
const DotKernels kFp16Dots = kBf16Dots;
#endif

}  // namespace srigl
