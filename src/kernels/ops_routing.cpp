#include <ATen/ATen.h>

#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/cuda_kernels.h"
#include "kernels/element_convert.h"
#include "kernels/ops.h"
#include "kernels/ops_support.h"

// Rows travel from token order to expert order and back, and through one matrix per expert in between.

namespace dagmoe {
namespace ops {
namespace {

// source_RD -> result_TD: the sum of the K rows that `row_of_slot` names for each token, in slot order.
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

// ---- one matrix per expert

// oneDNN, which multiplies bfloat16 on the CPU, builds a program for every shape it has not seen: 0.8 ms for a product
// that takes 1.2 ms. Routing gives new shapes in every step, so the number of rows is rounded up to a multiple of this.
constexpr std::int64_t kRowMultiple = 32;

bool wants_padding(const at::Tensor& x_RI) { return x_RI.is_cpu() && x_RI.scalar_type() == at::kBFloat16; }
std::int64_t padded(std::int64_t count) { return (count + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

/// Rows [first, first + count), all of one expert.
struct ExpertRows {
  std::size_t expert;
  std::int64_t first, count;
};

// The rows of every expert that has any, in pieces of about `most` rows. The pieces depend on the counts alone, so that
// results do not depend on the number of threads.
std::vector<ExpertRows> expert_rows(const std::vector<std::int64_t>& counts_E, std::int64_t most) {
  std::vector<ExpertRows> pieces;
  std::int64_t first = 0;
  for (std::size_t expert = 0; expert < counts_E.size(); ++expert) {
    const std::int64_t end = first + counts_E[expert], num_pieces = (counts_E[expert] + most - 1) / most;
    const std::int64_t size = num_pieces == 0 ? 0 : padded((counts_E[expert] + num_pieces - 1) / num_pieces);
    for (; first < end; first += size) pieces.push_back({expert, first, std::min(size, end - first)});
    first = end;
  }
  return pieces;
}

// f(piece) for all of them on all threads, each of which takes the next one when it is free: a product on one thread
// waits for nobody, and on many threads these products are too small.
template <class F>
void for_each_piece(const std::vector<ExpertRows>& pieces, bool on_cpu, F f) {
  if (!on_cpu) {
    for (const ExpertRows& piece : pieces) f(piece);
    return;
  }
  for_each_task(pieces.size(), [&](std::size_t i) { f(pieces[i]); });
}

// Rows [first, first + count) with rows of zeros after them up to the rounded number.
at::Tensor zero_padded(const at::Tensor& x_RI, std::int64_t first, std::int64_t count) {
  const at::Tensor rows = x_RI.narrow(0, first, count);
  if (!wants_padding(x_RI) || count == padded(count)) return rows;
  const at::Tensor result = at::empty({padded(count), x_RI.size(1)}, x_RI.options());
  result.narrow(0, 0, count).copy_(rows);
  result.narrow(0, count, padded(count) - count).zero_();
  return result;
}

// result = left right for some of the rows; a function, because mm_out wants a named tensor.
void multiply_into(at::Tensor result, const at::Tensor& left, const at::Tensor& right) {
  at::mm_out(result, left, right);
}

// y_RO: the rows of expert e times matrix_of(e), which is [I, O].
template <class MatrixOf>
at::Tensor multiply_grouped(const at::Tensor& x_RI, std::int64_t num_outputs, const std::vector<std::int64_t>& counts_E,
                            MatrixOf matrix_of) {
  // More rows share the cost of laying out the matrix; fewer keep all threads busy.
  constexpr std::int64_t kRowsPerPiece = 512;
  const at::Tensor y_RO = at::empty({x_RI.size(0), num_outputs}, x_RI.options());
  const auto pieces = expert_rows(counts_E, x_RI.is_cpu() ? kRowsPerPiece : std::max<std::int64_t>(1, x_RI.size(0)));
  for_each_piece(pieces, x_RI.is_cpu(), [&](const ExpertRows& piece) {
    const at::Tensor rows_CO = y_RO.narrow(0, piece.first, piece.count);
    const at::Tensor in = zero_padded(x_RI, piece.first, piece.count);
    if (in.size(0) == piece.count) return multiply_into(rows_CO, in, matrix_of(piece.expert));
    rows_CO.copy_(at::mm(in, matrix_of(piece.expert)).narrow(0, 0, piece.count));
  });
  return y_RO;
}

at::Tensor grouped_forward(const at::Tensor& x_RI, at::TensorList weights_OI,
                           const std::vector<std::int64_t>& counts_E) {
  return multiply_grouped(x_RI, weights_OI[0].size(0), counts_E,
                          [&](std::size_t expert) { return weights_OI[expert].t(); });
}

at::Tensor grouped_grad_x(const at::Tensor& grad_y_RO, at::TensorList weights_OI,
                          const std::vector<std::int64_t>& counts_E) {
  return multiply_grouped(grad_y_RO, weights_OI[0].size(1), counts_E,
                          [&](std::size_t expert) { return weights_OI[expert]; });
}

// One piece an expert: sums over its rows.
std::vector<ExpertRows> whole_experts(const std::vector<std::int64_t>& counts_E) {
  return expert_rows(counts_E, std::numeric_limits<std::int64_t>::max() / 2);
}

at::Tensor grad_weight(const at::Tensor& grad_y_RO, const at::Tensor& x_RI, std::int64_t first, std::int64_t count) {
  return at::mm(zero_padded(grad_y_RO, first, count).t(), zero_padded(x_RI, first, count));
}

struct GroupedLinearFunction : torch::autograd::Function<GroupedLinearFunction> {
  // saved: x (undefined unless a weight wants a gradient), then the weights (undefined unless x wants one).
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_RI, at::TensorList weights_OI,
                            const std::vector<std::int64_t>& counts_E) {
    variable_list saved(1 + weights_OI.size());
    const bool any_weight_trains = std::any_of(weights_OI.begin(), weights_OI.end(),
                                               [](const at::Tensor& weight) { return weight.requires_grad(); });
    if (any_weight_trains) saved[0] = x_RI;
    if (x_RI.requires_grad()) std::copy(weights_OI.begin(), weights_OI.end(), saved.begin() + 1);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["counts"] = counts_E;
    ctx->saved_data["num_inputs"] = x_RI.size(1);
    return grouped_forward(x_RI, weights_OI, counts_E);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto counts_E = ctx->saved_data["counts"].toIntVector();
    const std::int64_t num_inputs = ctx->saved_data["num_inputs"].toInt();
    const at::Tensor grad_y_RO = grad_outputs[0].contiguous();
    variable_list gradients(1 + counts_E.size() + 1);
    if (ctx->needs_input_grad(0)) gradients[0] = grouped_grad_x(grad_y_RO, at::TensorList(saved).slice(1), counts_E);
    for (std::size_t expert = 0; expert < counts_E.size(); ++expert) {
      if (counts_E[expert] == 0 && ctx->needs_input_grad(1 + expert)) {
        gradients[1 + expert] = at::zeros({grad_y_RO.size(1), num_inputs}, grad_y_RO.options());
      }
    }
    for_each_piece(whole_experts(counts_E), grad_y_RO.is_cpu(), [&](const ExpertRows& piece) {
      if (!ctx->needs_input_grad(1 + piece.expert)) return;
      gradients[1 + piece.expert] = grad_weight(grad_y_RO, saved[0], piece.first, piece.count);
    });
    return gradients;
  }
};

// Letters: N rows, R rank.
struct GroupedLowRankFunction : torch::autograd::Function<GroupedLowRankFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_NI, const at::Tensor& a_ERI,
                            const at::Tensor& b_EOR, const std::vector<std::int64_t>& counts_E, double scale) {
    const at::Tensor h_NR = inner(x_NI, a_ERI, counts_E);
    ctx->save_for_backward({x_NI, a_ERI, b_EOR, h_NR});
    ctx->saved_data["counts"] = counts_E;
    ctx->saved_data["scale"] = scale;
    return outer(h_NR, b_EOR, counts_E, scale);
  }
  static at::Tensor inner(const at::Tensor& x_NI, const at::Tensor& a_ERI, const std::vector<std::int64_t>& counts_E) {
    return multiply_grouped(x_NI, a_ERI.size(1), counts_E,
                            [&](std::size_t e) { return a_ERI[static_cast<std::int64_t>(e)].t(); });
  }
  static at::Tensor outer(const at::Tensor& h_NR, const at::Tensor& b_EOR, const std::vector<std::int64_t>& counts_E,
                          double scale) {
    // The scale on the narrow factor: R numbers a row.
    return multiply_grouped(h_NR * scale, b_EOR.size(1), counts_E,
                            [&](std::size_t e) { return b_EOR[static_cast<std::int64_t>(e)].t(); });
  }
  // y = scale B A x:  dB = scale dy h^T,  dh = scale B^T dy,  dA = dh x^T,  dx = A^T dh
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x_NI = saved[0], &a_ERI = saved[1], &b_EOR = saved[2], &h_NR = saved[3];
    const auto counts_E = ctx->saved_data["counts"].toIntVector();
    const at::Tensor grad_NO = grad_outputs[0].contiguous();
    const at::Tensor dh_NR = multiply_grouped(grad_NO, b_EOR.size(2), counts_E, [&](std::size_t e) {
                               return b_EOR[static_cast<std::int64_t>(e)];
                             }).mul_(ctx->saved_data["scale"].toDouble());
    variable_list gradients(5);
    if (ctx->needs_input_grad(0)) {
      gradients[0] = multiply_grouped(dh_NR, a_ERI.size(2), counts_E,
                                      [&](std::size_t e) { return a_ERI[static_cast<std::int64_t>(e)]; });
    }
    if (ctx->needs_input_grad(1)) gradients[1] = at::zeros_like(a_ERI);
    if (ctx->needs_input_grad(2)) gradients[2] = at::zeros_like(b_EOR);
    const at::Tensor scaled_h_NR = h_NR * ctx->saved_data["scale"].toDouble();
    for_each_piece(whole_experts(counts_E), x_NI.is_cpu(), [&](const ExpertRows& piece) {
      const auto e = static_cast<std::int64_t>(piece.expert);
      if (gradients[1].defined()) gradients[1][e].copy_(grad_weight(dh_NR, x_NI, piece.first, piece.count));
      if (gradients[2].defined()) gradients[2][e].copy_(grad_weight(grad_NO, scaled_h_NR, piece.first, piece.count));
    });
    return gradients;
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

at::Tensor grouped_linear(const at::Tensor& x_RI, const std::vector<at::Tensor>& weights_OI,
                          const std::vector<std::int64_t>& counts_E) {
  ops::require(x_RI.dim() == 2 && !weights_OI.empty() && weights_OI.size() == counts_E.size(),
               "grouped_linear: found x ", shape_text(x_RI.sizes()), ", ", weights_OI.size(), " weights and ",
               counts_E.size(), " counts");
  ops::require(std::accumulate(counts_E.begin(), counts_E.end(), std::int64_t{0}) == x_RI.size(0),
               "grouped_linear: the counts must add up to the ", x_RI.size(0), " rows");
  for (const at::Tensor& weight_OI : weights_OI) {
    ops::require(weight_OI.dim() == 2 && weight_OI.sizes() == weights_OI[0].sizes() &&
                     weight_OI.size(1) == x_RI.size(1) && weight_OI.scalar_type() == x_RI.scalar_type(),
                 "grouped_linear: found weight ", shape_text(weight_OI.sizes()), " of ",
                 at::toString(weight_OI.scalar_type()), " with x ", shape_text(x_RI.sizes()), " of ",
                 at::toString(x_RI.scalar_type()));
  }
  const at::Tensor x = x_RI.contiguous();
  if (!ops::needs_gradient({x}) && !ops::needs_gradient(weights_OI))
    return ops::grouped_forward(x, weights_OI, counts_E);
  return ops::GroupedLinearFunction::apply(x, at::TensorList(weights_OI), counts_E);
}

at::Tensor grouped_low_rank(const at::Tensor& x_NI, const at::Tensor& a_ERI, const at::Tensor& b_EOR,
                            const std::vector<std::int64_t>& counts_E, double scale) {
  const auto E = static_cast<std::int64_t>(counts_E.size());
  ops::require(x_NI.dim() == 2 && a_ERI.dim() == 3 && b_EOR.dim() == 3 && a_ERI.size(0) == E && b_EOR.size(0) == E &&
                   a_ERI.size(2) == x_NI.size(1) && a_ERI.size(1) == b_EOR.size(2) &&
                   a_ERI.scalar_type() == x_NI.scalar_type() && b_EOR.scalar_type() == x_NI.scalar_type(),
               "grouped_low_rank: found x ", shape_text(x_NI.sizes()), ", A ", shape_text(a_ERI.sizes()), ", B ",
               shape_text(b_EOR.sizes()), " and ", E, " counts");
  ops::require(std::accumulate(counts_E.begin(), counts_E.end(), std::int64_t{0}) == x_NI.size(0),
               "grouped_low_rank: the counts must add up to the ", x_NI.size(0), " rows");
  const at::Tensor x = x_NI.contiguous();
  if (!ops::needs_gradient({x, a_ERI, b_EOR})) {
    using ops::GroupedLowRankFunction;
    return GroupedLowRankFunction::outer(GroupedLowRankFunction::inner(x, a_ERI, counts_E), b_EOR, counts_E, scale);
  }
  return ops::GroupedLowRankFunction::apply(x, a_ERI, b_EOR, counts_E, scale);
}

}  // namespace dagmoe
