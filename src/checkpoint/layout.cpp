#include "checkpoint/layout.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "base/text.h"
#include "model/families.h"
#include "model/parameter_count.h"

namespace dagmoe {
namespace {

constexpr std::string_view kExperts = ".mlp.experts.";
constexpr std::string_view kFusedGateUp = ".mlp.experts.gate_up_proj", kFusedDown = ".mlp.experts.down_proj";

/// "model.layers.3.mlp.experts.7.up_proj.weight" -> "model.layers.3.mlp.experts.gate_up_proj"; nullopt for a parameter
/// of no routed expert.
std::optional<std::string> fused_name(const std::string& parameter) {
  const std::size_t at = parameter.find(kExperts);
  if (at == std::string::npos) return std::nullopt;
  const bool is_down = parameter.ends_with(".down_proj.weight");
  return parameter.substr(0, at) + std::string(is_down ? kFusedDown : kFusedGateUp);
}

std::string extra_problem(const SafetensorsFolder& weights, const std::string& name, const ModelConfig& config) {
  if (name.ends_with(".self_attn.rotary_emb.inv_freq")) return "";  // follows from the config
  if (name == "lm_head.weight" && config.tie_word_embeddings) {
    const auto* embedding = weights.find("model.embed_tokens.weight");
    const auto* head = weights.find(name);
    const bool equal = embedding != nullptr && embedding->info->dtype == head->info->dtype &&
                       std::ranges::equal(embedding->bytes(), head->bytes());
    return equal ? "" : "tensor 'lm_head.weight' differs from the embedding, but 'tie_word_embeddings' is true";
  }
  return str("tensor ", quoted_for_message(name), " is not expected by model_type '", config.model_type, "'");
}

std::int64_t count_values(const SafetensorsFolder& weights) {
  std::int64_t count = 0;
  for (const auto& [name, place] : weights.places()) {
    count += static_cast<std::int64_t>(place.info->end - place.info->begin) / dtype_size(place.info->dtype);
  }
  return count;
}

// A config that asks for far more parameters than there can be is refused before their names are written out. Of
// experts that lie in one tensor each has a value at least.
std::optional<std::string> count_problem(const SafetensorsFolder& weights, const ModelConfig& config,
                                         ExpertLayout layout) {
  constexpr std::int64_t kSlack = 10000;
  const std::int64_t needed = num_parameter_tensors(config);
  const bool is_fused = layout == ExpertLayout::kFused;
  const std::int64_t found = is_fused ? count_values(weights) : static_cast<std::int64_t>(weights.places().size());
  if (needed <= found + kSlack) return std::nullopt;
  return str("config.json asks for ", with_commas(needed), " weight matrices and vectors, but the files hold ",
             with_commas(found), is_fused ? " values" : " tensors");
}

}  // namespace

const char* layout_name(ExpertLayout layout) { return layout == ExpertLayout::kFused ? "fused" : "per expert"; }

std::vector<DiskTensor> disk_tensors(const ModelConfig& config, ExpertLayout layout) {
  std::vector<DiskTensor> tensors;
  const auto shapes = parameter_shapes(config);
  std::map<std::string, std::size_t> fused;  // name -> place in tensors
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const auto& [parameter, shape] = shapes[i];
    const auto name = layout == ExpertLayout::kFused ? fused_name(parameter) : std::nullopt;
    if (!name) {
      // The fused layout has transformers' names in memory: Mixtral's router is mlp.gate there.
      const bool is_router = layout == ExpertLayout::kFused && parameter.find(".mlp.gate.") != std::string::npos;
      tensors.push_back({is_router ? parameter : disk_name(config, parameter), shape, {i}});
      continue;
    }
    const auto [place, is_new] = fused.emplace(*name, tensors.size());
    if (is_new) {
      const std::int64_t rows = name->ends_with(kFusedGateUp) ? 2 * shape[0] : shape[0];
      tensors.push_back({*name, {config.moe->num_experts, rows, shape[1]}, {}});
    }
    tensors[place->second].parameters.push_back(i);
  }
  return tensors;
}

ExpertLayout find_layout(const SafetensorsFolder& weights) {
  for (const auto& [name, place] : weights.places()) {
    if (name.ends_with(kFusedGateUp) || name.ends_with(kFusedDown)) return ExpertLayout::kFused;
  }
  return ExpertLayout::kPerExpert;
}

std::vector<std::string> layout_problems(const SafetensorsFolder& weights, const ModelConfig& config,
                                         ExpertLayout layout) {
  if (const auto problem = count_problem(weights, config, layout)) return {*problem};
  std::vector<std::string> problems;
  std::set<std::string, std::less<>> needed;
  for (const DiskTensor& tensor : disk_tensors(config, layout)) {
    needed.insert(tensor.name);
    const auto* place = weights.find(tensor.name);
    if (place == nullptr) {
      problems.push_back(str("tensor '", tensor.name, "' is missing; expected shape ", shape_text(tensor.shape)));
    } else if (place->info->shape != tensor.shape) {
      problems.push_back(str("tensor '", tensor.name, "': found shape ", shape_text(place->info->shape), ", expected ",
                             shape_text(tensor.shape)));
    } else if (!is_float(place->info->dtype)) {
      problems.push_back(str("tensor '", tensor.name, "': found dtype ", dtype_name(place->info->dtype),
                             ", expected F32, BF16, F16 or F64"));
    }
  }
  for (const auto& [name, place] : weights.places()) {
    if (needed.contains(name)) continue;
    const std::string problem = extra_problem(weights, name, config);
    if (!problem.empty()) problems.push_back(problem);
  }
  return problems;
}

}  // namespace dagmoe
