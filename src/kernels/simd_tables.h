#pragma once

#include "kernels/dispatch.h"

namespace dagmoe {

/// The tables of simd_kernels.h compiled for one instruction set each. Reading a table is safe anywhere, calling it is
/// not.
extern const KernelTable<float> kAvx2Float;
extern const KernelTable<Bf16> kAvx2Bf16;
extern const KernelTable<float> kAvx512Float;
extern const KernelTable<Bf16> kAvx512Bf16;

}  // namespace dagmoe
