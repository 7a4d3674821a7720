// Letters: E experts, R rank, I inputs, O outputs, D hidden, F expert width.
#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/problems.h"
#include "base/regex.h"
#include "base/text.h"
#include "checkpoint/adapter.h"
#include "checkpoint/adapter_files.h"

namespace dagmoe {
namespace {

constexpr std::string_view kExperts = ".mlp.experts", kOldExperts = ".block_sparse_moe.experts.";
constexpr std::int64_t kMaxRank = 65536;  // a recipe's

// ---- adapter_config.json

/// What of adapter_config.json decides how the tensors are read.
struct PeftConfig {
  std::string where;
  std::string peft_type;
  std::int64_t r = 8;
  double alpha = 8.0;
  bool use_rslora = false, use_dora = false;
  AdapterKind kind = AdapterKind::kLora;  // of peft_type and use_dora
  SmoreConfig smore;
  SmoraConfig smora;
  LoraInit init = LoraInit::kDefault;
  std::optional<std::string> module_regex;
  std::vector<std::string> target_modules, target_parameters;
  std::vector<std::pair<std::string, double>> rank_pattern, alpha_pattern;
  Json own = Json::object();

  // The value of the first pattern that matches the end of a module's name, as peft's get_pattern_key finds it.
  std::optional<double> by_pattern(const std::vector<std::pair<std::string, double>>& patterns,
                                   const std::string& module) const {
    for (const auto& [pattern, value] : patterns) {
      if (regex_matches_all(str("(.*\\.)?(", pattern, ")"), module, where)) return value;
    }
    return std::nullopt;
  }
  // peft names a router by its parameter.
  std::optional<double> by_pattern_of(const std::vector<std::pair<std::string, double>>& patterns,
                                      const std::string& module) const {
    const auto found = by_pattern(patterns, module);
    return found || !module.ends_with(".mlp.gate") ? found : by_pattern(patterns, module + ".weight");
  }
  std::int64_t rank_of(const std::string& module) const {
    return static_cast<std::int64_t>(by_pattern_of(rank_pattern, module).value_or(static_cast<double>(r)));
  }
  double alpha_of(const std::string& module) const { return by_pattern_of(alpha_pattern, module).value_or(alpha); }
  bool has_parameter(std::string_view module) const {
    return std::ranges::any_of(target_parameters, [module](const std::string& entry) {
      return module == entry || module.ends_with("." + entry);
    });
  }
};

bool is_set(const Json& json, const char* key) {
  if (!json.contains(key) || json[key].is_null()) return false;
  const Json& value = json[key];
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0.0;
  return !value.empty();
}

std::vector<std::string> words(const Json& json, const char* key, std::vector<std::string>& problems) {
  std::vector<std::string> result;
  if (!is_set(json, key)) return result;
  const Json& entries = json[key];
  if (!entries.is_array() || !std::ranges::all_of(entries, [](const Json& entry) { return entry.is_string(); })) {
    problems.push_back(str("'", key, "': expected a list of names"));
    return result;
  }
  for (const Json& entry : entries) result.push_back(entry.get<std::string>());
  return result;
}

enum class PatternValue { kRank, kAlpha };
std::vector<std::pair<std::string, double>> pattern_values(const Json& json, const char* key, PatternValue kind,
                                                           std::vector<std::string>& problems) {
  std::vector<std::pair<std::string, double>> result;
  if (!is_set(json, key)) return result;
  if (!json[key].is_object()) {
    problems.push_back(str("'", key, "': expected an object of patterns"));
    return result;
  }
  for (const auto& [pattern, value] : json[key].items()) {
    const double number = value.is_number() ? value.get<double>() : 0.0;
    const bool is_rank = number >= 1 && number <= static_cast<double>(kMaxRank) && number == std::floor(number);
    if (kind == PatternValue::kRank ? is_rank : number > 0) {
      result.emplace_back(pattern, number);
      continue;
    }
    problems.push_back(str("'", key, "': ", quoted_for_message(pattern), ": found ", value.dump(), ", expected a ",
                           kind == PatternValue::kRank ? str("whole number from 1 to ", kMaxRank) : "number above 0"));
  }
  return result;
}

// Of the other ways to start, these leave the base weights as they are: what was trained is LoRA.
constexpr std::array kPlainInits = {"gaussian", "orthogonal", "eva", "mica"};

void read_init(const Json& json, PeftConfig& config, std::vector<std::string>& problems) {
  if (!json.contains("init_lora_weights") || !json["init_lora_weights"].is_string()) return;
  const auto init = json["init_lora_weights"].get<std::string>();
  if (init == "pissa") {
    config.init = LoraInit::kPissa;
    if (config.use_dora) problems.emplace_back("use_dora with init_lora_weights \"pissa\" is not supported");
  } else if (std::ranges::find(kPlainInits, init) == kPlainInits.end()) {
    problems.push_back(str("init_lora_weights ", quoted_for_message(init),
                           " changes the base weights and is not supported; expected pissa, or an adapter saved with "
                           "peft's path_initial_model_for_weight_conversion"));
  }
}

std::vector<std::int64_t> integers(const Json& json, const char* key, std::vector<std::string>& problems) {
  std::vector<std::int64_t> result;
  const Json list = json.value(key, Json());
  for (const Json& entry : list) {
    if (entry.is_number_integer()) result.push_back(entry.get<std::int64_t>());
  }
  if (!list.is_array() || result.size() != list.size())
    problems.push_back(str("'", key, "': expected a list of integers"));
  return result;
}

// Of S'MoRE and SMoRA: save_adapter's keys.
void read_mixture(const Json& json, const std::string& where, PeftConfig& config, std::vector<std::string>& problems) {
  config.alpha = json_number(json, "lora_alpha", where);
  config.target_modules = words(json, "target_modules", problems);
  config.alpha_pattern = pattern_values(json, "alpha_pattern", PatternValue::kAlpha, problems);
  if (config.peft_type == kSmoreType) {
    config.kind = AdapterKind::kSmore;
    config.smore = {.num_experts = integers(json, "num_experts", problems),
                    .num_active = integers(json, "num_active", problems),
                    .ranks = integers(json, "ranks", problems),
                    .alpha = config.alpha,
                    .router_dim = json_int(json, "router_dim", where),
                    .key_dim = json_int(json, "key_dim", where)};
    if (!problems.empty()) return;
    for (const std::string& problem : problems_of(config.smore)) problems.push_back(problem);
  } else {
    config.kind = AdapterKind::kSmora;
    config.r = json_int(json, "r", where);
    config.rank_pattern = pattern_values(json, "rank_pattern", PatternValue::kRank, problems);
    config.smora = {.rank = config.r, .num_active = json_int(json, "num_active", where), .alpha = config.alpha};
    for (const std::string& problem : problems_of(config.smora)) problems.push_back(problem);
  }
}

PeftConfig read_peft_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kAdapterConfig;
  const Json json = read_json_file(path);
  std::vector<std::string> problems;
  PeftConfig config;
  config.where = path.string();
  const std::string& where = config.where;
  if (!json.is_object()) throw InputError(str(where, ": expected an object"));
  config.peft_type = json_string(json, "peft_type", where);
  const bool is_mixture_type = config.peft_type == kSmoreType || config.peft_type == kSmoraType;
  if (config.peft_type != kPeftType && config.peft_type != kFullType && !is_mixture_type) {
    throw InputError(str(where, ": peft_type: found ", quoted_for_message(config.peft_type), ", expected ", kPeftType,
                         " (or ", kFullType, ", ", kSmoreType, " or ", kSmoraType,
                         ", which dagmoe writes); other kinds of adapters are not supported"));
  }
  if (json.contains("dagmoe")) config.own = json["dagmoe"];
  if (config.peft_type == kFullType) return config;
  if (is_mixture_type) {
    read_mixture(json, where, config, problems);
    throw_problems(where, problems);
    return config;
  }
  config.r = json_int(json, "r", where);
  config.alpha = json_number(json, "lora_alpha", where);
  if (config.r < 1 || config.r > kMaxRank)
    problems.push_back(str("'r': found ", config.r, ", expected 1 to ", kMaxRank));
  config.use_rslora = is_set(json, "use_rslora");
  config.use_dora = is_set(json, "use_dora");
  if (config.use_dora) config.kind = AdapterKind::kDora;
  read_init(json, config, problems);
  if (json.contains("target_modules") && json["target_modules"].is_string()) {
    const auto text = json["target_modules"].get<std::string>();
    if (text != "all-linear") config.module_regex = text;
  } else {
    config.target_modules = words(json, "target_modules", problems);
  }
  config.target_parameters = words(json, "target_parameters", problems);
  config.rank_pattern = pattern_values(json, "rank_pattern", PatternValue::kRank, problems);
  config.alpha_pattern = pattern_values(json, "alpha_pattern", PatternValue::kAlpha, problems);
  for (const char* key : {"fan_in_fan_out", "lora_bias", "use_qalora", "alora_invocation_tokens", "layer_replication",
                          "trainable_token_indices", "megatron_config", "arrow_config", "use_bdlora", "velora_config",
                          "monteclora_config", "kasa_config"}) {
    if (is_set(json, key)) problems.push_back(str("'", key, "' is not supported"));
  }
  if (json.contains("bias") && json["bias"].is_string() && json["bias"] != "none") {
    problems.push_back(str("'bias': found ", json["bias"].dump(), ", expected \"none\""));
  }
  throw_problems(where, problems);
  return config;
}

AdapterBase base_of(const PeftConfig& config) {
  if (!config.own.contains("base")) return {};
  const Json& base = config.own["base"];
  return {json_string(base, "path", config.where), json_string(base, "config_sha256", config.where),
          json_string(base, "weights_sha256", config.where)};
}

// ---- adapter_model.safetensors

at::Tensor read_float(const SafetensorsFile& file, const TensorInfo& info) {
  const auto bytes = file.bytes(info);
  const at::Tensor copy = at::empty(info.shape, at::TensorOptions(scalar_type(info.dtype)));
  if (!bytes.empty()) std::memcpy(copy.mutable_data_ptr(), bytes.data(), bytes.size());
  return copy.to(at::kFloat);
}

/// The factors of one module as they lie in the file.
struct RawFactors {
  const TensorInfo *a = nullptr, *b = nullptr, *magnitude = nullptr;
};

class Reader {
 public:
  Reader(const std::filesystem::path& folder, const ModelConfig& config)
      : model_(config),
        config_(read_peft_config(folder)),
        where_((folder / kAdapterWeights).string()),
        file_(SafetensorsFile::open(folder / kAdapterWeights)),
        targets_(adapter_targets(parameter_shapes(config))) {
    adapter_.folder = folder;
    for (const AdapterTarget& target : targets_) by_module_[module_on_disk(config, target.module)] = &target;
  }

  Adapter read() {
    adapter_.spec.kind = config_.kind;
    adapter_.spec.smore = config_.smore;
    adapter_.spec.smora = config_.smora;
    collect_keys();
    for (const auto& [module, tensors] : mixtures_) add_mixture(module, tensors);
    for (auto& [module, raw] : raw_) {
      if (!is_of_experts(module)) add_linear(module, raw);
    }
    add_experts();
    add_old_experts();
    check_targets();
    throw_problems(where_, problems_);
    adapter_.spec.use_rslora = config_.use_rslora;
    adapter_.spec.init = config_.init;
    read_own();
    return std::move(adapter_);
  }

 private:
  void problem(std::string text) { problems_.push_back(std::move(text)); }

  // Every key is one of a module's factors, or a parameter in full.
  void collect_keys() {
    std::map<std::string, const DiskTensor*> memory;
    const std::vector<DiskTensor> tensors = memory_tensors(model_),
                                  single = disk_tensors(model_, ExpertLayout::kPerExpert);
    for (const DiskTensor& tensor : single) memory[tensor.name] = &tensor;
    for (const DiskTensor& tensor : tensors) memory[tensor.name] = &tensor;
    for (const TensorInfo& info : file_.tensors()) {
      if (!is_float(info.dtype)) {
        problem(str("tensor ", quoted_for_message(info.name), ": found ", dtype_name(info.dtype), ", expected floats"));
        continue;
      }
      std::string_view name = info.name;
      if (!name.starts_with(kKeyPrefix)) {
        problem(str("tensor ", quoted_for_message(name), ": expected a name that starts with ", kKeyPrefix));
        continue;
      }
      name.remove_prefix(std::string_view(kKeyPrefix).size());
      const auto mixture = name.find(config_.kind == AdapterKind::kSmore ? ".smore_" : ".smora_");
      if (is_mixture(config_.kind) && mixture != std::string_view::npos) {
        mixtures_[std::string(name.substr(0, mixture))][std::string(name.substr(mixture + 1))] = &info;
        continue;
      }
      if (is_mixture(config_.kind)) {
        add_full_or_complain(memory, name, info);
        continue;
      }
      if (take(name, ".lora_A.weight", &RawFactors::a, info) || take(name, ".lora_B.weight", &RawFactors::b, info) ||
          take(name, ".lora_magnitude_vector", &RawFactors::magnitude, info))
        continue;
      add_full_or_complain(memory, name, info);
    }
  }

  void add_full_or_complain(const std::map<std::string, const DiskTensor*>& memory, std::string_view name,
                            const TensorInfo& info) {
    // Where lm_head is a target, peft saves its own weight too.
    constexpr std::string_view kBaseWeight = ".base_layer.weight";
    std::string full_name(name);
    if (name.ends_with(kBaseWeight)) full_name = str(name.substr(0, name.size() - kBaseWeight.size()), ".weight");
    const auto full = memory.find(full_name);
    if (full != memory.end()) {
      add_full(*full->second, info);
    } else {
      problem(str("tensor ", quoted_for_message(info.name), " is not expected",
                  name.find("lora_embedding") != std::string_view::npos ? "; adapters of embeddings are not supported"
                                                                        : ": the model has no such part"));
    }
  }

  bool take(std::string_view name, std::string_view ending, const TensorInfo* RawFactors::*member,
            const TensorInfo& info) {
    if (!name.ends_with(ending)) return false;
    raw_[std::string(name.substr(0, name.size() - ending.size()))].*member = &info;
    return true;
  }

  void add_full(const DiskTensor& tensor, const TensorInfo& info) {
    if (info.shape != tensor.shape) {
      problem(str("tensor '", info.name, "': found shape ", shape_text(info.shape), ", expected ",
                  shape_text(tensor.shape)));
      return;
    }
    const auto shapes = parameter_shapes(model_);
    const at::Tensor value = read_float(file_, info);
    const auto count = static_cast<std::int64_t>(tensor.parameters.size());
    for (std::int64_t i = 0; i < count; ++i) {
      const auto& [name, shape] = shapes[tensor.parameters[static_cast<std::size_t>(i)]];
      adapter_.full[name] = count == 1 ? value.view(shape) : value.view({count, shape[0], shape[1]})[i].contiguous();
    }
  }

  static bool is_of_experts(const std::string& module) {
    return module.ends_with(kExperts) || module.find(str(kExperts, ".")) != std::string::npos ||
           module.find(kOldExperts) != std::string::npos;
  }

  bool has_both(const std::string& module, const RawFactors& raw) {
    if (raw.a != nullptr && raw.b != nullptr) return true;
    problem(str("module '", module, "': tensor lora_", raw.a == nullptr ? "A" : "B", ".weight is missing"));
    return false;
  }

  bool has_shape(const TensorInfo& info, const std::vector<std::int64_t>& expected) {
    if (info.shape == expected) return true;
    problem(str("tensor '", info.name, "': found shape ", shape_text(info.shape), ", expected ", shape_text(expected)));
    return false;
  }

  void add_part(const AdapterTarget& target, std::int64_t rank, double alpha, const at::Tensor& a,
                const at::Tensor& b) {
    if (adapter_.factors.contains(target.module + ".lora_A.weight"))
      return problem(str("module '", target.module, "' has more than one adapter in this file"));
    adapter_.spec.parts.push_back({target, rank, alpha});
    adapter_.factors[target.module + ".lora_A.weight"] = a.contiguous();
    adapter_.factors[target.module + ".lora_B.weight"] = b.contiguous();
  }

  // Null and a problem when the model has none of this name.
  const AdapterTarget* find_linear(const std::string& module) {
    const auto found = by_module_.find(module);
    if (found != by_module_.end()) return found->second;
    std::vector<std::string> known;
    for (const auto& [name, target] : by_module_) known.push_back(name);
    const auto near = closest_names(module, known);  // the list of all layers would be no help
    problem(str("module '", module, "' is no linear layer of this model",
                near.empty() ? "" : str("; did you mean '", near.front(), "'?")));
    return nullptr;
  }

  void add_linear(const std::string& raw_module, const RawFactors& raw) {
    std::string module = raw_module;
    if (module.ends_with(".block_sparse_moe.gate"))
      module = module.substr(0, module.size() - std::string_view("block_sparse_moe.gate").size()) + "mlp.gate";
    const AdapterTarget* found = find_linear(module);
    if (found == nullptr) return;
    const AdapterTarget& target = *found;
    if (!has_both(module, raw)) return;
    const std::int64_t rank = config_.rank_of(module);
    bool fits = has_shape(*raw.a, {rank, target.I});
    fits = has_shape(*raw.b, {target.O, rank}) && fits;
    if (config_.use_dora) {
      if (raw.magnitude == nullptr) {
        problem(str("module '", module, "': lora_magnitude_vector is missing, which use_dora promises"));
        return;
      }
      fits = has_shape(*raw.magnitude, {target.O}) && fits;
    }
    if (!fits) return;
    add_part(target, rank, config_.alpha_of(module), read_float(file_, *raw.a), read_float(file_, *raw.b));
    if (config_.use_dora)
      adapter_.factors[target.module + ".lora_magnitude_vector"] = read_float(file_, *raw.magnitude);
  }

  using Tensors = std::map<std::string, const TensorInfo*>;  // of a module, by the name below it

  void add_mixture(const std::string& module, const Tensors& tensors) {
    const AdapterTarget* target = find_linear(module);
    if (target == nullptr) return;
    if (target->num_experts > 0 || target->group == "router" || target->group == "lm_head")
      return problem(str("module '", module, "': ", config_.peft_type, " is not possible for '", target->group, "'"));
    const AdapterPart part{*target, config_.kind == AdapterKind::kSmora ? config_.rank_of(module) : 0,
                           config_.alpha_of(module)};
    const std::size_t before = problems_.size();
    if (config_.kind == AdapterKind::kSmora) {
      for (const std::string& text : problems_of(adapter_.spec.smora_of(part)))
        problem(str("module '", module, "': ", text));
    }
    const NamedShapes shapes = adapter_.spec.mixture_shapes(part);
    std::map<std::string, at::Tensor> values;
    for (const auto& [name, shape] : shapes) {
      const auto found = tensors.find(name);
      if (found == tensors.end()) {
        problem(str("module '", module, "': tensor ", name, " is missing"));
      } else if (has_shape(*found->second, shape)) {
        values[target->module + "." + name] = read_float(file_, *found->second);
      }
    }
    for (const auto& [name, info] : tensors) {
      if (std::ranges::find(shapes, name, &NamedShape::first) == shapes.end())
        problem(str("tensor '", info->name, "' is not expected: no such part in this adapter"));
    }
    if (problems_.size() != before) return;
    adapter_.spec.parts.push_back(part);
    adapter_.factors.merge(values);
  }

  // Fused experts: gate_up is the inner wrapper where both are there; alone, either is called "mlp.experts".
  void add_experts() {
    for (auto& [module, raw] : raw_) {
      if (!module.ends_with(kExperts)) continue;
      const auto inner = raw_.find(module + ".base_layer");
      if (inner != raw_.end()) {
        add_expert_matrix(module + ".gate_up_proj", inner->second);
        add_expert_matrix(module + ".down_proj", raw);
      } else if (const auto matrix = single_matrix(module, raw)) {
        add_expert_matrix(*matrix, raw);
      }
    }
    for (const auto& [module, raw] : raw_) {
      if (module.ends_with(str(kExperts, ".base_layer")) &&
          !raw_.contains(module.substr(0, module.size() - std::string_view(".base_layer").size())))
        problem(str("module '", module, "': the outer adapter, of down_proj, is missing"));
    }
  }

  struct MatrixShapes {
    std::vector<std::int64_t> a, b;
    bool fit(const RawFactors& raw) const { return raw.a->shape == a && raw.b->shape == b; }
    std::string text() const { return str("(A ", shape_text(a), ", B ", shape_text(b), ")"); }
  };
  MatrixShapes matrix_shapes(const std::string& module) const {
    const AdapterTarget& target = *by_module_.at(module);
    const std::int64_t rows = config_.rank_of(module) * target.num_experts;
    return {{rows, target.I}, {target.O, rows}};
  }

  std::optional<std::string> single_matrix(const std::string& module, const RawFactors& raw) {
    const std::string gate_up = module + ".gate_up_proj", down = module + ".down_proj";
    const auto has = [this](const std::string& name) { return by_module_.contains(name); };
    if (!has(gate_up) || !has_both(module, raw)) {
      if (!has(gate_up)) problem(str("module '", module, "': the model has no experts there"));
      return std::nullopt;
    }
    const bool named_gate_up = config_.has_parameter(gate_up), named_down = config_.has_parameter(down);
    if (named_gate_up && named_down) {
      problem(
          str("module '", module, "': target_parameters names gate_up_proj and down_proj, but there is one adapter"));
      return std::nullopt;
    }
    if (named_gate_up) return gate_up;
    if (named_down) return down;
    // No factors fit both: that would take I = D and 2 I = D.
    const MatrixShapes of_gate_up = matrix_shapes(gate_up), of_down = matrix_shapes(down);
    if (of_gate_up.fit(raw)) return gate_up;
    if (of_down.fit(raw)) return down;
    problem(str("module '", module, "': A ", shape_text(raw.a->shape), " and B ", shape_text(raw.b->shape),
                " fit neither gate_up_proj ", of_gate_up.text(), " nor down_proj ", of_down.text(),
                "; name it in target_parameters of ", kAdapterConfig));
    return std::nullopt;
  }

  // peft: A is expert-major, [E R, I]; B expert-minor, [O, R E].
  void add_expert_matrix(const std::string& module, const RawFactors& raw) {
    const auto found = by_module_.find(module);
    if (found == by_module_.end()) return problem(str("module '", module, "': the model has no experts there"));
    if (!has_both(module, raw)) return;
    const AdapterTarget& target = *found->second;
    const std::int64_t R = config_.rank_of(module), E = target.num_experts;
    bool fits = has_shape(*raw.a, {R * E, target.I});
    fits = has_shape(*raw.b, {target.O, R * E}) && fits;
    if (!fits) return;
    if (config_.use_dora) return problem(str("module '", module, "': use_dora is not possible for experts"));
    add_part(target, R, config_.alpha_of(module), read_float(file_, *raw.a).view({E, R, target.I}),
             read_float(file_, *raw.b).view({target.O, R, E}).permute({2, 0, 1}));
  }

  // ---- adapters of transformers 4, one module for each expert's matrix

  struct OldExperts {
    std::map<std::int64_t, RawFactors> gate, up, down;  // by expert
    std::string a_module;                               // one of them, for rank and alpha
  };

  void add_old_experts() {
    std::map<std::string, OldExperts> layers;  // by "model.layers.3.mlp.experts"
    for (const auto& [module, raw] : raw_) {
      std::string_view part = kOldExperts;
      auto at = module.find(part);
      if (at == std::string::npos) at = module.find(".mlp.experts."), part = ".mlp.experts.";
      if (at == std::string::npos || module.ends_with(".base_layer")) continue;
      const std::string_view rest = std::string_view(module).substr(at + part.size());
      std::int64_t expert = -1;
      const auto parsed = std::from_chars(rest.data(), rest.data() + rest.size(), expert);
      const std::string_view matrix(parsed.ptr, static_cast<std::size_t>(rest.data() + rest.size() - parsed.ptr));
      OldExperts& layer = layers[module.substr(0, at) + std::string(kExperts)];
      auto* matrices = matrix == ".w1" || matrix == ".gate_proj"   ? &layer.gate
                       : matrix == ".w3" || matrix == ".up_proj"   ? &layer.up
                       : matrix == ".w2" || matrix == ".down_proj" ? &layer.down
                                                                   : nullptr;
      if (parsed.ec != std::errc() || matrices == nullptr) {
        problem(
            str("module '", module, "' is no part of an expert; expected w1, w2, w3, gate_proj, up_proj or down_proj"));
        continue;
      }
      (*matrices)[expert] = raw;
      layer.a_module = module;
    }
    for (const auto& [module, layer] : layers) add_old_layer(module, layer);
  }

  void add_old_layer(const std::string& module, const OldExperts& layer) {
    const auto gate_up = by_module_.find(module + ".gate_up_proj"), down = by_module_.find(module + ".down_proj");
    if (gate_up == by_module_.end()) return problem(str("module '", module, "': the model has no experts there"));
    const std::int64_t R = config_.rank_of(layer.a_module), E = gate_up->second->num_experts;
    const double alpha = config_.alpha_of(layer.a_module);
    const std::int64_t D = gate_up->second->I, F = down->second->I;
    const bool has_gate = !layer.gate.empty(), has_up = !layer.up.empty();
    if (has_gate || has_up) {
      // Two matrices of rank R one above the other are one of rank 2 R: A = [A1; A3], B block-diagonal. The scale must
      // stay, so alpha grows with the rank.
      const std::int64_t total = has_gate && has_up ? 2 * R : R;
      const double growth = static_cast<double>(total) / static_cast<double>(R);
      const at::Tensor a = at::zeros({E, total, D}), b = at::zeros({E, 2 * F, total});
      fill_old(module, layer.gate, E, {R, D}, {F, R}, a.narrow(1, 0, R), b.narrow(1, 0, F).narrow(2, 0, R));
      fill_old(module, layer.up, E, {R, D}, {F, R}, a.narrow(1, total - R, R),
               b.narrow(1, F, F).narrow(2, total - R, R));
      add_part(*gate_up->second, total, alpha * (config_.use_rslora ? std::sqrt(growth) : growth), a, b);
    }
    if (layer.down.empty()) return;
    const at::Tensor a = at::zeros({E, R, F}), b = at::zeros({E, D, R});
    fill_old(module, layer.down, E, {R, F}, {D, R}, a, b);
    add_part(*down->second, R, alpha, a, b);
  }

  void fill_old(const std::string& module, const std::map<std::int64_t, RawFactors>& experts, std::int64_t E,
                const std::vector<std::int64_t>& a_shape, const std::vector<std::int64_t>& b_shape, const at::Tensor& a,
                const at::Tensor& b) {
    for (const auto& [expert, raw] : experts) {
      if (expert < 0 || expert >= E) {
        problem(str("module '", module, ".", expert, "': the model has experts 0 to ", E - 1));
        continue;
      }
      if (!has_both(str(module, ".", expert), raw)) continue;
      bool fits = has_shape(*raw.a, a_shape);
      fits = has_shape(*raw.b, b_shape) && fits;
      if (!fits) continue;
      if (config_.use_dora) return problem(str("module '", module, "': use_dora is not possible for experts"));
      a[expert].copy_(read_float(file_, *raw.a));
      b[expert].copy_(read_float(file_, *raw.b));
    }
  }

  // ---- what the config promises

  // Every entry of the target lists must have an effect: peft itself is silent, or only warns.
  void check_targets() {
    const auto any_module = [this](const std::string& entry) {
      const auto matches = [&entry](const auto& item) {
        return item.first == entry || item.first.ends_with("." + entry);
      };
      return std::ranges::any_of(raw_, matches) || std::ranges::any_of(mixtures_, matches);
    };
    for (const std::string& entry : config_.target_modules) {
      if (!any_module(entry)) problem(str("target_modules: '", entry, "' matches no tensor of the file"));
    }
    const auto matches_regex = [this](const auto& item) {
      return regex_matches_all(*config_.module_regex, item.first, config_.where);
    };
    if (config_.module_regex && std::ranges::none_of(raw_, matches_regex))
      problem(str("target_modules: ", quoted_for_message(*config_.module_regex), " matches no tensor of the file"));
    for (const std::string& entry : config_.target_parameters) {
      const bool found = std::ranges::any_of(adapter_.spec.parts, [&](const AdapterPart& part) {
        const std::string module = module_on_disk(model_, part.target.module);
        return str(".", module).ends_with("." + entry) || str(".", module, ".weight").ends_with("." + entry);
      });
      if (!found && problems_.empty()) problem(str("target_parameters: '", entry, "' matches no tensor of the file"));
    }
    if (config_.peft_type != kFullType && adapter_.spec.parts.empty() && problems_.empty())
      problem("holds no adapter of a linear layer or of experts");
  }

  void read_own() {
    const bool has_dag = std::ranges::any_of(
        adapter_.full, [](const auto& item) { return item.first.find(".mlp.dag.") != std::string::npos; });
    if (has_dag) {
      adapter_.dag = model_.dag;
      std::size_t expected = 0, found = 0;
      for (const auto& [name, shape] : parameter_shapes(model_)) {
        if (name.find(".mlp.dag.") == std::string::npos) continue;
        ++expected, found += adapter_.full.contains(name) ? 1 : 0;
      }
      // One that a run trained in some layers only goes on a base that has the rest.
      const bool brings_dag = config_.own.contains("dag");
      if (brings_dag && found != expected) {
        throw InputError(str(where_, ": found ", found, " of the ", expected, " tensors of the DAG it brings"));
      }
    }
    adapter_.base = base_of(config_);
  }

  const ModelConfig& model_;
  PeftConfig config_;
  std::string where_;
  SafetensorsFile file_;
  std::vector<AdapterTarget> targets_;
  std::map<std::string, const AdapterTarget*> by_module_;  // by transformers' name
  std::map<std::string, RawFactors> raw_;                  // by the module's name in the file
  std::map<std::string, Tensors> mixtures_;                // likewise
  Adapter adapter_;
  std::vector<std::string> problems_;
};

}  // namespace

std::optional<DagConfig> adapter_dag(const std::filesystem::path& folder) {
  const PeftConfig config = read_peft_config(folder);
  if (!config.own.contains("dag")) return std::nullopt;
  // As config.json of a model has it; the rest of that file is the base's.
  return parse_dag_config(config.own["dag"], config.where);
}

AdapterBase adapter_base(const std::filesystem::path& folder) { return base_of(read_peft_config(folder)); }

Adapter read_adapter(const std::filesystem::path& folder, const ModelConfig& config) {
  if (!is_adapter_folder(folder)) {
    throw InputError(str(folder.string(), ": has no ", kAdapterConfig, "; expected an adapter folder"));
  }
  return Reader(folder, config).read();
}

}  // namespace dagmoe
