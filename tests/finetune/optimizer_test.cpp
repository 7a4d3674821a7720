#include "finetune/optimizer.h"

#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

const std::string kMatrix = "model.layers.0.self_attn.q_proj.weight";

at::Tensor random_values(at::IntArrayRef shape, std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::kFloat);
}

at::Tensor trained(const at::Tensor& values) { return values.clone().set_requires_grad(true); }

void set_gradient(const at::Tensor& parameter, std::uint64_t seed) {
  parameter.mutable_grad() = random_values(parameter.sizes(), seed) * 0.1;
}

std::map<std::string, at::Tensor> state_by_name(const Optimizer& optimizer) {
  std::map<std::string, at::Tensor> state;
  for (const StateTensor& part : optimizer.state()) state[part.name] = part.tensor;
  return state;
}

void copy_bytes(const at::Tensor& to, const at::Tensor& from) {
  REQUIRE(to.nbytes() == from.nbytes());
  std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), from.nbytes());
}

/// One parameter's update from the papers' equations, in double.
struct Reference {
  at::Tensor param, m, v;  // m is the momentum of Muon and SGD

  explicit Reference(const at::Tensor& start) : param(start.detach().to(at::kDouble)) {
    m = at::zeros_like(param);
    v = at::zeros_like(param);
  }

  void adamw(const at::Tensor& gradient, double lr, double weight_decay, int t) {
    const at::Tensor g = gradient.to(at::kDouble);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const at::Tensor m_hat = m / (1 - std::pow(0.9, t)), v_hat = v / (1 - std::pow(0.999, t));
    param = param - lr * weight_decay * param - lr * m_hat / (v_hat.sqrt() + 1e-8);
  }

  // The quintic acts on each singular value alone, so the singular value decomposition shows what the iteration must
  // give: p(s) = a s + b s^3 + c s^5, five times.
  static at::Tensor orthogonalized(const at::Tensor& g, std::int64_t num_iterations) {
    const auto [u, singular, v_transposed] = at::linalg_svd(g, /*full_matrices=*/false);
    at::Tensor s = singular / std::max(1e-7, at::linalg_vector_norm(g).item<double>());
    for (std::int64_t i = 0; i < num_iterations; ++i) s = 3.4445 * s - 4.7750 * s.pow(3) + 2.0315 * s.pow(5);
    return at::matmul(u * s, v_transposed);
  }

  void muon(const at::Tensor& gradient, double lr, double weight_decay, const OptimizerConfig& config) {
    const at::Tensor g = gradient.to(at::kDouble);
    const double mu = config.momentum;
    m = mu * m + (1 - mu) * g;
    const at::Tensor direction = config.nesterov ? mu * m + (1 - mu) * g : m;
    const double longest = static_cast<double>(std::max(param.size(0), param.size(1)));
    param = param - lr * weight_decay * param -
            lr * 0.2 * std::sqrt(longest) * orthogonalized(direction, config.newton_schulz_steps);
  }

  void sgd(const at::Tensor& gradient, double lr, double weight_decay, const OptimizerConfig& config) {
    const at::Tensor g = gradient.to(at::kDouble) + weight_decay * param;
    m = config.momentum * m + g;
    param = param - lr * (config.nesterov ? g + config.momentum * m : m);
  }
};

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
  const auto state = state_by_name(*optimizer);
  REQUIRE(state.size() == 2);
  require_close(state.at("exp_avg.weight"), golden_tensor(file, "exp_avg"), 1e-7, 1e-6);
  require_close(state.at("exp_avg_sq.weight"), golden_tensor(file, "exp_avg_sq"), 1e-7, 1e-6);
}

TEST_CASE("optimizer: AdamW with a learning rate and a weight decay for each parameter", "[finetune]") {
  const at::Tensor a = trained(random_values({7, 5}, 1)), b = trained(random_values({300}, 2)),
                   c = trained(random_values({4}, 3));
  const auto optimizer = Optimizer::create({{"a", a, 1.0, 0.1}, {"b", b, 0.25, 0.0}, {"c", c, 1.0, 0.1}}, {});
  Reference ra(a), rb(b), rc(c);
  for (int t = 1; t <= 5; ++t) {
    const double lr = 0.01 * t;
    std::uint64_t seed = 10 * static_cast<std::uint64_t>(t);
    for (const at::Tensor& parameter : {a, b, c}) set_gradient(parameter, ++seed);
    ra.adamw(a.grad() * 0.5, lr, 0.1, t);
    rb.adamw(b.grad() * 0.5, lr * 0.25, 0.0, t);
    rc.adamw(c.grad() * 0.5, lr, 0.1, t);
    optimizer->step(lr, 0.5);
  }
  require_close(a, ra.param, kFloatTolerance, kFloatTolerance);
  require_close(b, rb.param, kFloatTolerance, kFloatTolerance);
  require_close(c, rc.param, kFloatTolerance, kFloatTolerance);
}

TEST_CASE("optimizer: AdamW 8-bit equals bitsandbytes' AdamW8bit", "[finetune]") {
  const SafetensorsFile file = SafetensorsFile::open(golden("adamw_8bit.safetensors"));
  const at::Tensor parameter = trained(golden_tensor(file, "param.0"));
  const auto optimizer = Optimizer::create({{"w", parameter, 1.0, 0.1}}, {.kind = OptimizerKind::kAdamW8bit});
  const auto state = state_by_name(*optimizer);
  REQUIRE(state.size() == 4);
  const std::map<std::string, std::string> theirs = {{"exp_avg_8bit.w", "m"},
                                                     {"exp_avg_sq_8bit.w", "v"},
                                                     {"exp_avg_scale.w", "m_scale"},
                                                     {"exp_avg_sq_scale.w", "v_scale"}};
  for (int step = 1; step <= 4; ++step) {
    const std::string suffix = "." + std::to_string(step);
    parameter.mutable_grad() = golden_tensor(file, "grad" + suffix);
    optimizer->step(1e-2, 1.0);
    INFO("step " << step);
    require_close(parameter, golden_tensor(file, "param" + suffix), kFloatTolerance, kFloatTolerance);
    for (const auto& [ours, name] : theirs) {
      INFO(ours);
      const at::Tensor expected = golden_tensor(file, name + suffix), found = state.at(ours);
      if (found.scalar_type() == at::kByte) {
        // A value half-way between two levels may go to either. A second moment above zero never becomes zero here.
        const at::Tensor nearest = expected.to(at::kInt).clamp_min(name == "v" ? 1 : 0);
        const at::Tensor distance = (found.to(at::kInt) - nearest).abs();
        REQUIRE(distance.max().item<int>() <= 1);
        REQUIRE(distance.sum().item<std::int64_t>() <= 2);
      } else {
        require_close(found, expected, 0, kFloatTolerance);
      }
      copy_bytes(found, expected);  // so that such a value does not spread to the next step
    }
    at::NoGradGuard no_grad;
    parameter.copy_(golden_tensor(file, "param" + suffix));
  }
}

TEST_CASE("optimizer: AdamW 8-bit takes AdamW's way to a minimum", "[finetune]") {
  // Nothing but the moments' rounding sets the two apart: a quadratic whose curvatures span three decades.
  const at::Tensor curvature = at::logspace(-2, 1, 8192, 10.0, at::kFloat), start = random_values({8192}, 5);
  const auto last_loss = [&](OptimizerKind kind) {
    const at::Tensor x = trained(start);
    const auto optimizer = Optimizer::create({{"x", x}}, {.kind = kind});
    for (int t = 0; t < 200; ++t) {
      x.mutable_grad() = (curvature * x).detach();
      optimizer->step(0.02, 1.0);
    }
    return (curvature * x * x).sum().item<double>();
  };
  const double first = (curvature * start * start).sum().item<double>();
  const double exact = last_loss(OptimizerKind::kAdamW), rounded = last_loss(OptimizerKind::kAdamW8bit);
  INFO("loss at first " << first << ", AdamW " << exact << ", 8-bit " << rounded);
  REQUIRE(exact < 0.01 * first);
  REQUIRE(rounded < 0.01 * first);
}

TEST_CASE("optimizer: Muon equals torch.optim.Muon", "[finetune]") {
  const SafetensorsFile file = SafetensorsFile::open(golden("muon.safetensors"));
  for (const std::string name : {"tall", "wide", "square"}) {
    INFO(name);
    const at::Tensor parameter = trained(golden_tensor(file, name + ".param.0"));
    const auto optimizer = Optimizer::create({{kMatrix, parameter, 1.0, 0.1}}, {.kind = OptimizerKind::kMuon});
    for (int step = 1; step <= 6; ++step) {
      const std::string suffix = "." + std::to_string(step);
      parameter.mutable_grad() = golden_tensor(file, name + ".grad" + suffix);
      optimizer->step(0.02, 1.0);
      require_close(parameter, golden_tensor(file, name + ".param_fp32" + suffix), kFloatTolerance, kFloatTolerance);
      // torch's own iteration is in bfloat16: each of its five products rounds, and the quintic stretches small
      // singular values, errors among them, up to 3.4445 times an iteration. Hence four times bfloat16's tolerance, and
      // of the whole way, not of each element.
      const at::Tensor theirs = golden_tensor(file, name + ".param" + suffix);
      const double way = at::linalg_vector_norm(theirs - golden_tensor(file, name + ".param.0")).item<double>();
      REQUIRE(at::linalg_vector_norm(parameter.detach() - theirs).item<double>() < 4 * kBf16Tolerance * way);
    }
    const auto state = state_by_name(*optimizer);
    REQUIRE(state.size() == 1);
    require_close(state.at("momentum_buffer." + kMatrix), golden_tensor(file, name + ".momentum_buffer"), 1e-7, 1e-6);
  }
}

TEST_CASE("optimizer: Muon follows its equations in double, by singular values", "[finetune]") {
  for (const bool nesterov : {true, false}) {
    const OptimizerConfig config{.kind = OptimizerKind::kMuon, .momentum = 0.9, .nesterov = nesterov};
    const at::Tensor tall = trained(random_values({40, 16}, 1)), wide = trained(random_values({16, 40}, 2)),
                     same = trained(random_values({16, 40}, 3));
    const auto optimizer = Optimizer::create({{"model.layers.0.mlp.gate_proj.weight", tall, 0.5, 0.1},
                                              {"model.layers.0.mlp.dag.0.edge_proj.weight", wide},
                                              {"model.layers.1.mlp.dag.0.edge_proj.weight", same}},
                                             config);
    Reference r_tall(tall), r_wide(wide), r_same(same);
    for (int t = 1; t <= 4; ++t) {
      std::uint64_t seed = 10 * static_cast<std::uint64_t>(t);
      for (const at::Tensor& parameter : {tall, wide, same}) set_gradient(parameter, ++seed);
      r_tall.muon(tall.grad() * 0.5, 0.02 * 0.5, 0.1, config);
      r_wide.muon(wide.grad() * 0.5, 0.02, 0.0, config);
      r_same.muon(same.grad() * 0.5, 0.02, 0.0, config);
      optimizer->step(0.02, 0.5);
    }
    require_close(tall, r_tall.param, kFloatTolerance, kFloatTolerance);
    require_close(wide, r_wide.param, kFloatTolerance, kFloatTolerance);
    require_close(same, r_same.param, kFloatTolerance, kFloatTolerance);
  }
}

TEST_CASE("optimizer: a Muon step is as large as the paper says, whatever the shape", "[finetune]") {
  // 0.2 is about the root mean square of AdamW's update (arXiv 2502.16982, section 2.2).
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{64, 64}, {32, 128}, {128, 32}}) {
    const at::Tensor parameter = trained(at::zeros(shape));
    const auto optimizer = Optimizer::create({{kMatrix, parameter}}, {.kind = OptimizerKind::kMuon});
    set_gradient(parameter, 1);
    optimizer->step(1.0, 1.0);
    const double rms = parameter.detach().square().mean().sqrt().item<double>();
    REQUIRE(rms > 0.2 * 0.7);
    REQUIRE(rms < 0.2 * 1.2);
  }
}

TEST_CASE("optimizer: SGD follows torch.optim.SGD's equations", "[finetune]") {
  for (const double momentum : {0.0, 0.9}) {
    for (const bool nesterov : {false, true}) {
      if (momentum == 0.0 && nesterov) continue;
      const OptimizerConfig config{.kind = OptimizerKind::kSgd, .momentum = momentum, .nesterov = nesterov};
      const at::Tensor a = trained(random_values({33, 9}, 1)), b = trained(random_values({17}, 2));
      const auto optimizer = Optimizer::create({{"a", a, 1.0, 0.1}, {"b", b, 2.0, 0.0}}, config);
      REQUIRE(optimizer->state().size() == (momentum == 0.0 ? 0 : 2));
      Reference ra(a), rb(b);
      for (int t = 1; t <= 4; ++t) {
        set_gradient(a, static_cast<std::uint64_t>(10 * t));
        set_gradient(b, static_cast<std::uint64_t>(10 * t + 1));
        ra.sgd(a.grad() * 0.5, 0.05, 0.1, config);
        rb.sgd(b.grad() * 0.5, 0.1, 0.0, config);
        optimizer->step(0.05, 0.5);
      }
      require_close(a, ra.param, kFloatTolerance, kFloatTolerance);
      require_close(b, rb.param, kFloatTolerance, kFloatTolerance);
    }
  }
}

TEST_CASE("optimizer: which rule takes which parameter", "[finetune]") {
  const std::string layer = "model.layers.3.mlp.";
  struct Case {
    std::string name;
    std::vector<std::int64_t> shape;
    bool is_muon, is_8bit;
  };
  const std::vector<Case> cases = {{"model.embed_tokens.weight", {512, 64}, false, false},
                                   {"lm_head.weight", {512, 64}, false, true},
                                   {"model.norm.weight", {64}, false, false},
                                   {"model.layers.3.self_attn.q_proj.weight", {64, 64}, true, true},
                                   {"model.layers.3.self_attn.q_proj.bias", {64}, false, false},
                                   {"model.layers.3.self_attn.q_norm.weight", {8}, false, false},
                                   {layer + "gate.weight", {64, 64}, false, true},
                                   {layer + "shared_expert_gate.weight", {1, 64}, false, false},
                                   {layer + "experts.0.down_proj.weight", {64, 63}, true, false},
                                   {layer + "dag.0.norm.weight", {4096}, false, true},
                                   {layer + "dag.0.down_proj.weight", {16, 64}, true, false},
                                   {layer + "dag.0.edge_proj.weight", {64, 128}, true, true},
                                   {layer + "dag.0.node_proj.weight", {64, 128}, true, true},
                                   {layer + "dag.0.up_proj.weight", {64, 64}, true, true}};
  for (const Case& c : cases) {
    INFO(c.name);
    REQUIRE(rule_of(OptimizerKind::kAdamW, c.name, c.shape) == UpdateRuleKind::kAdamW);
    REQUIRE(rule_of(OptimizerKind::kSgd, c.name, c.shape) == UpdateRuleKind::kSgd);
    REQUIRE((rule_of(OptimizerKind::kMuon, c.name, c.shape) == UpdateRuleKind::kMuon) == c.is_muon);
    REQUIRE((rule_of(OptimizerKind::kAdamW8bit, c.name, c.shape) == UpdateRuleKind::kAdamW8bit) == c.is_8bit);
    for (const auto kind :
         {OptimizerKind::kAdamW, OptimizerKind::kAdamW8bit, OptimizerKind::kMuon, OptimizerKind::kSgd}) {
      const OptimizerConfig config{.kind = kind};
      const auto optimizer = Optimizer::create({{c.name, trained(at::zeros(c.shape))}}, config);
      std::int64_t bytes = 0;
      for (const StateTensor& part : optimizer->state()) bytes += static_cast<std::int64_t>(part.tensor.nbytes());
      REQUIRE(optimizer_state_bytes(config, c.name, c.shape) == bytes);
    }
  }
  REQUIRE(optimizer_state_bytes({.kind = OptimizerKind::kSgd, .momentum = 0.0}, "a", {5}) == 0);
  REQUIRE(optimizer_state_bytes({.kind = OptimizerKind::kAdamW8bit}, "lm_head.weight", {100, 256}) == 200 * (256 + 4));
}

TEST_CASE("optimizer: a missing gradient is one of zero", "[finetune]") {
  for (const auto kind :
       {OptimizerKind::kAdamW, OptimizerKind::kAdamW8bit, OptimizerKind::kMuon, OptimizerKind::kSgd}) {
    // Two missing at the same step, of two sizes, beside one that is there.
    const at::Tensor start = random_values({80, 64}, 1), small = random_values({9, 64}, 2);
    std::vector<std::vector<at::Tensor>> results;
    for (const bool is_missing : {true, false}) {
      const std::vector<at::Tensor> tensors = {trained(start), trained(small), trained(start)};
      const auto optimizer = Optimizer::create(
          {{kMatrix, tensors[0], 1.0, 0.1}, {"lm_head.weight", tensors[1], 1.0, 0.1}, {"c", tensors[2], 1.0, 0.1}},
          {.kind = kind});
      for (int t = 1; t <= 3; ++t) {
        for (std::size_t i = 0; i < tensors.size(); ++i)
          set_gradient(tensors[i], 10 * static_cast<std::uint64_t>(t) + i);
        for (std::size_t i = 0; t == 2 && i < 2; ++i)
          tensors[i].mutable_grad() = is_missing ? at::Tensor() : at::zeros_like(tensors[i]);
        optimizer->step(0.01, 0.5);
      }
      results.push_back(tensors);
    }
    for (std::size_t i = 0; i < 3; ++i) {
      INFO("kind " << static_cast<int>(kind) << " parameter " << i);
      require_equal(results[0][i], results[1][i]);
    }
  }
}

TEST_CASE("optimizer: gradients of zero, as the DAG's at its start, move nothing and are no NaN", "[finetune]") {
  for (const auto kind :
       {OptimizerKind::kAdamW, OptimizerKind::kAdamW8bit, OptimizerKind::kMuon, OptimizerKind::kSgd}) {
    const at::Tensor start = random_values({64, 96}, 1), parameter = trained(start);
    const auto optimizer =
        Optimizer::create({{"model.layers.0.mlp.dag.0.down_proj.weight", parameter}}, {.kind = kind});
    for (int t = 0; t < 3; ++t) {
      parameter.mutable_grad() = at::zeros_like(start);
      optimizer->step(0.1, 1.0);
      require_equal(parameter, start);
    }
    set_gradient(parameter, 4);
    optimizer->step(0.1, 1.0);
    REQUIRE(at::isfinite(parameter).all().item<bool>());
    REQUIRE((parameter - start).abs().max().item<double>() > 0.0);
  }
}

TEST_CASE("optimizer: its state restored byte by byte goes on bit for bit", "[finetune]") {
  for (const auto kind :
       {OptimizerKind::kAdamW, OptimizerKind::kAdamW8bit, OptimizerKind::kMuon, OptimizerKind::kSgd}) {
    const auto make = [&](const at::Tensor& matrix, const at::Tensor& vector) {
      return Optimizer::create({{kMatrix, matrix, 1.0, 0.1}, {"model.norm.weight", vector, 0.5, 0.0}}, {.kind = kind});
    };
    const auto run = [](Optimizer& optimizer, int first, int last) {
      for (int t = first; t <= last; ++t) {
        std::uint64_t seed = 10 * static_cast<std::uint64_t>(t);
        for (const TrainedParameter& parameter : optimizer.parameters()) set_gradient(parameter.tensor, ++seed);
        optimizer.step(0.01, 0.5);
      }
    };
    const at::Tensor matrix = trained(random_values({70, 64}, 1)), vector = trained(random_values({64}, 2));
    const auto whole = make(matrix, vector);
    run(*whole, 1, 3);
    const at::Tensor matrix_2 = trained(matrix.detach()), vector_2 = trained(vector.detach());
    const auto resumed = make(matrix_2, vector_2);
    const std::vector<StateTensor> saved = whole->state(), target = resumed->state();
    REQUIRE(saved.size() == target.size());
    for (std::size_t i = 0; i < saved.size(); ++i) {
      REQUIRE(saved[i].name == target[i].name);
      copy_bytes(target[i].tensor, saved[i].tensor);
    }
    resumed->set_num_steps(whole->num_steps());
    run(*whole, 4, 6);
    run(*resumed, 4, 6);
    REQUIRE(resumed->num_steps() == 6);
    require_equal(matrix_2, matrix);
    require_equal(vector_2, vector);
  }
}

TEST_CASE("optimizer: a gradient scale of one half is a gradient of one half", "[finetune]") {
  for (const auto kind :
       {OptimizerKind::kAdamW, OptimizerKind::kAdamW8bit, OptimizerKind::kMuon, OptimizerKind::kSgd}) {
    const at::Tensor a = trained(at::ones({64, 64})), b = trained(at::ones({64, 64}));
    const auto first = Optimizer::create({{kMatrix, a}}, {.kind = kind}),
               second = Optimizer::create({{kMatrix, b}}, {.kind = kind});
    set_gradient(a, 1);
    b.mutable_grad() = a.grad() * 0.5;
    first->step(0.1, 0.5);
    second->step(0.1, 1.0);
    require_equal(a, b);
  }
}

TEST_CASE("optimizer: a tensor that is not float is a mistake of the program", "[finetune]") {
  const at::Tensor wrong = at::zeros({4}, at::kBFloat16);
  REQUIRE_THROWS_AS(Optimizer::create({{"weight", wrong}}, {}), InternalError);
}

TEST_CASE("optimizer: the global norm counts every gradient once and skips missing ones", "[finetune]") {
  const at::Tensor a = trained(at::zeros({2})), b = trained(at::zeros({1})), c = trained(at::zeros({1}));
  a.mutable_grad() = at::tensor(std::vector<float>{3.0f, 0.0f});
  b.mutable_grad() = at::tensor(std::vector<float>{4.0f});
  const std::vector<TrainedParameter> parameters = {{"a", a}, {"b", b}, {"c", c}};
  REQUIRE(grad_norms(parameters) == std::vector<double>{3.0, 4.0, 0.0});
  REQUIRE(global_grad_norm(parameters) == Approx(5.0));
  REQUIRE(grad_norms({}).empty());
}

TEST_CASE("optimizer: norms of many and large gradients against double", "[finetune]") {
  std::vector<TrainedParameter> parameters;
  std::vector<double> expected;
  std::uint64_t seed = 0;
  for (const std::int64_t size : {1, 5, 100, 4096, 4097, 1'000'003}) {
    const at::Tensor parameter = trained(at::zeros({size}));
    set_gradient(parameter, ++seed);
    expected.push_back(at::linalg_vector_norm(parameter.grad().to(at::kDouble)).item<double>());
    parameters.push_back({"p", parameter});
  }
  const std::vector<double> norms = grad_norms(parameters);
  for (std::size_t i = 0; i < norms.size(); ++i) REQUIRE(norms[i] == Approx(expected[i]).epsilon(1e-6));
  parameters[3].tensor.mutable_grad()[17] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(std::isnan(grad_norms(parameters)[3]));
  REQUIRE(std::isnan(global_grad_norm(parameters)));
}
