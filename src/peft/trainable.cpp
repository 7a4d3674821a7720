#include "peft/trainable.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/glob.h"
#include "base/text.h"

namespace dagmoe {
namespace {

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string_view bare_pattern(const TrainableRule& rule) {
  return std::string_view(rule.pattern).substr(rule.pattern.starts_with('!') ? 1 : 0);
}

bool matches(const TrainableRule& rule, const std::string& name) {
  if (parameter_group(name) == "router_bias") return false;  // a buffer: no gradient ever reaches it
  if (!rule.names.empty()) return rule.names.contains(name);
  const std::string_view pattern = bare_pattern(rule);
  return pattern == "full" || parameter_group(name) == pattern || glob_match(pattern, name);
}

bool in_layers(const std::vector<LayerRange>& layers, std::string_view name) {
  if (layers.empty()) return true;
  const auto layer = parameter_layer(name);
  return layer && std::ranges::any_of(
                      layers, [&](const LayerRange& range) { return range.first <= *layer && *layer <= range.last; });
}

// Why a rule matches nothing. `matched_elsewhere`: it would, in other layers.
std::string no_match(const TrainableRule& rule, bool matched_elsewhere) {
  const std::string_view bare = bare_pattern(rule);
  const std::string begin = str(rule.where, ": trainable: '", bare, "' ");
  if (matched_elsewhere) return begin + "has no parameter in these layers";
  if (std::ranges::count(parameter_groups(), bare) > 0) return begin + "is a group without parameters in this model";
  std::vector<std::string> known = parameter_groups();
  known.emplace_back("full");
  if (bare == "lora") return begin + "needs a section lora: {targets: [...]}";
  known.insert(known.end(), {"lora", "esft"});
  return str(begin, "is no group and matches no parameter", did_you_mean(bare, known));
}

}  // namespace

std::string parameter_group(std::string_view name) {
  for (const char* adapter : {".lora_", ".smore_", ".smora_"})
    if (contains(name, adapter)) return "lora";
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

std::optional<std::int64_t> parameter_layer(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string_view rest = name.substr(kPrefix.size());
  const auto range = parse_layer_range(rest.substr(0, rest.find('.')));
  return range ? std::optional(range->first) : std::nullopt;
}

std::optional<LayerRange> parse_layer_range(std::string_view text) {
  const auto number = [](std::string_view digits) -> std::optional<std::int64_t> {
    std::int64_t value = 0;
    const char* end = digits.data() + digits.size();
    const auto [parsed, error] = std::from_chars(digits.data(), end, value);
    if (digits.empty() || error != std::errc() || parsed != end || value < 0) return std::nullopt;
    return value;
  };
  const auto dots = text.find("..");
  const auto first = number(text.substr(0, dots));
  const auto last = dots == std::string_view::npos ? first : number(text.substr(dots + 2));
  if (!first || !last || *last < *first) return std::nullopt;
  return LayerRange{*first, *last};
}

TrainableSelection select_trainable(const std::vector<TrainableRule>& rules, const std::vector<std::string>& names) {
  TrainableSelection selection;
  std::vector<std::optional<std::size_t>> last_match(names.size());
  std::vector<std::string> issues;
  std::int64_t num_layers = 0;
  for (const auto& name : names) num_layers = std::max(num_layers, parameter_layer(name).value_or(-1) + 1);
  for (std::size_t r = 0; r < rules.size(); ++r) {
    for (const LayerRange& range : rules[r].layers) {
      if (range.last < num_layers) continue;
      issues.push_back(str(rules[r].where, ": layers: found ", range.first, "..", range.last,
                           "; the model has layers 0 to ", num_layers - 1));
    }
    bool matched = false, matched_elsewhere = false;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!matches(rules[r], names[i])) continue;
      const bool here = in_layers(rules[r].layers, names[i]);
      matched_elsewhere = matched_elsewhere || !here;
      if (!here) continue;
      last_match[i] = r;
      matched = true;
    }
    if (!matched) issues.push_back(no_match(rules[r], matched_elsewhere));
  }
  for (const auto& match : last_match) {
    const bool trains = match && !rules[*match].pattern.starts_with('!');
    selection.rule_of.push_back(trains ? match : std::nullopt);
  }
  if (issues.empty() && std::ranges::none_of(selection.rule_of, [](const auto& rule) { return rule.has_value(); })) {
    issues.push_back(str(rules.empty() ? "recipe" : rules.back().where, ": trainable: nothing is left to train"));
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
  for (std::size_t r = 0; r < rules.size(); ++r) {
    if (std::ranges::any_of(last_match, [r](const auto& match) { return match == r; })) continue;
    selection.warnings.push_back(str(rules[r].where, ": trainable: '", rules[r].pattern,
                                     "' has no effect: later rules decide for everything it matches"));
  }
  return selection;
}

}  // namespace dagmoe
