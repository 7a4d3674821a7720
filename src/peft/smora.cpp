#include "peft/smora.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

std::vector<std::string> problems_of(const SmoraConfig& config) {
  std::vector<std::string> problems;
  if (config.rank < 1) problems.push_back(str("rank: found ", config.rank, ", expected 1 or more"));
  if (config.num_active < 1 || config.num_active > config.rank) {
    problems.push_back(str("num_active: found ", config.num_active, ", expected 1 to rank (", config.rank, ")"));
  }
  if (!std::isfinite(config.alpha) || config.alpha <= 0)
    problems.push_back(str("alpha: found ", config.alpha, ", expected a number above 0"));
  return problems;
}

void check(const SmoraConfig& config, std::string_view where) { throw_config_problems(where, problems_of(config)); }

std::vector<NamedShape> smora_shapes(const SmoraConfig& config, std::int64_t out, std::int64_t in) {
  const std::int64_t R = config.rank;
  return {{"smora_A.weight", {R, in}},
          {"smora_B.weight", {out, R}},
          {"smora_gate.weight", {R, in}},
          {"smora_gate.bias", {R}}};
}

std::vector<at::Tensor*> smora_tensors(Smora& adapter) {
  return {&adapter.A_RI, &adapter.B_OR, &adapter.gate_RI, &adapter.bias_R};
}

Smora make_smora(const SmoraConfig& config, const std::vector<at::Tensor>& tensors) {
  if (tensors.size() != 4) throw InternalError(str("smora: ", tensors.size(), " tensors, expected 4"));
  expect_shapes("smora", smora_shapes(config, tensors[1].size(0), tensors[0].size(-1)), tensors);
  return {config, tensors[0], tensors[1], tensors[2], tensors[3]};
}

void initialize_smora(const Smora& adapter, at::Generator& generator) {
  const std::int64_t in = adapter.A_RI.size(1);
  fill_kaiming_uniform(adapter.A_RI, in, generator);
  fill_kaiming_uniform(adapter.gate_RI, in, generator);
  const at::NoGradGuard no_grad;
  adapter.B_OR.zero_();
  adapter.bias_R.zero_();
}

at::Tensor smora_delta(const at::Tensor& x_TI, const Smora& adapter, SmoraRouting* routing) {
  const auto dtype = routing_dtype(x_TI);
  const at::Tensor logits_TR = at::linear(x_TI.to(dtype), adapter.gate_RI.to(dtype));
  const at::Tensor scores_TR = at::sigmoid(logits_TR) + adapter.bias_R.detach().to(dtype);
  const at::Tensor ids_TK = stable_top_k(scores_TR, adapter.config.num_active);
  const at::Tensor chosen_TK = scores_TR.gather(1, ids_TK);
  const at::Tensor gates_TK = chosen_TK / chosen_TK.sum(1, /*keepdim=*/true);
  if (routing != nullptr) *routing = {gates_TK, ids_TK};
  // All R rows of A are multiplied and the ranks not chosen are masked: one product of full width is faster than
  // gathering k rows of A for every token, which would read k I numbers a token.
  const at::Tensor gates_TR = at::zeros_like(scores_TR).scatter(1, ids_TK, gates_TK);
  const at::Tensor low_TR = at::linear(x_TI, adapter.A_RI.to(x_TI.scalar_type()));
  const at::Tensor gated_TR = (low_TR.to(dtype) * gates_TR * adapter.config.alpha).to(x_TI.scalar_type());
  return at::linear(gated_TR, adapter.B_OR.to(x_TI.scalar_type()));
}

std::vector<std::int64_t> smora_counts(const SmoraRouting& routing, const SmoraConfig& config) {
  return count_ids(routing.rank_ids_TK, config.rank);
}

at::Tensor updated_smora_bias(const at::Tensor& bias_R, const std::vector<std::int64_t>& counts_R, double rate) {
  return balanced_bias(bias_R, counts_R, rate);
}

}  // namespace dagmoe
