#include "peft/adapter_spec.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/glob.h"
#include "base/text.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

constexpr std::string_view kWeight = ".weight", kExperts = ".mlp.experts.";

// The end of a module's name: "q_proj".
std::string_view last_part(std::string_view module) { return module.substr(module.rfind('.') + 1); }

// Either the parameters of a target's mixture or its buffers: SMoRA's last tensor is one.
void add_mixture(const AdapterSpec& spec, const AdapterPart& part, bool buffers, NamedShapes& shapes) {
  const NamedShapes all = spec.mixture_shapes(part);
  const std::size_t num_parameters = all.size() - (spec.kind == AdapterKind::kSmora ? 1 : 0);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if ((i >= num_parameters) == buffers) shapes.emplace_back(part.target.module + "." + all[i].first, all[i].second);
  }
}

}  // namespace

std::vector<AdapterTarget> adapter_targets(const NamedShapes& parameters) {
  std::vector<AdapterTarget> targets;
  for (const auto& [name, shape] : parameters) {
    const std::string group = parameter_group(name);
    const bool is_linear = shape.size() == 2 && name.ends_with(kWeight) && group != "dag" && group != "embeddings";
    if (!is_linear) continue;
    const std::string module = name.substr(0, name.size() - kWeight.size());
    const auto at = module.find(kExperts);
    if (at == std::string::npos) {
      targets.push_back({module, group, shape[0], shape[1]});
      continue;
    }
    // The experts' matrices lie together: the first expert makes the target, the others are counted.
    const std::string prefix = module.substr(0, at + kExperts.size());
    const std::string_view matrix = last_part(module);
    if (matrix == "up_proj") continue;  // with gate_proj
    const std::string joined = prefix + (matrix == "gate_proj" ? "gate_up_proj" : "down_proj");
    const auto known = std::ranges::find(targets, joined, &AdapterTarget::module);
    if (known != targets.end()) {
      ++known->num_experts;
    } else {
      targets.push_back({joined, group, matrix == "gate_proj" ? 2 * shape[0] : shape[0], shape[1], 1});
    }
  }
  return targets;
}

double AdapterSpec::scale_of(const AdapterPart& part) const {
  const auto rank = static_cast<double>(part.rank);
  return part.alpha / (use_rslora ? std::sqrt(rank) : rank);
}

bool is_mixture(AdapterKind kind) { return kind == AdapterKind::kSmore || kind == AdapterKind::kSmora; }

SmoreConfig AdapterSpec::smore_of(const AdapterPart& part) const {
  SmoreConfig config = smore;
  config.alpha = part.alpha;
  return config;
}

SmoraConfig AdapterSpec::smora_of(const AdapterPart& part) const {
  return {.rank = part.rank, .num_active = smora.num_active, .alpha = part.alpha};
}

NamedShapes AdapterSpec::mixture_shapes(const AdapterPart& part) const {
  return kind == AdapterKind::kSmore ? smore_shapes(smore_of(part), part.target.O, part.target.I)
                                     : smora_shapes(smora_of(part), part.target.O, part.target.I);
}

NamedShapes AdapterSpec::parameters() const {
  NamedShapes shapes;
  for (const AdapterPart& part : parts) {
    const AdapterTarget& target = part.target;
    if (is_mixture(kind)) {
      add_mixture(*this, part, /*buffers=*/false, shapes);
      continue;
    }
    const std::int64_t E = target.num_experts, R = part.rank;
    const auto shape = [E](std::int64_t rows, std::int64_t columns) {
      return E == 0 ? std::vector<std::int64_t>{rows, columns} : std::vector<std::int64_t>{E, rows, columns};
    };
    shapes.emplace_back(target.module + ".lora_A.weight", shape(R, target.I));
    shapes.emplace_back(target.module + ".lora_B.weight", shape(target.O, R));
    if (kind == AdapterKind::kDora)
      shapes.emplace_back(target.module + ".lora_magnitude_vector", std::vector<std::int64_t>{target.O});
  }
  return shapes;
}

NamedShapes AdapterSpec::buffers() const {
  NamedShapes shapes;
  if (kind != AdapterKind::kSmora) return shapes;
  for (const AdapterPart& part : parts) add_mixture(*this, part, /*buffers=*/true, shapes);
  return shapes;
}

bool matches_target(std::string_view pattern, const AdapterTarget& target) {
  return pattern == target.group || pattern == target.module || target.module.ends_with(str(".", pattern)) ||
         glob_match(pattern, target.module);
}

std::vector<AdapterPart> select_targets(const std::vector<AdapterRule>& rules, const std::vector<AdapterRule>& changes,
                                        const std::vector<AdapterTarget>& targets) {
  std::vector<std::string> issues;
  std::set<std::string> known;
  for (const AdapterTarget& target : targets) known.insert({target.group, std::string(last_part(target.module))});
  const auto unmatched = [&](const AdapterRule& rule, const char* what) {
    issues.push_back(str(rule.where, ": '", rule.pattern, "' ", what,
                         did_you_mean(rule.pattern, {known.begin(), known.end()}),
                         "; known: ", join(std::vector<std::string>(known.begin(), known.end()), ", ")));
  };
  std::vector<std::optional<AdapterPart>> chosen(targets.size());
  for (const AdapterRule& rule : rules) {
    bool matched = false;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (!matches_target(rule.pattern, targets[i])) continue;
      chosen[i] = AdapterPart{targets[i], rule.rank, rule.alpha};
      matched = true;
    }
    if (!matched) unmatched(rule, "matches no linear layer of this model");
  }
  for (const AdapterRule& rule : changes) {
    bool matched = false;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (!chosen[i] || !matches_target(rule.pattern, targets[i])) continue;
      chosen[i]->rank = rule.rank, chosen[i]->alpha = rule.alpha;
      matched = true;
    }
    if (!matched) unmatched(rule, "matches nothing that the adapter changes");
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
  std::vector<AdapterPart> parts;
  for (auto& part : chosen) {
    if (part) parts.push_back(std::move(*part));
  }
  return parts;
}

}  // namespace dagmoe
