#include "checkpoint/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/families.h"

namespace dagmoe {
namespace {

constexpr const char* kWeightsName = "model.safetensors";

bool is_statistics_weight(const std::string& name) {
  return name.ends_with("norm.weight") || name.ends_with("mlp.gate.weight");
}

at::Tensor own_memory(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return at::kBool;
    case DType::kU8:
      return at::kByte;
    case DType::kI8:
      return at::kChar;
    case DType::kI16:
      return at::kShort;
    case DType::kU16:
      return at::kUInt16;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kI32:
      return at::kInt;
    case DType::kU32:
      return at::kUInt32;
    case DType::kF32:
      return at::kFloat;
    case DType::kF64:
      return at::kDouble;
    case DType::kI64:
      return at::kLong;
    case DType::kU64:
      return at::kUInt64;
  }
  throw InternalError("unknown DType");
}

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kF32;
    case at::kDouble:
      return DType::kF64;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kHalf:
      return DType::kF16;
    case at::kLong:
      return DType::kI64;
    case at::kInt:
      return DType::kI32;
    default:
      throw InternalError(str("no safetensors dtype for ", c10::toString(type)));
  }
}

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw InputError(str(folder.string(), ": no such folder; expected a model folder with config.json"));
  }
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.config_ = read_model_config(folder);
  checkpoint.weights_ = std::make_shared<const SafetensorsFolder>(SafetensorsFolder::open(folder));
  return checkpoint;
}

const TensorInfo* Checkpoint::find(std::string_view disk_name) const {
  const auto* place = weights_->find(disk_name);
  return place == nullptr ? nullptr : place->info;
}

std::vector<const TensorInfo*> Checkpoint::tensors() const {
  std::vector<const TensorInfo*> infos;
  for (const auto& [name, place] : weights_->places()) infos.push_back(place.info);
  return infos;
}

std::span<const std::byte> Checkpoint::bytes(std::string_view disk_name) const {
  const auto* place = weights_->find(disk_name);
  if (place == nullptr) throw InternalError(str("no tensor '", disk_name, "' in ", folder_.string()));
  return place->bytes();
}

at::Tensor Checkpoint::tensor(std::string_view disk_name) const {
  const std::span<const std::byte> data = bytes(disk_name);
  const TensorInfo& info = *find(disk_name);
  const auto options = at::TensorOptions(scalar_type(info.dtype));
  void* address = const_cast<std::byte*>(data.data());  // from_blob takes no const; the mapping itself is read-only
  if (data.empty()) return at::empty(info.shape, options);
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(dtype_size(info.dtype)) == 0;
  if (!aligned) {
    at::Tensor copy = at::empty(info.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data.data(), data.size());
    return copy;
  }
  return at::from_blob(
      address, info.shape, [keep_alive = weights_](void*) {}, options);
}

Decoder load_decoder(const Checkpoint& checkpoint, const LoadOptions& options) {
  ModelConfig config = checkpoint.config();
  const bool adds_dag = options.add_dag.has_value() && !config.dag;
  if (adds_dag) {
    if (!config.moe) {
      throw ConfigError(str("model.dag: ", checkpoint.folder().string(),
                            " is a dense model; a DAG combines the experts of a MoE layer; run dagmoe upcycle first"));
    }
    config.dag = options.add_dag;
    config.model_type = "dagmoe";
  }
  Decoder model(config);
  model.compute_dtype = options.compute_dtype;
  if (adds_dag) initialize_dag(model, options.seed);

  const auto shapes = parameter_shapes(config);
  auto parameters = model.parameters();
  const auto statistics = options.compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
  std::vector<std::string> problems;
  std::set<std::string, std::less<>> used;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto& [name, tensor] = parameters[i];
    const std::string on_disk = disk_name(config, name);
    const TensorInfo* info = checkpoint.find(on_disk);
    at::Tensor source = *tensor;  // set already when it is part of a new DAG
    if (!source.defined()) {
      if (info == nullptr) {
        problems.push_back(str("tensor '", on_disk, "' is missing; expected shape ", shape_text(shapes[i].second)));
        continue;
      }
      used.insert(on_disk);
      if (info->shape != shapes[i].second) {
        problems.push_back(str("tensor '", on_disk, "': found shape ", shape_text(info->shape), ", expected ",
                               shape_text(shapes[i].second)));
        continue;
      }
      if (info->dtype != DType::kF32 && info->dtype != DType::kBF16 && info->dtype != DType::kF16 &&
          info->dtype != DType::kF64) {
        problems.push_back(
            str("tensor '", on_disk, "': found dtype ", dtype_name(info->dtype), ", expected F32, BF16, F16 or F64"));
        continue;
      }
      source = checkpoint.tensor(on_disk);
    }
    const auto frozen_dtype = is_statistics_weight(name) ? statistics : options.compute_dtype;
    if (options.is_trainable && options.is_trainable(name)) {
      *tensor = own_memory(source, statistics).set_requires_grad(true);
    } else {
      *tensor = source.scalar_type() == frozen_dtype ? source : source.to(frozen_dtype);
    }
  }
  // A tied head may be written out as well, as long as it really is the embedding.
  if (config.tie_word_embeddings && checkpoint.find("lm_head.weight") != nullptr) {
    const auto head = checkpoint.bytes("lm_head.weight"), embedding = checkpoint.bytes("model.embed_tokens.weight");
    if (!std::ranges::equal(head, embedding)) {
      problems.push_back("tensor 'lm_head.weight' differs from the embedding although tie_word_embeddings is true");
    }
    used.insert("lm_head.weight");
  }
  for (const TensorInfo* info : checkpoint.tensors()) {
    if (!used.contains(info->name))
      problems.push_back(str("tensor '", info->name, "' is not expected by model_type '", config.model_type, "'"));
  }
  throw_problems(checkpoint.folder(), problems);
  return model;
}

void copy_side_files(const std::filesystem::path& from, const std::filesystem::path& to) {
  constexpr std::array kNames{"tokenizer.json",
                              "tokenizer_config.json",
                              "tokenizer.model",
                              "special_tokens_map.json",
                              "added_tokens.json",
                              "vocab.json",
                              "merges.txt",
                              "chat_template.jinja",
                              "generation_config.json"};
  for (const char* name : kNames) {
    if (std::filesystem::exists(from / name)) {
      std::filesystem::copy_file(from / name, to / name, std::filesystem::copy_options::overwrite_existing);
    }
  }
}

void save_model(const std::filesystem::path& folder, Decoder& model, const Checkpoint& source) {
  write_file_atomically(folder / "config.json", model_config_json(model.config).dump(2) + "\n");
  std::vector<TensorSource> tensors;
  const TensorInfo* embedding = source.find("model.embed_tokens.weight");
  const DType base_dtype = embedding != nullptr ? embedding->dtype : DType::kF32;
  auto converted = std::make_shared<at::Tensor>();  // holds one tensor's bytes while they are written
  for (const auto& [name, tensor] : model.parameters()) {
    const std::string on_disk = disk_name(model.config, name);
    const TensorInfo* info = source.find(on_disk);
    const std::vector<std::int64_t> shape = tensor->sizes().vec();
    if (info != nullptr && !tensor->requires_grad()) {
      tensors.push_back({on_disk, info->dtype, shape, [&source, on_disk] { return source.bytes(on_disk); }});
      continue;
    }
    const bool is_dag = name.find(".mlp.dag.") != std::string::npos;
    const DType dtype = info != nullptr ? info->dtype : is_dag ? DType::kF32 : base_dtype;
    tensors.push_back({on_disk, dtype, shape, [converted, tensor = *tensor, dtype] {
                         *converted = tensor.detach().to(at::kCPU).to(scalar_type(dtype)).contiguous();
                         return std::span(static_cast<const std::byte*>(converted->const_data_ptr()),
                                          converted->nbytes());
                       }});
  }
  write_safetensors(folder / kWeightsName, std::move(tensors));
  copy_side_files(source.folder(), folder);
}

}  // namespace dagmoe
