#include "checkpoint/export.h"

#include <algorithm>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"
#include "model/families.h"

namespace dagmoe {
namespace {

// One tensor a parameter: a slice of its bytes where the source holds several in one.
std::vector<TensorSource> tensors_one_by_one(const Checkpoint& source) {
  const auto shapes = parameter_shapes(source.config());
  std::vector<TensorSource> tensors;
  for (const DiskTensor& disk : disk_tensors(source.config(), source.layout())) {
    const std::span<const std::byte> whole = source.bytes(disk.name);
    const std::size_t size = whole.size() / disk.parameters.size();
    for (std::size_t i = 0; i < disk.parameters.size(); ++i) {
      const auto& [parameter, shape] = shapes[disk.parameters[i]];
      tensors.push_back({disk_name(source.config(), parameter), source.find(disk.name)->dtype, shape,
                         [bytes = whole.subspan(i * size, size)] { return bytes; }});
    }
  }
  return tensors;
}

std::vector<TensorSource> tensors_as_they_are(const Checkpoint& source) {
  std::vector<TensorSource> tensors;
  for (const DiskTensor& disk : disk_tensors(source.config(), source.layout())) {
    tensors.push_back({disk.name, source.find(disk.name)->dtype, disk.shape,
                       [&source, name = disk.name] { return source.bytes(name); }});
  }
  return tensors;
}

void add_remote_code(const std::filesystem::path& folder, const ModelConfig& config) {
  Json json = model_config_json(config);
  json["auto_map"] = {{"AutoConfig", "configuration_dagmoe.DagMoeConfig"},
                      {"AutoModelForCausalLM", "modeling_dagmoe.DagMoeForCausalLM"}};
  write_file_atomically(folder / "config.json", json.dump(2) + "\n");
  for (const RemoteCodeFile& file : remote_code_files()) write_file_atomically(folder / file.name, file.text);
}

}  // namespace

std::vector<std::string> export_model(const std::filesystem::path& model, const std::filesystem::path& output,
                                      bool force) {
  const Checkpoint source = Checkpoint::open(model);
  const bool is_dagmoe = source.config().model_type == "dagmoe";
  std::vector<std::string> names;
  write_folder_atomically(output, {.replace = force}, [&](const std::filesystem::path& folder) {
    copy_side_files(model, folder);
    std::filesystem::copy_file(model / "config.json", folder / "config.json");
    if (is_dagmoe) add_remote_code(folder, source.config());
    write_safetensors(folder / "model.safetensors",
                      is_dagmoe ? tensors_one_by_one(source) : tensors_as_they_are(source));
    for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  });
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace dagmoe
