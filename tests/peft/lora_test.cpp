// Adapters of linear layers against their equations in plain double arithmetic, and gradients against central
// differences. Letters: R rank, I inputs, O outputs, T tokens, E experts.
#include "peft/lora.h"

#include <torch/csrc/autograd/autograd.h>

#include "base/error.h"
#include "tests/peft/mixture_reference.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr std::int64_t kT = 7, kIn = 6, kOut = 5, kRank = 3;

at::Tensor trained(const at::Tensor& tensor) { return tensor.detach().clone().set_requires_grad(true); }

struct Layer {
  at::Tensor x_TI = random_normal({kT, kIn}, 1), weight_OI = random_normal({kOut, kIn}, 2, 0.4),
             bias_O = random_normal({kOut}, 3);
  at::Tensor y_TO() const { return at::linear(x_TI, weight_OI, bias_O); }
  Layer to(at::ScalarType dtype) const { return {x_TI.to(dtype), weight_OI.to(dtype), bias_O.to(dtype)}; }
};

LoraAdapter random_adapter(std::uint64_t seed, std::int64_t rank = kRank) {
  return {.a_RI = random_normal({rank, kIn}, seed, 0.4),
          .b_OR = random_normal({kOut, rank}, seed + 1, 0.4),
          .scale = 1.7,
          .id = seed};
}
LoraAdapter random_dora(std::uint64_t seed) {
  LoraAdapter adapter = random_adapter(seed);
  adapter.magnitude_O = random_normal({kOut}, seed + 2).abs() + 0.5;
  return adapter;
}
LoraAdapter random_pissa(std::uint64_t seed) {
  LoraAdapter adapter = random_adapter(seed);
  adapter.initial_a_RI = random_normal({kRank, kIn}, seed + 3, 0.4);
  adapter.initial_b_OR = random_normal({kOut, kRank}, seed + 4, 0.4);
  return adapter;
}
LoraAdapter cast_adapter(LoraAdapter adapter, at::ScalarType dtype) {
  for (at::Tensor* tensor :
       {&adapter.a_RI, &adapter.b_OR, &adapter.magnitude_O, &adapter.initial_a_RI, &adapter.initial_b_OR}) {
    if (tensor->defined()) *tensor = tensor->to(dtype);
  }
  return adapter;
}

// (B A)[o][i], one number at a time.
double product_at(const Vector& b, const Vector& a, std::size_t o, std::size_t i, std::size_t R) {
  double sum = 0.0;
  for (std::size_t r = 0; r < R; ++r) sum += b[o * R + r] * a[r * kIn + i];
  return sum;
}

// The matrix that one adapter makes of W: W + s B A (- s B0 A0), and with DoRA m_o (W + s B A)_o / |(W + s B A)_o|.
at::Tensor changed_matrix(const at::Tensor& weight_OI, const LoraAdapter& adapter) {
  const Vector w = vector_of(weight_OI), a = vector_of(adapter.a_RI), b = vector_of(adapter.b_OR);
  const auto R = static_cast<std::size_t>(adapter.a_RI.size(0));
  Vector changed(w.size());
  for (std::size_t o = 0; o < kOut; ++o) {
    double square = 0.0;
    for (std::size_t i = 0; i < kIn; ++i) {
      double& value = changed[o * kIn + i];
      value = w[o * kIn + i] + adapter.scale * product_at(b, a, o, i, R);
      if (adapter.initial_a_RI.defined())
        value -= adapter.scale * product_at(vector_of(adapter.initial_b_OR), vector_of(adapter.initial_a_RI), o, i, R);
      square += value * value;
    }
    if (!adapter.magnitude_O.defined()) continue;
    const double factor = vector_of(adapter.magnitude_O)[o] / std::sqrt(square);
    for (std::size_t i = 0; i < kIn; ++i) changed[o * kIn + i] *= factor;
  }
  return at::tensor(changed, at::kDouble).view({kOut, kIn});
}

// x (W + sum of the changes)^T + b, token by token.
at::Tensor reference(const Layer& layer, const std::vector<LoraAdapter>& adapters) {
  at::Tensor total_OI = layer.weight_OI.to(at::kDouble);
  for (const LoraAdapter& adapter : adapters)
    total_OI = total_OI + changed_matrix(layer.weight_OI, adapter) - layer.weight_OI.to(at::kDouble);
  at::Tensor result = at::empty({layer.x_TI.size(0), kOut}, at::kDouble);
  for (std::int64_t t = 0; t < layer.x_TI.size(0); ++t)
    result[t].copy_(at::tensor(plus(times(total_OI, vector_of(layer.x_TI[t])), vector_of(layer.bias_O)), at::kDouble));
  return result;
}

at::Tensor add(const Layer& layer, const std::vector<LoraAdapter>& adapters, const AdapterPass& pass = {}) {
  return add_adapters(layer.y_TO(), layer.x_TI, layer.weight_OI, layer.bias_O, adapters, pass);
}

const std::vector<std::vector<LoraAdapter>> kCases = {
    {random_adapter(10)},
    {random_adapter(10, 1)},
    {random_adapter(10, 8)},  // more than the matrix has
    {random_dora(20)},
    {random_pissa(30)},
    {random_adapter(10), random_adapter(40, 2)},
    {random_adapter(10), random_dora(20), random_pissa(30)},
    {random_dora(20), random_dora(50)},
};

}  // namespace

TEST_CASE("lora: a changed layer is the equations', in double and in float", "[peft]") {
  for (std::size_t i = 0; i < kCases.size(); ++i) {
    INFO("case " << i);
    const Layer layer;
    require_close(add(layer, kCases[i]), reference(layer, kCases[i]), kDoubleTolerance, kDoubleTolerance);
    std::vector<LoraAdapter> in_float;
    for (const LoraAdapter& adapter : kCases[i]) in_float.push_back(cast_adapter(adapter, at::kFloat));
    const Layer float_layer = layer.to(at::kFloat);
    require_close(add(float_layer, in_float), reference(float_layer, in_float), kFloatTolerance, kFloatTolerance);
  }
}

TEST_CASE("lora: without a bias as well", "[peft]") {
  Layer layer;
  layer.bias_O = at::zeros({kOut}, at::kDouble);
  for (const auto& adapters : kCases) {
    require_close(add_adapters(at::linear(layer.x_TI, layer.weight_OI), layer.x_TI, layer.weight_OI, {}, adapters, {}),
                  reference(layer, adapters), kDoubleTolerance, kDoubleTolerance);
  }
}

TEST_CASE("lora: bfloat16 activations take float factors", "[peft]") {
  for (std::size_t i = 0; i < kCases.size(); ++i) {
    INFO("case " << i);
    const Layer layer = Layer().to(at::kBFloat16);
    std::vector<LoraAdapter> adapters;
    for (const LoraAdapter& adapter : kCases[i]) adapters.push_back(cast_adapter(adapter, at::kFloat));
    const at::Tensor y = add(layer, adapters);
    REQUIRE(y.scalar_type() == at::kBFloat16);
    // Sums of terms of size 2 to 4, each rounded: their error is that of numbers of size 4.
    require_close(y, reference(layer, adapters), 4 * kBf16Tolerance, kBf16Tolerance);
  }
}

TEST_CASE("lora: any leading dimensions", "[peft]") {
  Layer layer, wide;
  wide.x_TI = layer.x_TI.view({1, kT, kIn});
  require_close(add(wide, {random_adapter(10), random_dora(20)}).view({kT, kOut}),
                add(layer, {random_adapter(10), random_dora(20)}), kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("lora: the matrix for merging is the equations', in W's dtype", "[peft]") {
  const Layer layer;
  require_equal(adapted_weight(layer.weight_OI, {}), layer.weight_OI);
  for (std::size_t i = 0; i < kCases.size(); ++i) {
    INFO("case " << i);
    at::Tensor expected = layer.weight_OI;
    for (const LoraAdapter& adapter : kCases[i])
      expected = expected + changed_matrix(layer.weight_OI, adapter) - layer.weight_OI;
    require_close(adapted_weight(layer.weight_OI, kCases[i]), expected, kDoubleTolerance, kDoubleTolerance);
    // A base in bfloat16 is merged in float and rounded once.
    const at::Tensor low_OI = layer.weight_OI.to(at::kBFloat16);
    at::Tensor sum = low_OI.to(at::kDouble);
    std::vector<LoraAdapter> in_float;
    for (const LoraAdapter& adapter : kCases[i]) {
      in_float.push_back(cast_adapter(adapter, at::kFloat));
      sum = sum + changed_matrix(low_OI, in_float.back()) - low_OI.to(at::kDouble);
    }
    const at::Tensor merged = adapted_weight(low_OI, in_float);
    REQUIRE(merged.scalar_type() == at::kBFloat16);
    require_close(merged, sum, 1e-6, kBf16Tolerance / 2);
  }
}

TEST_CASE("lora: gradients of x and of both factors match central differences", "[peft]") {
  const Layer layer;
  for (const bool is_pissa : {false, true}) {
    const LoraAdapter start = is_pissa ? random_pissa(30) : random_adapter(10);
    require_gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          LoraAdapter adapter = start;
          adapter.a_RI = in[1], adapter.b_OR = in[2];
          Layer with_x = layer;
          with_x.x_TI = in[0];
          return add(with_x, {adapter});
        },
        {trained(layer.x_TI), trained(start.a_RI), trained(start.b_OR)});
    require_gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          LoraAdapter adapter = start;
          adapter.a_RI = in[1], adapter.b_OR = in[2];
          return adapted_weight(in[0], {adapter});
        },
        {trained(layer.weight_OI), trained(start.a_RI), trained(start.b_OR)});
  }
}

TEST_CASE("lora: DoRA's gradients are those of its equation with the row lengths held constant", "[peft]") {
  const Layer layer;
  const LoraAdapter start = random_dora(20);
  const at::Tensor lengths_O1 =
      (layer.weight_OI + start.scale * at::matmul(start.b_OR, start.a_RI)).square().sum(1, true).sqrt().detach();
  const auto changed = [&](const std::vector<at::Tensor>& in) {
    return in[3].unsqueeze(1) / lengths_O1 * (layer.weight_OI + start.scale * at::matmul(in[2], in[1]));
  };
  const auto equation = [&](const std::vector<at::Tensor>& in) {
    return at::matmul(in[0], changed(in).t()) + layer.bias_O;
  };
  const std::vector<at::Tensor> inputs = {trained(layer.x_TI), trained(start.a_RI), trained(start.b_OR),
                                          trained(start.magnitude_O)};
  require_gradients_match(equation, inputs);
  LoraAdapter adapter = start;
  adapter.a_RI = inputs[1], adapter.b_OR = inputs[2], adapter.magnitude_O = inputs[3];
  Layer with_x = layer;
  with_x.x_TI = inputs[0];
  const at::Tensor grad = random_normal({kT, kOut}, 60);
  const auto found = torch::autograd::grad({add(with_x, {adapter})}, inputs, {grad}),
             expected = torch::autograd::grad({equation(inputs)}, inputs, {grad});
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO("input " << i);
    require_close(found[i], expected[i], kDoubleTolerance, kDoubleTolerance);
  }
  const std::vector<at::Tensor> factors = {inputs[1], inputs[2], inputs[3]};
  const at::Tensor matrix_grad = random_normal({kOut, kIn}, 61);
  const auto of_matrix = torch::autograd::grad({adapted_weight(layer.weight_OI, {adapter})}, factors, {matrix_grad}),
             expected_of_matrix = torch::autograd::grad({changed(inputs)}, factors, {matrix_grad});
  for (std::size_t i = 0; i < factors.size(); ++i)
    require_close(of_matrix[i], expected_of_matrix[i], kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("lora: at the start nothing is changed, whatever the kind", "[peft]") {
  const Layer layer = Layer().to(at::kFloat);
  const LoraFactors plain = initial_factors(LoraInit::kDefault, layer.weight_OI, kRank, 2.0, 5);
  LoraAdapter lora{.a_RI = plain.a_RI, .b_OR = plain.b_OR, .scale = 2.0};
  require_equal(add(layer, {lora}), layer.y_TO());
  require_equal(adapted_weight(layer.weight_OI, {lora}), layer.weight_OI);
  LoraAdapter dora = lora;
  dora.magnitude_O = initial_magnitude(layer.weight_OI, plain, 2.0);
  require_close(add(layer, {dora}), layer.y_TO(), kFloatTolerance, kFloatTolerance);
  const LoraFactors principal = initial_factors(LoraInit::kPissa, layer.weight_OI, kRank, 2.0, 5);
  const LoraAdapter pissa{.a_RI = principal.a_RI,
                          .b_OR = principal.b_OR,
                          .scale = 2.0,
                          .initial_a_RI = principal.a_RI,
                          .initial_b_OR = principal.b_OR};
  // (y + d) - d: exact but for the rounding of the sum.
  require_close(add(layer, {pissa}), layer.y_TO(), kFloatTolerance, kFloatTolerance);
  require_close(adapted_weight(layer.weight_OI, {pissa}), layer.weight_OI, kFloatTolerance, kFloatTolerance);
}

TEST_CASE("lora: the default start is uniform within 1 / sqrt(I), a function of the seed, and B is zero", "[peft]") {
  const at::Tensor weight_OI = at::zeros({20, 400});
  const LoraFactors factors = initial_factors(LoraInit::kDefault, weight_OI, 50, 1.0, 5);
  REQUIRE(factors.a_RI.sizes() == at::IntArrayRef({50, 400}));
  REQUIRE(factors.a_RI.scalar_type() == at::kFloat);
  require_equal(factors.b_OR, at::zeros({20, 50}));
  const double bound = 1.0 / 20.0;
  REQUIRE(factors.a_RI.abs().max().item<double>() <= bound);
  // 20000 values: the deviation of their mean is bound / sqrt(3 * 20000), that of their mean square 0.9 / sqrt(20000).
  REQUIRE(std::abs(factors.a_RI.mean().item<double>()) < 5 * bound / std::sqrt(6e4));
  REQUIRE(factors.a_RI.square().mean().item<double>() == Approx(bound * bound / 3).epsilon(5 * 0.9 / std::sqrt(2e4)));
  require_equal(initial_factors(LoraInit::kDefault, weight_OI, 50, 1.0, 5).a_RI, factors.a_RI);
  REQUIRE_FALSE(initial_factors(LoraInit::kDefault, weight_OI, 50, 1.0, 6).a_RI.equal(factors.a_RI));
}

TEST_CASE("lora: PiSSA starts from the largest singular values", "[peft]") {
  const at::Tensor weight_OI = random_normal({9, 12}, 70).to(at::kFloat);
  const double scale = 2.5;
  const LoraFactors factors = initial_factors(LoraInit::kPissa, weight_OI, 4, scale, 0);
  // By power iteration on W^T W, one direction after the other, each taken out of W before the next.
  at::Tensor left_OI = weight_OI.to(at::kDouble), principal_OI = at::zeros({9, 12}, at::kDouble);
  for (int r = 0; r < 4; ++r) {
    at::Tensor v_I = random_normal({12}, 80);
    for (int i = 0; i < 3000; ++i) {
      v_I = at::matmul(left_OI.t(), at::matmul(left_OI, v_I));
      v_I = v_I / v_I.norm();
    }
    const at::Tensor part_OI = at::outer(at::matmul(left_OI, v_I), v_I);
    principal_OI = principal_OI + part_OI, left_OI = left_OI - part_OI;
  }
  require_close(scale * at::matmul(factors.b_OR.to(at::kDouble), factors.a_RI.to(at::kDouble)), principal_OI,
                kFloatTolerance, kFloatTolerance);
  // The singular values are shared out evenly: both factors have sqrt(S / scale) as lengths.
  require_close(factors.a_RI.norm(2, 1), factors.b_OR.norm(2, 0), kFloatTolerance, kFloatTolerance);
  // A rank above the matrix's own: the rest is zero, and the whole matrix is principal.
  const LoraFactors all = initial_factors(LoraInit::kPissa, weight_OI, 11, scale, 0);
  require_close(scale * at::matmul(all.b_OR, all.a_RI), weight_OI, kFloatTolerance, kFloatTolerance);
  require_equal(all.a_RI.narrow(0, 9, 2), at::zeros({2, 12}));
}

TEST_CASE("lora: DoRA's first magnitudes are the row lengths", "[peft]") {
  const at::Tensor weight_OI = random_normal({kOut, kIn}, 2);
  const LoraAdapter adapter = random_adapter(10);
  const LoraFactors factors{adapter.a_RI, adapter.b_OR};
  const Vector changed = vector_of(changed_matrix(weight_OI, adapter));
  Vector lengths(kOut, 0.0);
  for (std::size_t o = 0; o < kOut; ++o) {
    for (std::size_t i = 0; i < kIn; ++i) lengths[o] += changed[o * kIn + i] * changed[o * kIn + i];
    lengths[o] = std::sqrt(lengths[o]);
  }
  require_close(initial_magnitude(weight_OI, factors, adapter.scale), at::tensor(lengths, at::kDouble),
                kDoubleTolerance, kDoubleTolerance);
}

TEST_CASE("lora: dropout takes a share p of the inputs and enlarges the others", "[peft]") {
  // W = 0, A = B = 1: the result is the dropped input itself.
  constexpr std::int64_t kTokens = 400, kWidth = 50;
  const at::Tensor x = at::ones({kTokens, kWidth}), identity = at::eye(kWidth);
  const std::vector<std::int64_t> offsets = {0, 100, 400};
  for (const double p : {0.05, 0.5, 0.9}) {
    INFO("p " << p);
    const LoraAdapter adapter{.a_RI = identity, .b_OR = identity, .dropout = p, .id = 3};
    const at::Tensor dropped = add_adapters(at::zeros({kTokens, kWidth}), x, at::zeros({kWidth, kWidth}), {}, {adapter},
                                            {.segment_offsets = &offsets, .seed = 11});
    const auto kept = static_cast<float>(1.0 / (1.0 - p));
    REQUIRE(((dropped == 0) | (dropped == kept)).all().item<bool>());
    const double share = (dropped == 0).to(at::kDouble).mean().item<double>();
    REQUIRE(std::abs(share - p) < 5 * std::sqrt(p * (1 - p) / (kTokens * kWidth)));
    // Neither a token nor an input is favoured: no row and no column is dropped as a whole or kept as a whole.
    REQUIRE((dropped == 0).sum(0).max().item<std::int64_t>() < kTokens);
    REQUIRE((dropped == 0).sum(0).min().item<std::int64_t>() > 0);
  }
}

TEST_CASE("lora: dropout is a function of step, layer, sequence and place, not of the micro batch", "[peft]") {
  const at::Tensor x = random_normal({30, 8}, 1).to(at::kFloat), weight = at::zeros({8, 8});
  const auto dropped = [&](const at::Tensor& tokens, std::vector<std::int64_t> offsets, std::int64_t first,
                           std::uint64_t seed = 11, std::uint64_t id = 3) {
    const LoraAdapter adapter{.a_RI = at::eye(8), .b_OR = at::eye(8), .dropout = 0.5, .id = id};
    return add_adapters(at::zeros({tokens.size(0), 8}), tokens, weight, {}, {adapter},
                        {.segment_offsets = &offsets, .seed = seed, .first_sequence = first});
  };
  const at::Tensor whole = dropped(x, {0, 7, 19, 30}, 0);
  require_equal(dropped(x, {0, 7, 19, 30}, 0), whole);
  require_equal(dropped(x.narrow(0, 0, 7), {0, 7}, 0), whole.narrow(0, 0, 7));
  require_equal(dropped(x.narrow(0, 7, 23), {0, 12, 23}, 1), whole.narrow(0, 7, 23));
  REQUIRE_FALSE(dropped(x, {0, 7, 19, 30}, 0, 12).equal(whole));
  REQUIRE_FALSE(dropped(x, {0, 7, 19, 30}, 0, 11, 4).equal(whole));
  REQUIRE_FALSE(dropped(x, {0, 7, 19, 30}, 1).equal(whole));
  std::vector<std::int64_t> offsets = {0, 29};
  const LoraAdapter adapter{.a_RI = at::eye(8), .b_OR = at::eye(8), .dropout = 0.5};
  REQUIRE_THROWS_AS(add_adapters(x, x, weight, {}, {adapter}, {.segment_offsets = &offsets}), InternalError);
}

TEST_CASE("lora: dropout acts on what A sees alone, in DoRA on all of its change, and not at inference", "[peft]") {
  const Layer layer;
  const std::vector<std::int64_t> offsets = {0, 4, kT};
  const AdapterPass pass{.segment_offsets = &offsets, .seed = 11};
  // The mask, from an adapter that is the identity.
  const LoraAdapter identity{
      .a_RI = at::eye(kIn, at::kDouble), .b_OR = at::eye(kIn, at::kDouble), .dropout = 0.4, .id = 10};
  const at::Tensor mask = add_adapters(at::zeros({kT, kIn}, at::kDouble), at::ones({kT, kIn}, at::kDouble),
                                       at::zeros({kIn, kIn}, at::kDouble), {}, {identity}, pass);
  REQUIRE((mask == 0).any().item<bool>());
  LoraAdapter lora = random_adapter(10), dora = random_dora(20);
  lora.dropout = dora.dropout = 0.4;
  dora.id = 10;
  const at::Tensor x_TI = layer.x_TI * mask;
  const auto change = [&](const LoraAdapter& adapter) {
    return at::matmul(x_TI, (changed_matrix(layer.weight_OI, adapter) - layer.weight_OI).t());
  };
  require_close(add(layer, {lora}, pass), layer.y_TO() + change(lora), kDoubleTolerance, kDoubleTolerance);
  require_close(add(layer, {dora}, pass), layer.y_TO() + change(dora), kDoubleTolerance, kDoubleTolerance);
  require_equal(add(layer, {lora}), add(layer, {random_adapter(10)}));

  require_gradients_match(
      [&](const std::vector<at::Tensor>& in) {
        LoraAdapter adapter = lora;
        adapter.a_RI = in[1], adapter.b_OR = in[2];
        Layer with_x = layer;
        with_x.x_TI = in[0];
        return add(with_x, {adapter}, pass);
      },
      {trained(layer.x_TI), trained(lora.a_RI), trained(lora.b_OR)});
}

TEST_CASE("lora: an expert's matrix gets its own factors, and a part of the rows their part of B", "[peft]") {
  constexpr std::int64_t E = 4;
  const ExpertLora first{random_normal({E, kRank, kIn}, 1), random_normal({E, 2 * kOut, kRank}, 2), 1.5},
      second{random_normal({E, 2, kIn}, 3), random_normal({E, 2 * kOut, 2}, 4), 0.5};
  const at::Tensor weight_OI = random_normal({kOut, kIn}, 5);
  require_equal(adapted_expert_weight(weight_OI, {}, 2, 0), weight_OI);
  for (std::int64_t e = 0; e < E; ++e) {
    for (const std::int64_t row : {std::int64_t{0}, kOut}) {
      at::Tensor expected = weight_OI;
      for (const ExpertLora& adapter : {first, second}) {
        const LoraAdapter one{
            .a_RI = adapter.a_ERI[e], .b_OR = adapter.b_EOR[e].narrow(0, row, kOut), .scale = adapter.scale};
        expected = expected + changed_matrix(weight_OI, one) - weight_OI;
      }
      require_close(adapted_expert_weight(weight_OI, {first, second}, e, row), expected, kDoubleTolerance,
                    kDoubleTolerance);
    }
  }
}

TEST_CASE("lora: experts start like linear layers", "[peft]") {
  const LoraFactors factors = initial_expert_factors(3, 7, 400, 20, 5);
  REQUIRE(factors.a_RI.sizes() == at::IntArrayRef({3, 7, 400}));
  REQUIRE(factors.a_RI.abs().max().item<double>() <= 1.0 / 20.0);
  REQUIRE(factors.a_RI.abs().max().item<double>() > 0.99 / 20.0);
  require_equal(factors.b_OR, at::zeros({3, 20, 7}));
  require_equal(initial_expert_factors(3, 7, 400, 20, 5).a_RI, factors.a_RI);
  REQUIRE_FALSE(factors.a_RI[0].equal(factors.a_RI[1]));
}
