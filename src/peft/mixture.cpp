#include "peft/mixture.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"

namespace dagmoe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// y; in the backward pass `loss` gets the gradient `weight`, as if weight * loss had been added to the objective.
struct AddLossFunction : torch::autograd::Function<AddLossFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& loss, double weight) {
    ctx->saved_data["grad_of_loss"] = at::full_like(loss.detach(), weight);
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {grads[0], ctx->saved_data["grad_of_loss"].toTensor(), at::Tensor()};
  }
};

at::Tensor add_smore(const at::Tensor& y_TO, const at::Tensor& x_TI, const Smore& smore, const AdapterPass& pass) {
  SmoreRouting routing;
  const at::Tensor sum_TO = y_TO + smore_delta(x_TI, smore, &routing);
  const bool needs_gradient =
      pass.balance_weight != 0 && at::GradMode::is_enabled() && routing.depths[0].probabilities_TPS.requires_grad();
  if (!needs_gradient && pass.use == nullptr) return sum_TO;
  const at::Tensor balance = smore_balance_loss(routing, smore.config);
  if (pass.use != nullptr) pass.use->balance_sum += balance.item<double>();
  return needs_gradient ? AddLossFunction::apply(sum_TO, balance, pass.balance_weight) : sum_TO;
}

at::Tensor add_smora(const at::Tensor& y_TO, const at::Tensor& x_TI, const Smora& smora, std::uint64_t id,
                     const AdapterPass& pass) {
  SmoraRouting routing;
  const at::Tensor sum_TO = y_TO + smora_delta(x_TI, smora, &routing);
  if (pass.use != nullptr) add_counts(pass.use->rank_counts, {{id, smora_counts(routing, smora.config)}});
  return sum_TO;
}

}  // namespace

void add_counts(RankCounts& sum, const RankCounts& counts) {
  for (const auto& [id, counts_R] : counts) {
    std::vector<std::int64_t>& sum_R = sum[id];
    if (sum_R.empty()) sum_R.resize(counts_R.size(), 0);
    if (sum_R.size() != counts_R.size()) throw InternalError("smora: counts of adapters of other ranks");
    for (std::size_t r = 0; r < counts_R.size(); ++r) sum_R[r] += counts_R[r];
  }
}

at::Tensor add_mixtures(const at::Tensor& y_XO, const at::Tensor& x_XI, const std::vector<MixtureAdapter>& adapters,
                        const AdapterPass& pass) {
  const at::Tensor x_TI = x_XI.flatten(0, -2);
  at::Tensor sum_TO = y_XO.flatten(0, -2);
  for (const MixtureAdapter& adapter : adapters) {
    const auto* smore = std::get_if<Smore>(&adapter.tensors);
    sum_TO = smore != nullptr ? add_smore(sum_TO, x_TI, *smore, pass)
                              : add_smora(sum_TO, x_TI, std::get<Smora>(adapter.tensors), adapter.id, pass);
  }
  return sum_TO.view(y_XO.sizes());
}

std::vector<AdapterTensor> adapter_tensors(MixtureAdapter& adapter) {
  std::vector<AdapterTensor> named;
  const auto add = [&named](const std::vector<NamedShape>& shapes, const std::vector<at::Tensor*>& tensors) {
    for (std::size_t i = 0; i < shapes.size(); ++i) named.push_back({shapes[i].first, tensors[i]});
  };
  if (auto* smore = std::get_if<Smore>(&adapter.tensors)) {
    add(smore_shapes(smore->config, smore->final_weight_OD.size(0), smore->down_weight_QI.size(1)),
        smore_tensors(*smore));
  } else {
    auto& smora = std::get<Smora>(adapter.tensors);
    add(smora_shapes(smora.config, smora.B_OR.size(0), smora.A_RI.size(1)), smora_tensors(smora));
    named.back().is_buffer = true;
  }
  return named;
}

}  // namespace dagmoe
