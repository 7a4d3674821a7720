#include "checkpoint/upcycle.h"

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
    UpcycleConfig config{.num_experts = experts, .num_experts_per_tok = top_k, .num_shards = shards, .force = true};
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

TEST_CASE("upcycle: a model with experts is refused", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "moe");
  REQUIRE_THROWS_WITH(upcycle(folder / "moe", folder / "again", {}), Catch::Contains("has experts already"));
}
