#include "finetune/optimizer.h"

#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

at::Tensor trained(const at::Tensor& values) { return values.clone().set_requires_grad(true); }

}  // namespace

TEST_CASE("optimizer: ten AdamW steps equal torch.optim.AdamW's", "[finetune]") {
  const SafetensorsFile file = SafetensorsFile::open(golden("adamw.safetensors"));
  const at::Tensor parameter = trained(golden_tensor(file, "param.0"));
  const auto optimizer = Optimizer::create({{"weight", parameter, 1.0, 0.1}}, {});
  for (int step = 1; step <= 10; ++step) {
    parameter.mutable_grad() = golden_tensor(file, "grad." + std::to_string(step));
    optimizer->step(1e-2, 1.0);
    require_close(parameter, golden_tensor(file, "param." + std::to_string(step)), 1e-6, 1e-6);
  }
  const std::vector<StateTensor> state = optimizer->state();
  REQUIRE(state.size() == 2);
  REQUIRE(state[0].name == "exp_avg.weight");
  REQUIRE(state[1].name == "exp_avg_sq.weight");
  require_close(state[0].tensor, golden_tensor(file, "exp_avg"), 1e-7, 1e-6);
  require_close(state[1].tensor, golden_tensor(file, "exp_avg_sq"), 1e-7, 1e-6);
}

TEST_CASE("optimizer: the global norm counts every gradient once and skips missing ones", "[finetune]") {
  const at::Tensor a = trained(at::zeros({2})), b = trained(at::zeros({1})), c = trained(at::zeros({1}));
  a.mutable_grad() = at::tensor(std::vector<float>{3.0f, 0.0f});
  b.mutable_grad() = at::tensor(std::vector<float>{4.0f});
  const std::vector<TrainedParameter> parameters = {{"a", a}, {"b", b}, {"c", c}};
  REQUIRE(grad_norms(parameters) == std::vector<double>{3.0, 4.0, 0.0});
  REQUIRE(global_grad_norm(parameters) == Approx(5.0));
}
