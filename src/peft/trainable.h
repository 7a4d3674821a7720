#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// The part of a model that a parameter belongs to: dag, router, experts, shared_experts, mlp (a dense layer's
/// feed-forward), attention, norms (those of q and k too), embeddings or lm_head; or router_bias, which is no group of
/// parameter_groups() because no rule can train it: it changes with the experts' loads.
std::string parameter_group(std::string_view name);
const std::vector<std::string>& parameter_groups();

/// `pattern` is a group, "full", or a glob over parameter names; a leading '!' freezes what it matches. `where` is its
/// place in the recipe, for messages.
struct TrainableRule {
  std::string pattern, where;
};

/// Which of `names` may change: all start frozen, the last matching rule wins. Throws ConfigError, with every problem,
/// for a rule that matches nothing (with the nearest group) and when nothing is left to train.
std::vector<bool> select_trainable(const std::vector<TrainableRule>& rules, const std::vector<std::string>& names);

}  // namespace dagmoe
