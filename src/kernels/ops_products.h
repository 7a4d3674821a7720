#pragma once

#include <ATen/ATen.h>

// Products into memory that is there. The ops*.cpp files share it; nobody else includes it.

namespace dagmoe::ops {

/// result = left right; a function, because mm_out wants a named tensor, and results are often parts of one.
inline void multiply_into(at::Tensor result, const at::Tensor& left, const at::Tensor& right) {
  at::mm_out(result, left, right);
}

/// sum += left right, rounded once.
inline void add_product(at::Tensor sum, const at::Tensor& left, const at::Tensor& right) { sum.addmm_(left, right); }

}  // namespace dagmoe::ops
