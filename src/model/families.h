#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "model/config.h"
#include "model/config_keys.h"

namespace dagmoe {

/// A model family: what is particular in its config.json and in its tensor names. Each lives in one file of families/;
/// adding one is a file there and a line in families.cpp.
struct Family {
  const char* model_type;    ///< "qwen2_moe"
  const char* architecture;  ///< "Qwen2MoeForCausalLM"
  /// All keys of a config.json into `config`, read_common included.
  void (*read)(ConfigKeys& keys, ModelConfig& config);
  /// The family's own keys back, beside those of write_common.
  void (*write)(const ModelConfig& config, Json& json);
  /// What the family calls one of our parameters on disk, experts one by one; null: the same.
  std::string (*disk_name)(std::string parameter) = nullptr;
  bool has_experts = false;
};

/// Null for a name that is no family.
const Family* find_family(std::string_view model_type);
/// All of them, in the order in which messages list them.
const std::vector<const Family*>& families();
std::vector<std::string> family_names();

/// The name on disk of one of our parameters (contracts.md 1.4). Ours are Llama's names, with `mlp.gate`,
/// `mlp.experts.E` and `mlp.shared_expert` for routed layers; DAG tensors are named alike everywhere.
std::string disk_name(const ModelConfig& config, const std::string& parameter);

/// `from` replaced by `to` where it first occurs; false when it does not.
bool replace_part(std::string& text, std::string_view from, std::string_view to);

}  // namespace dagmoe
