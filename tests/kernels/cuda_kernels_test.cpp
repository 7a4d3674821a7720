// What the GPU computes against what the CPU computes, through the same public functions.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

at::Tensor random_values(at::IntArrayRef shape, std::uint64_t seed, at::ScalarType dtype = at::kFloat) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::TensorOptions(at::kFloat)).to(dtype);
}

using Op = std::function<at::Tensor(const std::vector<at::Tensor>& inputs, at::Device device)>;

// Results and gradients of an op on both devices.
void require_devices_agree(const Op& op, const std::vector<at::Tensor>& inputs, at::ScalarType dtype, double atol) {
  const auto run = [&](at::Device device) {
    std::vector<at::Tensor> in;
    for (const at::Tensor& input : inputs)
      in.push_back(input.to(device, dtype).detach().clone().set_requires_grad(true));
    const at::Tensor out = op(in, device);
    auto results = torch::autograd::grad({out}, in, {random_values(out.sizes(), 77, out.scalar_type()).to(device)});
    results.push_back(out.detach());
    return results;
  };
  const auto expected = run(at::kCPU), actual = run(at::kCUDA);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO("result " << i << " of gradients, output; " << at::toString(dtype));
    require_close(actual[i], expected[i], atol, dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance);
  }
}

}  // namespace

TEST_CASE("cuda: every op agrees with the CPU, output and gradients", "[kernels][gpu]") {
  if (!at::hasCUDA()) DAGMOE_SKIP("no GPU here, or a program built without DAGMOE_CUDA");
  const at::Tensor weight = random_values({133}, 1), angle = random_values({70, 9}, 2),
                   head = random_values({333, 32}, 3);
  const at::Tensor ids = std::get<1>(random_values({70, 6}, 4).topk(3, 1)),
                   labels = at::arange(70).masked_fill(at::arange(70) < 9, -100);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    // Products and attention sum in another order, and round bfloat16 at other places.
    const double exact = kFloatTolerance, summed = dtype == at::kFloat ? 1e-4 : 0.05;
    const auto rms = [&](const auto& in, at::Device device) { return rms_norm(in[0], weight.to(device), 1e-5); };
    require_devices_agree(rms, {random_values({70, 133}, 5)}, dtype, exact);
    const auto turned = [&](const auto& in, at::Device device) {
      return rope(in[0], angle.cos().to(device), angle.sin().to(device));
    };
    require_devices_agree(turned, {random_values({70, 3, 18}, 6)}, dtype, exact);
    const auto glu = [](const auto& in, at::Device) { return swiglu(in[0], in[1]); };
    require_devices_agree(glu, {random_values({70, 133}, 7), random_values({70, 133}, 8)}, dtype, exact);
    const auto pairs = [](const auto& in, at::Device) { return dag_pairs(in[0]); };
    require_devices_agree(pairs, {random_values({70, 4, 4 * 19}, 9)}, dtype, exact);
    const auto attention = [](const auto& in, at::Device) {
      return segment_attention(in[0], in[1], in[2], {0, 1, 30, 70});
    };
    require_devices_agree(
        attention, {random_values({70, 6, 16}, 10), random_values({70, 2, 16}, 11), random_values({70, 2, 16}, 12)},
        dtype, summed);
    const auto routed = [&](const auto& in, at::Device device) {
      const RoutedRows rows = route_rows(ids.to(device), 6);
      return ungather_routed(
          grouped_linear(gather_routed(in[0], rows), {in[1], in[1], in[2], in[2], in[1], in[1]}, rows.counts_E), rows);
    };
    require_devices_agree(
        routed, {random_values({70, 32}, 13), random_values({24, 32}, 14), random_values({24, 32}, 15)}, dtype, summed);
    const auto loss = [&](const auto& in, at::Device device) {
      return masked_cross_entropy(in[0], in[1], labels.to(device), 1.0 / 64);
    };
    require_devices_agree(loss, {random_values({70, 32}, 16), head}, dtype, summed);
    const auto smoothed = [&](const auto& in, at::Device device) {
      return smoothed_cross_entropy(in[0], in[1], labels.to(device), 1.0 / 64, 0.1).objective;
    };
    require_devices_agree(smoothed, {random_values({70, 32}, 16), head}, dtype, summed);
  }
}

TEST_CASE("cuda: the weight gradient of rms_norm is exact with and without the input's", "[kernels][gpu]") {
  if (!at::hasCUDA()) DAGMOE_SKIP("no GPU here, or a program built without DAGMOE_CUDA");
  for (const bool input_trains : {false, true}) {
    const auto gradient = [&](at::Device device) {
      const at::Tensor x = random_values({700, 70}, 1).to(device).set_requires_grad(input_trains);
      const at::Tensor w = random_values({70}, 2).to(device).set_requires_grad(true);
      return torch::autograd::grad({rms_norm(x, w, 1e-5)}, {w}, {random_values({700, 70}, 3).to(device)})[0];
    };
    // Sums of 700 values around 1.
    require_close(gradient(at::kCUDA), gradient(at::kCPU), 1e-4, kFloatTolerance);
  }
}
