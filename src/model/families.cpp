#include "model/families.h"

#include <algorithm>

namespace dagmoe {

extern const Family kLlama, kMistral, kQwen2, kQwen3, kMixtral, kOlmoe, kQwen2Moe, kQwen3Moe, kDeepseekV2, kDagmoe;

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> all = {&kLlama, &kMistral,  &kQwen2,    &kQwen3,      &kMixtral,
                                                 &kOlmoe, &kQwen2Moe, &kQwen3Moe, &kDeepseekV2, &kDagmoe};
  return all;
}

const Family* find_family(std::string_view model_type) {
  const auto found = std::find_if(families().begin(), families().end(),
                                  [&](const Family* family) { return family->model_type == model_type; });
  return found == families().end() ? nullptr : *found;
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family* family : families()) names.emplace_back(family->model_type);
  return names;
}

std::string disk_name(const ModelConfig& config, const std::string& parameter) {
  const Family* family = find_family(config.base_model_type);
  return family == nullptr || family->disk_name == nullptr ? parameter : family->disk_name(parameter);
}

bool replace_part(std::string& text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  if (at == std::string::npos) return false;
  text.replace(at, from.size(), to);
  return true;
}

}  // namespace dagmoe
