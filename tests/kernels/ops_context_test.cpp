#include <ATen/ATen.h>

#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

struct Inputs {
  at::Tensor q, k, v, cached_k, cached_v;
  Inputs to(at::ScalarType dtype) const {
    return {q.to(dtype), k.to(dtype), v.to(dtype), cached_k.to(dtype), cached_v.to(dtype)};
  }
};
Inputs random_inputs(std::int64_t num_tokens, std::int64_t num_cached, std::int64_t H, std::int64_t Hk,
                     std::int64_t d) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto random = [&](std::int64_t rows, std::int64_t heads) {
    return at::randn({rows, heads, d}, generator, at::TensorOptions(at::kDouble));
  };
  return {random(num_tokens, H), random(num_tokens, Hk), random(num_tokens, Hk), random(num_cached, Hk),
          random(num_cached, Hk)};
}
at::Tensor attend(const Inputs& in, const std::vector<ContextSegment>& segments, std::int64_t window = 0) {
  return context_attention(in.q, in.k, in.v, in.cached_k, in.cached_v, segments, window);
}

// A prompt, two continuations of it, one of the cache and the prompt, one token on the cache, nothing.
const std::vector<ContextSegment> kSegments = {
    {0, 40, {}},
    {40, 3, {{false, 0, 40}}},
    {43, 17, {{false, 0, 25}}},
    {60, 5, {{true, 10, 20}, {false, 0, 40}, {false, 40, 2}}},
    {65, 1, {{true, 0, 50}}},
    {66, 0, {{true, 0, 50}}},
    {66, 30, {{true, 3, 1}, {true, 20, 2}}},
};
constexpr std::int64_t kRows = 96, kCached = 50;

}  // namespace

TEST_CASE("context_attention: float and bfloat16 agree with the reference in double", "[kernels]") {
  for (const auto& [H, Hk, d] : {std::tuple{4, 2, 8}, std::tuple{9, 3, 64}, std::tuple{3, 3, 5}}) {
    const Inputs in = random_inputs(kRows, kCached, H, Hk, d);
    for (const std::int64_t window : {0, 1, 13}) {
      INFO(H << " heads over " << Hk << " of " << d << ", window " << window);
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        const Inputs low = in.to(dtype), same = low.to(at::kDouble);
        const at::Tensor expected =
            context_attention_reference(same.q, same.k, same.v, same.cached_k, same.cached_v, kSegments, window);
        const double tolerance = dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
        require_close(attend(low, kSegments, window), expected, tolerance, tolerance);
      }
    }
  }
}

TEST_CASE("context_attention: a text cut anywhere gives what it gives whole", "[kernels]") {
  const Inputs in = random_inputs(kRows, kRows, 6, 2, 16).to(at::kFloat);
  const at::Tensor whole = segment_attention(in.q, in.k, in.v, {0, kRows});
  require_close(attend(in, {{0, kRows, {}}}), whole, kFloatTolerance, kFloatTolerance);
  for (const std::int64_t cut : {1, 31, 95}) {
    require_close(attend(in, {{0, cut, {}}, {cut, kRows - cut, {{false, 0, cut}}}}), whole, kFloatTolerance,
                  kFloatTolerance);
    // The first part's keys lie in the cache, at other rows.
    Inputs cached = in;
    cached.cached_k = at::cat({in.v.narrow(0, 0, 7), in.k.narrow(0, 0, cut)});
    cached.cached_v = at::cat({in.k.narrow(0, 0, 7), in.v.narrow(0, 0, cut)});
    const at::Tensor rest = attend(cached, {{cut, kRows - cut, {{true, 7, cut}}}}).narrow(0, cut, kRows - cut);
    require_close(rest, whole.narrow(0, cut, kRows - cut), kFloatTolerance, kFloatTolerance);
  }
}

TEST_CASE("context_attention: long segments are cut into blocks of queries without a trace", "[kernels]") {
  const Inputs in = random_inputs(1500, 1, 3, 1, 8).to(at::kFloat);
  require_close(attend(in, {{0, 1500, {}}}), segment_attention(in.q, in.k, in.v, {0, 1500}), kFloatTolerance,
                kFloatTolerance);
}

TEST_CASE("context_attention: rows outside every segment are zero, and segments see nothing else", "[kernels]") {
  const Inputs in = random_inputs(10, 4, 2, 1, 4).to(at::kFloat);
  const std::vector<ContextSegment> segments = {{2, 3, {}}, {6, 2, {{true, 1, 2}, {false, 2, 3}}}};
  const at::Tensor out = attend(in, segments);
  for (const std::int64_t row : {0, 1, 5, 8, 9}) CHECK(out[row].abs().max().item<float>() == 0);
  Inputs other = in.to(at::kFloat);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (auto* tensor : {&other.q, &other.k, &other.v}) {
    *tensor = tensor->clone();
    for (const std::int64_t row : {0, 1, 5, 8, 9}) (*tensor)[row].fill_(nan);
  }
  for (auto* tensor : {&other.cached_k, &other.cached_v}) {
    *tensor = tensor->clone();
    for (const std::int64_t row : {0, 3}) (*tensor)[row].fill_(nan);
  }
  CHECK(at::equal(attend(other, segments), out));
}

TEST_CASE("context_attention: wrong shapes are our own mistake", "[kernels]") {
  const Inputs in = random_inputs(10, 4, 2, 1, 4).to(at::kFloat);
  CHECK_THROWS_AS(attend(in, {{8, 3, {}}}), InternalError);
  CHECK_THROWS_AS(attend(in, {{0, 3, {{true, 2, 3}}}}), InternalError);
  CHECK_THROWS_AS(attend(in, {{0, 3, {{false, 8, 3}}}}), InternalError);
  CHECK_THROWS_AS(context_attention(in.q, in.k, in.v, {}, {}, {{0, 3, {{true, 0, 1}}}}), InternalError);
}

TEST_CASE("summarize_logits: log sum exp and the first argmax", "[kernels]") {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  for (const std::int64_t V : {1, 15, 33, 1000}) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const at::Tensor logits = (at::randn({7, V}, generator, at::kDouble) * 4).to(dtype);
      const RowSummary summary = summarize_logits(logits);
      const at::Tensor expected = at::logsumexp(logits.to(at::kDouble), {-1});
      for (std::size_t n = 0; n < 7; ++n) {
        CHECK(summary.log_sum_exp[n] == Approx(expected[static_cast<std::int64_t>(n)].item<double>()).epsilon(1e-6));
        const at::Tensor row = logits[static_cast<std::int64_t>(n)].to(at::kDouble);
        CHECK(row[summary.argmax[n]].item<double>() == row.max().item<double>());
      }
    }
  }
  // A few likely classes and a long tail: summed in one float, the tail would be lost by more than 1e-6.
  const at::Tensor tailed = at::randn({16, 49152}, generator, at::kFloat) * 2.5;
  tailed.select(1, 0).fill_(20);
  const at::Tensor exact = at::logsumexp(tailed.to(at::kDouble), {-1});
  const RowSummary summary = summarize_logits(tailed);
  double error = 0;
  for (std::size_t n = 0; n < 16; ++n)
    error += (summary.log_sum_exp[n] - exact[static_cast<std::int64_t>(n)].item<double>()) / 16;
  CHECK(std::abs(error) < 5e-7);
  const at::Tensor ties = at::tensor({1.0F, 3.0F, 2.0F, 3.0F}).unsqueeze(0);
  CHECK(summarize_logits(ties).argmax[0] == 1);
  const at::Tensor broken = at::tensor({1.0F, std::numeric_limits<float>::quiet_NaN()}).unsqueeze(0);
  CHECK_FALSE(std::isfinite(summarize_logits(broken).log_sum_exp[0]));
}
