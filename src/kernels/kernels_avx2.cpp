// The body is written in terms of the Vec that comes first.
// clang-format off
#include "kernels/vec_avx2.h"
#include "kernels/simd_kernels.h"
#include "kernels/simd_attention.h"
// clang-format on

namespace dagmoe {

constinit const KernelTable<float> kAvx2Float = simd_table<float>();
constinit const KernelTable<Bf16> kAvx2Bf16 = simd_table<Bf16>();

}  // namespace dagmoe
