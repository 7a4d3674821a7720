#pragma once

#include <ATen/core/Tensor.h>

namespace dagmoe::ops {

/// source_RD -> result_TD: the sum of the K rows that `row_of_slot` names for each token, in slot order.
at::Tensor sum_rows_of_token(const at::Tensor& source_RD, const at::Tensor& row_of_slot_TK);

}  // namespace dagmoe::ops
