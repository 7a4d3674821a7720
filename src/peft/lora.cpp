#include "peft/lora.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/linalg_svd.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "base/text.h"

namespace dagmoe {
namespace {

at::ScalarType float_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// 0, or 1 / (1 - p), for every element of x: a function of the step's seed, the layer, the sequence and the place in
// it.
at::Tensor dropout_mask(const at::Tensor& x_TI, const LoraAdapter& adapter, const AdapterPass& pass) {
  const std::vector<std::int64_t>& offsets = *pass.segment_offsets;
  const std::int64_t I = x_TI.size(1);
  if (offsets.back() != x_TI.size(0)) throw InternalError("dropout: the sequences are not those of x");
  const at::Tensor mask_TI = at::empty(x_TI.sizes(), at::kFloat);
  float* mask = mask_TI.mutable_data_ptr<float>();
  const double p = adapter.dropout;
  const auto kept = static_cast<float>(1.0 / (1.0 - p));
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const std::int64_t begin = offsets[s] * I;
    const RandomStream stream(pass.seed ^ adapter.id, static_cast<std::uint64_t>(pass.first_sequence) + s);
    at::parallel_for(0, offsets[s + 1] * I - begin, 16384, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i)
        mask[begin + i] = stream.uniform(static_cast<std::uint64_t>(i)) < p ? 0.0F : kept;
    });
  }
  return mask_TI.to(x_TI.options());
}

at::Tensor low_rank(const at::Tensor& x_XI, const at::Tensor& a_RI, const at::Tensor& b_OR) {
  const auto dtype = x_XI.scalar_type();
  return at::linear(at::linear(x_XI, a_RI.to(dtype)), b_OR.to(dtype));
}

// sum += scale B A x within the product, so that no pass over the outputs is needed, nor one over their gradient.
void add_low_rank(const at::Tensor& sum_XO, const at::Tensor& x_XI, const at::Tensor& a_RI, const at::Tensor& b_OR,
                  double scale) {
  const auto dtype = x_XI.scalar_type();
  const at::Tensor h_XR = at::linear(x_XI, a_RI.to(dtype));
  sum_XO.flatten(0, -2).addmm_(h_XR.flatten(0, -2), b_OR.to(dtype).t(), /*beta=*/1, /*alpha=*/scale);
}

// Row lengths of W + scale B A without forming it: |w|^2 + 2 scale b (A w) + scale^2 b (A A^T) b, in the factors'
// dtype.
at::Tensor changed_row_lengths(const at::Tensor& weight_OI, const at::Tensor& a_RI, const at::Tensor& b_OR,
                               double scale) {
  const at::Tensor w = weight_OI.to(a_RI.scalar_type());
  const at::Tensor wa_OR = at::matmul(w, a_RI.t()), aa_RR = at::matmul(a_RI, a_RI.t());
  const at::Tensor squares_O = w.square().sum(1) + (b_OR * wa_OR).sum(1) * (2 * scale) +
                               (at::matmul(b_OR, aa_RR) * b_OR).sum(1) * (scale * scale);
  return squares_O.clamp_min(0.0).sqrt();
}

at::Tensor dora_delta(const at::Tensor& y_XO, const at::Tensor& x_XI, const at::Tensor& weight_OI,
                      const at::Tensor& bias_O, const LoraAdapter& adapter, bool has_dropout) {
  const auto dtype = x_XI.scalar_type();
  const at::Tensor lengths_O =
      changed_row_lengths(weight_OI.detach(), adapter.a_RI.detach(), adapter.b_OR.detach(), adapter.scale);
  const at::Tensor ratio_O = (adapter.magnitude_O / lengths_O).to(dtype);
  // Of what dropout left of x, as peft has it.
  const at::Tensor base_XO = has_dropout        ? at::linear(x_XI, weight_OI.to(dtype))
                             : bias_O.defined() ? y_XO - bias_O.to(dtype)
                                                : y_XO;
  return (ratio_O - 1) * base_XO + ratio_O * low_rank(x_XI, adapter.a_RI, adapter.b_OR) * adapter.scale;
}

}  // namespace

at::Tensor add_adapters(at::Tensor y_XO, const at::Tensor& x_XI, const at::Tensor& weight_OI, const at::Tensor& bias_O,
                        const std::vector<LoraAdapter>& adapters, const AdapterPass& pass) {
  const bool needs_y = std::ranges::any_of(adapters, [](const auto& adapter) { return adapter.magnitude_O.defined(); });
  at::Tensor sum_XO = needs_y ? y_XO.clone() : y_XO;
  for (const LoraAdapter& adapter : adapters) {
    const bool has_dropout = adapter.dropout > 0 && pass.segment_offsets != nullptr;
    const at::Tensor x = has_dropout ? x_XI * dropout_mask(x_XI, adapter, pass) : x_XI;
    if (adapter.magnitude_O.defined()) {
      sum_XO.add_(dora_delta(y_XO, x, weight_OI, bias_O, adapter, has_dropout));
      continue;
    }
    add_low_rank(sum_XO, x, adapter.a_RI, adapter.b_OR, adapter.scale);
    if (adapter.initial_a_RI.defined())
      add_low_rank(sum_XO, x, adapter.initial_a_RI, adapter.initial_b_OR, -adapter.scale);
  }
  return sum_XO;
}

at::Tensor adapted_weight(const at::Tensor& weight_OI, const std::vector<LoraAdapter>& adapters) {
  if (adapters.empty()) return weight_OI;
  const at::Tensor w = weight_OI.to(float_type(weight_OI));
  at::Tensor sum_OI = w;
  for (const LoraAdapter& adapter : adapters) {
    at::Tensor delta_OI = at::matmul(adapter.b_OR, adapter.a_RI).to(w.scalar_type()) * adapter.scale;
    if (adapter.initial_a_RI.defined()) {
      delta_OI = delta_OI - at::matmul(adapter.initial_b_OR, adapter.initial_a_RI).to(w.scalar_type()) * adapter.scale;
    }
    if (adapter.magnitude_O.defined()) {
      const at::Tensor changed_OI = w + delta_OI;
      const at::Tensor lengths_O1 = changed_OI.detach().square().sum(1, /*keepdim=*/true).sqrt();
      delta_OI = adapter.magnitude_O.unsqueeze(1).to(w.scalar_type()) / lengths_O1 * changed_OI - w;
    }
    sum_OI = sum_OI + delta_OI;
  }
  return sum_OI.to(weight_OI.scalar_type());
}

at::Tensor adapted_expert_weight(const at::Tensor& weight_OI, const std::vector<ExpertLora>& adapters,
                                 std::int64_t expert, std::int64_t first_row) {
  if (adapters.empty()) return weight_OI;
  at::Tensor sum_OI = weight_OI.to(float_type(weight_OI));
  for (const ExpertLora& adapter : adapters) {
    const at::Tensor b_OR = adapter.b_EOR[expert].narrow(0, first_row, weight_OI.size(0));
    sum_OI = sum_OI + at::matmul(b_OR, adapter.a_ERI[expert]).to(sum_OI.scalar_type()) * adapter.scale;
  }
  return sum_OI.to(weight_OI.scalar_type());
}

LoraFactors initial_factors(LoraInit init, const at::Tensor& weight_OI, std::int64_t rank, double scale,
                            std::uint64_t seed) {
  const std::int64_t O = weight_OI.size(0), I = weight_OI.size(1);
  if (init == LoraInit::kDefault) {
    at::Generator generator = at::detail::createCPUGenerator(seed);
    const double bound = 1.0 / std::sqrt(static_cast<double>(I));
    return {at::empty({rank, I}, at::kFloat).uniform_(-bound, bound, generator), at::zeros({O, rank}, at::kFloat)};
  }
  // In double, so that the factors do not depend on how LAPACK orders its sums.
  const auto [U, S, Vh] = at::linalg_svd(weight_OI.to(at::kDouble), /*full_matrices=*/false);
  const std::int64_t R = std::min(rank, S.size(0));
  const at::Tensor root_R = (S.narrow(0, 0, R) / scale).sqrt();
  at::Tensor a_RI = at::zeros({rank, I}, at::kDouble), b_OR = at::zeros({O, rank}, at::kDouble);
  a_RI.narrow(0, 0, R).copy_(root_R.unsqueeze(1) * Vh.narrow(0, 0, R));
  b_OR.narrow(1, 0, R).copy_(U.narrow(1, 0, R) * root_R);
  return {a_RI.to(at::kFloat), b_OR.to(at::kFloat)};
}

LoraFactors initial_expert_factors(std::int64_t num_experts, std::int64_t rank, std::int64_t I, std::int64_t O,
                                   std::uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double bound = 1.0 / std::sqrt(static_cast<double>(I));
  return {at::empty({num_experts, rank, I}, at::kFloat).uniform_(-bound, bound, generator),
          at::zeros({num_experts, O, rank}, at::kFloat)};
}

at::Tensor initial_magnitude(const at::Tensor& weight_OI, const LoraFactors& factors, double scale) {
  return changed_row_lengths(weight_OI, factors.a_RI, factors.b_OR, scale);
}

}  // namespace dagmoe
