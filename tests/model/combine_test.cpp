#include "model/combine.h"

#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr std::int64_t kT = 7, kD = 24, kG = 6, kL = 3;
constexpr double kEps = 1e-5;

struct Case {
  CombineInput input;
  std::vector<DagStep> steps;
};

Case random_case(std::int64_t K, at::ScalarType dtype, bool zero_up = false) {
  at::Generator generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(K));
  const auto random = [&](std::vector<std::int64_t> shape, double scale) {
    return at::empty(shape, at::kDouble).normal_(0.0, scale, generator).to(dtype);
  };
  Case result;
  result.input = {random({kT, kD}, 1.0), random({kT, kD}, 1.0), random({kT, K, kD}, 1.0),
                  at::softmax(random({kT, K}, 1.0), 1)};
  for (std::int64_t l = 0; l < kL; ++l) {
    DagStep step{random({kD}, 1.0), random({kG, kD}, 0.3), random({kG, 2 * kG}, 0.3), random({kG, 2 * kG}, 0.3),
                 random({kD, kG}, 0.3)};
    if (zero_up) step.up_DG.zero_();
    result.steps.push_back(step);
  }
  return result;
}

Case in_double(const Case& from) {
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  Case result{{wide(from.input.hidden_TD), wide(from.input.normed_TD), wide(from.input.expert_out_TKD),
               wide(from.input.weights_TK)},
              {}};
  for (const DagStep& s : from.steps)
    result.steps.push_back({wide(s.norm_D), wide(s.down_GD), wide(s.edge_G2G), wide(s.node_G2G), wide(s.up_DG)});
  return result;
}

DagConfig dag_config(NodeResidual residual = NodeResidual::kHiddenState, DagNorm norm = DagNorm::kLayerNorm) {
  return {.num_iterations = kL, .node_size = kG, .node_residual = residual, .norm = norm};
}

}  // namespace

TEST_CASE("combine: factorised edges, delta form and merged read-out equal the equations pair by pair", "[model]") {
  for (const std::int64_t K : {1, 2, 4, 8}) {
    for (const auto residual : {NodeResidual::kHiddenState, NodeResidual::kNormedInput, NodeResidual::kNone}) {
      for (const auto norm : {DagNorm::kLayerNorm, DagNorm::kRmsNorm}) {
        const DagConfig dag = dag_config(residual, norm);
        const Case exact = random_case(K, at::kDouble);
        require_close(combine_experts(exact.input, exact.steps, &dag, kEps),
                      combine_experts_reference(exact.input, exact.steps, &dag, kEps), 1e-12, 1e-12);
        const Case single = random_case(K, at::kFloat);
        const Case widened = in_double(single);
        const at::Tensor expected = combine_experts_reference(widened.input, widened.steps, &dag, kEps);
        // Messages cancel in part, so that float's rounding shows beside the largest value, not beside each.
        const double largest = expected.abs().max().item<double>();
        require_close(combine_experts(single.input, single.steps, &dag, kEps), expected, 1e-6 * largest, 0);
      }
    }
  }
}

TEST_CASE("combine: the order of the chosen experts does not matter", "[model]") {
  const DagConfig dag = dag_config();
  const Case original = random_case(4, at::kDouble);
  const at::Tensor order = at::tensor(std::vector<std::int64_t>{2, 0, 3, 1});
  CombineInput shuffled = original.input;
  shuffled.expert_out_TKD = shuffled.expert_out_TKD.index_select(1, order);
  shuffled.weights_TK = shuffled.weights_TK.index_select(1, order);
  require_close(combine_experts(shuffled, original.steps, &dag, kEps),
                combine_experts(original.input, original.steps, &dag, kEps), 1e-12, 1e-12);
}

TEST_CASE("combine: with every W_up zero the result is bit-identical to the plain weighted sum", "[model]") {
  for (const auto residual : {NodeResidual::kHiddenState, NodeResidual::kNone}) {
    const DagConfig dag = dag_config(residual);
    for (const std::int64_t K : {1, 3, 8}) {
      const Case zero = random_case(K, at::kFloat, /*zero_up=*/true);
      REQUIRE(at::equal(combine_experts(zero.input, zero.steps, &dag, kEps),
                        combine_experts(zero.input, {}, nullptr, kEps)));
    }
  }
}

TEST_CASE("combine: normed_input adds the normed input once more", "[model]") {
  const DagConfig dag = dag_config(NodeResidual::kNormedInput);
  const Case zero = random_case(4, at::kDouble, /*zero_up=*/true);
  const at::Tensor plain = combine_experts(zero.input, {}, nullptr, kEps);
  require_close(combine_experts(zero.input, zero.steps, &dag, kEps), plain + zero.input.normed_TD, 1e-12, 0);
}

TEST_CASE("combine: at the start only W_up has a gradient and the inputs' gradients are the plain layer's", "[model]") {
  const DagConfig dag = dag_config();
  Case zero = random_case(4, at::kDouble, /*zero_up=*/true);
  std::vector<at::Tensor> weights;
  for (DagStep& step : zero.steps) {
    for (at::Tensor* tensor : {&step.norm_D, &step.down_GD, &step.edge_G2G, &step.node_G2G, &step.up_DG}) {
      tensor->set_requires_grad(true);
      weights.push_back(*tensor);
    }
  }
  CombineInput& input = zero.input;
  for (at::Tensor* tensor : {&input.hidden_TD, &input.expert_out_TKD, &input.weights_TK})
    *tensor = tensor->detach().set_requires_grad(true);
  const std::vector<at::Tensor> inputs{input.hidden_TD, input.expert_out_TKD, input.weights_TK};
  const at::Tensor dy = at::randn({kT, kD}, at::kDouble);
  const auto gradients = [&](const at::Tensor& out, const std::vector<at::Tensor>& of) {
    return torch::autograd::grad({(out * dy).sum()}, of, {}, true, false, true);
  };
  const at::Tensor out = combine_experts(input, zero.steps, &dag, kEps);
  const auto by_weight = gradients(out, weights);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const bool is_up = i % 5 == 4;
    INFO("iteration " << i / 5 << ", weight " << i % 5);
    REQUIRE((by_weight[i].abs().max().item<double>() > 0) == is_up);
  }
  const auto with_dag = gradients(out, inputs), plain = gradients(combine_experts(input, {}, nullptr, kEps), inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) require_close(with_dag[i], plain[i], 1e-12, 1e-12);
}

TEST_CASE("combine: gradients agree with central differences", "[model]") {
  const DagConfig dag = dag_config();
  const Case exact = random_case(3, at::kDouble);
  const DagStep& s = exact.steps[0];
  const DagStep& t = exact.steps[1];
  std::vector<at::Tensor> inputs{exact.input.hidden_TD,
                                 exact.input.expert_out_TKD,
                                 exact.input.weights_TK,
                                 s.norm_D,
                                 s.down_GD,
                                 s.edge_G2G,
                                 s.node_G2G,
                                 s.up_DG,
                                 t.norm_D,
                                 t.down_GD,
                                 t.edge_G2G,
                                 t.node_G2G,
                                 t.up_DG};
  for (at::Tensor& input : inputs) input.set_requires_grad(true);
  const at::Tensor normed = exact.input.normed_TD;
  require_gradients_match(
      [&](const std::vector<at::Tensor>& x) {
        const std::vector<DagStep> steps{{x[3], x[4], x[5], x[6], x[7]}, {x[8], x[9], x[10], x[11], x[12]}};
        return combine_experts({x[0], normed, x[1], x[2]}, steps, &dag, kEps);
      },
      inputs);
}

TEST_CASE("combine: outputs and gradients equal the golden values of a plain PyTorch program", "[model]") {
  const SafetensorsFile file = SafetensorsFile::open(golden("dag.safetensors"));
  const std::vector<std::pair<std::string, DagConfig>> variants{
      {"hidden_state", dag_config()},
      {"normed_input", dag_config(NodeResidual::kNormedInput)},
      {"none", dag_config(NodeResidual::kNone)},
      {"hidden_state_rms", dag_config(NodeResidual::kHiddenState, DagNorm::kRmsNorm)}};
  for (const auto& [variant, dag] : variants) {
    INFO(variant);
    std::vector<std::string> names{"nodes", "h", "xn"};
    for (int l = 0; l < 3; ++l) {
      for (const char* weight : {"norm.", "down.", "edge.", "node.", "up."})
        names.push_back(weight + std::to_string(l));
    }
    std::vector<at::Tensor> leaves;
    for (const auto& name : names) leaves.push_back(golden_tensor(file, name).set_requires_grad(true));
    std::vector<DagStep> steps;
    for (std::size_t i = 3; i < leaves.size(); i += 5)
      steps.push_back({leaves[i], leaves[i + 1], leaves[i + 2], leaves[i + 3], leaves[i + 4]});
    const at::Tensor ones = at::ones({leaves[0].size(0), leaves[0].size(1)}, at::kDouble);
    const at::Tensor out = combine_experts({leaves[1], leaves[2], leaves[0], ones}, steps, &dag, kEps);
    // The golden output of normed_input is h + y with y holding the residual xn once, as ours.
    require_close(out, golden_tensor(file, "out." + variant), 1e-10, 1e-10);
    const auto gradients =
        torch::autograd::grad({(out * golden_tensor(file, "dout")).sum()}, leaves, {}, false, false, true);
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::string name = "grad." + variant + "." + names[i];
      if (file.find(name) == nullptr) continue;
      INFO(name);
      require_close(gradients[i], golden_tensor(file, name), 1e-10, 1e-10);
    }
  }
}

TEST_CASE("combine: float and bfloat16 gradients are double's, block after block, on any number of threads",
          "[model]") {
  // Several blocks of tokens, the last of them short.
  constexpr std::int64_t kTokens = 171, kWidth = 40, kNode = 9;
  const DagConfig dag{.num_iterations = 2, .node_size = kNode, .node_residual = NodeResidual::kHiddenState};
  at::Generator generator = at::detail::createCPUGenerator(5);
  const auto random = [&](std::vector<std::int64_t> shape, double scale) {
    return at::empty(shape, at::kDouble).normal_(0.0, scale, generator);
  };
  for (const std::int64_t K : {1, 4}) {
    std::vector<at::Tensor> inputs{random({kTokens, kWidth}, 1), random({kTokens, K, kWidth}, 1),
                                   at::softmax(random({kTokens, K}, 1), 1)};
    for (int l = 0; l < 2; ++l) {
      for (const at::Tensor& weight :
           {random({kWidth}, 0.3) + 1, random({kNode, kWidth}, 0.15), random({kNode, 2 * kNode}, 0.2),
            random({kNode, 2 * kNode}, 0.2), random({kWidth, kNode}, 0.2)})
        inputs.push_back(weight);
    }
    for (at::Tensor& input : inputs) input = input.to(at::kBFloat16).to(at::kDouble);
    const at::Tensor grad = random({kTokens, kWidth}, 1).to(at::kBFloat16);
    const auto run = [&](at::ScalarType dtype, bool reference) {
      std::vector<at::Tensor> x;
      for (const at::Tensor& input : inputs) x.push_back(input.to(dtype).set_requires_grad(true));
      const std::vector<DagStep> steps{{x[3], x[4], x[5], x[6], x[7]}, {x[8], x[9], x[10], x[11], x[12]}};
      const CombineInput input{x[0], x[0], x[1], x[2]};
      const at::Tensor out =
          reference ? combine_experts_reference(input, steps, &dag, kEps) : combine_experts(input, steps, &dag, kEps);
      auto results = torch::autograd::grad({out}, x, {grad.to(dtype)});
      results.push_back(out.detach());
      return results;
    };
    const int threads = at::get_num_threads();
    const auto exact = run(at::kDouble, true);
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      at::set_num_threads(2);
      const auto two = run(dtype, false);
      at::set_num_threads(1);
      const auto one = run(dtype, false);
      at::set_num_threads(threads);
      const double limit = dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 2e-6 : 2e-2;
      for (std::size_t i = 0; i < exact.size(); ++i) {
        INFO("K " << K << ", result " << i << ", " << at::toString(dtype));
        REQUIRE(at::equal(one[i], two[i]));
        require_close(one[i], exact[i], limit * exact[i].abs().max().item<double>(), 0);
      }
    }
  }
}
