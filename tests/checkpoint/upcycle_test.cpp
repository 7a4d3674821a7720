#include "checkpoint/upcycle.h"

#include <ATen/ops/linalg_svd.h>

#include <algorithm>

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

Decoder load(const std::filesystem::path& folder) { return load_decoder(Checkpoint::open(folder), {}); }

std::vector<TokenId> some_tokens() {
  std::vector<TokenId> tokens;
  for (int i = 0; i < 300; ++i) tokens.push_back((i * 37 + 5) % 259);
  return tokens;
}

}  // namespace

TEST_CASE("upcycle: the result computes the dense model's function", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "dense", /*dense=*/true);
  for (const auto& [experts, top_k, shards] :
       {std::tuple<int, int, int>{8, 4, 0}, {4, 2, 0}, {8, 4, 2}, {3, 1, 0}, {4, 4, 4}}) {
    INFO(experts << " experts, top " << top_k << ", " << shards << " shards");
    UpcycleConfig config{.num_experts = experts, .num_experts_per_tok = top_k, .force = true};
    if (shards > 0) config.num_shards = shards;
    upcycle(folder / "dense", folder / "moe", config);
    const Comparison comparison = compare_models(load(folder / "dense"), load(folder / "moe"), some_tokens());
    REQUIRE(comparison.max_logit_difference <= 1e-5 * comparison.max_logit);
    REQUIRE(comparison.kl_per_token <= 1e-9);
  }
}

TEST_CASE("upcycle: shards of one copy have tied logits, so that whole copies are chosen", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "dense", /*dense=*/true);
  upcycle(folder / "dense", folder / "moe", {});
  const Decoder model = load(folder / "moe");
  const ModelOutput output = model.forward(packed_input((at::arange(200) * 7) % 259, {200}));
  for (const Routing& routing : output.routing) {
    const at::Tensor copy_TK = at::div(routing.expert_ids_TK, 4, "floor");
    REQUIRE(at::equal(copy_TK, copy_TK.select(1, 0).unsqueeze(1).expand_as(copy_TK)));
    require_close(routing.weights_TK, at::full_like(routing.weights_TK, 0.25), 1e-6, 0);
  }
}

TEST_CASE("upcycle: numbers that do not fit together are all reported", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "dense", /*dense=*/true);
  try {
    upcycle(folder / "dense", folder / "moe", {.num_experts = 7, .num_experts_per_tok = 5, .num_shards = 5});
    FAIL("expected ConfigError");
  } catch (const ConfigError& error) {
    REQUIRE(error.issues().size() == 2);
    REQUIRE_THAT(error.what(), Catch::Contains("--experts: found 7, expected a multiple of the number of shards (5)"));
    REQUIRE_THAT(error.what(), Catch::Contains("5 does not divide intermediate_size (24)"));
  }
  REQUIRE_FALSE(std::filesystem::exists(folder / "moe"));
}

TEST_CASE("upcycle: a model that has an aggregator already is refused", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "moe");
  REQUIRE_THROWS_WITH(upcycle(folder / "moe", folder / "again", {}), Catch::Contains("has a DAG aggregator already"));
}

namespace {

// A family's golden folder, which has no tokenizer; experts and DAG are added to it.
Comparison upcycled_family(const TemporaryFolder& folder, const std::string& family, UpcycleConfig config) {
  config.force = true;
  config.dag.node_size = 4;
  upcycle(golden("families/" + family), folder / "moe", config);
  std::vector<TokenId> tokens;
  for (int i = 0; i < 60; ++i) tokens.push_back((i * 17 + 5) % 41);
  return compare_models(load(golden("families/" + family)), load(folder / "moe"), tokens);
}

}  // namespace

TEST_CASE("upcycle: exact methods are exact for every dense family", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const std::string family : {"llama_linear", "llama_llama3", "llama_yarn", "mistral", "qwen2", "qwen3"}) {
    for (const UpcycleMethod method : {UpcycleMethod::kVirtualGroup, UpcycleMethod::kCopy}) {
      INFO(family << ", " << upcycle_method_names()[static_cast<std::size_t>(method)]);
      const Comparison comparison = upcycled_family(folder, family, {.method = method});
      REQUIRE(comparison.max_logit_difference <= 1e-5 * comparison.max_logit);
    }
  }
}

TEST_CASE("upcycle: spri begins near the dense model, drop and copy_noise farther away", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const std::string family : {"mistral", "qwen2", "qwen3"}) {
    INFO(family);
    const Comparison spri = upcycled_family(folder, family, {.method = UpcycleMethod::kSpri});
    REQUIRE(spri.max_logit_difference > 0.0);
    REQUIRE(spri.max_logit_difference <= 0.02 * spri.max_logit);
    const Comparison noise = upcycled_family(folder, family, {.method = UpcycleMethod::kCopyNoise});
    const Comparison drop = upcycled_family(folder, family, {.method = UpcycleMethod::kDrop});
    REQUIRE(noise.kl_per_token > 0.0);
    REQUIRE(drop.kl_per_token > noise.kl_per_token);
  }
}

TEST_CASE("upcycle: drop keeps the other half of each matrix's hidden units and draws the rest", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const bool shared : {false, true}) {
    upcycled_family(folder, "mistral", {.method = UpcycleMethod::kDrop, .drop_shared_set = shared});
    const Decoder dense = load(golden("families/mistral")), moe = load(folder / "moe");
    const auto kept = [](const at::Tensor& expert_FD, const at::Tensor& dense_FD) {
      // [F, F]: is unit i of the expert unit j of the dense network?
      return (expert_FD.unsqueeze(1) == dense_FD.unsqueeze(0)).all(2);
    };
    const FeedForward& from = dense.layers[0].dense;
    const auto& to = moe.layers[0].experts;
    for (std::size_t e = 0; e < to.gate_FD.size(); ++e) {
      const at::Tensor gate = kept(to.gate_FD[e], from.gate_proj.weight), up = kept(to.up_FD[e], from.up_proj.weight),
                       down = kept(to.down_DF[e].t(), from.down_proj.weight.t());
      for (const at::Tensor& matrix : {gate, up, down}) REQUIRE(matrix.sum().item<std::int64_t>() == 10);  // F = 20
      // One permutation for the three: units kept in two of them come from the same place.
      const at::Tensor both = at::logical_and(gate.any(1), up.any(1)).unsqueeze(1);
      REQUIRE(at::equal(at::logical_and(gate, both), at::logical_and(up, both)));
      REQUIRE(at::equal(gate, up) == shared);
    }
  }
}

TEST_CASE("upcycle: spri's routed W_down are blocks of singular directions of the given size", "[checkpoint]") {
  const TemporaryFolder folder;
  upcycled_family(folder, "mistral", {.method = UpcycleMethod::kSpri, .num_experts = 4, .num_experts_per_tok = 2});
  const Decoder dense = load(golden("families/mistral")), moe = load(folder / "moe");
  const at::Tensor down = dense.layers[1].dense.down_proj.weight;
  const auto [U, s, Vh] = at::linalg_svd(down, false);
  REQUIRE(at::equal(moe.layers[1].shared_expert.down_proj.weight, down));
  for (std::size_t e = 0; e < 4; ++e) {
    const at::Tensor& expert = moe.layers[1].experts.down_DF[e];
    REQUIRE(expert.norm().item<double>() == Approx(1e-3 * down.norm().item<double>()).epsilon(0.01));
    const std::int64_t begin = e < 2 ? 0 : 8;  // rank 16, two groups
    const at::Tensor inside = at::matmul(U.narrow(1, begin, 8).t(), expert);
    REQUIRE(inside.norm().item<double>() == Approx(expert.norm().item<double>()).epsilon(0.01));
    REQUIRE(at::equal(moe.layers[1].experts.up_FD[e], dense.layers[1].dense.up_proj.weight));
  }
  REQUIRE_FALSE(at::equal(moe.layers[1].experts.down_DF[0], moe.layers[1].experts.down_DF[1]));
}

TEST_CASE("upcycle: a model with experts of any family keeps them and gets the DAG", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const std::string family : {"mixtral", "mixtral_fused", "olmoe", "qwen2_moe", "qwen3_moe_raw", "deepseek_v2"}) {
    INFO(family);
    const Comparison comparison = upcycled_family(folder, family, {});
    REQUIRE(comparison.max_logit_difference == 0.0);
    const Checkpoint source = Checkpoint::open(golden("families/" + family)), result = Checkpoint::open(folder / "moe");
    for (const TensorInfo* info : source.tensors()) {
      REQUIRE(std::ranges::equal(source.bytes(info->name), result.bytes(info->name)));
    }
    REQUIRE(result.config().base_model_type == source.config().model_type);
  }
}

TEST_CASE("upcycle: settings that have no effect, and sources that no family can express, are refused",
          "[checkpoint]") {
  const TemporaryFolder folder;
  const auto run = [&](const std::string& family, const UpcycleConfig& config) {
    upcycle(golden("families/" + family), folder / "moe", config);
  };
  REQUIRE_THROWS_WITH(run("mixtral", {.num_experts = 4}), Catch::Contains("has experts already and only gets the DAG"));
  REQUIRE_THROWS_WITH(run("mistral", {.method = UpcycleMethod::kCopy, .num_shards = 2}),
                      Catch::Contains("--shards: has no effect with --method copy"));
  REQUIRE_THROWS_WITH(run("mistral", {.method = UpcycleMethod::kSpri, .num_experts = 5, .num_experts_per_tok = 2}),
                      Catch::Contains("--experts: found 5, expected a multiple of --top-k (2)"));
  REQUIRE_THROWS_WITH(run("llama_bias", {}), Catch::Contains("'mlp_bias') cannot be expressed"));
  REQUIRE_THROWS_WITH(run("qwen2_window", {}), Catch::Contains("a sliding window beside biases"));
  REQUIRE_FALSE(std::filesystem::exists(folder / "moe"));
}
