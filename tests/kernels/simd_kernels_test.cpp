// Every table this processor supports against the reference table, for float and bfloat16, at sizes around the vector
// widths.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/kernel_tables.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

struct RmsNormResult {
  at::Tensor y, rstd;
};
template <class T>
RmsNormResult run_rms_norm(const KernelTable<T>& table, const at::Tensor& x, const at::Tensor& weight, double eps) {
  RmsNormResult result = {empty_values<T>(x.sizes()), empty_values<float>({x.size(0)})};
  table.rms_norm_forward({.N = x.size(0),
                          .D = x.size(1),
                          .eps = eps,
                          .x_ND = data<T>(x),
                          .weight_D = data<float>(weight),
                          .y_ND = data<T>(result.y),
                          .rstd_N = data<float>(result.rstd)});
  return result;
}
template <class T>
std::vector<at::Tensor> run_rms_norm_backward(const KernelTable<T>& table, const at::Tensor& x,
                                              const at::Tensor& weight, const at::Tensor& rstd,
                                              const at::Tensor& grad_y) {
  const at::Tensor grad_x = empty_values<T>(x.sizes()), grad_weight = guarded(at::ones_like(weight));
  table.rms_norm_backward({.N = x.size(0),
                           .D = x.size(1),
                           .x_ND = data<T>(x),
                           .weight_D = data<float>(weight),
                           .rstd_N = data<float>(rstd),
                           .grad_y_ND = data<T>(grad_y),
                           .grad_x_ND = data<T>(grad_x),
                           .grad_weight_D = data<float>(grad_weight)});
  return {grad_x, grad_weight};
}

template <class T>
at::Tensor run_rope(const KernelTable<T>& table, const at::Tensor& x, const at::Tensor& angle, int sign) {
  const at::Tensor y = empty_values<T>(x.sizes()), cosines = guarded(angle.cos()), sines = guarded(angle.sin());
  table.rope({.N = x.size(0),
              .H = x.size(1),
              .d = x.size(2),
              .x_stride = x.stride(0),
              .y_stride = y.stride(0),
              .cos_Nd2 = data<float>(cosines),
              .sin_Nd2 = data<float>(sines),
              .sign = sign,
              .x_NHd = data<T>(x),
              .y_NHd = data<T>(y)});
  return y;
}

template <class T>
at::Tensor run_swiglu(const KernelTable<T>& table, const at::Tensor& gate, const at::Tensor& up) {
  const at::Tensor y = empty_values<T>(gate.sizes());
  table.swiglu_forward({.N = gate.numel(), .gate_N = data<T>(gate), .up_N = data<T>(up), .y_N = data<T>(y)});
  return y;
}
template <class T>
std::vector<at::Tensor> run_swiglu_backward(const KernelTable<T>& table, const at::Tensor& gate, const at::Tensor& up,
                                            const at::Tensor& grad_y) {
  const at::Tensor grad_gate = empty_values<T>(gate.sizes()), grad_up = empty_values<T>(gate.sizes());
  table.swiglu_backward({.N = gate.numel(),
                         .gate_N = data<T>(gate),
                         .up_N = data<T>(up),
                         .grad_y_N = data<T>(grad_y),
                         .grad_gate_N = data<T>(grad_gate),
                         .grad_up_N = data<T>(grad_up)});
  return {grad_gate, grad_up};
}

template <class T>
at::Tensor run_dag_pairs(const KernelTable<T>& table, const at::Tensor& abce) {
  const std::int64_t N = abce.size(0), K = abce.size(1), G = abce.size(2) / 4;
  const at::Tensor s = empty_values<T>({N, K, G});
  table.dag_pairs_forward({.N = N, .K = K, .G = G, .abce_NK4G = data<T>(abce), .s_NKG = data<T>(s)});
  return s;
}
template <class T>
at::Tensor run_dag_pairs_backward(const KernelTable<T>& table, const at::Tensor& abce, const at::Tensor& grad_s) {
  const at::Tensor grad_abce = empty_values<T>(abce.sizes());
  table.dag_pairs_backward({.N = abce.size(0),
                            .K = abce.size(1),
                            .G = abce.size(2) / 4,
                            .abce_NK4G = data<T>(abce),
                            .grad_s_NKG = data<T>(grad_s),
                            .grad_abce_NK4G = data<T>(grad_abce)});
  return grad_abce;
}

// What is null in a call of the kernels below.
struct NodeParts {
  bool weights, residual, around, nodes;
};
template <class T>
std::vector<at::Tensor> run_dag_nodes(const KernelTable<T>& table, const at::Tensor& expert, const at::Tensor& weight,
                                      const std::vector<at::Tensor>& shared, NodeParts with) {
  const std::int64_t N = expert.size(0), K = expert.size(1), D = expert.size(2);
  const at::Tensor nodes = empty_values<T>({N, K, D}), out = empty_values<T>({N, D});
  table.dag_nodes_forward({.N = N,
                           .K = K,
                           .D = D,
                           .expert_NKD = data<T>(expert),
                           .weight_NK = with.weights ? data<float>(weight) : nullptr,
                           .residual_ND = with.residual ? data<T>(shared[0]) : nullptr,
                           .outer_ND = with.around ? data<T>(shared[1]) : nullptr,
                           .extra_ND = with.around ? data<T>(shared[2]) : nullptr,
                           .nodes_NKD = with.nodes ? data<T>(nodes) : nullptr,
                           .out_ND = data<T>(out)});
  return with.nodes ? std::vector<at::Tensor>{out, nodes} : std::vector<at::Tensor>{out};
}
template <class T>
std::vector<at::Tensor> run_dag_nodes_backward(const KernelTable<T>& table, const at::Tensor& expert,
                                               const at::Tensor& weight, const at::Tensor& grad_out,
                                               const at::Tensor& grad_nodes) {
  const std::int64_t N = expert.size(0), K = expert.size(1), D = expert.size(2);
  const at::Tensor grad_expert = empty_values<T>({N, K, D}), grad_weight = empty_values<float>({N, K}),
                   grad_residual = empty_values<T>({N, D});
  table.dag_nodes_backward({.N = N,
                            .K = K,
                            .D = D,
                            .expert_NKD = data<T>(expert),
                            .weight_NK = data<float>(weight),
                            .grad_out_ND = data<T>(grad_out),
                            .grad_nodes_NKD = grad_nodes.defined() ? data<T>(grad_nodes) : nullptr,
                            .grad_expert_NKD = data<T>(grad_expert),
                            .grad_weight_NK = data<float>(grad_weight),
                            .grad_residual_ND = data<T>(grad_residual)});
  return {grad_expert, grad_residual, grad_weight};
}

struct LayerNormResult {
  at::Tensor y, mean, rstd;
};
template <class T>
LayerNormResult run_layer_norm(const KernelTable<T>& table, const at::Tensor& x, const at::Tensor& weight,
                               bool subtract_mean) {
  LayerNormResult result = {empty_values<T>(x.sizes()), empty_values<float>({x.size(0)}),
                            empty_values<float>({x.size(0)})};
  table.layer_norm_forward({.N = x.size(0),
                            .D = x.size(1),
                            .eps = 1e-5,
                            .subtract_mean = subtract_mean,
                            .x_ND = data<T>(x),
                            .weight_D = data<float>(weight),
                            .y_ND = data<T>(result.y),
                            .mean_N = data<float>(result.mean),
                            .rstd_N = data<float>(result.rstd)});
  return result;
}
template <class T>
std::vector<at::Tensor> run_layer_norm_backward(const KernelTable<T>& table, const at::Tensor& x,
                                                const at::Tensor& weight, const LayerNormResult& forward,
                                                bool subtract_mean, const at::Tensor& grad_y,
                                                const at::Tensor& grad_before) {
  const at::Tensor grad_x = empty_values<T>(x.sizes()), grad_weight = guarded(at::ones_like(weight));
  table.layer_norm_backward({.N = x.size(0),
                             .D = x.size(1),
                             .subtract_mean = subtract_mean,
                             .x_ND = data<T>(x),
                             .weight_D = data<float>(weight),
                             .mean_N = data<float>(forward.mean),
                             .rstd_N = data<float>(forward.rstd),
                             .grad_y_ND = data<T>(grad_y),
                             .grad_before_ND = grad_before.defined() ? data<T>(grad_before) : nullptr,
                             .grad_x_ND = data<T>(grad_x),
                             .grad_weight_D = data<float>(grad_weight)});
  return {grad_x, grad_weight};
}

struct CrossEntropyResult {
  at::Tensor loss, grad, uniform;
};
template <class T>
CrossEntropyResult run_cross_entropy(const KernelTable<T>& table, const at::Tensor& logits, const at::Tensor& target,
                                     bool keep_logits, double scale, double label_smoothing = 0) {
  const CrossEntropyResult result = {at::full({logits.size(0)}, kNan, at::kDouble), guarded(logits),
                                     at::full({logits.size(0)}, kNan, at::kDouble)};
  table.cross_entropy({.N = logits.size(0),
                       .V = logits.size(1),
                       .logits_NV = data<T>(result.grad),
                       .target_N = data<std::int64_t>(target),
                       .scale = scale,
                       .label_smoothing = label_smoothing,
                       .keep_logits = keep_logits,
                       .loss_N = data<double>(result.loss),
                       .uniform_N = label_smoothing > 0 ? data<double>(result.uniform) : nullptr});
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("rms_norm: every table agrees with the reference at every size and scale", "[kernels]", float,
                   Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t D : kSizes) {
      for (const double scale : {1.0, 1e-12, 1e12}) {
        INFO("D " << D << ", scale " << scale);
        const at::Tensor x = random_values<T>({3, D}, scale, 1), grad_y = random_values<T>({3, D}, 1, 2);
        const at::Tensor weight = random_values<float>({D}, 1, 3);
        const double eps = scale < 1 ? 0.0 : 1e-5;
        const auto expected = run_rms_norm<T>(reference, x, weight, eps);
        const auto actual = run_rms_norm<T>(table, x, weight, eps);
        require_as_reference<T>(actual.y, expected.y);
        require_close(actual.rstd, expected.rstd, 0, kFloatTolerance);
        // In units of rstd, the natural size of the gradient at this scale.
        const double unit = 1 / scale;
        const auto expected_grad = run_rms_norm_backward<T>(reference, x, weight, expected.rstd, grad_y);
        const auto actual_grad = run_rms_norm_backward<T>(table, x, weight, expected.rstd, grad_y);
        if (D > 1) require_close(actual_grad[0], expected_grad[0], kFloatTolerance * unit, kRelative<T>);
        require_close(actual_grad[1], expected_grad[1], kFloatTolerance, kFloatTolerance);
      }
    }
  });
}

TEMPLATE_TEST_CASE("rms_norm: null gradients are left out and weight gradients are added", "[kernels]", float, Bf16) {
  using T = TestType;
  const at::Tensor x = random_values<T>({2, 33}, 1, 1), grad_y = random_values<T>({2, 33}, 1, 2);
  const at::Tensor weight = at::ones({33}), rstd = at::ones({2});
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    const KernelTable<T>* table = kernels_for<T>(isa);
    if (table == nullptr) continue;
    const at::Tensor grad_weight = at::full({33}, 5.0F);
    RmsNormBackward<T> args = {.N = 2,
                               .D = 33,
                               .x_ND = data<T>(x),
                               .weight_D = nullptr,
                               .rstd_N = data<float>(rstd),
                               .grad_y_ND = data<T>(grad_y),
                               .grad_x_ND = nullptr,
                               .grad_weight_D = data<float>(grad_weight)};
    table->rms_norm_backward(args);
    require_close(grad_weight, (x.to(at::kFloat) * grad_y.to(at::kFloat)).sum(0) + 5, kFloatTolerance, kFloatTolerance);
    const at::Tensor grad_x = empty_values<T>({2, 33});
    args.weight_D = data<float>(weight);
    args.grad_x_ND = data<T>(grad_x);
    args.grad_weight_D = nullptr;
    table->rms_norm_backward(args);
    REQUIRE_FALSE(grad_x.isnan().any().item<bool>());
  }
}

TEMPLATE_TEST_CASE("rope: every table agrees with the reference, also in place", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t half : kSizes) {
      for (const int sign : {1, -1}) {
        INFO("half width " << half << ", sign " << sign);
        const at::Tensor x = random_values<T>({3, 2, 2 * half}, 1, 4), angle = random_values<float>({3, half}, 3, 5);
        const at::Tensor expected = run_rope<T>(reference, x, angle, sign);
        require_as_reference<T>(run_rope<T>(table, x, angle, sign), expected);
        const at::Tensor y = guarded(x), cosines = guarded(angle.cos()), sines = guarded(angle.sin());
        table.rope({.N = 3,
                    .H = 2,
                    .d = 2 * half,
                    .x_stride = 4 * half,
                    .y_stride = 4 * half,
                    .cos_Nd2 = data<float>(cosines),
                    .sin_Nd2 = data<float>(sines),
                    .sign = sign,
                    .x_NHd = data<T>(y),
                    .y_NHd = data<T>(y)});
        require_as_reference<T>(y, expected);
      }
    }
  });
}

TEMPLATE_TEST_CASE("swiglu: every table agrees with the reference at every size and scale", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t N : kSizes) {
      for (const double scale : {1.0, 1e-20, 30.0, 1e4}) {
        INFO("N " << N << ", scale " << scale);
        const at::Tensor gate = random_values<T>({N}, scale, 6), up = random_values<T>({N}, 1, 7);
        const at::Tensor grad_y = random_values<T>({N}, 1, 8);
        require_as_reference<T>(run_swiglu<T>(table, gate, up), run_swiglu<T>(reference, gate, up));
        const auto expected = run_swiglu_backward<T>(reference, gate, up, grad_y);
        const auto actual = run_swiglu_backward<T>(table, gate, up, grad_y);
        require_as_reference<T>(actual[0], expected[0]);
        require_as_reference<T>(actual[1], expected[1]);
      }
    }
  });
}

TEST_CASE("swiglu: the vector sigmoid is right over the whole range of float", "[kernels]") {
  // SiLU(x) * 1 over a fine grid and the edges of the exponential.
  std::vector<float> values = {0.0F, -0.0F, 88.0F, 88.8F, 103.9F, 104.5F, 1e30F, 3e38F, 1e-38F, 1e-45F};
  for (std::size_t i = values.size(); i-- > 0;) values.push_back(-values[i]);
  for (int i = -12000; i <= 12000; ++i) values.push_back(static_cast<float>(i) * 0.01F);
  const at::Tensor gate = at::tensor(values), up = at::ones_like(gate);
  const at::Tensor exact = gate.to(at::kDouble) * gate.to(at::kDouble).sigmoid();
  for_each_table<float>([&](const KernelTable<float>& table, const KernelTable<float>&) {
    // Below -88.72 the exponential of float is infinite and SiLU 0, where it is -3e-37 in truth.
    require_close(run_swiglu<float>(table, gate, up), exact, 1e-36, 5e-7);
  });
}

TEMPLATE_TEST_CASE("dag_pairs: every table agrees with the reference for 1 to 8 nodes", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (std::int64_t K = 1; K <= 8; ++K) {
      for (const std::int64_t G : {1, 7, 8, 15, 16, 17, 33, 64}) {
        for (const double scale : {1.0, 1e-10, 40.0}) {
          INFO("K " << K << ", G " << G << ", scale " << scale);
          const at::Tensor abce = random_values<T>({3, K, 4 * G}, scale, 9),
                           grad_s = random_values<T>({3, K, G}, 1, 10);
          const at::Tensor expected = run_dag_pairs<T>(reference, abce);
          // Sums of products of this size: the absolute part of the tolerance grows with them.
          const double size = std::max(1.0, scale * scale);
          require_close(run_dag_pairs<T>(table, abce), expected, kFloatTolerance * size, kRelative<T>);
          require_close(run_dag_pairs_backward<T>(table, abce, grad_s),
                        run_dag_pairs_backward<T>(reference, abce, grad_s), kFloatTolerance * size, kRelative<T>);
        }
      }
    }
  });
}

TEST_CASE("dag_pairs: more nodes than the vector kernel holds still work", "[kernels]") {
  for_each_table<float>([](const KernelTable<float>& table, const KernelTable<float>& reference) {
    const at::Tensor abce = random_values<float>({1, 40, 4 * 17}, 1, 9),
                     grad_s = random_values<float>({1, 40, 17}, 1, 10);
    require_close(run_dag_pairs_backward<float>(table, abce, grad_s),
                  run_dag_pairs_backward<float>(reference, abce, grad_s), kFloatTolerance, kFloatTolerance);
  });
}

TEMPLATE_TEST_CASE("dag_nodes: every table agrees with the reference, with every part and without", "[kernels]", float,
                   Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t D : kSizes) {
      for (const std::int64_t K : {1, 3, 8}) {
        INFO("D " << D << ", K " << K);
        const at::Tensor expert = random_values<T>({3, K, D}, 1, 11), weight = random_values<float>({3, K}, 1, 12);
        const std::vector<at::Tensor> shared{random_values<T>({3, D}, 1, 13), random_values<T>({3, D}, 1, 14),
                                             random_values<T>({3, D}, 1, 15)};
        for (const NodeParts with : {NodeParts{true, true, true, true}, NodeParts{false, false, false, false},
                                     NodeParts{true, false, true, false}, NodeParts{true, true, false, true}}) {
          const auto expected = run_dag_nodes<T>(reference, expert, weight, shared, with);
          const auto actual = run_dag_nodes<T>(table, expert, weight, shared, with);
          for (std::size_t i = 0; i < expected.size(); ++i) require_as_reference<T>(actual[i], expected[i]);
        }
        for (const at::Tensor& grad_nodes : {random_values<T>({3, K, D}, 1, 16), at::Tensor()}) {
          const auto expected = run_dag_nodes_backward<T>(reference, expert, weight, shared[0], grad_nodes);
          const auto actual = run_dag_nodes_backward<T>(table, expert, weight, shared[0], grad_nodes);
          require_as_reference<T>(actual[0], expected[0]);
          require_as_reference<T>(actual[1], expected[1]);
          // Sums of D products.
          require_close(actual[2], expected[2], 4 * kFloatTolerance, kFloatTolerance);
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("layer_norm: every table agrees with the reference, with the mean and without", "[kernels]", float,
                   Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t D : kSizes) {
      if (D == 1) continue;  // nothing is left of one value less its mean
      for (const bool subtract_mean : {true, false}) {
        INFO("D " << D << ", mean " << subtract_mean);
        // A mean of its own, so that forgetting it shows.
        const at::Tensor x = random_values<T>({3, D}, 1, 17, 0.5), grad_y = random_values<T>({3, D}, 1, 18),
                         weight = random_values<float>({D}, 1, 19);
        const LayerNormResult expected = run_layer_norm<T>(reference, x, weight, subtract_mean),
                              actual = run_layer_norm<T>(table, x, weight, subtract_mean);
        require_as_reference<T>(actual.y, expected.y);
        require_close(actual.mean, expected.mean, kFloatTolerance, kFloatTolerance);
        require_close(actual.rstd, expected.rstd, 0, 4 * kFloatTolerance);
        for (const at::Tensor& before : {random_values<T>({3, D}, 1, 20), at::Tensor()}) {
          const auto expected_grad =
              run_layer_norm_backward<T>(reference, x, weight, expected, subtract_mean, grad_y, before);
          const auto actual_grad =
              run_layer_norm_backward<T>(table, x, weight, expected, subtract_mean, grad_y, before);
          const double unit = std::max(1.0, expected.rstd.max().item<double>());
          require_close(actual_grad[0], expected_grad[0], 4 * kFloatTolerance * unit, kRelative<T>);
          require_close(actual_grad[1], expected_grad[1], kFloatTolerance * unit, kFloatTolerance);
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("cross_entropy: every table agrees with the reference at every size and scale", "[kernels]", float,
                   Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t V : {1, 2, 7, 15, 16, 17, 33, 64, 100, 1000, 49152}) {
      for (const double scale : {1.0, 1e-6, 1e4}) {
        INFO("V " << V << ", scale " << scale);
        // All below zero, so that a masked lane read as 0 would be the largest.
        const at::Tensor logits = random_values<T>({3, V}, scale, 11, -6 * scale);
        const at::Tensor target = at::tensor({std::int64_t{0}, V / 2, V - 1});
        const auto expected = run_cross_entropy<T>(reference, logits, target, false, 0.25);
        const auto actual = run_cross_entropy<T>(table, logits, target, false, 0.25);
        require_close(actual.loss, expected.loss, kFloatTolerance, kFloatTolerance);
        require_as_reference<T>(actual.grad, expected.grad);
        const auto kept = run_cross_entropy<T>(table, logits, target, true, 0.25);
        require_close(kept.loss, actual.loss, 0, 0);
        require_equal(kept.grad, logits);
        const auto smooth = run_cross_entropy<T>(reference, logits, target, false, 0.25, 0.3);
        const auto actual_smooth = run_cross_entropy<T>(table, logits, target, false, 0.25, 0.3);
        require_close(actual_smooth.loss, smooth.loss, kFloatTolerance, kFloatTolerance);
        require_close(actual_smooth.uniform, smooth.uniform, kFloatTolerance, kFloatTolerance);
        require_as_reference<T>(actual_smooth.grad, smooth.grad);
      }
    }
  });
}

TEMPLATE_TEST_CASE("kernels: a NaN in is a NaN out and stays in its row", "[kernels]", float, Bf16) {
  using T = TestType;
  constexpr std::int64_t kWidth = 37;
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    const KernelTable<T>* table = kernels_for<T>(isa);
    if (table == nullptr) continue;
    INFO("table " << isa_name(isa));
    const auto is_nan_row = [](const at::Tensor& tensor, std::int64_t row) {
      return tensor[row].isnan().any().template item<bool>();
    };
    // In the first, a middle and the last lane: full vectors and the masked rest.
    for (const std::int64_t place : {std::int64_t{0}, std::int64_t{21}, kWidth - 1}) {
      at::Tensor x = random_values<T>({2, kWidth}, 1, 12);
      const at::Tensor ones = at::ones({2, kWidth}, x.options());
      x.index_put_({at::tensor({1}), at::tensor({place})}, kNan);
      const auto normed = run_rms_norm<T>(*table, x, at::ones({kWidth}), 1e-5);
      REQUIRE_FALSE(is_nan_row(normed.y, 0));
      REQUIRE(normed.y[1].isnan().all().template item<bool>());
      const at::Tensor glu = run_swiglu<T>(*table, x, ones);
      REQUIRE_FALSE(is_nan_row(glu, 0));
      REQUIRE(glu[1][place].isnan().template item<bool>());
      const auto grads = run_swiglu_backward<T>(*table, x, ones, ones);
      REQUIRE(grads[0][1][place].isnan().template item<bool>());
      REQUIRE(grads[1][1][place].isnan().template item<bool>());
      const auto loss = run_cross_entropy<T>(*table, x, at::tensor({std::int64_t{3}, std::int64_t{4}}), false, 1);
      REQUIRE(std::isfinite(loss.loss[0].template item<double>()));
      REQUIRE(std::isnan(loss.loss[1].template item<double>()));
      REQUIRE(loss.grad[1].isnan().all().template item<bool>());
      at::Tensor abce = random_values<T>({2, 2, 4 * kWidth}, 1, 13);
      abce.index_put_({at::tensor({1}), at::tensor({0}), at::tensor({place})}, kNan);
      const at::Tensor s = run_dag_pairs<T>(*table, abce);
      REQUIRE_FALSE(is_nan_row(s, 0));
      REQUIRE(s[1][0][place].isnan().template item<bool>());
    }
  }
}

TEST_CASE("kernels: bfloat16 results keep a NaN and round ties to even", "[kernels]") {
  // up * SiLU(gate) with a huge gate is up * gate: products with 24 bits, so ties and both neighbours occur.
  for_each_table<Bf16>([](const KernelTable<Bf16>& table, const KernelTable<Bf16>&) {
    const at::Tensor gate = at::arange(128, 256, at::kFloat).to(at::kBFloat16).repeat({128});
    const at::Tensor up = at::arange(128, 256, at::kFloat).to(at::kBFloat16).repeat_interleave(128);
    const at::Tensor expected = (gate.to(at::kFloat) * up.to(at::kFloat)).to(at::kBFloat16);
    require_equal(run_swiglu<Bf16>(table, gate, up), expected);
  });
}

TEMPLATE_TEST_CASE("log_sum_exp: every table gives what the reference gives", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t V : kSizes) {
      const at::Tensor logits = random_values<T>({3, V}, 5, static_cast<std::uint64_t>(V));
      double actual[3], expected[3];
      std::int64_t actual_argmax[3], expected_argmax[3];
      table.log_sum_exp({3, V, data<T>(logits), actual, actual_argmax});
      reference.log_sum_exp({3, V, data<T>(logits), expected, expected_argmax});
      for (int n = 0; n < 3; ++n) {
        CHECK(actual[n] == Approx(expected[n]).epsilon(kFloatTolerance).margin(kFloatTolerance));
        CHECK(actual_argmax[n] == expected_argmax[n]);
      }
    }
  });
}

TEST_CASE("attention_softmax: every table gives what the reference gives", "[kernels]") {
  for_each_table<float>([](const KernelTable<float>& table, const KernelTable<float>& reference) {
    for (const std::int64_t past : {0, 1, 15, 40}) {
      for (const std::int64_t window : {0, 1, 9}) {
        const std::int64_t n = 5, M = 3, C = past + n;
        const at::Tensor scores = random_values<float>({n * M, C}, 3, 11), other = guarded(scores);
        const at::Tensor sums = empty_values<float>({n * M}), other_sums = empty_values<float>({n * M});
        table.attention_softmax({n, M, C, past, window, data<float>(scores), data<float>(sums)});
        reference.attention_softmax({n, M, C, past, window, data<float>(other), data<float>(other_sums)});
        require_as_reference<float>(scores, other);
        require_as_reference<float>(sums, other_sums);
      }
    }
  });
}

TEMPLATE_TEST_CASE("few rows: every table gives what the reference gives", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t d : kSizes) {
      for (std::int64_t R = 1; R <= 9; ++R) {
        const std::int64_t C = 6, stride = d + 3;
        const at::Tensor rows = random_values<T>({C * stride - 3}, 1, 1), queries = random_values<float>({R, d}, 1, 2);
        const at::Tensor scores = empty_values<float>({R, C}), expected_scores = empty_values<float>({R, C});
        const at::Tensor out = random_values<float>({R, d}, 1, 3), expected_out = guarded(out);
        FewRows<T> args = {R, C, d, stride, data<T>(rows), data<float>(queries), data<float>(scores), C, nullptr};
        table.few_row_scores(args);
        args.scores_RC = data<float>(expected_scores);
        reference.few_row_scores(args);
        require_as_reference<float>(scores, expected_scores);
        args.out_Rd = data<float>(out);
        table.few_row_values(args);
        args.out_Rd = data<float>(expected_out);
        reference.few_row_values(args);
        require_as_reference<float>(out, expected_out);
      }
    }
  });
}

TEMPLATE_TEST_CASE("float rows: every table gives what the reference gives", "[kernels]", float, Bf16) {
  using T = TestType;
  for_each_table<T>([](const KernelTable<T>& table, const KernelTable<T>& reference) {
    for (const std::int64_t d : kSizes) {
      const std::int64_t N = 3, stride = d + 2;
      const at::Tensor rows = random_values<T>({N * stride - 2}, 1, 4), other_rows = guarded(rows);
      const at::Tensor floats = empty_values<float>({N, d}), other = guarded(floats);
      const at::Tensor divisors = random_values<float>({N}, 0.1, 5, 2);
      FloatRows<T> args = {N, d, stride, data<T>(rows), data<float>(floats), 0.3F, data<float>(divisors)};
      FloatRows<T> other_args = args;
      other_args.rows_Nd = data<T>(other_rows), other_args.floats_Nd = data<float>(other);
      table.rows_to_floats(args);
      reference.rows_to_floats(other_args);
      require_as_reference<float>(floats, other);
      table.floats_to_rows(args);
      reference.floats_to_rows(other_args);
      require_as_reference<T>(rows, other_rows);
    }
  });
}
