#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/lora.h"
#include "peft/smora.h"
#include "peft/smore.h"

namespace dagmoe {

using NamedShapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

/// A place that an adapter can change: a linear layer, or one of the two matrices of a layer's routed experts.
struct AdapterTarget {
  std::string module;  ///< "model.layers.3.self_attn.q_proj", "model.layers.3.mlp.experts.gate_up_proj"
  std::string group;   ///< of parameter_groups(): attention, mlp, router, experts, shared_experts or lm_head
  std::int64_t O = 0, I = 0;
  std::int64_t num_experts = 0;  ///< 0: a linear layer
};
/// Of the parameters of a model (parameter_shapes), in the order of the forward pass.
std::vector<AdapterTarget> adapter_targets(const NamedShapes& parameters);

enum class AdapterKind { kLora, kDora, kSmore, kSmora };
/// smore and smora: mixtures of linear layers alone, which depend on the input and cannot be folded into a matrix.
bool is_mixture(AdapterKind kind);

/// What one target gets.
struct AdapterPart {
  AdapterTarget target;
  std::int64_t rank = 0;  ///< S'MoRE has ranks of its own
  double alpha = 0.0;
};

/// An adapter: what changes, and how. Everything but the numbers.
struct AdapterSpec {
  AdapterKind kind = AdapterKind::kLora;
  LoraInit init = LoraInit::kDefault;
  bool use_rslora = false;
  double dropout = 0.0;
  SmoreConfig smore = {};  ///< of kind smore; alpha is the part's
  SmoraConfig smora = {};  ///< of kind smora; rank and alpha are the part's
  std::vector<AdapterPart> parts;

  /// alpha / R, or alpha / sqrt(R) with use_rslora.
  double scale_of(const AdapterPart& part) const;
  SmoreConfig smore_of(const AdapterPart& part) const;
  SmoraConfig smora_of(const AdapterPart& part) const;
  /// Of a part's mixture, below its module: smore_shapes or smora_shapes.
  NamedShapes mixture_shapes(const AdapterPart& part) const;
  /// Names and shapes of the parameters that the adapter adds, target by target: lora_A.weight [R, I],
  /// lora_B.weight [O, R] and, with DoRA, lora_magnitude_vector [O]; of experts [E, R, I] and [E, O, R]. Of
  /// mixtures those of smore_shapes and smora_shapes, without buffers().
  NamedShapes parameters() const;
  /// What is saved beside them and never trained: SMoRA's bias, smora_gate.bias [R].
  NamedShapes buffers() const;
};

/// A rule of a recipe: which targets, by a group, a module name or its end after a dot ("q_proj"), or a glob over
/// module names. A later rule of the same target replaces rank and alpha.
struct AdapterRule {
  std::string pattern, where;
  std::int64_t rank = 8;
  double alpha = 16.0;
};
bool matches_target(std::string_view pattern, const AdapterTarget& target);
/// The targets that `rules` name; `changes` give other ranks to some of them. Throws ConfigError with every rule that
/// matches nothing, with the nearest name.
std::vector<AdapterPart> select_targets(const std::vector<AdapterRule>& rules, const std::vector<AdapterRule>& changes,
                                        const std::vector<AdapterTarget>& targets);

}  // namespace dagmoe
