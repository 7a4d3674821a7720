#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/problems.h"
#include "base/text.h"
#include "checkpoint/adapter.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors_folder.h"
#include "cli/commands.h"
#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "finetune/group_table.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

struct InspectFlags {
  std::string path;
  bool tensors = false, json = false;
};

std::int64_t count_of(const std::vector<std::int64_t>& shape) {
  // Beside a 0 the other sizes may be of any size.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

// A table and the same content as JSON, so that neither can say more than the other.
struct Report {
  Json json = Json::object();
  std::vector<std::vector<std::string>> facts, tensors{{"tensor", "dtype", "shape"}};
  void fact(const std::string& name, const std::string& value) {
    facts.push_back({name, value});
    json[name] = value;
  }
  void tensor(const std::string& name, const std::string& dtype, const std::vector<std::int64_t>& shape) {
    tensors.push_back({name, dtype, shape_text(shape)});
    json["tensors"].push_back({{"name", name}, {"dtype", dtype}, {"shape", shape}});
  }
};

template <class Tensors, class DTypeOf>
void add_tensors(Report& report, const Tensors& tensors, const DTypeOf& dtype_of_tensor) {
  std::map<std::string, std::int64_t> by_type;
  std::int64_t parameters = 0;
  for (const auto& tensor : tensors) {
    parameters += count_of(tensor.shape);
    by_type[dtype_of_tensor(tensor)] += 1;
  }
  std::string types;
  for (const auto& [type, count] : by_type) types += str(types.empty() ? "" : ", ", count, " ", type);
  report.fact("dtypes", types);
  report.fact("parameters", with_commas(parameters));
  for (const auto& tensor : tensors) report.tensor(tensor.name, dtype_of_tensor(tensor), tensor.shape);
}

Report inspect_gguf(const std::filesystem::path& path) {
  const GgufFile file = GgufFile::open(path);
  Report report;
  report.fact("kind", "GGUF file");
  if (const GgufValue* architecture = file.find("general.architecture");
      architecture != nullptr && std::holds_alternative<std::string>(*architecture)) {
    report.fact("architecture", std::get<std::string>(*architecture));
  }
  add_tensors(report, file.tensors(),
              [](const GgufTensor& tensor) { return std::string(gguf_type_name(tensor.type)); });
  return report;
}

Report inspect_safetensors(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  Report report;
  report.fact("kind", "safetensors file");
  add_tensors(report, file.tensors(), [](const TensorInfo& tensor) { return std::string(dtype_name(tensor.dtype)); });
  return report;
}

std::string list_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  std::vector<std::string> names;
  for (const Json& entry : value) names.push_back(entry.is_string() ? entry.get<std::string>() : entry.dump());
  return join(names, ", ");
}

// What the folder says of itself. Whether it fits a base shows when it is put on one.
Report inspect_adapter(const std::filesystem::path& folder, std::string& groups) {
  const Json config = read_json_file(folder / "adapter_config.json");
  const SafetensorsFile file = SafetensorsFile::open(folder / "adapter_model.safetensors");
  Report report;
  report.fact("kind", "adapter folder");
  for (const auto& [key, label] : {std::pair{"peft_type", "peft_type"},
                                   {"base_model_name_or_path", "base"},
                                   {"r", "rank"},
                                   {"lora_alpha", "alpha"},
                                   {"use_rslora", "rslora"},
                                   {"use_dora", "dora"},
                                   {"target_modules", "target modules"},
                                   {"target_parameters", "target parameters"},
                                   {"modules_to_save", "in full"},
                                   {"peft_version", "peft version"}}) {
    if (!config.contains(key) || config[key].is_null() || config[key] == Json(false)) continue;
    const Json& value = config[key];
    report.fact(label, value.is_array() || value.is_string() ? list_text(value) : value.dump());
  }
  const Json own = config.value("dagmoe", Json::object());
  report.fact("base is checked", own.contains("base") ? "by its config and weights" : "by shapes alone");
  if (own.contains("dag")) report.fact("brings a DAG", own["dag"].dump());
  add_tensors(report, file.tensors(), [](const TensorInfo& tensor) { return std::string(dtype_name(tensor.dtype)); });
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> by_group;
  for (const TensorInfo& tensor : file.tensors()) {
    auto& [count, parameters] = by_group[parameter_group(tensor.name)];
    count += 1, parameters += count_of(tensor.shape);
  }
  std::vector<std::vector<std::string>> rows{{"group", "tensors", "parameters"}};
  for (const auto& [group, sums] : by_group) rows.push_back({group, with_commas(sums.first), with_commas(sums.second)});
  groups = table_text(rows);
  return report;
}

// A template that is not known is a fact about the folder, not a mistake in asking.
std::string chat_template_text(const std::filesystem::path& folder) {
  try {
    const std::optional<ChatFormat> format = chat_format_of(folder);
    return format ? std::string(name_of(format->form)) : "none";
  } catch (const InputError&) {
    return "not known; name one in the recipe, or with --chat-template";
  }
}

std::string layers_text(const ModelConfig& config) {
  std::int64_t num_moe = 0;
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) num_moe += config.is_moe_layer(n);
  if (num_moe == 0) return str(config.num_hidden_layers, ", dense");
  const std::int64_t num_dense = config.num_hidden_layers - num_moe;
  return str(config.num_hidden_layers, num_dense == 0 ? ", all with experts" : str(", ", num_dense, " of them dense"));
}

std::string attention_text(const ModelConfig& config) {
  std::string text = str(config.num_attention_heads, " heads, ", config.num_key_value_heads, " for keys and values");
  if (config.mla) text = str(config.num_attention_heads, " heads on latents of width ", config.mla->kv_lora_rank);
  if (config.qkv_bias) text += ", biases";
  if (config.qk_norm != QkNorm::kNone) text += ", q and k normalized";
  if (config.clip_qkv) text += str(", clipped at ", *config.clip_qkv);
  if (config.sliding_window > 0) text += str(", window of ", config.sliding_window, " tokens");
  return text;
}

std::string experts_text(const MoeConfig& moe) {
  std::string text = str(moe.num_experts, ", ", moe.num_experts_per_tok, " per token, width ",
                         moe.moe_intermediate_size, moe.norm_topk_prob ? ", weights sum to 1" : "");
  if (moe.shared_expert_intermediate_size > 0) {
    text += str(", a ", moe.shared_expert_gate ? "gated " : "", "shared one of width ",
                moe.shared_expert_intermediate_size);
  }
  return text;
}

// What does not fit is shown below the facts, not instead of them.
Report inspect_model(const std::filesystem::path& folder, std::string& groups, std::vector<std::string>& problems) {
  const ModelConfig config = read_model_config(folder);
  const SafetensorsFolder weights = SafetensorsFolder::open(folder);
  const ExpertLayout layout = find_layout(weights);
  problems = layout_problems(weights, config, layout);
  Report report;
  report.fact("kind", "model folder");
  report.fact("model_type", config.model_type == config.base_model_type
                                ? config.model_type
                                : str(config.model_type, " on ", config.base_model_type));
  report.fact("layers", layers_text(config));
  report.fact("attention", attention_text(config));
  if (config.moe) report.fact("experts", experts_text(*config.moe));
  if (config.moe) report.fact("layout of experts", layout_name(layout));
  if (config.dag) report.fact("dag", str(config.dag->num_iterations, " iterations, node size ", config.dag->node_size));
  std::map<std::string, std::int64_t> by_type;
  for (const auto& [name, place] : weights.places()) by_type[dtype_name(place.info->dtype)] += 1;
  std::vector<std::string> types;
  for (const auto& [type, count] : by_type) types.push_back(str(count, " ", type));
  report.fact("dtypes",
              str(join(types, ", "), " in ", weights.num_files(), weights.num_files() == 1 ? " file" : " files"));
  report.fact("parameters", with_commas(num_parameters(config)));
  report.fact("active parameters", with_commas(num_active_parameters(config)));
  report.fact("tokenizer", has_tokenizer(folder) ? load_tokenizer(folder)->description() : "none");
  report.fact("chat template", chat_template_text(folder));
  report.fact("unexpected", problems.empty() ? "nothing" : str(problems.size(), " problems, listed below"));
  groups = parameter_table(config);
  for (const auto& [name, place] : weights.places()) {
    report.tensor(name, dtype_name(place.info->dtype), place.info->shape);
  }
  return report;
}

int inspect_command(const InspectFlags& flags) {
  const std::filesystem::path path = flags.path;
  if (!std::filesystem::exists(path)) throw InputError(str(flags.path, ": no such file or folder"));
  std::string groups;
  std::vector<std::string> problems;
  Report report;
  if (is_adapter_folder(path)) {
    report = inspect_adapter(path, groups);
  } else if (std::filesystem::is_directory(path)) {
    report = inspect_model(path, groups, problems);
  } else if (path.extension() == ".gguf") {
    report = inspect_gguf(path);
  } else if (path.extension() == ".safetensors") {
    report = inspect_safetensors(path);
  } else {
    throw InputError(
        str(flags.path, ": is of no known kind; expected a model or adapter folder, a .safetensors or a .gguf file"));
  }
  if (flags.json) {
    std::cout << report.json.dump(2) << std::endl;
    throw_problems(path.string(), problems);
    return 0;
  }
  for (const auto& fact : report.facts)
    std::cout << fact[0] << std::string(20 - std::min<std::size_t>(fact[0].size(), 19), ' ') << fact[1] << '\n';
  if (!groups.empty()) std::cout << '\n' << groups;
  if (flags.tensors) std::cout << '\n' << table_text(report.tensors);
  std::cout << std::flush;
  throw_problems(path.string(), problems);
  return 0;
}

}  // namespace

void register_inspect(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command =
      app.add_subcommand("inspect", "what is in a model or adapter folder, a safetensors or a GGUF file");
  command->add_option("path", flags->path, "what to look at")->required();
  command->add_flag("--tensors", flags->tensors, "list every tensor");
  command->add_flag("--json", flags->json, "everything as one JSON document");
  command->callback([flags, &run] { run = [flags] { return inspect_command(*flags); }; });
}

}  // namespace dagmoe
