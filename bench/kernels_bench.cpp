// Times every kernel of every table on one thread, then the ops that lean on LibTorch's products on all threads.
//   kernels_bench            everything
//   kernels_bench tables     the kernel tables only
//   kernels_bench ops        the ops only
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/ops.h"

namespace dagmoe {
namespace {

struct Timing {
  double least_seconds, median_seconds;
};

// One warm-up, then runs until there are at least 7 and half a second has passed.
Timing measure(const std::function<void()>& work) {
  work();
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < 7 || (total < 0.5 && seconds.size() < 1000)) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    total += seconds.back();
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

void print_line(const std::string& name, const std::string& variant, Timing time, double gigabytes) {
  std::printf("%-24s %-20s %9.3f %9.3f", name.c_str(), variant.c_str(), time.least_seconds * 1e3,
              time.median_seconds * 1e3);
  if (gigabytes > 0) std::printf(" %9.2f", gigabytes / time.least_seconds);
  std::printf("\n");
  std::fflush(stdout);
}

template <class T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Shapes of SmolLM2-135M turned into a DAG-MoE: T tokens, D hidden, F expert width, K chosen, G node width, V
// vocabulary.
constexpr std::int64_t kTokens = 1024, kHidden = 576, kExpertWidth = 384, kHeads = 9, kHeadWidth = 64, kKvHeads = 3;
constexpr std::int64_t kChosen = 4, kNodeWidth = 64, kVocabulary = 49152, kLogitRows = 32;

template <class T>
void time_tables(const char* dtype_name, at::ScalarType dtype) {
  const auto random = [&](at::IntArrayRef shape) { return at::randn(shape).to(dtype); };
  const double size = sizeof(T);
  const at::Tensor x = random({kTokens, kHidden}), y = random({kTokens, kHidden}), z = random({kTokens, kHidden});
  const at::Tensor weight = at::randn({kHidden}), rstd = at::ones({kTokens}), grad_weight = at::zeros({kHidden});
  const at::Tensor q = random({kTokens, kHeads, kHeadWidth}), q_out = at::empty_like(q);
  const at::Tensor angle = at::randn({kTokens, kHeadWidth / 2}), cosines = angle.cos(), sines = angle.sin();
  const std::int64_t num_gates = kTokens * kChosen * kExpertWidth;
  const at::Tensor gate = random({num_gates}), up = random({num_gates}), glu = random({num_gates});
  const at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(gate);
  const at::Tensor abce = random({kTokens, kChosen, 4 * kNodeWidth}), s = random({kTokens, kChosen, kNodeWidth});
  const at::Tensor grad_abce = at::empty_like(abce), logits = random({kLogitRows, kVocabulary});
  const at::Tensor target = at::randint(0, kVocabulary, {kLogitRows}, at::kLong),
                   loss = at::empty({kLogitRows}, at::kDouble);

  const RmsNormForward<T> norm = {kTokens,    kHidden,          1e-5, data<T>(x), data<float>(weight),
                                  data<T>(y), data<float>(rstd)};
  const RmsNormBackward<T> norm_back = {kTokens,           kHidden,    data<T>(x), data<float>(weight),
                                        data<float>(rstd), data<T>(y), data<T>(z), data<float>(grad_weight)};
  const Rope<T> turn = {kTokens,
                        kHeads,
                        kHeadWidth,
                        kHeads * kHeadWidth,
                        kHeads * kHeadWidth,
                        data<float>(cosines),
                        data<float>(sines),
                        1,
                        data<T>(q),
                        data<T>(q_out)};
  const SwiGluForward<T> glu_forward = {num_gates, data<T>(gate), data<T>(up), data<T>(glu)};
  const SwiGluBackward<T> glu_backward = {num_gates,    data<T>(gate),      data<T>(up),
                                          data<T>(glu), data<T>(grad_gate), data<T>(grad_up)};
  const DagPairsForward<T> pairs = {kTokens, kChosen, kNodeWidth, data<T>(abce), data<T>(s)};
  const DagPairsBackward<T> pairs_back = {kTokens, kChosen, kNodeWidth, data<T>(abce), data<T>(s), data<T>(grad_abce)};
  const CrossEntropy<T> entropy = {kLogitRows, kVocabulary, data<T>(logits), data<std::int64_t>(target),
                                   1.0,        0.0,         false,           data<double>(loss)};

  constexpr std::int64_t kAdamSize = 1 << 20;
  const at::Tensor param = at::randn({kAdamSize}), grad = at::randn({kAdamSize});
  const at::Tensor m = at::zeros({kAdamSize}, at::kByte), v = at::zeros({kAdamSize}, at::kByte);
  const at::Tensor m_scale = at::zeros({num_blocks_8bit(kAdamSize)}), v_scale = at::zeros_like(m_scale);
  const AdamW8bit adamw = {.N = kAdamSize,
                           .grad_N = data<float>(grad),
                           .param_N = data<float>(param),
                           .m_N = data<std::uint8_t>(m),
                           .v_N = data<std::uint8_t>(v),
                           .m_scale_B = data<float>(m_scale),
                           .v_scale_B = data<float>(v_scale),
                           .grad_scale = 1,
                           .eps = 1e-8F,
                           .beta1 = 0.9F,
                           .one_minus_beta1 = 0.1F,
                           .beta2 = 0.999F,
                           .one_minus_beta2 = 0.001F,
                           .param_factor = 1,
                           .step_size = 1e-5F,
                           .correction = 1};

  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    const KernelTable<T>* table = kernels_for<T>(isa);
    if (table == nullptr) continue;
    const std::string variant = std::string(isa_name(isa)) + " " + dtype_name;
    // Gigabytes a kernel must at least read and write.
    const auto line = [&](const char* name, std::int64_t num_elements, const std::function<void()>& work) {
      print_line(name, variant, measure(work), size * static_cast<double>(num_elements) * 1e-9);
    };
    line("rms_norm forward", 2 * x.numel(), [&] { table->rms_norm_forward(norm); });
    line("rms_norm backward", 3 * x.numel(), [&] { table->rms_norm_backward(norm_back); });
    line("rope", 2 * q.numel(), [&] { table->rope(turn); });
    line("swiglu forward", 3 * num_gates, [&] { table->swiglu_forward(glu_forward); });
    line("swiglu backward", 5 * num_gates, [&] { table->swiglu_backward(glu_backward); });
    line("dag_pairs forward", abce.numel() + s.numel(), [&] { table->dag_pairs_forward(pairs); });
    line("dag_pairs backward", 2 * abce.numel() + s.numel(), [&] { table->dag_pairs_backward(pairs_back); });
    line("cross_entropy", 2 * logits.numel(), [&] { table->cross_entropy(entropy); });
    // 16 bytes a parameter: its value read and written, its gradient, two codes read and written.
    if (sizeof(T) == sizeof(float)) line("adamw_8bit", 4 * kAdamSize, [&] { table->adamw_8bit(adamw); });
  }
}

void time_attention() {
  constexpr std::int64_t kSegments = 30, kMeanTokens = 130, kAll = 2 * kSegments * kMeanTokens;
  const auto options = at::TensorOptions(at::kBFloat16);
  const at::Tensor all_q = at::randn({kAll, kHeads, kHeadWidth}, options), all_factors = at::randn_like(all_q);
  const at::Tensor all_k = at::randn({kAll, kKvHeads, kHeadWidth}, options), all_v = at::randn_like(all_k);
  for (const bool equal : {true, false}) {
    // Lengths that differ from call to call, as packing makes them.
    const auto draw_offsets = [&] {
      std::vector<std::int64_t> offsets = {0};
      for (std::int64_t i = 0; i < kSegments; ++i) {
        offsets.push_back(offsets.back() + (equal ? kMeanTokens : 61 + at::randint(0, 140, {1}).item<std::int64_t>()));
      }
      return offsets;
    };
    const auto run = [&](bool with_gradient) {
      const auto offsets = draw_offsets();
      const auto part = [&](const at::Tensor& x) {
        return x.narrow(0, 0, offsets.back()).detach().requires_grad_(with_gradient);
      };
      const at::Tensor q = part(all_q), k = part(all_k), v = part(all_v);
      const at::Tensor out = segment_attention(q, k, v, offsets);
      if (with_gradient) torch::autograd::grad({out}, {q, k, v}, {part(all_factors).detach()});
    };
    const std::string lengths = equal ? "bf16 equal" : "bf16 varied";
    print_line("segment_attention", lengths + " forward", measure([&] { run(false); }), 0);
    print_line("segment_attention", lengths + " both", measure([&] { run(true); }), 0);
  }
}

// The cost of a product whose number of rows was never seen before, beside one that repeats.
void time_new_shapes() {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor x = at::randn({4096, kHidden}).to(dtype), weight = at::randn({kExpertWidth, kHidden}).to(dtype);
    const std::string name = dtype == at::kFloat ? "float" : "bf16";
    const at::NoGradGuard no_grad;
    std::int64_t rows = 400;
    const auto times = [&](std::int64_t step, std::int64_t multiple) {
      return measure([&, step, multiple] {
        rows = step == 0 ? 600 : rows + step;
        if (rows > 800) rows = 400 + rows % 7;
        const std::int64_t padded = (rows + multiple - 1) / multiple * multiple;
        at::mm(x.narrow(0, 0, padded), weight.t());
      });
    };
    print_line("mm 600x576x384", name + " same rows", times(0, 1), 0);
    print_line("mm 400-800x576x384", name + " new rows", times(7, 1), 0);
    print_line("mm 400-800x576x384", name + " new, by 32", times(7, 32), 0);
    print_line("mm 400-800x576x384", name + " new, by 64", times(7, 64), 0);
  }
}

void time_grouped_linear() {
  constexpr std::int64_t kExperts = 8, kRows = kTokens * 2;
  const auto options = at::TensorOptions(at::kBFloat16);
  const at::Tensor x = at::randn({kRows, kHidden}, options).requires_grad_();
  std::vector<at::Tensor> weights;
  for (std::int64_t e = 0; e < kExperts; ++e)
    weights.push_back(at::randn({kExpertWidth, kHidden}, options).requires_grad_());
  const at::Tensor factors = at::randn({kRows, kExpertWidth}, options);
  const auto both = [&] {
    // Counts that differ from call to call, as routing makes them.
    std::vector<std::int64_t> counts(kExperts, 0);
    const at::Tensor ids = at::randint(0, kExperts, {kRows}, at::kLong);
    for (std::int64_t r = 0; r < kRows; ++r) ++counts[static_cast<std::size_t>(ids.const_data_ptr<std::int64_t>()[r])];
    std::vector<at::Tensor> inputs = weights;
    inputs.push_back(x);
    torch::autograd::grad({grouped_linear(x, weights, counts)}, inputs, {factors});
  };
  print_line("grouped_linear 8 experts", "both bf16", measure(both), 0);
}

void time_cross_entropy() {
  const auto options = at::TensorOptions(at::kBFloat16);
  const at::Tensor hidden = at::randn({kTokens, kHidden}, options).requires_grad_();
  const at::Tensor weight = (at::randn({kVocabulary, kHidden}) * 0.05).to(at::kBFloat16);
  const at::Tensor labels = at::randint(0, kVocabulary, {kTokens}, at::kLong);
  const auto run = [&] { torch::autograd::grad({masked_cross_entropy(hidden, weight, labels, 1.0)}, {hidden}); };
  print_line("masked_cross_entropy", "frozen head bf16", measure(run), 0);
  weight.requires_grad_();
  const auto run_all = [&] {
    torch::autograd::grad({masked_cross_entropy(hidden, weight, labels, 1.0)}, {hidden, weight});
  };
  print_line("masked_cross_entropy", "trained head bf16", measure(run_all), 0);
}

}  // namespace
}  // namespace dagmoe

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  std::printf("threads %d, best table %s\n", at::get_num_threads(), dagmoe::isa_name(dagmoe::best_isa()));
  std::printf("%-24s %-20s %9s %9s %9s\n", "kernel", "variant", "min ms", "median ms", "GB/s");
  if (what != "ops") {
    dagmoe::time_tables<float>("float", at::kFloat);
    dagmoe::time_tables<dagmoe::Bf16>("bf16", at::kBFloat16);
  }
  if (what != "tables") {
    dagmoe::time_attention();
    dagmoe::time_new_shapes();
    dagmoe::time_grouped_linear();
    dagmoe::time_cross_entropy();
  }
  return 0;
}
