#include "kernels/ops_routing.h"

#include <ATen/ATen.h>

#include <cstring>
#include <numeric>

#include "kernels/cuda_kernels.h"
#include "kernels/element_convert.h"
#include "kernels/ops.h"
#include "kernels/ops_support.h"

// Rows travel from token order to expert order and back.

namespace dagmoe {
namespace ops {

at::Tensor sum_rows_of_token(const at::Tensor& source_RD, const at::Tensor& row_of_slot_TK) {
  const std::int64_t num_tokens = row_of_slot_TK.size(0), K = row_of_slot_TK.size(1), D = source_RD.size(1);
  const at::Tensor result_TD = at::empty({num_tokens, D}, source_RD.options());
  const std::int64_t* rows_TK = row_of_slot_TK.const_data_ptr<std::int64_t>();
  with_element(source_RD.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    using Real = Accumulate<T>;
    const T* source = input<T>(source_RD);
    T* result = output<T>(result_TD);
    const auto launch = [&](auto stream) {
      cuda::sum_rows<T>(
          {.N = num_tokens, .K = K, .D = D, .source_RD = source, .row_of_slot_NK = rows_TK, .result_ND = result},
          stream);
    };
    if (launched_on_cuda(source_RD, launch)) return;
    parallel_rows(num_tokens, K * D, [&](std::int64_t begin, std::int64_t end) {
      constexpr std::int64_t kWidth = 64;
      for (std::int64_t t = begin; t < end; ++t) {
        for (std::int64_t first = 0; first < D; first += kWidth) {
          const std::int64_t width = std::min(kWidth, D - first);
          Real sum[kWidth] = {};
          for (std::int64_t k = 0; k < K; ++k) {
            const T* row = source + rows_TK[t * K + k] * D + first;
            for (std::int64_t i = 0; i < width; ++i) sum[i] += to_accumulate(row[i]);
          }
          for (std::int64_t i = 0; i < width; ++i) result[t * D + first + i] = to_element<T>(sum[i]);
        }
      }
    });
  });
  return result_TD;
}

namespace {

cuda::MoveRows whole_rows(const at::Tensor& source_XD, const at::Tensor& index_R, const at::Tensor& result_RD) {
  return {.num_rows = index_R.size(0),
          .row_bytes = source_XD.size(1) * static_cast<std::int64_t>(source_XD.element_size()),
          .source = source_XD.const_data_ptr(),
          .index = index_R.const_data_ptr<std::int64_t>(),
          .result = result_RD.mutable_data_ptr()};
}

// result[target[n]] = source[n]; the targets are a permutation.
at::Tensor permute_rows(const at::Tensor& source_RD, const at::Tensor& target_R) {
  const at::Tensor result_RD = at::empty(source_RD.sizes(), source_RD.options());
  const cuda::MoveRows rows = whole_rows(source_RD, target_R, result_RD);
  if (launched_on_cuda(source_RD, [&](auto stream) { cuda::scatter_rows(rows, stream); })) return result_RD;
  const std::int64_t* targets = target_R.const_data_ptr<std::int64_t>();
  const auto row_bytes = static_cast<std::size_t>(source_RD.size(1) * source_RD.element_size());
  const char* source = static_cast<const char*>(source_RD.const_data_ptr());
  char* result = static_cast<char*>(result_RD.mutable_data_ptr());
  parallel_rows(source_RD.size(0), source_RD.size(1), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      std::memcpy(result + static_cast<std::size_t>(targets[n]) * row_bytes,
                  source + static_cast<std::size_t>(n) * row_bytes, row_bytes);
    }
  });
  return result_RD;
}

at::Tensor select_rows(const at::Tensor& source_XD, const at::Tensor& index_R) {
  at::Tensor result_RD;
  const auto launch = [&](auto stream) {
    const at::Tensor source = source_XD.contiguous();
    result_RD = at::empty({index_R.size(0), source.size(1)}, source.options());
    cuda::gather_rows(whole_rows(source, index_R, result_RD), stream);
  };
  if (launched_on_cuda(source_XD, launch)) return result_RD;
  return source_XD.index_select(0, index_R);
}

struct GatherFunction : torch::autograd::Function<GatherFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& token_of_row_R,
                            const at::Tensor& row_of_slot_TK) {
    ctx->save_for_backward({row_of_slot_TK});
    return select_rows(x_TD, token_of_row_R);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    return {sum_rows_of_token(grad_outputs[0].contiguous(), ctx->get_saved_variables()[0]), {}, {}};
  }
};

struct UngatherFunction : torch::autograd::Function<UngatherFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y_RD, const at::Tensor& row_of_slot_TK) {
    ctx->save_for_backward({row_of_slot_TK});
    return select_rows(y_RD, row_of_slot_TK.flatten())
        .view({row_of_slot_TK.size(0), row_of_slot_TK.size(1), y_RD.size(1)});
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const at::Tensor row_of_slot_TK = ctx->get_saved_variables()[0];
    const at::Tensor grad_RD = grad_outputs[0].contiguous().view({row_of_slot_TK.numel(), grad_outputs[0].size(2)});
    return {permute_rows(grad_RD, row_of_slot_TK.flatten()), {}};
  }
};

// ---- where the rows lie

// route_rows on a GPU; only the counts come to the host.
template <class Stream>
RoutedRows route_rows_on_cuda(const at::Tensor& ids_TK, std::int64_t num_experts, Stream stream) {
  const std::int64_t num_rows = ids_TK.numel();
  const at::TensorOptions ints = ids_TK.options().dtype(at::kInt);
  const at::Tensor scratch = at::empty({num_experts + 1, cuda::num_sort_chunks(num_rows)}, ints);
  const at::Tensor count_E1 = at::zeros({num_experts + 1}, ints);
  RoutedRows rows;
  rows.token_of_row_R = at::empty({num_rows}, ids_TK.options());
  rows.row_of_slot_TK = at::empty(ids_TK.sizes(), ids_TK.options());
  cuda::sort_by_expert({.num_slots = num_rows,
                        .K = ids_TK.size(1),
                        .E = num_experts,
                        .expert_of_slot = input<std::int64_t>(ids_TK),
                        .scratch_E1C = output<std::int32_t>(scratch),
                        .count_E1 = output<std::int32_t>(count_E1),
                        .token_of_row = output<std::int64_t>(rows.token_of_row_R),
                        .row_of_slot = output<std::int64_t>(rows.row_of_slot_TK)},
                       stream);
  const at::Tensor counts = count_E1.to(at::kCPU);
  const auto* first = input<std::int32_t>(counts);
  require(first[num_experts] == 0, "route_rows: found ", first[num_experts], " ids that are none of the ", num_experts,
          " experts");
  rows.counts_E.assign(first, first + num_experts);
  return rows;
}

}  // namespace
}  // namespace ops

RoutedRows route_rows(const at::Tensor& expert_ids_TK, std::int64_t num_experts) {
  ops::require(expert_ids_TK.dim() == 2 && expert_ids_TK.scalar_type() == at::kLong, "route_rows: found ids ",
               shape_text(expert_ids_TK.sizes()), " of ", at::toString(expert_ids_TK.scalar_type()),
               ", expected int64 [tokens, chosen experts]");
  const at::Tensor ids_TK = expert_ids_TK.contiguous();
  const std::int64_t num_rows = ids_TK.numel(), K = ids_TK.size(1);
  RoutedRows rows;
  const auto launch = [&](auto stream) { rows = ops::route_rows_on_cuda(ids_TK, num_experts, stream); };
  if (ops::launched_on_cuda(ids_TK, launch)) return rows;
  const std::int64_t* ids = ids_TK.const_data_ptr<std::int64_t>();
  rows.counts_E.assign(static_cast<std::size_t>(num_experts), 0);
  for (std::int64_t slot = 0; slot < num_rows; ++slot) {
    ops::require(ids[slot] >= 0 && ids[slot] < num_experts, "route_rows: found expert ", ids[slot], " of ",
                 num_experts);
    ++rows.counts_E[static_cast<std::size_t>(ids[slot])];
  }
  // A counting sort: next_row[e] is where the next slot that chose expert e goes.
  std::vector<std::int64_t> next_row(rows.counts_E.size());
  std::exclusive_scan(rows.counts_E.begin(), rows.counts_E.end(), next_row.begin(), std::int64_t{0});
  const at::Tensor token_of_row_R = at::empty({num_rows}, at::kLong),
                   row_of_slot_TK = at::empty(ids_TK.sizes(), at::kLong);
  auto* token_of_row = token_of_row_R.mutable_data_ptr<std::int64_t>();
  auto* row_of_slot = row_of_slot_TK.mutable_data_ptr<std::int64_t>();
  for (std::int64_t slot = 0; slot < num_rows; ++slot) {
    const std::int64_t row = next_row[static_cast<std::size_t>(ids[slot])]++;
    token_of_row[row] = slot / K;
    row_of_slot[slot] = row;
  }
  rows.token_of_row_R = token_of_row_R;
  rows.row_of_slot_TK = row_of_slot_TK;
  return rows;
}

at::Tensor gather_routed(const at::Tensor& x_TD, const RoutedRows& rows) {
  ops::require(x_TD.dim() == 2 && x_TD.size(0) == rows.row_of_slot_TK.size(0), "gather_routed: found x ",
               shape_text(x_TD.sizes()), ", expected ", rows.row_of_slot_TK.size(0), " tokens");
  if (!ops::needs_gradient({x_TD})) return ops::select_rows(x_TD, rows.token_of_row_R);
  return ops::GatherFunction::apply(x_TD, rows.token_of_row_R, rows.row_of_slot_TK);
}

at::Tensor ungather_routed(const at::Tensor& y_RD, const RoutedRows& rows) {
  ops::require(y_RD.dim() == 2 && y_RD.size(0) == rows.row_of_slot_TK.numel(), "ungather_routed: found y ",
               shape_text(y_RD.sizes()), ", expected ", rows.row_of_slot_TK.numel(), " rows");
  if (!ops::needs_gradient({y_RD})) {
    const at::IntArrayRef shape = rows.row_of_slot_TK.sizes();
    return ops::select_rows(y_RD, rows.row_of_slot_TK.flatten()).view({shape[0], shape[1], y_RD.size(1)});
  }
  return ops::UngatherFunction::apply(y_RD, rows.row_of_slot_TK);
}

}  // namespace dagmoe
