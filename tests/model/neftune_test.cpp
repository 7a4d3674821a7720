#include "model/neftune.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

TEST_CASE("neftune: noise is uniform within alpha / sqrt(S D) of each sequence's own length", "[model]") {
  constexpr std::int64_t kWidth = 96;
  const std::vector<std::int64_t> lengths{1, 400, 37};
  const at::Tensor noise = neftune_noise({0, 1, 401, 438}, kWidth, 5.0, 11);
  REQUIRE(noise.sizes() == at::IntArrayRef({438, kWidth}));
  std::int64_t begin = 0;
  for (const std::int64_t S : lengths) {
    const double bound = 5.0 / std::sqrt(static_cast<double>(S * kWidth)), n = static_cast<double>(S * kWidth);
    const at::Tensor part = noise.narrow(0, begin, S).to(at::kDouble) / bound;
    INFO("S " << S);
    REQUIRE(part.abs().max().item<double>() <= 1.0 + 1e-6);
    REQUIRE(part.abs().max().item<double>() > 1.0 - 10 / n);
    // Mean 0 and variance 1/3, each within five standard deviations; the variance of x^2 is 4/45.
    REQUIRE(std::abs(part.mean().item<double>()) < 5 * std::sqrt(1 / (3 * n)));
    REQUIRE(std::abs(part.square().mean().item<double>() - 1.0 / 3) < 5 * std::sqrt(4 / (45 * n)));
    begin += S;
  }
}

TEST_CASE("neftune: all ten tenths of the interval are equally likely, and neighbours do not hang together",
          "[model]") {
  constexpr std::int64_t kTokens = 1000, kWidth = 200;
  const double n = kTokens * kWidth;
  const at::Tensor noise =
      neftune_noise({0, kTokens}, kWidth, std::sqrt(n), 1).to(at::kDouble).flatten();  // within (-1, 1)
  const at::Tensor counts = at::histc(noise, 10, -1, 1);
  REQUIRE((counts - n / 10).abs().max().item<double>() < 5 * std::sqrt(n * 0.09));
  for (const std::int64_t lag : {std::int64_t{1}, kWidth}) {
    const auto size = noise.size(0) - lag;
    const double product = (noise.narrow(0, 0, size) * noise.narrow(0, lag, size)).mean().item<double>();
    REQUIRE(std::abs(product) < 5 / (3 * std::sqrt(n)));
  }
}

TEST_CASE("neftune: noise depends on the seed and the sequence, not on threads or micro batches", "[model]") {
  const std::vector<std::int64_t> offsets{0, 300, 310, 900};
  const at::Tensor noise = neftune_noise(offsets, 64, 5.0, 7, 20);
  const int num_threads = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    const at::Tensor again = neftune_noise(offsets, 64, 5.0, 7, 20);
    at::set_num_threads(num_threads);
    REQUIRE(at::equal(again, noise));
  }
  REQUIRE(at::equal(neftune_noise({0, 10, 600}, 64, 5.0, 7, 21), noise.narrow(0, 300, 600)));
  REQUIRE_FALSE(at::equal(neftune_noise(offsets, 64, 5.0, 8, 20), noise));
  // Another sequence of the same length gets other noise.
  const at::Tensor pair = neftune_noise({0, 50, 100}, 64, 5.0, 7);
  REQUIRE_FALSE(at::equal(pair.narrow(0, 0, 50), pair.narrow(0, 50, 50)));
}
