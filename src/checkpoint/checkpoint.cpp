#include "checkpoint/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/problems.h"
#include "base/text.h"

namespace dagmoe {
namespace {

bool is_router_bias(const std::string& name) { return name.ends_with(".e_score_correction_bias"); }

constexpr const char* kWeightsName = "model.safetensors";

at::Tensor own_memory(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

bool is_statistics_weight(const std::string& name) {
  return name.ends_with("norm.weight") || name.ends_with("mlp.gate.weight") || is_router_bias(name);
}

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
    case at::kByte:
      return DType::kU8;
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
  checkpoint.layout_ = find_layout(*checkpoint.weights_);
  throw_problems(folder.string(), layout_problems(*checkpoint.weights_, checkpoint.config_, checkpoint.layout_));
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

namespace {

// One tensor a parameter, over the mapped bytes: slices where several lie in one tensor of the file.
std::map<std::string, at::Tensor> source_tensors(const Checkpoint& checkpoint) {
  const auto shapes = parameter_shapes(checkpoint.config());
  std::map<std::string, at::Tensor> sources;
  for (const DiskTensor& disk : disk_tensors(checkpoint.config(), checkpoint.layout())) {
    const at::Tensor tensor = checkpoint.tensor(disk.name);
    if (disk.parameters.size() == 1) {
      sources[shapes[disk.parameters[0]].first] = tensor.view(shapes[disk.parameters[0]].second);
      continue;
    }
    const auto count = static_cast<std::int64_t>(disk.parameters.size());
    for (std::int64_t i = 0; i < count; ++i) {
      const auto& [name, shape] = shapes[disk.parameters[static_cast<std::size_t>(i)]];
      sources[name] = tensor.view({count, shape[0], shape[1]})[i];
    }
  }
  return sources;
}

}  // namespace

namespace {

// The config of the model in memory: the checkpoint's, with what is added to it.
ModelConfig loaded_config(const Checkpoint& checkpoint, const LoadOptions& options) {
  ModelConfig config = checkpoint.config();
  if (options.add_dag && !config.dag) {
    if (!config.moe) {
      throw ConfigError(str("model.dag: ", checkpoint.folder().string(),
                            " is a dense model; a DAG combines the experts of a MoE layer; run dagmoe upcycle first"));
    }
    config.dag = options.add_dag;
    config.model_type = "dagmoe";
  }
  if (options.add_router_bias) {
    if (config.model_type != "dagmoe") {
      throw ConfigError(str("router_bias_update_rate: ", checkpoint.folder().string(), " is of model_type '",
                            config.model_type, "', which has no router bias; expected dagmoe: add model.dag",
                            config.moe ? "" : " after dagmoe upcycle", ", or set the rate to 0"));
    }
    config.moe->router_bias = true;
  }
  return config;
}

}  // namespace

Decoder load_decoder(const Checkpoint& checkpoint, const LoadOptions& options) {
  const ModelConfig config = loaded_config(checkpoint, options);
  Decoder model(config);
  model.compute_dtype = options.compute_dtype;
  if (config.dag && !checkpoint.config().dag) initialize_dag(model, options.seed);

  const auto sources = source_tensors(checkpoint);
  const auto statistics = options.compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
  // What is copied out of the file need not stay in memory twice.
  constexpr std::size_t kPagesToRelease = std::size_t{64} << 20;
  std::size_t num_copied = 0;
  for (const auto& [name, tensor] : model.parameters()) {
    if (is_router_bias(name)) {
      const auto source = sources.find(name);
      *tensor = source == sources.end() ? at::zeros({config.moe->num_experts}, at::TensorOptions(statistics))
                                        : own_memory(source->second, statistics);
      continue;
    }
    const at::Tensor source = tensor->defined() ? *tensor : sources.at(name);  // a new DAG has its weights already
    const auto frozen_dtype = is_statistics_weight(name) ? statistics : options.compute_dtype;
    if (options.is_trainable && options.is_trainable(name)) {
      *tensor = own_memory(source, statistics).set_requires_grad(true);
    } else {
      *tensor = source.scalar_type() == frozen_dtype ? source : source.to(frozen_dtype);
    }
    if (!tensor->is_same(source)) num_copied += source.nbytes();
    if (num_copied > kPagesToRelease) checkpoint.release_pages(), num_copied = 0;
  }
  checkpoint.release_pages();
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
                              "generation_config.json",
                              "additional_chat_templates"};
  for (const char* name : kNames) {
    if (std::filesystem::exists(from / name)) {
      using Options = std::filesystem::copy_options;
      std::filesystem::copy(from / name, to / name, Options::recursive | Options::overwrite_existing);
    }
  }
}

namespace {

// What config.json of a saved model says: the source's own text while nothing in it changed.
std::string config_text(const ModelConfig& config, const Checkpoint& source) {
  if (config == source.config()) return std::string(MappedFile::open(source.folder() / "config.json")->text());
  return model_config_json(config).dump(2) + "\n";
}

}  // namespace

void save_model(const std::filesystem::path& folder, Decoder& model, const Checkpoint& source) {
  write_file_atomically(folder / "config.json", config_text(model.config, source));
  const DType base_dtype = source.find("model.embed_tokens.weight")->dtype;
  const auto parameters = model.parameters();
  std::vector<TensorSource> tensors;
  auto converted = std::make_shared<at::Tensor>();  // holds one tensor's bytes while they are written
  for (const DiskTensor& disk : disk_tensors(model.config, source.layout())) {
    // Nothing of a router bias comes from the source: it changes though it does not require grad.
    const bool is_bias = is_router_bias(disk.name);
    const TensorInfo* info = is_bias ? nullptr : source.find(disk.name);
    std::vector<at::Tensor> parts;
    bool is_frozen = true;
    for (const std::size_t index : disk.parameters) {
      parts.push_back(parameters[index].tensor->detach());
      is_frozen = is_frozen && !parameters[index].tensor->requires_grad();
    }
    if (info != nullptr && is_frozen) {
      tensors.push_back(
          {disk.name, info->dtype, disk.shape, [&source, name = disk.name] {
             source.release_pages();  // of the tensor before: a model need not fit into memory once more to be saved
             return source.bytes(name);
           }});
      continue;
    }
    const bool is_dag = disk.name.find(".mlp.dag.") != std::string::npos;
    const DType dtype = info != nullptr ? info->dtype : is_dag || is_bias ? DType::kF32 : base_dtype;
    // Frozen experts beside trained ones in one tensor come from the file too.
    for (std::size_t i = 0; info != nullptr && i < parts.size(); ++i) {
      if (parameters[disk.parameters[i]].tensor->requires_grad()) continue;
      const auto shape = parts[i].sizes();
      parts[i] = source.tensor(disk.name).view(
          {static_cast<std::int64_t>(parts.size()), shape[0], shape[1]})[static_cast<std::int64_t>(i)];
    }
    tensors.push_back({disk.name, dtype, disk.shape, [converted, parts, dtype] {
                         std::vector<at::Tensor> cast;
                         for (const at::Tensor& part : parts) cast.push_back(part.to(at::kCPU).to(scalar_type(dtype)));
                         *converted = cast.size() == 1 ? cast[0].contiguous() : at::cat(cast);
                         return std::span(static_cast<const std::byte*>(converted->const_data_ptr()),
                                          converted->nbytes());
                       }});
  }
  write_safetensors(folder / kWeightsName, std::move(tensors));
  copy_side_files(source.folder(), folder);
}

}  // namespace dagmoe
