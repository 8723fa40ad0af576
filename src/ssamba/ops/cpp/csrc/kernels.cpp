// The kernels for one instruction set, chosen by SSAMBA_ISA_AVX512 or SSAMBA_ISA_AVX2; without either, for any machine.
//
// Everything but the table has internal linkage: the headers below are fragments of this namespace, included once.

#include "kernels.hpp"

#include <cstdint>
#include <cstring>
#if defined(SSAMBA_ISA_AVX512) || defined(SSAMBA_ISA_AVX2)
#include <immintrin.h>
#endif

namespace ssamba {
namespace {

#if defined(SSAMBA_ISA_AVX512)
#include "vec_avx512.hpp"
#elif defined(SSAMBA_ISA_AVX2)
#include "vec_avx2.hpp"
#else
#include "vec_generic.hpp"
#endif
#include "math.hpp"
#include "scan.hpp"
#include "project.hpp"
#include "conv.hpp"
#include "gate.hpp"

}  // namespace

#if defined(SSAMBA_ISA_AVX512)
const Kernels kernels_avx512 = {"avx512",
#elif defined(SSAMBA_ISA_AVX2)
const Kernels kernels_avx2 = {"avx2",
#else
const Kernels kernels_generic = {"generic",
#endif
                                scan_constants_size, scan_constants, scan_forward_scratch, scan_forward,
                                scan_backward_scratch, scan_backward, conv_forward, conv_backward_scratch,
                                conv_backward, gate};

}  // namespace ssamba
