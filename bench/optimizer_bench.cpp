// Times one optimizer step, and the gradient norms before it, over three layers of SmolLM2-135M (10.6 million
// parameters), in milliseconds for 10 million.
//   optimizer_bench [THREADS]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "finetune/optimizer.h"

namespace dagmoe {
namespace {

std::vector<TrainedParameter> layers() {
  constexpr std::int64_t kHidden = 576, kKv = 192, kWidth = 1536;
  std::vector<TrainedParameter> parameters;
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto add = [&](const std::string& name, at::IntArrayRef shape) {
      const at::Tensor tensor = (at::randn(shape) * 0.02).set_requires_grad(true);
      tensor.mutable_grad() = at::randn(shape) * 1e-3;
      parameters.push_back({prefix + name, tensor, 1.0, 0.1});
    };
    add("input_layernorm.weight", {kHidden});
    add("self_attn.q_proj.weight", {kHidden, kHidden});
    add("self_attn.k_proj.weight", {kKv, kHidden});
    add("self_attn.v_proj.weight", {kKv, kHidden});
    add("self_attn.o_proj.weight", {kHidden, kHidden});
    add("post_attention_layernorm.weight", {kHidden});
    add("mlp.gate_proj.weight", {kWidth, kHidden});
    add("mlp.up_proj.weight", {kWidth, kHidden});
    add("mlp.down_proj.weight", {kHidden, kWidth});
  }
  return parameters;
}

void print_line(const char* name, std::int64_t num_parameters, const std::function<void()>& work) {
  work();
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < 7 || (total < 1.0 && seconds.size() < 200)) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    total += seconds.back();
  }
  std::sort(seconds.begin(), seconds.end());
  const double scale = 1e3 * 1e7 / static_cast<double>(num_parameters);
  std::printf("%-14s %9.2f %9.2f\n", name, seconds.front() * scale, seconds[seconds.size() / 2] * scale);
}

void time_optimizers() {
  const std::vector<TrainedParameter> parameters = layers();
  std::int64_t size = 0;
  for (const TrainedParameter& parameter : parameters) size += parameter.tensor.numel();
  std::printf("threads %d, %lld parameters, ms for 10 million\n", at::get_num_threads(), static_cast<long long>(size));
  std::printf("%-14s %9s %9s\n", "step", "min", "median");
  const auto line = [&](const char* name, OptimizerKind kind) {
    const auto optimizer = Optimizer::create(parameters, {.kind = kind});
    print_line(name, size, [&] { optimizer->step(1e-5, 1.0); });
  };
  line("adamw", OptimizerKind::kAdamW);
  line("adamw_8bit", OptimizerKind::kAdamW8bit);
  line("muon", OptimizerKind::kMuon);
  line("sgd", OptimizerKind::kSgd);
  print_line("grad_norms", size, [&] { grad_norms(parameters); });
}

}  // namespace
}  // namespace dagmoe

int main(int argc, char** argv) {
  if (argc > 1) at::set_num_threads(std::atoi(argv[1]));
  dagmoe::time_optimizers();
  return 0;
}
