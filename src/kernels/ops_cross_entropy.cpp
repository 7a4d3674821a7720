#include <ATen/ATen.h>

#include "kernels/cuda_kernels.h"
#include "kernels/dispatch.h"
#include "kernels/ops.h"
#include "kernels/ops_support.h"

// The language-model head and its loss, together, so that the logits of all tokens never exist at once. N: supervised
// tokens.

namespace dagmoe {
namespace ops {
namespace {

constexpr std::int64_t kIgnoredLabel = -100;

// A GPU wants larger products, and adds up the weight's gradient less often: 0.5 GB of bfloat16 logits at V = 128256.
constexpr std::int64_t kCudaCrossEntropyRows = 4 * kCrossEntropyRows;

struct Factors {
  double scale, label_smoothing;
};

// Of each row: -log p[target], and with smoothing the mean of -log p.
struct RowLosses {
  at::Tensor nll_N, uniform_N;  // double; uniform_N is undefined without smoothing

  RowLosses(std::int64_t num_rows, bool has_uniform, const at::TensorOptions& options) {
    nll_N = at::empty({num_rows}, options.dtype(at::kDouble));
    if (has_uniform) uniform_N = at::empty_like(nll_N);
  }
};

// logits <- gradient of scale * loss (unless keep_logits); the losses go to rows [first, first + N).
void cross_entropy_rows(const at::Tensor& logits_NV, const at::Tensor& target_N, const Factors& factors,
                        bool keep_logits, const RowLosses& losses, std::int64_t first) {
  const std::int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  with_element(logits_NV.scalar_type(), [&](auto element) {
    using T = typename decltype(element)::type;
    CrossEntropy<T> all = {.N = N,
                           .V = V,
                           .logits_NV = output<T>(logits_NV),
                           .target_N = input<std::int64_t>(target_N),
                           .scale = factors.scale,
                           .label_smoothing = factors.label_smoothing,
                           .keep_logits = keep_logits,
                           .loss_N = output<double>(losses.nll_N) + first,
                           .uniform_N = output<double>(losses.uniform_N)};
    if (all.uniform_N != nullptr) all.uniform_N += first;
    if (launched_on_cuda(logits_NV, [&](auto stream) { cuda::cross_entropy(all, stream); })) return;
    parallel_rows(N, V, [&](std::int64_t begin, std::int64_t end) {
      CrossEntropy<T> part = all;
      part.N = end - begin;
      part.logits_NV += begin * V;
      part.target_N += begin;
      part.loss_N += begin;
      if (part.uniform_N != nullptr) part.uniform_N += begin;
      kernels<T>().cross_entropy(part);
    });
  });
}

// Adds up chunks of a gradient: in float for bfloat16, and without any copy when there is only one chunk.
class GradientSum {
 public:
  void add(const at::Tensor& part) {
    if (!sum_.defined()) {
      sum_ = part;
      dtype_ = part.scalar_type();
      return;
    }
    if (sum_.scalar_type() != accumulate_dtype(dtype_)) sum_ = sum_.to(accumulate_dtype(dtype_));
    sum_.add_(part);
  }
  at::Tensor result() const { return sum_.to(dtype_); }

 private:
  at::Tensor sum_;
  at::ScalarType dtype_ = at::kFloat;
};

struct LossResult {
  double nll = 0.0, uniform = 0.0;            // summed and scaled
  at::Tensor objective;                       // scalar
  at::Tensor grad_hidden_TD, grad_weight_VD;  // of the objective; undefined when not wanted
};

void set_sums(const RowLosses& losses, const Factors& factors, at::ScalarType dtype, LossResult& result) {
  const double eps = factors.label_smoothing;
  at::Tensor objective = losses.nll_N.sum() * factors.scale;
  result.nll = objective.item<double>();
  if (losses.uniform_N.defined()) {
    const at::Tensor uniform = losses.uniform_N.sum() * factors.scale;
    result.uniform = uniform.item<double>();
    objective = objective * (1 - eps) + uniform * eps;
  }
  result.objective = objective.to(dtype);
}

LossResult masked_loss(const at::Tensor& hidden_TD, const at::Tensor& weight_VD, const at::Tensor& labels_T,
                       const Factors& factors, bool wants_hidden, bool wants_weight) {
  const at::Tensor index_N = at::nonzero(labels_T != kIgnoredLabel).squeeze(1);
  const std::int64_t N = index_N.size(0), num_tokens = hidden_TD.size(0), V = weight_VD.size(0);
  const bool wants_gradient = wants_hidden || wants_weight;
  LossResult result;
  if (wants_hidden) result.grad_hidden_TD = at::zeros_like(hidden_TD);
  if (N == 0) {
    if (wants_weight) result.grad_weight_VD = at::zeros_like(weight_VD);
    result.objective = at::zeros({}, hidden_TD.options().dtype(accumulate_dtype(hidden_TD.scalar_type())));
    return result;
  }
  const at::Tensor hidden_ND = N == num_tokens ? hidden_TD : hidden_TD.index_select(0, index_N);
  const at::Tensor target_N = N == num_tokens ? labels_T : labels_T.index_select(0, index_N);
  const auto [least, most] = at::aminmax(target_N);
  require(least.item<std::int64_t>() >= 0 && most.item<std::int64_t>() < V, "masked_cross_entropy: found labels ",
          least.item<std::int64_t>(), " to ", most.item<std::int64_t>(), ", expected 0 to ", V - 1, " or ",
          kIgnoredLabel);

  const RowLosses losses(N, factors.label_smoothing > 0, hidden_TD.options());
  const std::int64_t chunk_size = hidden_TD.is_cuda() ? kCudaCrossEntropyRows : kCrossEntropyRows;
  const at::Tensor buffer_CV = at::empty({std::min(N, chunk_size), V}, hidden_TD.options());
  GradientSum grad_weight;
  for (std::int64_t first = 0; first < N; first += chunk_size) {
    const std::int64_t count = std::min(chunk_size, N - first);
    const at::Tensor hidden_CD = hidden_ND.narrow(0, first, count);
    at::Tensor logits_CV = buffer_CV.narrow(0, 0, count);
    at::mm_out(logits_CV, hidden_CD, weight_VD.t());
    cross_entropy_rows(logits_CV, target_N.narrow(0, first, count), factors, /*keep_logits=*/!wants_gradient, losses,
                       first);
    // From here on the buffer holds the gradient of the logits.
    if (wants_hidden) {
      const at::Tensor grad_CD = at::mm(logits_CV, weight_VD);
      if (N == num_tokens) {
        result.grad_hidden_TD.narrow(0, first, count).copy_(grad_CD);
      } else {
        result.grad_hidden_TD.index_copy_(0, index_N.narrow(0, first, count), grad_CD);
      }
    }
    if (wants_weight) grad_weight.add(at::mm(logits_CV.t(), hidden_CD));
  }
  if (wants_weight) result.grad_weight_VD = grad_weight.result();
  set_sums(losses, factors, accumulate_dtype(hidden_TD.scalar_type()), result);
  return result;
}

struct MaskedCrossEntropyFunction : torch::autograd::Function<MaskedCrossEntropyFunction> {
  // `terms` receives the sums, of which autograd sees only the objective.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden_TD, const at::Tensor& weight_VD,
                            const at::Tensor& labels_T, const Factors& factors, SmoothedCrossEntropy* terms) {
    const LossResult result =
        masked_loss(hidden_TD, weight_VD, labels_T, factors, hidden_TD.requires_grad(), weight_VD.requires_grad());
    ctx->save_for_backward({result.grad_hidden_TD, result.grad_weight_VD});
    terms->nll = result.nll;
    terms->uniform = result.uniform;
    return result.objective;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    auto gradients = ctx->get_saved_variables();
    const double factor = grad_outputs[0].item<double>();
    for (at::Tensor& gradient : gradients) {
      if (gradient.defined() && factor != 1) gradient = gradient * factor;
    }
    return {gradients[0], gradients[1], {}, {}, {}};
  }
};

}  // namespace
}  // namespace ops

SmoothedCrossEntropy smoothed_cross_entropy(const at::Tensor& hidden_TD, const at::Tensor& weight_VD,
                                            const at::Tensor& labels_T, double scale, double label_smoothing) {
  ops::require(hidden_TD.dim() == 2 && weight_VD.dim() == 2 && hidden_TD.size(1) == weight_VD.size(1) &&
                   hidden_TD.scalar_type() == weight_VD.scalar_type(),
               "masked_cross_entropy: found hidden ", shape_text(hidden_TD.sizes()), " of ",
               at::toString(hidden_TD.scalar_type()), " and weight ", shape_text(weight_VD.sizes()), " of ",
               at::toString(weight_VD.scalar_type()));
  ops::require(labels_T.dim() == 1 && labels_T.size(0) == hidden_TD.size(0) && labels_T.scalar_type() == at::kLong,
               "masked_cross_entropy: found labels ", shape_text(labels_T.sizes()), ", expected int64 [",
               hidden_TD.size(0), "]");
  ops::require(label_smoothing >= 0 && label_smoothing <= 1, "masked_cross_entropy: found label smoothing ",
               label_smoothing, ", expected 0 to 1");
  const at::Tensor hidden = hidden_TD.contiguous(), labels = labels_T.contiguous();
  const ops::Factors factors{scale, label_smoothing};
  SmoothedCrossEntropy terms;
  if (ops::needs_gradient({hidden, weight_VD})) {
    terms.objective = ops::MaskedCrossEntropyFunction::apply(hidden, weight_VD, labels, factors, &terms);
    return terms;
  }
  const ops::LossResult result =
      ops::masked_loss(hidden, weight_VD, labels, factors, /*wants_hidden=*/false, /*wants_weight=*/false);
  return {result.objective, result.nll, result.uniform};
}

at::Tensor masked_cross_entropy(const at::Tensor& hidden_TD, const at::Tensor& weight_VD, const at::Tensor& labels_T,
                                double scale) {
  return smoothed_cross_entropy(hidden_TD, weight_VD, labels_T, scale, /*label_smoothing=*/0.0).objective;
}

}  // namespace dagmoe
