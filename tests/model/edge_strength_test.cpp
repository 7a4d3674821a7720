#include "model/edge_strength.h"

#include <map>

#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

std::vector<ModelInput> random_batches(const ModelConfig& config, std::uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto ids = [&](std::int64_t count) { return at::randint(0, config.vocab_size, {count}, generator, at::kLong); };
  return {packed_input(ids(29), {11, 1, 17}), packed_input(ids(20), {20})};
}

// method.md 2.7 token by token from eq. 6-10 as printed, in double: a Concat for every pair, averages by hand.
struct Direct {
  std::map<std::pair<std::int64_t, std::int64_t>, std::pair<double, std::int64_t>> of_experts;  // sum, tokens
  at::Tensor slot_KK;
};

at::Tensor norm(const at::Tensor& x_D, const at::Tensor& weight_D, const DagConfig& dag, double eps) {
  if (dag.norm == DagNorm::kLayerNorm)
    return (x_D - x_D.mean()) / (x_D.var(/*unbiased=*/false) + eps).sqrt() * weight_D;
  return x_D / (x_D.square().mean() + eps).sqrt() * weight_D;
}

at::Tensor residual_of(const CombineInput& input, const DagConfig& dag) {
  if (dag.node_residual == NodeResidual::kHiddenState) return input.hidden_TD;
  return dag.node_residual == NodeResidual::kNormedInput ? input.normed_TD : at::zeros_like(input.hidden_TD);
}

// direct[{layer, iteration}]
std::map<std::pair<std::int64_t, std::size_t>, Direct> direct_strength(const Decoder& model,
                                                                       const std::vector<ModelInput>& batches) {
  std::map<std::pair<std::int64_t, std::size_t>, Direct> result;
  std::int64_t num_tokens = 0;
  const DagConfig& dag = *model.config.dag;
  const auto on_combine = [&](std::int64_t layer, const CombineInput& input, const Routing& routing) {
    const auto K = input.weights_TK.size(1);
    for (std::int64_t t = 0; t < input.hidden_TD.size(0); ++t) {
      std::vector<at::Tensor> x;  // eq. 6
      for (std::int64_t i = 0; i < K; ++i) {
        x.push_back(input.weights_TK[t][i].to(at::kDouble) * input.expert_out_TKD[t][i].to(at::kDouble) +
                    residual_of(input, dag)[t].to(at::kDouble) / static_cast<double>(K));
      }
      const auto& steps = model.layers[static_cast<std::size_t>(layer)].dag;
      for (std::size_t l = 0; l < steps.size(); ++l) {
        const auto weight = [](const at::Tensor& tensor) { return tensor.to(at::kDouble); };
        Direct& direct = result[{layer, l}];
        if (!direct.slot_KK.defined()) direct.slot_KK = at::zeros({K, K}, at::kDouble);
        std::vector<at::Tensor> z;  // eq. 7-8
        for (const at::Tensor& x_D : x)
          z.push_back(weight(steps[l].down_GD).mv(norm(x_D, weight(steps[l].norm_D), dag, model.config.rms_norm_eps)));
        for (std::int64_t i = 0; i < K; ++i) {
          at::Tensor sum_G = at::zeros_like(z[0]);
          for (std::int64_t j = 0; j < K; ++j) {
            const at::Tensor p_2G = at::cat({z[static_cast<std::size_t>(i)], z[static_cast<std::size_t>(j)]});  // eq. 9
            const at::Tensor gate_G = weight(steps[l].edge_G2G).mv(p_2G);
            const at::Tensor m_G = gate_G / (1 + (-gate_G).exp()) * weight(steps[l].node_G2G).mv(p_2G);  // eq. 10
            const double strength = m_G.square().sum().sqrt().item<double>();
            auto& [sum, count] = direct.of_experts[{routing.expert_ids_TK[t][i].item<std::int64_t>(),
                                                    routing.expert_ids_TK[t][j].item<std::int64_t>()}];
            sum += strength, ++count;
            direct.slot_KK[i][j] += strength;
            sum_G += m_G;
          }
          x[static_cast<std::size_t>(i)] = x[static_cast<std::size_t>(i)] + weight(steps[l].up_DG).mv(sum_G);  // eq. 11
        }
      }
    }
  };
  const at::NoGradGuard no_grad;
  for (const ModelInput& batch : batches) {
    model.forward(batch, {.on_combine = on_combine});
    num_tokens += batch.input_ids_T.size(0);
  }
  for (auto& [place, direct] : result) direct.slot_KK /= static_cast<double>(num_tokens);
  return result;
}

void require_equals_direct(const Decoder& model, double tolerance) {
  const auto batches = random_batches(model.config, 9);
  const EdgeStrength edges = edge_strength(model, batches);
  const auto direct = direct_strength(model, batches);
  REQUIRE(edges.num_tokens == 49);
  REQUIRE(edges.layers.size() == model.layers.size());
  for (const LayerEdges& layer : edges.layers) {
    REQUIRE(layer.iterations.size() == static_cast<std::size_t>(model.config.dag->num_iterations));
    for (std::size_t l = 0; l < layer.iterations.size(); ++l) {
      const Direct& expected = direct.at({layer.layer, l});
      at::Tensor mean_EE = at::zeros_like(layer.iterations[l].sum_EE), count_EE = at::zeros_like(layer.count_EE);
      for (const auto& [pair, value] : expected.of_experts) {
        mean_EE[pair.first][pair.second] = value.first / static_cast<double>(value.second);
        count_EE[pair.first][pair.second] = value.second;
      }
      INFO("layer " << layer.layer << ", iteration " << l);
      require_equal(layer.count_EE, count_EE);
      require_close(mean_strength(layer, layer.iterations[l]), mean_EE, tolerance, tolerance);
      require_close(layer.iterations[l].slot_KK, expected.slot_KK, tolerance, tolerance);
    }
  }
}

}  // namespace

TEST_CASE("edge_strength: equals the norm of the printed messages, pair by pair", "[model]") {
  for (const auto residual : {NodeResidual::kHiddenState, NodeResidual::kNormedInput, NodeResidual::kNone}) {
    for (const auto dag_norm : {DagNorm::kLayerNorm, DagNorm::kRmsNorm}) {
      for (const std::int64_t K : {1, 3}) {
        ModelConfig config = tiny_config();
        config.moe->num_experts_per_tok = K;
        config.dag->node_residual = residual, config.dag->norm = dag_norm;
        require_equals_direct(tiny_model(config), kDoubleTolerance);
      }
    }
  }
  require_equals_direct(tiny_model(tiny_config(), at::kFloat), kFloatTolerance);
}

TEST_CASE("edge_strength: more pairs than are formed at once give the same sums", "[model]") {
  ModelConfig config = tiny_config();
  config.dag->node_size = 4096;  // 2^18 pair elements hold 16 tokens of K = 2
  config.num_hidden_layers = 1;
  const Decoder model = tiny_model(config);
  const auto batches = random_batches(config, 9);
  const EdgeStrength edges = edge_strength(model, batches);
  at::Tensor slot_KK = at::zeros({2, 2}, at::kDouble);
  const auto on_combine = [&](std::int64_t, const CombineInput& input, const Routing&) {
    combine_experts(input, model.layers[0].dag, &*config.dag, config.rms_norm_eps,
                    [&](std::size_t l, const at::Tensor& abce_TK4G) {
                      if (l > 0) return;
                      const auto parts = abce_TK4G.chunk(4, 2);
                      for (std::int64_t i = 0; i < 2; ++i) {
                        for (std::int64_t j = 0; j < 2; ++j) {
                          const at::Tensor m = at::silu(parts[0].select(1, i) + parts[1].select(1, j)) *
                                               (parts[2].select(1, i) + parts[3].select(1, j));
                          slot_KK[i][j] += m.norm(2, 1).sum();
                        }
                      }
                    });
  };
  const at::NoGradGuard no_grad;
  for (const ModelInput& batch : batches) model.forward(batch, {.on_combine = on_combine});
  require_close(edges.layers[0].iterations[0].slot_KK, slot_KK / 49.0, kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("edge_strength: shares of small matrices by hand", "[model]") {
  const at::Tensor m = at::tensor({1.0, 3.0, 1.0, 2.0}, at::kDouble).view({2, 2});
  // Symmetric part [[1, 2], [2, 2]]: 13 of 15.
  REQUIRE(std::abs(symmetric_share(m) - 13.0 / 15.0) < 1e-15);
  REQUIRE(symmetric_share(m + m.t()) == 1.0);
  REQUIRE(symmetric_share(m - m.t()) == 0.0);
  REQUIRE(std::abs(self_edge_share(m) - 3.0 / 7.0) < 1e-15);
  REQUIRE(self_edge_share(at::zeros({2, 2}, at::kDouble)) == 0.0);
}

TEST_CASE("edge_strength: as JSON it says how many tokens it saw, and a model without a DAG has no layers", "[model]") {
  const ModelConfig config = tiny_config();
  const auto batches = random_batches(config, 9);
  const EdgeStrength edges = edge_strength(tiny_model(config), batches);
  const Json json = edge_strength_json(edges);
  REQUIRE(json["tokens"] == 49);
  REQUIRE(json["layers"].size() == 2);
  const Json& layer = json["layers"][1];
  REQUIRE(layer["layer"] == 1);
  REQUIRE(layer["count"][2][2] == edges.layers[1].count_EE[2][2].item<std::int64_t>());
  const Json& iteration = layer["iterations"][1];
  const double found = iteration["mean"][1][2].get<double>();
  const double expected = mean_strength(edges.layers[1], edges.layers[1].iterations[1])[1][2].item<double>();
  REQUIRE(std::abs(found - expected) <= 1e-5 * expected);  // six digits are written
  REQUIRE(iteration["slots"].size() == 2);
  REQUIRE(iteration["self_edge_share"].get<double>() == self_edge_share(edges.layers[1].iterations[1].slot_KK));

  const ModelConfig plain = tiny_config(/*with_dag=*/false);
  REQUIRE(edge_strength_json(edge_strength(tiny_model(plain), batches))["layers"].empty());
}
