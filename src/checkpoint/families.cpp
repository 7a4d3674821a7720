#include "checkpoint/families.h"

#include <array>
#include <string_view>
#include <utility>

namespace dagmoe {
namespace {

bool replace(std::string& text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  if (at == std::string::npos) return false;
  text.replace(at, from.size(), to);
  return true;
}

std::string mixtral_name(std::string name) {
  if (replace(name, ".mlp.gate.weight", ".block_sparse_moe.gate.weight")) return name;
  if (!replace(name, ".mlp.experts.", ".block_sparse_moe.experts.")) return name;
  constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kProjections{
      {{".gate_proj.", ".w1."}, {".down_proj.", ".w2."}, {".up_proj.", ".w3."}}};
  for (const auto& [ours, theirs] : kProjections) {
    if (replace(name, ours, theirs)) break;
  }
  return name;
}

}  // namespace

std::string disk_name(const ModelConfig& config, const std::string& parameter) {
  return config.base_model_type == "mixtral" ? mixtral_name(parameter) : parameter;
}

}  // namespace dagmoe
