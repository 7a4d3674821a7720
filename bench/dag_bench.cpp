// The DAG beside plain ATen operators, forward and backward: the pair step alone, and whole iterations. Both are
// checked against the plain expression in float before they are timed; a relative error above the tolerance ends with
// exit 1.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/text.h"
#include "kernels/dispatch.h"
#include "kernels/ops.h"
#include "model/combine.h"

namespace dagmoe {
namespace {

// T tokens, D hidden, K chosen experts, G node width.
constexpr std::int64_t kHidden = 576, kIterations = 2;
constexpr double kNormEps = 1e-5;

struct Flags {
  std::int64_t tokens = 4096;
  std::vector<std::int64_t> chosen = {4, 8}, node_sizes = {64, 128};
  int threads = 0, repeats = 9;
  double seconds_per_case = 20;
  std::string json;
};

using Tensors = std::vector<at::Tensor>;
// From inputs to one result.
using Expression = std::function<at::Tensor(const Tensors&)>;

struct Case {
  std::string name;
  at::ScalarType dtype;
  std::int64_t K, G;
  Expression plain, ours;
  Tensors inputs;
  at::Tensor factor;  ///< the gradient of the result
};

// ---- The plain expressions, as they are written in PyTorch: edges factorised, K x K x G values in memory.

at::Tensor plain_pairs(const at::Tensor& abce_TK4G) {
  const Tensors parts = abce_TK4G.chunk(4, -1);
  const at::Tensor gates_TKKG = at::silu(parts[0].unsqueeze(2) + parts[1].unsqueeze(1));
  return (gates_TKKG * (parts[2].unsqueeze(2) + parts[3].unsqueeze(1))).sum(2);
}

// hidden, expert outputs, weights, then norm, down, edge, node and up of each iteration.
constexpr std::size_t kLayerInputs = 3, kStepInputs = 5;

at::Tensor plain_layer(const Tensors& inputs) {
  const auto dtype = inputs[1].scalar_type();
  const std::int64_t K = inputs[2].size(1);
  at::Tensor nodes_TKD = inputs[2].to(dtype).unsqueeze(-1) * inputs[1] + (inputs[0] / K).unsqueeze(1);
  for (std::size_t i = kLayerInputs; i < inputs.size(); i += kStepInputs) {
    const at::Tensor normed_TKD = at::layer_norm(nodes_TKD, {kHidden}, inputs[i], {}, kNormEps);
    const at::Tensor z_TKG = at::linear(normed_TKD, inputs[i + 1].to(dtype));
    const Tensors edge = inputs[i + 2].chunk(2, 1), node = inputs[i + 3].chunk(2, 1);
    const at::Tensor mix_4GG = at::cat({edge[0], edge[1], node[0], node[1]}).to(dtype);
    const at::Tensor s_TKG = plain_pairs(at::linear(z_TKG, mix_4GG));
    nodes_TKD = nodes_TKD + at::linear(s_TKG, inputs[i + 4].to(dtype));
  }
  return nodes_TKD.sum(1);
}

at::Tensor our_layer(const Tensors& inputs) {
  const CombineInput input{inputs[0], inputs[0], inputs[1], inputs[2]};
  std::vector<DagStep> steps;
  for (std::size_t i = kLayerInputs; i < inputs.size(); i += kStepInputs)
    steps.push_back({inputs[i], inputs[i + 1], inputs[i + 2], inputs[i + 3], inputs[i + 4]});
  const DagConfig dag{.num_iterations = kIterations, .node_size = steps.front().down_GD.size(0)};
  return combine_experts(input, steps, &dag, kNormEps);
}

// ---- The cases

Case pairs_case(const Flags& flags, at::ScalarType dtype, std::int64_t K, std::int64_t G) {
  return {"pairs",
          dtype,
          K,
          G,
          [](const Tensors& inputs) { return plain_pairs(inputs[0]); },
          [](const Tensors& inputs) { return dag_pairs(inputs[0]); },
          {at::randn({flags.tokens, K, 4 * G}).to(dtype)},
          at::randn({flags.tokens, K, G}).to(dtype)};
}

// As a layer in training has it: activations in the pass's dtype, the weights' masters and the router's in float, and
// everything wants a gradient.
Case layer_case(const Flags& flags, at::ScalarType dtype, std::int64_t K, std::int64_t G) {
  const auto weight = [](std::int64_t rows, std::int64_t columns) {
    return at::randn({rows, columns}) / std::sqrt(static_cast<double>(columns));
  };
  Tensors inputs = {at::randn({flags.tokens, kHidden}).to(dtype), at::randn({flags.tokens, K, kHidden}).to(dtype),
                    at::softmax(at::randn({flags.tokens, K}), 1)};
  for (std::int64_t l = 0; l < kIterations; ++l)
    inputs.insert(inputs.end(), {at::rand({kHidden}) + 0.5, weight(G, kHidden), weight(G, 2 * G), weight(G, 2 * G),
                                 weight(kHidden, G)});
  return {"layer", dtype, K, G, plain_layer, our_layer, inputs, at::randn({flags.tokens, kHidden}).to(dtype)};
}

// ---- Agreement

Tensors leaves(const Tensors& inputs) {
  Tensors result;
  for (const at::Tensor& input : inputs) result.push_back(input.detach().clone().requires_grad_());
  return result;
}

// The result and the gradients of all inputs.
Tensors both_passes(const Expression& expression, const Tensors& inputs, const at::Tensor& factor) {
  const at::Tensor result = expression(inputs);
  Tensors values = torch::autograd::grad({result}, inputs, {factor});
  values.push_back(result.detach());
  return values;
}

Tensors as_double(const Tensors& tensors) {
  Tensors result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.to(at::kDouble));
  return result;
}

// The largest, over result and gradients, of |ours - truth| / |truth| in the Euclidean norm.
double relative_error(const Tensors& values, const Tensors& truth) {
  double largest = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const at::Tensor difference = values[i].to(at::kDouble) - truth[i];
    const double error = difference.norm().item<double>() / truth[i].norm().item<double>();
    if (!(error <= largest)) largest = error;  // a NaN too
  }
  return largest;
}

struct Errors {
  double plain, ours;
};

// bf16 rounds after every operator: ours may be as far from the truth as the plain expression in bf16 is, and a half.
double tolerance(at::ScalarType dtype, const Errors& errors) {
  return dtype == at::kFloat ? 1e-5 : std::max(1e-2, 1.5 * errors.plain);
}

Errors errors_of(const Case& c) {
  const Tensors truth = both_passes(c.plain, leaves(as_double(c.inputs)), c.factor.to(at::kDouble));
  return {relative_error(both_passes(c.plain, leaves(c.inputs), c.factor), truth),
          relative_error(both_passes(c.ours, leaves(c.inputs), c.factor), truth)};
}

// ---- Times

struct Series {
  std::vector<double> values;
  double median() const {
    std::vector<double> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    const std::size_t middle = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }
  double least() const { return *std::min_element(values.begin(), values.end()); }
  double most() const { return *std::max_element(values.begin(), values.end()); }
  std::string text(int digits, double scale = 1) const {
    return str(fixed(median() * scale, digits), " (", fixed(least() * scale, digits), "-",
               fixed(most() * scale, digits), ")");
  }
  Json json() const { return {{"median", median()}, {"min", least()}, {"max", most()}, {"values", values}}; }
};

struct Result {
  Errors errors;
  Series plain, ours, ratios;  ///< seconds; plain / ours of neighbouring runs
};

double seconds_of(const Expression& expression, const Tensors& inputs, const at::Tensor& factor) {
  const auto start = std::chrono::steady_clock::now();
  both_passes(expression, inputs, factor);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// In turn after a warm-up of both, three times at least and then as long as the case may take.
Result measure(const Case& c, const Flags& flags) {
  Result result{errors_of(c), {}, {}, {}};
  const Tensors inputs = leaves(c.inputs);
  seconds_of(c.plain, inputs, c.factor), seconds_of(c.ours, inputs, c.factor);
  double spent = 0;
  for (int repeat = 0; repeat < flags.repeats && (repeat < 3 || spent < flags.seconds_per_case); ++repeat) {
    result.plain.values.push_back(seconds_of(c.plain, inputs, c.factor));
    result.ours.values.push_back(seconds_of(c.ours, inputs, c.factor));
    spent += result.plain.values.back() + result.ours.values.back();
    result.ratios.values.push_back(result.plain.values.back() / result.ours.values.back());
  }
  return result;
}

std::string scientific(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  return text;
}

class Report {
 public:
  explicit Report(const Flags& flags) : path_(flags.json) {
    json_ = {{"threads", at::get_num_threads()}, {"table", isa_name(best_isa())},
             {"tokens", flags.tokens},           {"hidden", kHidden},
             {"iterations", kIterations},        {"cases", Json::array()}};
    std::cout << flags.tokens << " tokens, " << at::get_num_threads() << " threads, kernel table "
              << isa_name(best_isa()) << "; milliseconds of forward and backward, median (least-most) of runs in turn\n"
              << "pairs: the pair step alone; layer: " << kIterations << " iterations at D = " << kHidden
              << ", from the experts' outputs to the layer's\n\n"
              << "| | dtype | K | G | plain ATen, ms | dagmoe, ms | plain / dagmoe | error plain | error dagmoe |\n"
              << "|---|---|---|---|---|---|---|---|---|" << std::endl;
  }

  void add(const Case& c, const Result& result) {
    const bool agrees = result.errors.ours <= tolerance(c.dtype, result.errors);
    all_agree_ = all_agree_ && agrees;
    const std::string dtype = c.dtype == at::kFloat ? "fp32" : "bf16";
    std::cout << "| " << c.name << " | " << dtype << " | " << c.K << " | " << c.G << " | " << result.plain.text(1, 1e3)
              << " | " << result.ours.text(1, 1e3) << " | " << result.ratios.text(1) << " | "
              << scientific(result.errors.plain) << " | " << scientific(result.errors.ours)
              << (agrees ? "" : " TOO LARGE") << " |" << std::endl;
    json_["cases"].push_back({{"case", c.name},
                              {"dtype", dtype},
                              {"K", c.K},
                              {"G", c.G},
                              {"plain_seconds", result.plain.json()},
                              {"dagmoe_seconds", result.ours.json()},
                              {"ratio", result.ratios.json()},
                              {"error_plain", result.errors.plain},
                              {"error_dagmoe", result.errors.ours},
                              {"tolerance", tolerance(c.dtype, result.errors)}});
    write();
  }

  bool all_agree() const { return all_agree_; }

 private:
  // After every case, so that a run that ends early leaves what it has.
  void write() const {
    if (path_.empty()) return;
    std::ofstream file(path_);
    file << json_.dump(1) << '\n';
    if (!file.flush()) throw std::runtime_error(path_ + ": could not be written");
  }

  std::string path_;
  Json json_;
  bool all_agree_ = true;
};

int run(const Flags& flags) {
  if (flags.threads > 0) at::set_num_threads(flags.threads);
  at::manual_seed(1);
  Report report(flags);
  for (const auto make : {pairs_case, layer_case}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const std::int64_t K : flags.chosen) {
        for (const std::int64_t G : flags.node_sizes) {
          const Case c = make(flags, dtype, K, G);
          report.add(c, measure(c, flags));
        }
      }
    }
  }
  if (!report.all_agree()) std::cerr << "dag_bench: dagmoe and the plain expression disagree; the times do not count\n";
  return report.all_agree() ? 0 : 1;
}

}  // namespace
}  // namespace dagmoe

int main(int argc, char** argv) {
  CLI::App app("The DAG beside plain ATen operators, forward and backward, in fp32 and bf16");
  dagmoe::Flags flags;
  app.add_option("--tokens", flags.tokens, "a call")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--k", flags.chosen, "experts chosen per token")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--g", flags.node_sizes, "node widths")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--threads", flags.threads, "0: LibTorch's default")->check(CLI::NonNegativeNumber);
  app.add_option("--repeats", flags.repeats, "runs of each, at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds_per_case, "a case, after which no further repeat begins (three are made)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--json", flags.json, "file to write");
  CLI11_PARSE(app, argc, argv);
  try {
    return dagmoe::run(flags);
  } catch (const std::exception& error) {
    std::cerr << "dag_bench: " << error.what() << '\n';
    return 1;
  }
}
