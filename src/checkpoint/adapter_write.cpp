// Letters: E experts, R rank, I inputs, O outputs.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/adapter.h"
#include "checkpoint/adapter_files.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

// The module that a parameter in full belongs to: peft saves modules, and a DAG is one.
std::string module_of(const std::string& tensor) {
  for (const std::string_view part : {".mlp.dag.", ".mlp.experts."}) {
    const auto at = tensor.find(part);
    if (at != std::string::npos) return tensor.substr(0, at + part.size() - 1);
  }
  return tensor.substr(0, tensor.rfind('.'));
}

std::string last_part(const std::string& module) { return module.substr(module.rfind('.') + 1); }

/// What is written: tensors by their keys, and the names for the config.
class Writer {
 public:
  Writer(Decoder& model, const AdapterSpec& spec, const Checkpoint& base) : model_(model), spec_(spec), base_(base) {}

  void write(const std::filesystem::path& folder) {
    add_factors();
    add_full();
    std::vector<TensorSource> sources;
    for (const auto& [name, tensor] : tensors_) {
      sources.push_back({name, DType::kF32, tensor.sizes().vec(), [value = tensor] {
                           return std::span(static_cast<const std::byte*>(value.const_data_ptr()), value.nbytes());
                         }});
    }
    write_file_atomically(folder / kAdapterConfig, config().dump(2) + "\n");
    write_safetensors(folder / kAdapterWeights, std::move(sources));
  }

 private:
  bool is_pissa() const { return spec_.init == LoraInit::kPissa; }

  void add(const std::string& name, const at::Tensor& tensor) {
    tensors_[str(kKeyPrefix, name)] = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  }

  void add_factors() {
    std::set<std::string> modules;
    for (const AdapterPart& part : spec_.parts) modules.insert(part.target.module);
    std::map<std::string, at::Tensor> values;
    for (const auto& [name, tensor] : model_.adapter_parameters()) values[name] = *tensor;
    for (const auto& [name, tensor] : model_.adapter_buffers()) values[name] = *tensor;
    std::map<std::string, const Linear*> linears;
    for (const auto& [name, linear] : model_.linears()) linears[name] = linear;
    for (const AdapterPart& part : spec_.parts) {
      const std::string& module = part.target.module;
      if (is_mixture(spec_.kind)) {
        add_mixture(part, values);
        continue;
      }
      const at::Tensor a = values.at(module + ".lora_A.weight"), b = values.at(module + ".lora_B.weight");
      if (part.target.num_experts > 0) {
        add_experts(part, a, b, modules);
        continue;
      }
      const std::string name = module_on_disk(model_.config, module);
      // W + s (B A - B0 A0) is LoRA of twice the rank: [B, -B0] [A; A0].
      const LoraAdapter& adapter = linears.at(module)->adapters.front();
      add(name + ".lora_A.weight", is_pissa() ? at::cat({a, adapter.initial_a_RI}) : a);
      add(name + ".lora_B.weight", is_pissa() ? at::cat({b, -adapter.initial_b_OR}, 1) : b);
      if (spec_.kind == AdapterKind::kDora) add(name + ".lora_magnitude_vector", adapter.magnitude_O);
      const bool is_router = part.target.group == "router";
      (is_router ? target_parameters_ : target_modules_).insert(target_name(part.target));
      note_rank(part, name);
    }
  }

  void add_mixture(const AdapterPart& part, const std::map<std::string, at::Tensor>& values) {
    const std::string name = module_on_disk(model_.config, part.target.module);
    for (const auto& [tensor, shape] : spec_.mixture_shapes(part))
      add(name + "." + tensor, values.at(part.target.module + "." + tensor));
    target_modules_.insert(target_name(part.target));
    note_rank(part, name);
  }

  // The short name where it means exactly the targets, as users write it; else the whole one.
  std::string target_name(const AdapterTarget& target) const {
    const bool is_expert = target.num_experts > 0, is_router = target.group == "router";
    const std::string end = last_part(target.module);
    const bool is_everywhere =
        std::ranges::all_of(adapter_targets(parameter_shapes(model_.config)), [&](const AdapterTarget& other) {
          const bool ends_alike = (other.num_experts > 0) == is_expert && last_part(other.module) == end;
          return !ends_alike || std::ranges::any_of(spec_.parts, [&other](const AdapterPart& part) {
            return part.target.module == other.module;
          });
        });
    const std::string name = !is_everywhere ? module_on_disk(model_.config, target.module)
                             : is_expert    ? "mlp.experts." + end
                             : is_router    ? "mlp." + end
                                            : end;
    return is_router ? name + ".weight" : name;
  }

  void add_experts(const AdapterPart& part, const at::Tensor& a_ERI, const at::Tensor& b_EOR,
                   const std::set<std::string>& modules) {
    const std::string& module = part.target.module;
    const std::string experts = module.substr(0, module.rfind('.')), matrix = last_part(module);
    // gate_up is the inner wrapper when there are two.
    const bool is_inner = matrix == "gate_up_proj" && modules.contains(experts + ".down_proj");
    const std::string name = experts + (is_inner ? ".base_layer" : "");
    const std::int64_t E = a_ERI.size(0), R = a_ERI.size(1);
    add(name + ".lora_A.weight", a_ERI.detach().reshape({E * R, a_ERI.size(2)}));
    add(name + ".lora_B.weight", b_EOR.detach().permute({1, 2, 0}).reshape({b_EOR.size(1), R * E}));
    target_parameters_.insert(target_name(part.target));
    note_rank(part, module);
  }

  void note_rank(const AdapterPart& part, const std::string& name) {
    if (spec_.parts.empty()) return;
    const std::string key = part.target.group == "router" ? name + ".weight" : name;
    if (part.rank != spec_.parts.front().rank) rank_pattern_[key] = part.rank * rank_growth();
    if (part.alpha != spec_.parts.front().alpha) alpha_pattern_[key] = part.alpha * alpha_growth();
  }

  std::int64_t rank_growth() const { return is_pissa() ? 2 : 1; }
  // The scale of twice the rank must be what it was.
  double alpha_growth() const { return !is_pissa() ? 1.0 : spec_.use_rslora ? std::sqrt(2.0) : 2.0; }

  void add_full() {
    const auto parameters = model_.parameters();
    std::map<std::string, std::vector<bool>> by_short_name;  // whether the tensors of such modules are in full
    std::vector<std::string> modules;
    for (const DiskTensor& tensor : memory_tensors(model_.config)) {
      const bool is_full = std::ranges::any_of(
          tensor.parameters, [&](std::size_t index) { return parameters[index].tensor->requires_grad(); });
      const std::string module = module_of(tensor.name);
      by_short_name[last_part(module)].push_back(is_full);
      if (!is_full) continue;
      modules.push_back(module);
      has_dag_ = has_dag_ || tensor.name.find(".mlp.dag.") != std::string::npos;
      std::vector<at::Tensor> parts;
      for (const std::size_t index : tensor.parameters) parts.push_back(parameters[index].tensor->detach());
      add(tensor.name, (parts.size() == 1 ? parts[0] : at::cat(parts)).reshape(tensor.shape));
    }
    for (const std::string& module : modules) {
      const std::vector<bool>& all = by_short_name[last_part(module)];
      const bool complete = std::ranges::find(all, false) == all.end();
      modules_to_save_.insert(complete ? last_part(module) : module);
    }
  }

  // S'MoRE has no one rank: `ranks`, and no rank_pattern.
  void add_mixture_keys(Json& json) const {
    if (spec_.kind == AdapterKind::kSmore) {
      json["num_experts"] = spec_.smore.num_experts;
      json["num_active"] = spec_.smore.num_active;
      json["ranks"] = spec_.smore.ranks;
      json["router_dim"] = spec_.smore.router_dim;
      json["key_dim"] = spec_.smore.key_dim;
    } else {
      json["r"] = spec_.parts.front().rank;
      json["num_active"] = spec_.smora.num_active;
      json["rank_pattern"] = rank_pattern_;
    }
    json["lora_alpha"] = spec_.parts.front().alpha;
    json["alpha_pattern"] = alpha_pattern_;
    json["target_modules"] = target_modules_;
  }

  // The keys in peft's manner; `dagmoe` is ours, and peft ignores it with a warning.
  Json config() const {
    Json json;
    json["peft_type"] = spec_.parts.empty()                 ? kFullType
                        : spec_.kind == AdapterKind::kSmore ? kSmoreType
                        : spec_.kind == AdapterKind::kSmora ? kSmoraType
                                                            : kPeftType;
    json["task_type"] = "CAUSAL_LM";
    json["base_model_name_or_path"] = base_.folder().string();
    json["inference_mode"] = true;
    if (is_mixture(spec_.kind)) {
      add_mixture_keys(json);
    } else if (!spec_.parts.empty()) {
      json["r"] = spec_.parts.front().rank * rank_growth();
      const double alpha = spec_.parts.front().alpha * alpha_growth();
      if (alpha == std::floor(alpha)) {
        json["lora_alpha"] = static_cast<std::int64_t>(alpha);
      } else {
        json["lora_alpha"] = alpha;
      }
      json["lora_dropout"] = spec_.dropout;
      json["bias"] = "none";
      json["use_rslora"] = spec_.use_rslora;
      json["use_dora"] = spec_.kind == AdapterKind::kDora;
      json["fan_in_fan_out"] = false;
      json["init_lora_weights"] = true;
      json["rank_pattern"] = rank_pattern_;
      json["alpha_pattern"] = alpha_pattern_;
      json["layers_to_transform"] = nullptr;
      json["target_modules"] = target_modules_;
      json["target_parameters"] = target_parameters_.empty() ? Json(nullptr) : Json(target_parameters_);
    }
    json["modules_to_save"] = modules_to_save_.empty() ? Json(nullptr) : Json(modules_to_save_);
    json["peft_version"] = "0.21.2";
    const AdapterBase base = describe_base(base_);
    json["dagmoe"]["base"] = {
        {"path", base.path}, {"config_sha256", base.config_sha256}, {"weights_sha256", base.weights_sha256}};
    if (has_dag_ && !base_.config().dag) json["dagmoe"]["dag"] = dag_config_json(*model_.config.dag);
    return json;
  }

  Decoder& model_;
  const AdapterSpec& spec_;
  const Checkpoint& base_;
  std::map<std::string, at::Tensor> tensors_;
  std::set<std::string> target_modules_, target_parameters_, modules_to_save_;
  Json rank_pattern_ = Json::object(), alpha_pattern_ = Json::object();
  bool has_dag_ = false;
};

}  // namespace

void save_adapter(const std::filesystem::path& folder, Decoder& model, const AdapterSpec& spec,
                  const Checkpoint& base) {
  Writer(model, spec, base).write(folder);
}

}  // namespace dagmoe
