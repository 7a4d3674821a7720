#include "checkpoint/safetensors_folder.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/problems.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr std::size_t kMaxNameBytes = 255;  // Linux' NAME_MAX

using WeightMap = std::map<std::string, std::string>;

/// False for what would lead out of the folder or could not be printed.
bool is_file_name(const std::string& name) {
  const bool is_folder = name == "." || name == ".." || name.find_first_of("/\\") != std::string::npos;
  return !name.empty() && name.size() <= kMaxNameBytes && !is_folder && one_line(name) == name;
}

/// Tensor name -> file name, as the index says.
WeightMap read_weight_map(const std::filesystem::path& path) {
  const Json index = read_json_file(path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw InputError(path.string() + ": 'weight_map' is missing; expected {tensor name: file name}");
  }
  WeightMap weight_map;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (!is_file_name(name)) {
      const std::string found = file.is_string() ? quoted_for_message(name) : file.type_name();
      throw InputError(str(path.string(), ": tensor ", quoted_for_message(tensor), ": found ", found,
                           ", expected a file name without folders"));
    }
    weight_map[tensor] = name;
  }
  return weight_map;
}

std::vector<std::string> file_names(const WeightMap& weight_map) {
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map) names.insert(file);
  return {names.begin(), names.end()};
}

}  // namespace

SafetensorsFolder SafetensorsFolder::open(const std::filesystem::path& folder) {
  const bool has_single = std::filesystem::exists(folder / kSingleName),
             has_index = std::filesystem::exists(folder / kIndexName);
  if (!has_single && !has_index) {
    throw InputError(str(folder.string(), ": has no weights; expected ", kSingleName, " or ", kIndexName));
  }
  // As transformers decides, which does not say so.
  if (has_single && has_index)
    log_warning(str(folder.string(), ": ", kSingleName, " is used; ", kIndexName, " is not"));
  const WeightMap weight_map = has_single ? WeightMap() : read_weight_map(folder / kIndexName);
  const std::vector<std::string> names = has_single ? std::vector<std::string>{kSingleName} : file_names(weight_map);
  std::vector<SafetensorsFile> files;
  for (const std::string& name : names) files.push_back(SafetensorsFile::open(folder / name));
  SafetensorsFolder result;
  result.files_ = std::make_shared<const std::vector<SafetensorsFile>>(std::move(files));
  std::vector<std::string> problems;
  std::set<std::string> misplaced;
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (const TensorInfo& info : (*result.files_)[i].tensors()) {
      const auto listed = weight_map.find(info.name);
      if (has_single || (listed != weight_map.end() && listed->second == names[i])) {
        result.places_[info.name] = {&(*result.files_)[i], &info};
      } else {
        misplaced.insert(info.name);
        const std::string says = listed == weight_map.end() ? "does not list it" : "lists it in " + listed->second;
        problems.push_back(
            str("tensor ", quoted_for_message(info.name), " lies in ", names[i], ", but the index ", says));
      }
    }
  }
  for (const auto& [tensor, file] : weight_map) {
    if (result.find(tensor) != nullptr || misplaced.contains(tensor)) continue;
    problems.push_back(str("tensor ", quoted_for_message(tensor), " is listed in ", file, ", but is not there"));
  }
  throw_problems(folder.string(), problems);
  return result;
}

const SafetensorsFolder::Place* SafetensorsFolder::find(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : &found->second;
}

void SafetensorsFolder::release_pages() const noexcept {
  for (const SafetensorsFile& file : *files_) file.mapping()->release_pages();
}

}  // namespace dagmoe
