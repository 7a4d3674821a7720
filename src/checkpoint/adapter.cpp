#include "checkpoint/adapter.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "base/text.h"
#include "checkpoint/adapter_files.h"
#include "model/families.h"

namespace dagmoe {
namespace {

constexpr std::string_view kGateUp = ".gate_up_proj", kDown = ".down_proj", kExpertsPart = ".mlp.experts.";

// "model.layers.3.mlp.experts.gate_up_proj" -> 3.
std::size_t layer_of_experts(const std::string& module) {
  constexpr std::string_view kLayers = "model.layers.";
  return static_cast<std::size_t>(std::stoll(module.substr(kLayers.size())));
}

std::vector<ExpertLora>& expert_adapters(Decoder& model, const std::string& module) {
  Experts& experts = model.layers[layer_of_experts(module)].experts;
  return module.ends_with(kGateUp) ? experts.gate_up_adapters : experts.down_adapters;
}

std::map<std::string, Linear*> linears_by_name(Decoder& model) {
  std::map<std::string, Linear*> linears;
  for (const auto& [name, linear] : model.linears()) linears[name] = linear;
  return linears;
}

std::string key(const AdapterPart& part, const char* tensor) { return part.target.module + tensor; }

// `tensors` in the order of mixture_shapes.
MixtureAdapter make_mixture(const AdapterSpec& spec, const AdapterPart& part, const std::vector<at::Tensor>& tensors) {
  const std::uint64_t id = hash_of(part.target.module);
  if (spec.kind == AdapterKind::kSmore) return {make_smore(spec.smore_of(part), tensors), id};
  return {make_smora(spec.smora_of(part), tensors), id};
}

MixtureAdapter read_mixture(const Adapter& adapter, const AdapterPart& part) {
  std::vector<at::Tensor> tensors;
  for (const auto& [name, shape] : adapter.spec.mixture_shapes(part))
    tensors.push_back(adapter.factors.at(part.target.module + "." + name));
  return make_mixture(adapter.spec, part, tensors);
}

MixtureAdapter new_mixture(const AdapterSpec& spec, const AdapterPart& part, std::uint64_t seed) {
  std::vector<at::Tensor> tensors;
  for (const auto& [name, shape] : spec.mixture_shapes(part)) tensors.push_back(at::empty(shape, at::kFloat));
  MixtureAdapter mixture = make_mixture(spec, part, tensors);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  if (const auto* smore = std::get_if<Smore>(&mixture.tensors)) {
    initialize_smore(*smore, generator);
  } else {
    initialize_smora(std::get<Smora>(mixture.tensors), generator);
  }
  for (const AdapterTensor& part_tensor : adapter_tensors(mixture))
    part_tensor.tensor->set_requires_grad(!part_tensor.is_buffer);
  return mixture;
}

}  // namespace

bool is_adapter_folder(const std::filesystem::path& folder) { return std::filesystem::exists(folder / kAdapterConfig); }

std::vector<DiskTensor> memory_tensors(const ModelConfig& config) {
  std::vector<DiskTensor> tensors = disk_tensors(config, ExpertLayout::kFused);
  // Mixtral's old files call its layers otherwise than the program does.
  for (DiskTensor& tensor : tensors) replace_part(tensor.name, ".block_sparse_moe.", ".mlp.");
  return tensors;
}

std::string module_on_disk(const ModelConfig& config, const std::string& module) {
  if (module.find(kExpertsPart) != std::string::npos) return module;  // fused, and named alike in every family
  std::string name = disk_name(config, module + ".weight");
  replace_part(name, ".block_sparse_moe.", ".mlp.");
  return name.substr(0, name.rfind('.'));
}

std::string weights_fingerprint(const Checkpoint& checkpoint) {
  constexpr std::size_t kSample = std::size_t{64} << 10;
  std::string text;
  for (const TensorInfo* info : checkpoint.tensors()) {
    const auto bytes = checkpoint.bytes(info->name);
    const std::string_view sample(reinterpret_cast<const char*>(bytes.data()), std::min(kSample, bytes.size()));
    text += str(info->name, " ", dtype_name(info->dtype), " ", shape_text(info->shape), " ", sha256_hex(sample), "\n");
  }
  return sha256_hex(text);
}

AdapterBase describe_base(const Checkpoint& base) {
  ModelConfig config = base.config();
  config.extra = Json::object();  // what changes nothing
  return {base.folder().string(), sha256_hex(model_config_json(config).dump()), weights_fingerprint(base)};
}

void check_base(const std::filesystem::path& adapter, const AdapterBase& expected, const Checkpoint& base) {
  if (expected.config_sha256.empty()) return;  // peft's say nothing: the shapes have been checked
  const AdapterBase found = describe_base(base);
  const bool same_config = expected.config_sha256 == found.config_sha256;
  if (same_config && expected.weights_sha256 == found.weights_sha256) return;
  throw InputError(str(adapter.string(), ": was trained on another base: the ",
                       same_config ? "weights of " : "config.json of ", base.folder().string(),
                       same_config ? " are not those of " : " is not that of ", expected.path,
                       "; give the model that it was trained on"));
}

void attach_adapter(Decoder& model, const Adapter& adapter) {
  for (auto& [name, tensor] : model.parameters()) {
    const auto full = adapter.full.find(name);
    if (full == adapter.full.end()) continue;
    const auto dtype =
        is_statistics_weight(name) && model.compute_dtype != at::kDouble ? at::kFloat : model.compute_dtype;
    *tensor = full->second.to(dtype);
  }
  const auto linears = linears_by_name(model);
  const auto factor = [&](const AdapterPart& part, const char* tensor) {
    return adapter.factors.at(key(part, tensor));
  };
  for (const AdapterPart& part : adapter.spec.parts) {
    if (is_mixture(adapter.spec.kind)) {
      linears.at(part.target.module)->mixtures.push_back(read_mixture(adapter, part));
      continue;
    }
    const at::Tensor a = factor(part, ".lora_A.weight"), b = factor(part, ".lora_B.weight");
    const double scale = adapter.spec.scale_of(part);
    if (part.target.num_experts > 0) {
      expert_adapters(model, part.target.module).push_back({a, b, scale});
      continue;
    }
    Linear& linear = *linears.at(part.target.module);
    LoraAdapter lora{.a_RI = a, .b_OR = b, .scale = scale, .id = hash_of(part.target.module)};
    if (adapter.spec.kind == AdapterKind::kDora) lora.magnitude_O = factor(part, ".lora_magnitude_vector");
    if (adapter.spec.init == LoraInit::kPissa) {
      const LoraFactors start = initial_factors(LoraInit::kPissa, linear.weight, part.rank, scale, 0);
      lora.initial_a_RI = start.a_RI, lora.initial_b_OR = start.b_OR;
    }
    linear.adapters.push_back(std::move(lora));
  }
}

void attach_new_adapter(Decoder& model, const AdapterSpec& spec, std::uint64_t seed) {
  const auto linears = linears_by_name(model);
  const auto trained = [](const at::Tensor& tensor) { return tensor.clone().set_requires_grad(true); };
  for (const AdapterPart& part : spec.parts) {
    const AdapterTarget& target = part.target;
    const std::uint64_t own_seed = seed ^ hash_of(target.module);
    if (is_mixture(spec.kind)) {
      linears.at(target.module)->mixtures.push_back(new_mixture(spec, part, own_seed));
      continue;
    }
    const double scale = spec.scale_of(part);
    if (target.num_experts > 0) {
      const LoraFactors start = initial_expert_factors(target.num_experts, part.rank, target.I, target.O, own_seed);
      expert_adapters(model, target.module).push_back({trained(start.a_RI), trained(start.b_OR), scale});
      continue;
    }
    Linear& linear = *linears.at(target.module);
    const LoraFactors start = initial_factors(spec.init, linear.weight, part.rank, scale, own_seed);
    LoraAdapter lora{.a_RI = trained(start.a_RI),
                     .b_OR = trained(start.b_OR),
                     .scale = scale,
                     .dropout = spec.dropout,
                     .id = hash_of(target.module)};
    if (spec.kind == AdapterKind::kDora) lora.magnitude_O = trained(initial_magnitude(linear.weight, start, scale));
    if (spec.init == LoraInit::kPissa) lora.initial_a_RI = start.a_RI, lora.initial_b_OR = start.b_OR;
    linear.adapters.push_back(std::move(lora));
  }
}

std::vector<std::string> fold_adapters(Decoder& model) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, linear] : model.linears()) {
    if (linear->mixtures.empty()) continue;
    throw InputError(str(name,
                         ": carries a S'MoRE or SMoRA adapter, whose change depends on the input: no weights are "
                         "equal to it, and it cannot be merged; keep the adapter beside its base (--adapter)"));
  }
  std::vector<std::string> changed;
  const auto replace = [&changed](const std::string& name, at::Tensor& weight, const at::Tensor& value) {
    weight = value.clone().set_requires_grad(true);
    changed.push_back(name);
  };
  for (const auto& [name, linear] : model.linears()) {
    if (linear->adapters.empty()) continue;
    replace(name + ".weight", linear->weight, adapted_weight(linear->weight, linear->adapters));
    linear->adapters.clear();
  }
  for (std::size_t n = 0; n < model.layers.size(); ++n) {
    Experts& experts = model.layers[n].experts;
    for (std::size_t e = 0; e < experts.gate_FD.size(); ++e) {
      const auto expert = static_cast<std::int64_t>(e);
      const std::string prefix = str("model.layers.", n, kExpertsPart, e);
      const std::int64_t F = experts.gate_FD[e].size(0);
      if (!experts.gate_up_adapters.empty()) {
        replace(prefix + ".gate_proj.weight", experts.gate_FD[e],
                adapted_expert_weight(experts.gate_FD[e], experts.gate_up_adapters, expert, 0));
        replace(prefix + ".up_proj.weight", experts.up_FD[e],
                adapted_expert_weight(experts.up_FD[e], experts.gate_up_adapters, expert, F));
      }
      if (!experts.down_adapters.empty()) {
        replace(str(prefix, kDown, ".weight"), experts.down_DF[e],
                adapted_expert_weight(experts.down_DF[e], experts.down_adapters, expert, 0));
      }
    }
    experts.gate_up_adapters.clear(), experts.down_adapters.clear();
  }
  return changed;
}

}  // namespace dagmoe
