// A Hugging Face folder as a source: tensors are mapped, sliced where experts are fused, and converted.
#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/families.h"
#include "checkpoint/import_source.h"
#include "checkpoint/safetensors_convert.h"
#include "checkpoint/safetensors_folder.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 10> kSideFiles = {"tokenizer.json",
                                                    "tokenizer.model",
                                                    "tokenizer_config.json",
                                                    "vocab.json",
                                                    "merges.txt",
                                                    "special_tokens_map.json",
                                                    "added_tokens.json",
                                                    "chat_template.jinja",
                                                    "generation_config.json",
                                                    "additional_chat_templates"};

/// Where a parameter's bytes are: a tensor of its own, or a run of rows of one that holds all experts of a layer.
struct Slice {
  const SafetensorsFolder::Place* place = nullptr;
  std::vector<std::int64_t> needed_shape;  ///< of the tensor in the file
  std::int64_t index = 0, num_slices = 1;  ///< the parameter is slice `index` of equal ones
};

/// "model.layers.3.mlp.experts.7.up_proj.weight" taken apart.
struct ExpertName {
  std::string block;  ///< "model.layers.3.mlp.experts."
  std::int64_t expert = 0;
  std::string projection;  ///< "up_proj"
};

std::optional<ExpertName> parse_expert_name(const std::string& parameter) {
  constexpr std::string_view kExperts = ".mlp.experts.", kWeight = ".weight";
  const std::size_t at = parameter.find(kExperts);
  if (at == std::string::npos) return std::nullopt;
  const std::size_t number = at + kExperts.size(), dot = parameter.find('.', number);
  ExpertName name;
  name.block = parameter.substr(0, number);
  name.expert = std::stoll(parameter.substr(number, dot - number));
  name.projection = parameter.substr(dot + 1, parameter.size() - kWeight.size() - dot - 1);
  return name;
}

/// Finds a parameter in the fused layout of transformers 5 (contracts.md 1.4): gate_up_proj [E, 2I, H] with the rows of
/// gate before those of up, down_proj [E, H, I], and the router under our name.
Slice find_fused(const SafetensorsFolder& weights, const std::string& parameter, const std::vector<std::int64_t>& shape,
                 const ModelConfig& config) {
  const std::optional<ExpertName> name = parse_expert_name(parameter);
  if (!name) return {weights.find(parameter), shape};
  const std::int64_t E = config.moe->num_experts;
  if (name->projection == "down_proj")
    return {weights.find(name->block + "down_proj"), {E, shape[0], shape[1]}, name->expert, E};
  const std::int64_t half = name->projection == "gate_proj" ? 0 : 1;
  return {weights.find(name->block + "gate_up_proj"), {E, 2 * shape[0], shape[1]}, 2 * name->expert + half, 2 * E};
}

TensorSource make_tensor(std::string name, std::vector<std::int64_t> shape, const Slice& slice, DType dtype,
                         const std::shared_ptr<std::vector<std::byte>>& buffer) {
  const std::span<const std::byte> whole = slice.place->bytes();
  const std::size_t size = whole.size() / static_cast<std::size_t>(slice.num_slices);
  const std::span<const std::byte> bytes = whole.subspan(size * static_cast<std::size_t>(slice.index), size);
  const DType from = slice.place->info->dtype;
  const std::string where = str(slice.place->file->path().string(), ": tensor '", slice.place->info->name, "'");
  return {std::move(name), dtype, std::move(shape),
          [bytes, from, dtype, where, buffer]() -> std::span<const std::byte> {
            if (from == dtype) return bytes;
            *buffer = {};  // the tensor before need not lie beside this one
            *buffer = convert_floats(bytes, from, dtype, where);
            return *buffer;
          }};
}

// Tensors that a folder may hold beyond the parameters.
std::string extra_tensor_problem(const SafetensorsFolder& weights, const std::string& name, const ModelConfig& config) {
  if (name.ends_with(".self_attn.rotary_emb.inv_freq")) return "";  // old Llama folders; follows from the config
  if (name == "lm_head.weight" && config.tie_word_embeddings) {
    const auto* embedding = weights.find("model.embed_tokens.weight");
    const auto* head = weights.find(name);
    const bool equal = embedding != nullptr && embedding->info->dtype == head->info->dtype &&
                       std::ranges::equal(embedding->bytes(), head->bytes());
    return equal ? "" : "tensor 'lm_head.weight' differs from the embedding, but 'tie_word_embeddings' is true";
  }
  return str("tensor '", name, "' belongs to no part of the model");
}

void plan_tensors(const SafetensorsFolder& weights, DType dtype, ImportSource& source,
                  std::vector<std::string>& problems) {
  const auto buffer = std::make_shared<std::vector<std::byte>>();
  std::map<std::string, int> uses;
  for (const auto& [parameter, shape] : parameter_shapes(source.config)) {
    const std::string name = disk_name(source.config, parameter);
    Slice slice = {weights.find(name), shape};
    if (slice.place == nullptr) slice = find_fused(weights, parameter, shape, source.config);
    if (slice.place == nullptr) {
      problems.push_back("tensor '" + name + "' is missing");
      continue;
    }
    const TensorInfo& info = *slice.place->info;
    const bool is_first_use = uses[info.name]++ == 0;
    if (info.shape != slice.needed_shape) {
      if (!is_first_use) continue;
      problems.push_back(str("tensor '", info.name, "': found shape ", shape_text(info.shape), ", expected ",
                             shape_text(slice.needed_shape)));
    } else if (!is_float(info.dtype)) {
      problems.push_back(
          str("tensor '", info.name, "': found dtype ", dtype_name(info.dtype), ", expected a float type"));
    } else {
      source.tensors.push_back(make_tensor(name, shape, slice, dtype, buffer));
    }
  }
  for (const auto& [name, place] : weights.places()) {
    if (uses.contains(name)) continue;
    const std::string problem = extra_tensor_problem(weights, name, source.config);
    if (!problem.empty()) problems.push_back(problem);
  }
}

void copy_side_files(const fs::path& from, const fs::path& to) {
  for (const char* name : kSideFiles) {
    if (fs::exists(from / name)) fs::copy(from / name, to / name, fs::copy_options::recursive);
  }
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
  std::vector<std::string> problems;
  plan_tensors(*weights, dtype, source, problems);
  throw_problems(folder, problems);
  source.kind = describe(*weights, source.config);
  source.write_side_files = [folder, weights](const fs::path& target) { copy_side_files(folder, target); };
  return source;
}

}  // namespace dagmoe
