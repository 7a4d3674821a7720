// What the GPU computes, through the public functions, against the CPU and against double arithmetic on the same
// values.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#ifdef DAGMOE_WITH_CUDA
#include "kernels/cuda_kernels.h"
#include "kernels/reference.h"
#endif

using namespace dagmoe;
using namespace dagmoe::testing;

#define DAGMOE_NEEDS_GPU() \
  if (!at::hasCUDA()) DAGMOE_SKIP("no GPU here, or a program built without DAGMOE_CUDA")

namespace {

at::Tensor random_values(at::IntArrayRef shape, std::uint64_t seed, at::ScalarType dtype = at::kFloat) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::TensorOptions(at::kFloat)).to(dtype);
}

const std::vector<at::ScalarType> kTypes = {at::kFloat, at::kBFloat16, at::kDouble};

// Weights of norms, and tables, beside activations like x.
at::Tensor beside(const at::Tensor& weight, const at::Tensor& x) {
  return weight.to(x.device(), x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

using Op = std::function<at::Tensor(const std::vector<at::Tensor>& inputs)>;

// The gradients of sum(op(inputs) * random factors), then the output. `dtype` is what the values are rounded to first.
std::vector<at::Tensor> results_of(const Op& op, const std::vector<at::Tensor>& inputs, at::Device device,
                                   at::ScalarType dtype, at::ScalarType computed_in) {
  std::vector<at::Tensor> in;
  for (const at::Tensor& input : inputs)
    in.push_back(input.to(dtype).to(device, computed_in).clone().set_requires_grad(true));
  const at::Tensor out = op(in);
  const at::Tensor factors = random_values(out.sizes(), 77).to(dtype).to(device, out.scalar_type());
  auto results = torch::autograd::grad({out}, in, {factors});
  results.push_back(out.detach());
  return results;
}

double relative_tolerance(at::ScalarType dtype) {
  if (dtype == at::kDouble) return kDoubleTolerance;
  return dtype == at::kFloat ? kFloatTolerance : kBf16Tolerance;
}

void require_all_close(const std::vector<at::Tensor>& actual, const std::vector<at::Tensor>& expected,
                       const char* judge, at::ScalarType dtype, double atol) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO("result " << i << " of gradients, output; " << at::toString(dtype) << " against " << judge);
    require_close(actual[i], expected[i], atol, relative_tolerance(dtype));
  }
}

// In every type: as the CPU does in that type, as double does, and (`repeats`) the same bits twice.
void require_gpu_right(const Op& op, const std::vector<at::Tensor>& inputs, double atol_float, double atol_bf16,
                       bool repeats = true) {
  for (const at::ScalarType dtype : kTypes) {
    const double atol = dtype == at::kDouble ? kDoubleTolerance : dtype == at::kFloat ? atol_float : atol_bf16;
    const auto actual = results_of(op, inputs, at::kCUDA, dtype, dtype);
    require_all_close(actual, results_of(op, inputs, at::kCPU, dtype, dtype), "the CPU", dtype, atol);
    require_all_close(actual, results_of(op, inputs, at::kCPU, dtype, at::kDouble), "double", dtype, atol);
    if (!repeats) continue;
    const auto again = results_of(op, inputs, at::kCUDA, dtype, dtype);
    for (std::size_t i = 0; i < actual.size(); ++i) require_equal(again[i], actual[i]);
  }
}

void require_gpu_exact(const Op& op, const std::vector<at::Tensor>& inputs) {
  require_gpu_right(op, inputs, kFloatTolerance, kFloatTolerance);
}

// A tensor whose first element lies one element behind an aligned place.
at::Tensor misaligned(const at::Tensor& values) {
  const at::Tensor flat = at::empty({values.numel() + 1}, values.options());
  return flat.narrow(0, 1, values.numel()).view(values.sizes()).copy_(values);
}

// K different experts of E for each of T tokens; every third expert is chosen by nobody where there are enough.
at::Tensor random_ids(std::int64_t num_tokens, std::int64_t K, std::int64_t E) {
  const at::Tensor scores = random_values({num_tokens, E}, 3);
  if (E - E / 3 - 1 >= K) {
    const at::Tensor unwanted = at::arange(E).remainder(3) == 0;
    scores.masked_fill_(unwanted, -std::numeric_limits<float>::infinity());
  }
  return std::get<1>(scores.topk(K, 1)).contiguous();
}

void require_same_rows(const RoutedRows& actual, const RoutedRows& expected) {
  REQUIRE(actual.counts_E == expected.counts_E);
  REQUIRE(at::equal(actual.token_of_row_R.cpu(), expected.token_of_row_R));
  REQUIRE(at::equal(actual.row_of_slot_TK.cpu(), expected.row_of_slot_TK));
}

}  // namespace

TEST_CASE("cuda: norms, rotations, gates and attention are right", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  const at::Tensor weight = random_values({133}, 1), angle = random_values({70, 9}, 2);
  const Op rms = [&](const auto& in) { return rms_norm(in[0], beside(weight, in[0]), 1e-5); };
  require_gpu_exact(rms, {random_values({70, 133}, 5)});
  const Op turned = [&](const auto& in) {
    return rope(in[0], beside(angle.to(at::kDouble).cos(), in[0]), beside(angle.to(at::kDouble).sin(), in[0]));
  };
  require_gpu_exact(turned, {random_values({70, 3, 18}, 6)});
  const Op glu = [](const auto& in) { return swiglu(in[0], in[1]); };
  require_gpu_exact(glu, {random_values({70, 133}, 7), random_values({70, 133}, 8)});
  // Attention sums in another order, rounds bfloat16 at other places, and is LibTorch's: it promises no equal bits.
  const Op attention = [](const auto& in) { return segment_attention(in[0], in[1], in[2], {0, 1, 30, 70}); };
  require_gpu_right(attention,
                    {random_values({70, 6, 16}, 10), random_values({70, 2, 16}, 11), random_values({70, 2, 16}, 12)},
                    1e-4, 0.05, /*repeats=*/false);
}

TEST_CASE("cuda: dag_pairs is right for every number of nodes and width", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  const Op pairs = [](const auto& in) { return dag_pairs(in[0]); };
  // Kernels in registers take 2 to 8 nodes and widths that are multiples of 4; the others are for the plain ones.
  for (std::int64_t K = 1; K <= 17; ++K) {
    for (const std::int64_t G : {1, 19, 64, 130}) {
      INFO("K " << K << ", G " << G);
      require_gpu_exact(pairs, {random_values({23, K, 4 * G}, 9)});
    }
  }
  require_gpu_exact(pairs, {random_values({4096, 4, 4 * 128}, 10)});
}

TEST_CASE("cuda: dag_pairs takes tensors that begin anywhere, and extreme gates", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor abce = random_values({50, 4, 4 * 64}, 11, dtype);
    const at::Tensor expected = dag_pairs(abce);
    require_close(dag_pairs(misaligned(abce.to(at::kCUDA))), expected, kFloatTolerance, relative_tolerance(dtype));
    // Gates of 0 and of 1: exp(-t) from 1e-260 to infinity.
    const at::Tensor wide = (abce * 100).detach().set_requires_grad(true);
    const at::Tensor wide_gpu = wide.detach().to(at::kCUDA).set_requires_grad(true);
    const at::Tensor out = dag_pairs(wide), out_gpu = dag_pairs(wide_gpu);
    // Products of about 1e5 cancel in the sums.
    require_close(out_gpu, out, 0.1, relative_tolerance(dtype));
    const at::Tensor ones = at::ones_like(out);
    require_close(torch::autograd::grad({out_gpu}, {wide_gpu}, {ones.to(at::kCUDA)})[0],
                  torch::autograd::grad({out}, {wide}, {ones})[0], 0.01, relative_tolerance(dtype));
  }
}

TEST_CASE("cuda: route_rows gives the rows of the CPU", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  struct Shape {
    std::int64_t num_tokens, K, E;
  };
  std::vector<Shape> shapes = {{0, 2, 4},     {1, 1, 1},       {1, 1, 300},    {256, 1, 3},    {257, 1, 3},
                               {4099, 8, 64}, {16384, 8, 128}, {40001, 8, 64}, {3000, 8, 1000}};
  for (std::int64_t K = 1; K <= 16; ++K) shapes.push_back({70, K, 16});
  for (const Shape& shape : shapes) {
    INFO(shape.num_tokens << " tokens, " << shape.K << " of " << shape.E << " experts");
    const at::Tensor ids = random_ids(shape.num_tokens, shape.K, shape.E), ids_gpu = ids.to(at::kCUDA);
    const RoutedRows expected = route_rows(ids, shape.E);
    require_same_rows(route_rows(ids_gpu, shape.E), expected);
    require_same_rows(route_rows(ids_gpu, shape.E), expected);
  }
  // All to one expert; ids in no order at all.
  require_same_rows(route_rows(at::full({3000, 2}, 5, at::kLong).to(at::kCUDA), 9),
                    route_rows(at::full({3000, 2}, 5, at::kLong), 9));
  const at::Tensor repeated = random_values({5000, 3}, 4).mul(100).to(at::kLong).remainder(7);
  require_same_rows(route_rows(repeated.to(at::kCUDA), 7), route_rows(repeated, 7));
  for (const std::int64_t wrong : {-1, 7}) {
    const at::Tensor broken = repeated.clone();
    broken[4999][2] = wrong;
    REQUIRE_THROWS_AS(route_rows(broken.to(at::kCUDA), 7), InternalError);
  }
}

TEST_CASE("cuda: rows travel to experts and back as on the CPU, bit for bit", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  for (const at::ScalarType dtype : kTypes) {
    for (const std::int64_t D : {1, 6, 33, 64, 576}) {
      for (const std::int64_t K : {1, 2, 5, 8, 16}) {
        INFO(at::toString(dtype) << ", width " << D << ", K " << K);
        const at::Tensor ids = random_ids(301, K, 25);
        const auto run = [&](at::Device device) {
          const RoutedRows rows = route_rows(ids.to(device), 25);
          const at::Tensor x = random_values({301, D}, 5, dtype).to(device).set_requires_grad(true);
          const at::Tensor gathered = gather_routed(x, rows), back = ungather_routed(gathered, rows);
          const at::Tensor factors = random_values(back.sizes(), 6, dtype).to(device);
          return std::vector<at::Tensor>{gathered, back, torch::autograd::grad({back}, {x}, {factors})[0],
                                         gather_routed(misaligned(x.detach()), rows)};
        };
        const auto expected = run(at::kCPU), actual = run(at::kCUDA);
        for (std::size_t i = 0; i < expected.size(); ++i) REQUIRE(at::equal(actual[i].cpu(), expected[i]));
      }
    }
  }
}

TEST_CASE("cuda: routed experts are right", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  // Gradients of a few units are rounded to bfloat16 before they are added up.
  const double summed_bf16 = 0.1;
  const at::Tensor ids = random_ids(70, 3, 6);
  const Op routed = [&](const auto& in) {
    const RoutedRows rows = route_rows(ids.to(in[0].device()), 6);
    return ungather_routed(
        grouped_linear(gather_routed(in[0], rows), {in[1], in[1], in[2], in[2], in[1], in[1]}, rows.counts_E), rows);
  };
  require_gpu_right(routed, {random_values({70, 32}, 13), random_values({24, 32}, 14), random_values({24, 32}, 15)},
                    1e-4, summed_bf16);
  const Op low_rank = [&](const auto& in) {
    const RoutedRows rows = route_rows(ids.to(in[0].device()), 6);
    return grouped_low_rank(gather_routed(in[0], rows), in[1], in[2], rows.counts_E, 0.5);
  };
  require_gpu_right(
      low_rank, {random_values({70, 32}, 13), random_values({6, 4, 32}, 14) * 0.3, random_values({6, 24, 4}, 15) * 0.3},
      1e-4, summed_bf16);
}

TEST_CASE("cuda: the chunked loss is right", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  // More tokens than one chunk of either device, and some without a label.
  const std::int64_t num_tokens = 4 * kCrossEntropyRows + 70;
  const at::Tensor labels = at::arange(num_tokens).remainder(333).masked_fill(at::arange(num_tokens) < 9, -100);
  const at::Tensor hidden = random_values({num_tokens, 32}, 16), head = random_values({333, 32}, 3) * 0.2;
  for (const double smoothing : {0.0, 0.1}) {
    const Op loss = [&](const auto& in) {
      return smoothed_cross_entropy(in[0], in[1], labels.to(in[0].device()), 1.0, smoothing).objective;
    };
    // Logits and their gradients are rounded to bfloat16.
    require_gpu_right(loss, {hidden, head}, 1e-4, 0.02);
  }
}

#ifdef DAGMOE_WITH_CUDA
namespace {

struct LossRows {
  at::Tensor loss_N, uniform_N, logits_NV;
};

// The rows of a kernel over elements T, on the device of the logits.
template <class T, class Kernel>
LossRows loss_rows(const at::Tensor& given_NV, const at::Tensor& target_N, double eps, bool keep, Kernel kernel) {
  const std::int64_t N = given_NV.size(0), V = given_NV.size(1);
  const auto doubles = given_NV.options().dtype(at::kDouble);
  LossRows rows = {at::full({N}, -7, doubles), at::full({N}, -7, doubles), given_NV.clone()};
  kernel(CrossEntropy<T>{.N = N,
                         .V = V,
                         .logits_NV = static_cast<T*>(rows.logits_NV.mutable_data_ptr()),
                         .target_N = target_N.const_data_ptr<std::int64_t>(),
                         // Probabilities of about 1/V become numbers of about 1.
                         .scale = static_cast<double>(V),
                         .label_smoothing = eps,
                         .keep_logits = keep,
                         .loss_N = rows.loss_N.mutable_data_ptr<double>(),
                         .uniform_N = eps > 0 ? rows.uniform_N.mutable_data_ptr<double>() : nullptr});
  return rows;
}

template <class T>
void require_loss_rows(const at::Tensor& logits_NV, double eps, bool keep) {
  const at::ScalarType dtype = logits_NV.scalar_type();
  INFO(at::toString(dtype) << ", " << logits_NV.sizes() << ", smoothing " << eps << ", keep " << keep);
  const at::Tensor target_N = (at::arange(logits_NV.size(0)) * 7919).remainder(logits_NV.size(1));
  const auto on_gpu = [&] {
    return loss_rows<T>(logits_NV.to(at::kCUDA), target_N.to(at::kCUDA), eps, keep,
                        [](const auto& args) { cuda::cross_entropy(args, /*stream=*/nullptr); });
  };
  const LossRows actual = on_gpu(), again = on_gpu();
  const LossRows expected = loss_rows<double>(logits_NV.to(at::kDouble), target_N, eps, keep,
                                              [](const auto& args) { reference::cross_entropy(args); });
  const double summed = dtype == at::kDouble ? kDoubleTolerance : kFloatTolerance;
  require_close(actual.loss_N, expected.loss_N, summed, summed);
  require_close(actual.uniform_N, expected.uniform_N, summed, summed);
  require_close(actual.logits_NV, expected.logits_NV, summed, relative_tolerance(dtype));
  require_equal(again.loss_N, actual.loss_N);
  require_equal(again.logits_NV, actual.logits_NV);
}

}  // namespace

TEST_CASE("cuda: cross entropy in one pass is right for rows of every length", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  for (const std::int64_t V : {1, 7, 8, 1000, 4099, 49152, 50257, 128256}) {
    for (const double eps : {0.0, 0.1}) {
      for (const bool keep : {false, true}) {
        const at::Tensor logits = random_values({5, V}, 21) * 3;
        require_loss_rows<float>(logits, eps, keep);
        require_loss_rows<Bf16>(logits.to(at::kBFloat16), eps, keep);
        require_loss_rows<double>(logits.to(at::kDouble), eps, keep);
      }
    }
  }
  // Rows that begin at every offset; logits so large that only differences to the maximum can be exponentiated.
  require_loss_rows<Bf16>(random_values({67, 4101}, 22, at::kBFloat16) * 3, 0, false);
  require_loss_rows<float>(random_values({67, 4101}, 23) + 1000, 0, false);
}

TEST_CASE("cuda: cross entropy of infinite logits", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  const double infinity = std::numeric_limits<double>::infinity();
  // A masked vocabulary: minus infinity nearly everywhere, also in all that most threads see.
  at::Tensor masked = at::full({3, 9000}, -infinity, at::kFloat);
  masked.slice(1, 5000, 5003).copy_(random_values({3, 3}, 24));
  const at::Tensor target = at::tensor({5000, 5001, 5002}, at::kLong);
  const auto gpu = [](const auto& args) { cuda::cross_entropy(args, /*stream=*/nullptr); };
  const auto cpu = [](const auto& args) { reference::cross_entropy(args); };
  const LossRows actual = loss_rows<float>(masked.to(at::kCUDA), target.to(at::kCUDA), 0, false, gpu);
  const LossRows expected = loss_rows<double>(masked.to(at::kDouble), target, 0, false, cpu);
  require_close(actual.loss_N, expected.loss_N, kFloatTolerance, kFloatTolerance);
  require_close(actual.logits_NV, expected.logits_NV, kFloatTolerance * 9000, kFloatTolerance);
  // NaN and plus infinity must show in the loss.
  for (const double wrong : {std::numeric_limits<double>::quiet_NaN(), infinity}) {
    masked[1][4000] = wrong;
    const LossRows broken = loss_rows<float>(masked.to(at::kCUDA), target.to(at::kCUDA), 0, false, gpu);
    require_equal(broken.loss_N.isnan(), at::tensor({0, 1, 0}));
  }
}
#endif

TEST_CASE("cuda: the weight gradient of rms_norm is exact with and without the input's", "[kernels][gpu]") {
  DAGMOE_NEEDS_GPU();
  for (const bool input_trains : {false, true}) {
    const auto gradient = [&](at::Device device) {
      const at::Tensor x = random_values({700, 70}, 1).to(device).set_requires_grad(input_trains);
      const at::Tensor w = random_values({70}, 2).to(device).set_requires_grad(true);
      return torch::autograd::grad({rms_norm(x, w, 1e-5)}, {w}, {random_values({700, 70}, 3).to(device)})[0];
    };
    // Sums of 700 values around 1.
    require_close(gradient(at::kCUDA), gradient(at::kCPU), 1e-4, kFloatTolerance);
  }
}
