#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

struct Inputs {
  at::Tensor q, k, v, factors;
};
Inputs random_inputs(std::int64_t num_tokens, std::int64_t H, std::int64_t Hk, std::int64_t d, at::ScalarType dtype) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto random = [&](std::int64_t heads) {
    return at::randn({num_tokens, heads, d}, generator, at::TensorOptions(at::kFloat)).to(dtype);
  };
  return {random(H), random(Hk), random(Hk), random(H)};
}

// Output, then the gradients of q, k and v.
template <class Attention>
std::vector<at::Tensor> run(Attention attention, const Inputs& inputs, at::ScalarType dtype, const Segments& segments,
                            std::int64_t window = 0) {
  std::vector<at::Tensor> in;
  for (const at::Tensor& tensor : {inputs.q, inputs.k, inputs.v})
    in.push_back(tensor.to(dtype).clone().set_requires_grad(true));
  const at::Tensor out = attention(in[0], in[1], in[2], segments, window);
  auto results = torch::autograd::grad({out}, in, {inputs.factors.to(dtype)});
  results.insert(results.begin(), out.detach());
  return results;
}

const std::vector<std::int64_t> kOffsets = {0, 1, 2, 9, 9, 42, 43, 120};

}  // namespace

TEST_CASE("segment_attention: the first token of a segment sees only itself", "[kernels]") {
  const Inputs in = random_inputs(120, 4, 2, 8, at::kFloat);
  const at::Tensor out = segment_attention(in.q, in.k, in.v, kOffsets);
  for (const std::int64_t first : {0, 1, 2, 9, 42, 43}) {
    require_close(out[first], in.v[first].repeat_interleave(2, 0), kFloatTolerance, kFloatTolerance);
  }
}

TEST_CASE("segment_attention: a packed row gives what separate rows give", "[kernels]") {
  const Inputs in = random_inputs(120, 4, 2, 8, at::kFloat);
  const at::Tensor out = segment_attention(in.q, in.k, in.v, kOffsets);
  const auto part = [](const at::Tensor& x) { return x.narrow(0, 9, 33); };
  require_close(part(out), segment_attention(part(in.q), part(in.k), part(in.v), {0, 33}), kFloatTolerance,
                kFloatTolerance);
}

TEST_CASE("segment_attention: float equals the reference in double, output and gradients", "[kernels]") {
  for (const std::int64_t Hk : {1, 3, 9}) {
    for (const std::int64_t d : {8, 64}) {
      INFO("9 heads, " << Hk << " key heads, width " << d);
      const Inputs in = random_inputs(120, 9, Hk, d, at::kFloat);
      const auto actual = run(segment_attention, in, at::kFloat, kOffsets);
      const auto expected = run(segment_attention_reference, in, at::kDouble, kOffsets);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        INFO("result " << i << " of output, grad q, grad k, grad v");
        require_close(actual[i], expected[i], kFloatTolerance, kFloatTolerance);
      }
    }
  }
}

TEST_CASE("segment_attention: a window hides all but the last tokens, in long segments and short ones", "[kernels]") {
  const std::vector<std::int64_t> offsets = {0, 7, 1100, 1150};  // longer than a block of queries, and shorter
  const Inputs in = random_inputs(1150, 4, 2, 8, at::kFloat);
  for (const std::int64_t window : {1, 50, 700, 5000}) {
    INFO("window " << window);
    const auto actual = run(segment_attention, in, at::kFloat, offsets, window);
    const auto expected = run(segment_attention_reference, in, at::kDouble, offsets, window);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      INFO("result " << i << " of output, grad q, grad k, grad v");
      require_close(actual[i], expected[i], kFloatTolerance, kFloatTolerance);
    }
  }
  require_equal(segment_attention(in.q, in.k, in.v, offsets, 1), in.v.repeat_interleave(2, 1));
}

TEST_CASE("segment_attention: bfloat16 is near the reference in double, output and gradients", "[kernels]") {
  for (const std::int64_t Hk : {1, 3, 9}) {
    INFO("9 heads, " << Hk << " key heads");
    const Inputs in = random_inputs(120, 9, Hk, 16, at::kBFloat16);
    const auto actual = run(segment_attention, in, at::kBFloat16, kOffsets);
    const auto expected = run(segment_attention_reference, in, at::kDouble, kOffsets);
    // The gradients begin with the output as rounded to bfloat16, and up to 77 products of them cancel: so the absolute
    // part is bfloat16's too, in units of the largest result.
    for (std::size_t i = 0; i < actual.size(); ++i) {
      INFO("result " << i << " of output, grad q, grad k, grad v");
      REQUIRE(actual[i].scalar_type() == at::kBFloat16);
      require_close(actual[i], expected[i], kBf16Tolerance * expected[i].abs().max().item<double>(), kBf16Tolerance);
    }
  }
}

TEST_CASE("segment_attention: any number of heads and any width, with and without a window", "[kernels]") {
  struct Shape {
    std::int64_t H, Hk, d;
  };
  // Widths below, above and between multiples of a vector; a group of more heads than a block has rows for 16 queries.
  for (const Shape shape : {Shape{1, 1, 1}, Shape{5, 1, 3}, Shape{2, 2, 20}, Shape{14, 2, 33}, Shape{40, 1, 16}}) {
    for (const std::int64_t window : {0, 1, 13}) {
      INFO(shape.H << " heads, " << shape.Hk << " key heads, width " << shape.d << ", window " << window);
      const Inputs in = random_inputs(120, shape.H, shape.Hk, shape.d, at::kFloat);
      const auto actual = run(segment_attention, in, at::kFloat, kOffsets, window);
      const auto expected = run(segment_attention_reference, in, at::kDouble, kOffsets, window);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        INFO("result " << i << " of output, grad q, grad k, grad v");
        require_close(actual[i], expected[i], kFloatTolerance, kFloatTolerance);
      }
    }
  }
}

TEST_CASE("segment_attention: a long segment's parts add up, the same on any number of threads", "[kernels]") {
  const std::vector<std::int64_t> offsets = {0, 20, 2150};  // the second in four tasks a key head
  const Inputs in = random_inputs(2150, 2, 1, 8, at::kFloat);
  const int num_threads = at::get_num_threads();
  for (const std::int64_t window : {0, 300, 1500}) {
    INFO("window " << window);
    const auto expected = run(segment_attention_reference, in, at::kDouble, offsets, window);
    at::set_num_threads(1);
    const auto one = run(segment_attention, in, at::kFloat, offsets, window);
    for (const int threads : {2, 3}) {
      at::set_num_threads(threads);
      const auto many = run(segment_attention, in, at::kFloat, offsets, window);
      for (std::size_t i = 0; i < many.size(); ++i) require_equal(many[i], one[i]);
    }
    at::set_num_threads(num_threads);
    for (std::size_t i = 0; i < one.size(); ++i) {
      INFO("result " << i << " of output, grad q, grad k, grad v");
      require_close(one[i], expected[i], kFloatTolerance, kFloatTolerance);
    }
  }
}

TEST_CASE("segment_attention: not a number stays in its segment and shows", "[kernels]") {
  const Inputs in = random_inputs(40, 2, 1, 8, at::kFloat);
  in.k[20].fill_(NAN);
  const auto results = run(segment_attention, in, at::kFloat, {0, 15, 40});
  const at::Tensor out = results[0];
  REQUIRE(out.narrow(0, 0, 20).isfinite().all().item<bool>());  // tokens before it do not see it
  REQUIRE(out.narrow(0, 20, 20).isnan().all().item<bool>());
  for (std::size_t i = 1; i < results.size(); ++i) REQUIRE(results[i].narrow(0, 0, 15).isfinite().all().item<bool>());
}

TEST_CASE("segment_attention: gradients of the reference match central differences", "[kernels]") {
  const Inputs in = random_inputs(9, 4, 2, 3, at::kDouble);
  const auto trained = [](const at::Tensor& x) { return x.clone().set_requires_grad(true); };
  require_gradients_match(
      [](const std::vector<at::Tensor>& x) {
        return segment_attention(x[0], x[1], x[2], {0, 1, 5, 9});
      },
      {trained(in.q), trained(in.k), trained(in.v)});
}

TEST_CASE("segment_attention: slices of one fused matrix need no copy and give the same", "[kernels]") {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(8);
  const at::Tensor fused = at::randn({40, 4 + 2 + 2, 8}, generator, at::TensorOptions(at::kFloat));
  const auto parts = fused.split_with_sizes({4, 2, 2}, 1);
  require_equal(segment_attention(parts[0], parts[1], parts[2], {0, 15, 40}),
                segment_attention(parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous(), {0, 15, 40}));
}

TEST_CASE("segment_attention: gradients of slices, and a gradient that comes with strides", "[kernels]") {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(8);
  const at::Tensor fused = at::randn({40, 4 + 2 + 2, 8}, generator, at::TensorOptions(at::kFloat));
  const at::Tensor factors = at::randn({8, 4, 40}, generator, at::TensorOptions(at::kFloat)).permute({2, 1, 0});
  const auto gradient = [&](auto attention) {
    const at::Tensor leaf = fused.clone().set_requires_grad(true);
    const auto parts = leaf.split_with_sizes({4, 2, 2}, 1);
    const at::Tensor out = attention(parts[0], parts[1], parts[2], Segments({0, 15, 40}), 0);
    return torch::autograd::grad({out}, {leaf}, {factors})[0];
  };
  require_close(gradient(segment_attention), gradient(segment_attention_reference), kFloatTolerance, kFloatTolerance);
}

TEST_CASE("segment_attention: results repeat bit for bit on any number of threads", "[kernels]") {
  const Inputs in = random_inputs(120, 9, 3, 16, at::kBFloat16);
  const int num_threads = at::get_num_threads();
  for (const Segments& segments : {Segments(kOffsets), Segments({0, 30, 43, 50, 90, 120}, {-1, 0, 0, 0, 0})}) {
    INFO("a common beginning: " << segments.share_prefixes());
    const auto many = run(segment_attention, in, at::kBFloat16, segments);
    at::set_num_threads(1);
    const auto one = run(segment_attention, in, at::kBFloat16, segments);
    at::set_num_threads(num_threads);
    for (std::size_t i = 0; i < many.size(); ++i) require_equal(many[i], one[i]);
  }
}

TEST_CASE("segment_attention: large scores neither overflow nor lose their softmax", "[kernels]") {
  Inputs in = random_inputs(30, 2, 2, 8, at::kFloat);
  in.q = in.q * 300;
  require_close(segment_attention(in.q, in.k, in.v, {0, 30}),
                segment_attention_reference(in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble), {0, 30}),
                // Scores of several hundred carry an error of their last bit into the exponential.
                1e-3, 1e-3);
}

namespace {

// Each sequence whole, beginnings copied to all that go on from them; the results of every row itself.
std::vector<at::Tensor> run_spread(const Inputs& in, const Segments& segments, std::int64_t window) {
  const SpreadRows spread = spread_rows(segments);
  const at::Tensor rows = at::tensor(spread.rows, at::kLong), own = at::tensor(spread.own, at::kLong);
  std::vector<at::Tensor> leaves, copies;
  for (const at::Tensor& tensor : {in.q, in.k, in.v}) {
    leaves.push_back(tensor.to(at::kDouble).set_requires_grad(true));
    copies.push_back(leaves.back().index_select(0, rows));
  }
  const at::Tensor out =
      segment_attention_reference(copies[0], copies[1], copies[2], spread.offsets, window).index_select(0, own);
  auto results = torch::autograd::grad({out}, leaves, {in.factors.to(at::kDouble)});
  results.insert(results.begin(), out.detach());
  return results;
}

}  // namespace

TEST_CASE("segment_attention: sequences that go on from a common beginning give what copies of it give", "[kernels]") {
  // Three go on from rows 0 to 39, one from none, an empty one and one of 1,200 rows (several tasks) from rows 60
  // to 64.
  const Segments segments({0, 40, 43, 50, 60, 65, 66, 66, 1266}, {-1, 0, 0, -1, -1, 0, 4, 4});
  for (const std::int64_t window : {0, 1, 13, 45, 700}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      INFO("window " << window << ", " << at::toString(dtype));
      const Inputs in = random_inputs(1266, 6, 2, 12, dtype);
      const auto expected = run_spread(in, segments, window);
      const auto reference = run(segment_attention_reference, in, at::kDouble, segments, window);
      const auto actual = run(segment_attention, in, dtype, segments, window);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        INFO("result " << i << " of output, grad q, grad k, grad v");
        require_close(reference[i], expected[i], 1e-12, 1e-12);
        const double tolerance = dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
        // A window of one token leaves no slope: what remains of rounding is compared with 1e-3.
        const double unit = dtype == at::kFloat ? 1.0 : std::max(1e-3, expected[i].abs().max().item<double>());
        require_close(actual[i], expected[i], tolerance * unit, tolerance);
      }
    }
  }
}

TEST_CASE("segment_attention: prefixes that are no segments before, or have prefixes themselves, are internal errors",
          "[kernels]") {
  const Inputs in = random_inputs(10, 4, 2, 8, at::kFloat);
  const std::vector<std::int64_t> offsets = {0, 2, 5, 10};
  using Prefixes = std::vector<std::int64_t>;
  for (const Prefixes& prefixes : {Prefixes{0, -1, -1}, Prefixes{-1, 2, -1}, Prefixes{-1, 0, 1}, Prefixes{-1, 0},
                                   Prefixes{-1, -2, 0}, Prefixes{-1, 0, 3}}) {
    REQUIRE_THROWS_AS(segment_attention(in.q, in.k, in.v, Segments(offsets, prefixes)), InternalError);
  }
}

TEST_CASE("segment_attention: offsets that do not cover the tokens are an internal error", "[kernels]") {
  const Inputs in = random_inputs(10, 4, 2, 8, at::kFloat);
  REQUIRE_THROWS_AS(segment_attention(in.q, in.k, in.v, {0, 9}), InternalError);
  REQUIRE_THROWS_AS(segment_attention(in.q, in.k, in.v, {1, 10}), InternalError);
  REQUIRE_THROWS_AS(segment_attention(in.q, in.k, in.v, {0, 7, 5, 10}), InternalError);
  REQUIRE_THROWS_AS(segment_attention(in.q.narrow(1, 0, 3), in.k, in.v, {0, 10}), InternalError);
}
