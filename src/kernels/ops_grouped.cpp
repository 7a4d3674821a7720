#include "kernels/ops_grouped.h"

#include <ATen/ATen.h>

#include <limits>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/ops_products.h"
#include "kernels/ops_support.h"

// One matrix per expert, for rows that are sorted by expert.

namespace dagmoe {
namespace ops {
namespace {

// One piece an expert: sums over its rows.
std::vector<ExpertRows> whole_experts(const std::vector<std::int64_t>& counts_E) {
  return expert_rows(counts_E, std::numeric_limits<std::int64_t>::max() / 2);
}

bool wants_padding(const at::Tensor& x_RI) { return x_RI.is_cpu() && x_RI.scalar_type() == at::kBFloat16; }

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
  if (!wants_padding(x_RI) || count == padded_rows(count)) return rows;
  const at::Tensor result = at::empty({padded_rows(count), x_RI.size(1)}, x_RI.options());
  result.narrow(0, 0, count).copy_(rows);
  result.narrow(0, count, padded_rows(count) - count).zero_();
  return result;
}

// y_RO: the rows of expert e times matrix_of(e), which is [I, O].
template <class MatrixOf>
at::Tensor multiply_grouped(const at::Tensor& x_RI, std::int64_t num_outputs, const std::vector<std::int64_t>& counts_E,
                            MatrixOf matrix_of) {
  const at::Tensor y_RO = at::empty({x_RI.size(0), num_outputs}, x_RI.options());
  const auto pieces =
      expert_rows(counts_E, x_RI.is_cpu() ? kExpertRowsPerPiece : std::max<std::int64_t>(1, x_RI.size(0)));
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

}  // namespace
}  // namespace ops

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

namespace {

// scale B_e A_e x of all changes together; undefined without any.
at::Tensor low_rank_changes(const at::Tensor& x_RI, const std::vector<ExpertFactors>& changes,
                            const std::vector<std::int64_t>& counts_E) {
  at::Tensor sum_RO;
  for (const ExpertFactors& change : changes) {
    const at::Tensor delta_RO = grouped_low_rank(x_RI, change.a_ERI, change.b_EOR, counts_E, change.scale);
    sum_RO = sum_RO.defined() ? sum_RO + delta_RO : delta_RO;
  }
  return sum_RO;
}

}  // namespace

at::Tensor expert_ffn_reference(const at::Tensor& x_TD, const RoutedRows& rows, const ExpertMatrices& experts) {
  const at::Tensor x_RD = gather_routed(x_TD, rows);
  at::Tensor gate_RF = grouped_linear(x_RD, experts.gate_FD, rows.counts_E),
             up_RF = grouped_linear(x_RD, experts.up_FD, rows.counts_E);
  if (!experts.gate_up.empty()) {
    const auto changes = low_rank_changes(x_RD, experts.gate_up, rows.counts_E).chunk(2, 1);
    gate_RF = gate_RF + changes[0], up_RF = up_RF + changes[1];
  }
  const at::Tensor inner_RF = swiglu(gate_RF, up_RF);
  at::Tensor out_RD = grouped_linear(inner_RF, experts.down_DF, rows.counts_E);
  if (!experts.down.empty()) out_RD = out_RD + low_rank_changes(inner_RF, experts.down, rows.counts_E);
  return ungather_routed(out_RD, rows);
}

}  // namespace dagmoe
