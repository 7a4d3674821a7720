#include "model/recompute.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

namespace dagmoe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the backward pass needs besides saved tensors. Autograd's contexts hold no functions, but a pointer to this.
struct Again : torch::CustomClassHolder {
  std::function<LayerOutput(const at::Tensor&, const at::Tensor&)> forward;
  variable_list trained;
};
constexpr const char* kAgain = "again";

// The outputs in the order of RecomputeFunction: hidden and, of a MoE layer, logits, weights and ids.
variable_list as_list(const LayerOutput& output) {
  if (!output.routing.logits_TE.defined()) return {output.hidden_TD};
  return {output.hidden_TD, output.routing.logits_TE, output.routing.weights_TK, output.routing.expert_ids_TK};
}

LayerOutput from_list(const variable_list& tensors) {
  if (tensors.size() == 1) return {tensors[0], {}};
  return {tensors[0], {tensors[1], tensors[2], tensors[3]}};
}

struct RecomputeFunction : torch::autograd::Function<RecomputeFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& hidden_TD, at::TensorList trained,
                               const RecomputedLayer* layer) {
    const LayerOutput output = layer->forward(hidden_TD);
    auto again = c10::make_intrusive<Again>();
    again->forward = layer->forward_again;
    again->trained = trained.vec();
    ctx->saved_data[kAgain] = c10::IValue::make_capsule(std::move(again));
    ctx->save_for_backward({hidden_TD, output.routing.expert_ids_TK});
    // Outputs that nobody uses get an undefined gradient, not one of zeros.
    ctx->set_materialize_grads(false);
    variable_list outputs = as_list(output);
    if (outputs.size() > 1) {
      const bool router_trains = layer->router_trains || hidden_TD.requires_grad();
      ctx->mark_non_differentiable(router_trains ? variable_list{outputs[3]}
                                                 : variable_list{outputs[1], outputs[2], outputs[3]});
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto& again = static_cast<const Again&>(*ctx->saved_data[kAgain].toCapsule());
    const bool wants_hidden = ctx->needs_input_grad(0);
    const at::Tensor hidden_TD = saved[0].detach().set_requires_grad(wants_hidden);
    variable_list wanted = again.trained;
    if (wants_hidden) wanted.insert(wanted.begin(), hidden_TD);

    const at::AutoGradMode record(true);
    const variable_list outputs = as_list(again.forward(hidden_TD, saved[1]));
    variable_list used, grads;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!grad_outputs[i].defined() || !outputs[i].requires_grad()) continue;
      used.push_back(outputs[i]);
      grads.push_back(grad_outputs[i]);
    }
    variable_list result(wanted.size());
    if (!used.empty()) {
      result = torch::autograd::grad(used, wanted, grads, /*retain_graph=*/std::nullopt, /*create_graph=*/false,
                                     /*allow_unused=*/true);
    }
    if (!wants_hidden) result.insert(result.begin(), at::Tensor());
    result.emplace_back();  // of `layer`
    return result;
  }
};

struct KeptFunction : torch::CustomClassHolder {
  TensorFunction f;
};

struct RunAgainFunction : torch::autograd::Function<RunAgainFunction> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, const TensorFunction* f) {
    auto kept = c10::make_intrusive<KeptFunction>();
    kept->f = *f;
    ctx->saved_data[kAgain] = c10::IValue::make_capsule(std::move(kept));
    ctx->save_for_backward(inputs.vec());
    return (*f)(inputs.vec());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto& kept = static_cast<const KeptFunction&>(*ctx->saved_data[kAgain].toCapsule());
    variable_list inputs = ctx->get_saved_variables(), wanted;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].defined()) continue;
      inputs[i] = inputs[i].detach().set_requires_grad(ctx->needs_input_grad(i));
      if (inputs[i].requires_grad()) wanted.push_back(inputs[i]);
    }
    const at::AutoGradMode record(true);
    const variable_list grads =
        torch::autograd::grad({kept.f(inputs)}, wanted, {grad_outputs[0]}, /*retain_graph=*/std::nullopt,
                              /*create_graph=*/false, /*allow_unused=*/true);
    variable_list result(inputs.size() + 1);  // the last is of `f`
    auto next = grads.begin();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].defined() && inputs[i].requires_grad()) result[i] = *next++;
    }
    return result;
  }
};

}  // namespace

at::Tensor run_again_in_backward(TensorFunction f, const std::vector<at::Tensor>& inputs) {
  const bool needs_gradient =
      at::GradMode::is_enabled() &&
      std::any_of(inputs.begin(), inputs.end(), [](const auto& x) { return x.defined() && x.requires_grad(); });
  return needs_gradient ? RunAgainFunction::apply(at::TensorList(inputs), &f) : f(inputs);
}

LayerOutput run_recomputed(const RecomputedLayer& layer, const at::Tensor& hidden_TD) {
  const bool needs_gradient = at::GradMode::is_enabled() && (hidden_TD.requires_grad() || !layer.trained.empty());
  if (!needs_gradient) return layer.forward(hidden_TD);
  return from_list(RecomputeFunction::apply(hidden_TD, at::TensorList(layer.trained), &layer));
}

}  // namespace dagmoe
