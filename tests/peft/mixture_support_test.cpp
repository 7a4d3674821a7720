#include "peft/mixture_support.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "tests/peft/mixture_reference.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

TEST_CASE("mixture: the k largest are the start of a stable sort, ties and all", "[peft]") {
  // Rounded, so that most rows have ties.
  const at::Tensor scores = (random_normal({40, 3, 7}, 1) * 2.0).round();
  const at::Tensor order = std::get<1>(at::sort(scores, /*stable=*/true, -1, /*descending=*/true));
  for (const std::int64_t k : {1, 3, 7}) {
    REQUIRE(at::equal(stable_top_k(scores, k), order.narrow(-1, 0, k)));
    REQUIRE(at::equal(stable_top_k(scores.to(at::kFloat).transpose(0, 1), k), order.narrow(-1, 0, k).transpose(0, 1)));
  }
  REQUIRE(stable_top_k(at::zeros({0, 3, 7}), 2).sizes() == at::IntArrayRef({0, 3, 2}));
}

TEST_CASE("mixture: a wrong shape is named with its tensor", "[peft]") {
  const std::vector<NamedShape> shapes = {{"a", {2, 3}}, {"b", {4}}};
  expect_shapes("kind", shapes, {at::zeros({2, 3}), at::zeros({4})});
  REQUIRE_THROWS_WITH(expect_shapes("kind", shapes, {at::zeros({2, 3}), at::zeros({5})}),
                      "kind: b: found shape [5], expected [4]");
  REQUIRE_THROWS_WITH(expect_shapes("kind", shapes, {at::zeros({2, 3})}), "kind: 1 tensors, expected 2");
}
