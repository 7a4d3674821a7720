#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// The part of a model that a parameter belongs to: dag, router, experts, shared_experts, mlp (a dense layer's
/// feed-forward), attention, norms (those of q and k too), embeddings or lm_head; or one of two that are in no model by
/// themselves: lora, what an adapter adds, and router_bias, which no rule can train as it changes with the experts'
/// loads.
std::string parameter_group(std::string_view name);
const std::vector<std::string>& parameter_groups();
/// N of "model.layers.N."; nullopt for parameters outside the layers.
std::optional<std::int64_t> parameter_layer(std::string_view name);

/// Layers first .. last, both included, counted from 0.
struct LayerRange {
  std::int64_t first = 0, last = 0;
};
/// "8" or "8..15"; nullopt for anything else, also for "15..8".
std::optional<LayerRange> parse_layer_range(std::string_view text);

/// `pattern` is a group, "full", or a glob over parameter names; a leading '!' freezes what it matches. `where` is its
/// place in the recipe, for messages. With `layers` the rule is about parameters of these layers only. With `names` the
/// pattern is only a word for them, and the rule matches these parameters and no others (esft.h).
struct TrainableRule {
  std::string pattern, where;
  std::vector<LayerRange> layers = {};
  std::set<std::string> names = {};
};

struct TrainableSelection {
  std::vector<std::optional<std::size_t>> rule_of;  ///< per name: the rule that trains it; nullopt: frozen
  std::vector<std::string> warnings;                ///< rules that decide nothing because later ones match as well
  bool is_trainable(std::size_t index) const { return rule_of[index].has_value(); }
};

/// Which of `names` may change: all start frozen, the last matching rule wins. Throws ConfigError, with every problem,
/// for a rule that matches nothing (with the nearest group), for a layer that the model does not have, and when nothing
/// is left to train.
TrainableSelection select_trainable(const std::vector<TrainableRule>& rules, const std::vector<std::string>& names);

}  // namespace dagmoe
