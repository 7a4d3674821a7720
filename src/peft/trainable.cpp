#include "peft/trainable.h"

#include <algorithm>

#include "base/error.h"
#include "base/glob.h"
#include "base/text.h"

namespace dagmoe {
namespace {

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

bool matches(std::string_view pattern, std::string_view name) {
  if (parameter_group(name) == "router_bias") return false;  // a buffer: no gradient ever reaches it
  return pattern == "full" || parameter_group(name) == pattern || glob_match(pattern, name);
}

}  // namespace

std::string parameter_group(std::string_view name) {
  if (contains(name, ".mlp.dag.")) return "dag";
  if (name.ends_with(".e_score_correction_bias")) return "router_bias";
  if (contains(name, ".mlp.gate.")) return "router";
  if (contains(name, ".mlp.experts.")) return "experts";
  if (contains(name, ".mlp.shared_expert")) return "shared_experts";
  if (contains(name, ".mlp.")) return "mlp";
  if (contains(name, "norm.")) return "norms";  // those of q and k included
  if (contains(name, ".self_attn.")) return "attention";
  if (contains(name, "embed_tokens.")) return "embeddings";
  return "lm_head";
}

const std::vector<std::string>& parameter_groups() {
  static const std::vector<std::string> groups{"dag",       "router", "experts",    "shared_experts", "mlp",
                                               "attention", "norms",  "embeddings", "lm_head"};
  return groups;
}

std::vector<bool> select_trainable(const std::vector<TrainableRule>& rules, const std::vector<std::string>& names) {
  std::vector<bool> trainable(names.size(), false);
  std::vector<std::string> issues;
  for (const auto& [pattern, where] : rules) {
    const bool freezes = pattern.starts_with('!');
    const std::string_view bare = std::string_view(pattern).substr(freezes ? 1 : 0);
    bool matched = false;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!matches(bare, names[i])) continue;
      trainable[i] = !freezes;
      matched = true;
    }
    if (matched) continue;
    const bool is_group = std::ranges::count(parameter_groups(), bare) > 0;
    std::vector<std::string> known = parameter_groups();
    known.emplace_back("full");
    issues.push_back(
        str(where, ": trainable: '", bare, "' ",
            is_group ? "is a group without parameters in this model" : "is no group and matches no parameter",
            is_group ? "" : did_you_mean(bare, known)));
  }
  if (issues.empty() && std::ranges::count(trainable, true) == 0) {
    issues.push_back(str(rules.empty() ? "recipe" : rules.back().where, ": trainable: nothing is left to train"));
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
  return trainable;
}

}  // namespace dagmoe
