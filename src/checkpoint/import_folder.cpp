// A Hugging Face folder as a source: tensors are mapped and converted; experts stay in the layout they have.
#include <map>

#include "base/error.h"
#include "base/log.h"
#include "base/problems.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/import_source.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors_convert.h"
#include "checkpoint/safetensors_folder.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

TensorSource make_tensor(const DiskTensor& disk, const SafetensorsFolder::Place& place, DType dtype,
                         const std::shared_ptr<std::vector<std::byte>>& buffer) {
  const std::string where = str(place.file->path().string(), ": tensor '", disk.name, "'");
  return {disk.name, dtype, disk.shape,
          [bytes = place.bytes(), from = place.info->dtype, dtype, where, buffer]() -> std::span<const std::byte> {
            if (from == dtype) return bytes;
            *buffer = {};  // the tensor before need not lie beside this one
            *buffer = convert_floats(bytes, from, dtype, where);
            return *buffer;
          }};
}

std::string describe(const SafetensorsFolder& weights, const ModelConfig& config) {
  std::map<DType, int> counts;
  for (const auto& [name, place] : weights.places()) ++counts[place.info->dtype];
  std::vector<std::string> parts;
  for (const auto& [dtype, count] : counts) parts.push_back(str(count, " ", dtype_name(dtype)));
  return str("Hugging Face folder, ", config.model_type, ", ", weights.num_files(),
             weights.num_files() == 1 ? " file, " : " files, ", join(parts, " + "));
}

}  // namespace

ImportSource open_folder_source(const fs::path& folder, DType dtype) {
  ImportSource source;
  source.config = read_model_config(folder);
  // The tensors that are planned point into it.
  const auto weights = std::make_shared<const SafetensorsFolder>(SafetensorsFolder::open(folder));
  const ExpertLayout layout = find_layout(*weights);
  throw_problems(folder.string(), layout_problems(*weights, source.config, layout));
  const auto buffer = std::make_shared<std::vector<std::byte>>();
  for (const DiskTensor& disk : disk_tensors(source.config, layout)) {
    source.tensors.push_back(make_tensor(disk, *weights->find(disk.name), dtype, buffer));
  }
  source.kind = describe(*weights, source.config);
  source.write_side_files = [folder, weights](const fs::path& target) { copy_side_files(folder, target); };
  return source;
}

}  // namespace dagmoe
