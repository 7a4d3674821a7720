#include "finetune/optimizer.h"

#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

TEST_CASE("optimizer: ten AdamW steps equal torch.optim.AdamW's", "[finetune]") {
  const SafetensorsFile file = SafetensorsFile::open(golden("adamw.safetensors"));
  const at::Tensor parameter = golden_tensor(file, "param.0").set_requires_grad(true);
  AdamW optimizer({parameter}, {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1});
  for (int step = 1; step <= 10; ++step) {
    parameter.mutable_grad() = golden_tensor(file, "grad." + std::to_string(step));
    optimizer.step(1e-2, 1.0);
    require_close(parameter, golden_tensor(file, "param." + std::to_string(step)), 1e-6, 1e-6);
  }
  require_close(optimizer.first_moments()[0], golden_tensor(file, "exp_avg"), 1e-7, 1e-6);
  require_close(optimizer.second_moments()[0], golden_tensor(file, "exp_avg_sq"), 1e-7, 1e-6);
}

TEST_CASE("optimizer: a gradient scale of one half is a gradient of one half", "[finetune]") {
  const at::Tensor a = at::ones({3}).set_requires_grad(true), b = at::ones({3}).set_requires_grad(true);
  AdamW first({a}, {.lr = 0.1}), second({b}, {.lr = 0.1});
  a.mutable_grad() = at::full({3}, 4.0);
  b.mutable_grad() = at::full({3}, 2.0);
  first.step(0.1, 0.5);
  second.step(0.1, 1.0);
  REQUIRE(at::equal(a, b));
}

TEST_CASE("optimizer: the global norm counts every gradient once and skips missing ones", "[finetune]") {
  const at::Tensor a = at::zeros({2}).set_requires_grad(true), b = at::zeros({1}).set_requires_grad(true),
                   c = at::zeros({1}).set_requires_grad(true);
  a.mutable_grad() = at::tensor(std::vector<float>{3.0f, 0.0f});
  b.mutable_grad() = at::tensor(std::vector<float>{4.0f});
  REQUIRE(global_grad_norm({a, b, c}) == Approx(5.0));
}
