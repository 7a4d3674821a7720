#include "finetune/flops.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>

#include "base/text.h"

namespace dagmoe {
namespace {

// The rows that a matrix is multiplied with, per token of the step.
double rows_per_token(const RunParameter& parameter, const ModelConfig& config) {
  const std::string group = parameter_group(parameter.name);
  if (group == "embeddings") return 0;  // a lookup
  // The factors of all experts; those of S'MoRE are multiplied whole.
  const bool is_of_experts =
      group == "lora" && parameter.shape.size() == 3 && parameter.name.find(".smore_") == std::string::npos;
  if (group != "experts" && group != "dag" && !is_of_experts) return 1;
  const auto K = static_cast<double>(config.moe->num_experts_per_tok);
  if (group == "experts" || is_of_experts) return K / static_cast<double>(config.moe->num_experts);
  if (!parameter.name.ends_with("up_proj.weight")) return K;
  // The sum over the nodes is projected, and each node as well where another iteration follows.
  const std::string last = str(".dag.", config.dag->num_iterations - 1, ".");
  return parameter.name.find(last) != std::string::npos ? 1 : K + 1;
}

}  // namespace

std::vector<double> recompute_flops(const RunSetup& setup) {
  const auto num_layers = static_cast<std::size_t>(setup.config.num_hidden_layers);
  std::vector<double> flops(num_layers);
  std::size_t lowest = num_layers;
  for (const RunParameter& parameter : setup.parameters) {
    const bool is_embedding = parameter_group(parameter.name) == "embeddings";
    const auto layer = is_embedding ? std::optional<std::int64_t>(0) : parameter_layer(parameter.name);
    if (parameter.is_trainable && layer) lowest = std::min(lowest, static_cast<std::size_t>(*layer));
    if (!layer || is_embedding || parameter.shape.size() < 2) continue;
    flops.at(static_cast<std::size_t>(*layer)) +=
        2.0 * rows_per_token(parameter, setup.config) * static_cast<double>(parameter.num_elements());
  }
  std::fill_n(flops.begin(), lowest, 0.0);
  return flops;
}

double step_flops(const RunSetup& setup, const StepTokens& step) {
  const bool is_tied = setup.config.tie_word_embeddings;
  double flops = 0.0;
  // Gradients go on below a layer that carries an adapter; of experts, whose factors are one, from the first on.
  std::set<std::string> adapted;
  for (const AdapterPart& part : setup.adapter.parts) {
    const std::string& module = part.target.module;
    const std::string experts = module.substr(0, module.rfind('.'));
    adapted.insert(part.target.num_experts > 0 ? experts + ".0.gate_proj.weight" : module + ".weight");
  }
  bool trains_below = false, embedding_trains = false;
  const auto add = [&](double rows, const RunParameter& parameter, bool is_trained) {
    const double passes = 1 + (trains_below ? 1 : 0) + (is_trained ? 1 : 0);
    flops += 2.0 * rows * static_cast<double>(parameter.num_elements()) * passes;
  };
  for (const RunParameter& parameter : setup.parameters) {
    const bool is_embedding = parameter_group(parameter.name) == "embeddings";
    const bool is_head = parameter_group(parameter.name) == "lm_head";
    const double tokens = static_cast<double>(is_head ? step.supervised_tokens : step.tokens);
    if (parameter.shape.size() >= 2 && !is_embedding)
      add(tokens * rows_per_token(parameter, setup.config), parameter, parameter.is_trainable);
    trains_below = trains_below || parameter.is_trainable || adapted.contains(parameter.name);
    embedding_trains = embedding_trains || (is_embedding && parameter.is_trainable);
  }
  if (is_tied) add(static_cast<double>(step.supervised_tokens), setup.parameters.front(), embedding_trains);
  const std::vector<double> again = recompute_flops(setup);
  for (std::size_t n = 0; n < again.size(); ++n) {
    if (setup.recompute(static_cast<std::int64_t>(n))) flops += again[n] * static_cast<double>(step.tokens);
  }
  return flops;
}

}  // namespace dagmoe
