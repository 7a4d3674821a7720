#include "finetune/run_setup.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "data/data_files.h"
#include "peft/esft.h"

namespace dagmoe {
namespace {

// What the rule esft is about; nothing when no rule says it.
std::set<std::string> esft_names(const Recipe& recipe, const ModelConfig& config) {
  if (!recipe.esft || std::ranges::none_of(recipe.trainable, &TrainableEntry::is_esft)) return {};
  std::vector<std::string> names;
  for (const auto& [name, shape] : parameter_shapes(config)) names.push_back(name);
  return esft_parameters(read_esft_config(recipe.esft->experts), names, recipe.esft->experts);
}

// The recipe's rules; what an adapter adds trains unless one of them is about it.
std::vector<TrainableEntry> trainable_entries(const Recipe& recipe) {
  std::vector<TrainableEntry> entries = recipe.trainable;
  const bool is_named = std::ranges::any_of(entries, [](const auto& entry) { return entry.group == "lora"; });
  if (recipe.lora && !is_named) entries.insert(entries.begin(), {.group = "lora", .where = recipe.lora->where});
  return entries;
}

std::vector<TrainableRule> trainable_rules(const std::vector<TrainableEntry>& entries,
                                           const std::set<std::string>& esft) {
  std::vector<TrainableRule> rules;
  for (const TrainableEntry& entry : entries) {
    TrainableRule rule{entry.group, entry.where};
    for (const auto& layers : entry.layers) rule.layers.push_back(*parse_layer_range(layers));
    if (entry.is_esft()) rule.names = esft;
    rules.push_back(std::move(rule));
  }
  return rules;
}

AdapterSpec adapter_spec(const LoraRecipe& lora, const ModelConfig& config) {
  std::vector<AdapterRule> rules, changes;
  for (const auto& target : lora.targets)
    rules.push_back({target, str(lora.where, ": lora.targets"), lora.rank, lora.alpha});
  for (const LoraPattern& pattern : lora.patterns) {
    changes.push_back({pattern.target, str(pattern.where, ": lora.patterns"), pattern.rank.value_or(lora.rank),
                       pattern.alpha.value_or(lora.alpha)});
  }
  AdapterSpec spec{.kind = lora.kind, .init = lora.init, .use_rslora = lora.rslora, .dropout = lora.dropout};
  if (lora.smore) spec.smore = lora.smore->config;
  if (lora.smora) spec.smora.num_active = lora.smora->num_active;
  spec.parts = select_targets(rules, changes, adapter_targets(parameter_shapes(config)));
  // A router and experts are changed as whole matrices: their inputs cannot be dropped, nor a row's length be learnt.
  std::vector<std::string> issues;
  for (const AdapterPart& part : spec.parts) {
    const bool is_whole =
        part.target.num_experts > 0 || part.target.group == "router" || part.target.group == "lm_head";
    if (!is_whole) continue;
    const char* setting = lora.dropout > 0                   ? "dropout"
                          : lora.kind == AdapterKind::kDora  ? "kind dora"
                          : lora.kind == AdapterKind::kSmore ? "kind smore"
                          : lora.kind == AdapterKind::kSmora ? "kind smora"
                          : lora.init == LoraInit::kPissa    ? "init pissa"
                                                             : nullptr;
    if (setting == nullptr) continue;
    issues.push_back(str(lora.where, ": lora: ", setting, " is not possible for '", part.target.group, "' (",
                         part.target.module, "); leave it out, or take these out of targets"));
    break;
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
  for (const AdapterPart& part : spec.parts) {  // other ranks of lora.patterns
    if (spec.kind == AdapterKind::kSmora)
      check(spec.smora_of(part), str(lora.where, ": lora (", part.target.module, ")"));
  }
  return spec;
}

// A matrix that an adapter changes stays as it is.
void check_adapted(const AdapterSpec& spec, const std::vector<RunParameter>& parameters, const Recipe& recipe) {
  std::vector<std::string> issues;
  for (const RunParameter& parameter : parameters) {
    if (!parameter.is_trainable || parameter_group(parameter.name) == "lora") continue;
    for (const AdapterPart& part : spec.parts) {
      const bool is_its_expert =
          part.target.num_experts > 0 && parameter_group(parameter.name) == "experts" &&
          parameter.name.starts_with(part.target.module.substr(0, part.target.module.rfind('.') + 1));
      if (parameter.name != part.target.module + ".weight" && !is_its_expert) continue;
      issues.push_back(str(recipe.file, ": '", parameter.name,
                           "' trains in full and carries an adapter; take it out of trainable or out of lora.targets"));
    }
    if (!issues.empty()) break;
  }
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

// The config that the run trains: the checkpoint's, with the DAG and the selection bias that the recipe adds.
ModelConfig run_config(const Recipe& recipe, const ModelConfig& checkpoint) {
  ModelConfig config = checkpoint;
  if (recipe.model.dag && checkpoint.dag && *recipe.model.dag != *checkpoint.dag) {
    throw ConfigError(str(recipe.file, ": model.dag: differs from the DAG that ", recipe.model.path,
                          " already has; leave model.dag out, or start from a checkpoint without one"));
  }
  if (recipe.model.dag && config.moe && !config.dag) {
    config.dag = recipe.model.dag;
    config.model_type = "dagmoe";
  }
  if (recipe.router_bias_update_rate > 0 && config.moe) {
    if (config.model_type != "dagmoe") {
      throw ConfigError(str(recipe.file, ": router_bias_update_rate: ", recipe.model.path, " is a ", config.model_type,
                            " checkpoint, which has no place for a selection bias; add model.dag, or leave it out"));
    }
    config.moe->router_bias = true;
  }
  return config;
}

// A router's probabilities depend on everything before it.
bool trains_before_a_router(const std::vector<RunParameter>& parameters, const AdapterSpec& adapter) {
  const auto is_adapted = [&adapter](const std::string& name) {
    return std::ranges::any_of(adapter.parts, [&name](const AdapterPart& part) {
      const bool is_expert = part.target.num_experts > 0;
      return name == part.target.module + ".weight" ||
             (is_expert && name.starts_with(part.target.module.substr(0, part.target.module.rfind('.') + 1)));
    });
  };
  bool trains = false, reaches = false;
  for (const RunParameter& parameter : parameters) {
    trains = trains || parameter.is_trainable || is_adapted(parameter.name);
    reaches = reaches || (trains && parameter_group(parameter.name) == "router");
  }
  return reaches;
}

OptimizerConfig optimizer_config(const Recipe& recipe) {
  OptimizerConfig config;
  config.kind = recipe.optimizer.name;
  config.lr = recipe.optimizer.lr;
  config.beta1 = recipe.optimizer.betas[0], config.beta2 = recipe.optimizer.betas[1];
  config.eps = recipe.optimizer.eps;
  config.weight_decay = recipe.optimizer.weight_decay;
  config.momentum = recipe.optimizer.momentum;
  config.nesterov = recipe.optimizer.nesterov;
  return config;
}

// The type of each parameter in the files; what a recipe adds is in none.
std::map<std::string, DType> disk_types(const Checkpoint& source) {
  const auto shapes = parameter_shapes(source.config());
  std::map<std::string, DType> types;
  for (const DiskTensor& disk : disk_tensors(source.config(), source.layout())) {
    for (const std::size_t index : disk.parameters) types[shapes[index].first] = source.find(disk.name)->dtype;
  }
  return types;
}

// `on_disk`: nullopt for a parameter that the recipe adds.
MemoryParts memory_of(const RunParameter& parameter, const Recipe& recipe, std::optional<DType> on_disk) {
  const bool is_bf16 = recipe.dtype == ComputeType::kBFloat16 && !is_statistics_weight(parameter.name);
  const DType compute = is_bf16 ? DType::kBF16 : DType::kF32;
  const std::int64_t count = parameter.num_elements();
  MemoryParts memory;
  if (parameter.is_trainable) {
    memory.master = memory.gradients = count * dtype_size(DType::kF32);
    memory.optimizer = optimizer_state_bytes(optimizer_config(recipe), parameter.name, parameter.shape);
    if (is_bf16) memory.weights = count * dtype_size(compute);  // the copy that a pass computes with
  } else if (on_disk == compute) {
    memory.mapped = count * dtype_size(compute);
  } else {
    memory.weights = count * dtype_size(compute);
  }
  return memory;
}

// LoRA+ gives B and, as peft does, the vectors of an adapter another rate.
double rate_factor(const Recipe& recipe, const std::string& name) {
  const bool is_faster =
      name.ends_with(".lora_B.weight") || name.ends_with(".lora_magnitude_vector") || name.ends_with(".smora_B.weight");
  return recipe.lora && is_faster ? recipe.lora->lr_ratio : 1.0;
}

std::vector<RunParameter> run_parameters(const Recipe& recipe, const NamedShapes& shapes, const Checkpoint& source,
                                         const std::vector<TrainableEntry>& entries,
                                         const TrainableSelection& selection) {
  const std::map<std::string, DType> types = disk_types(source);
  std::vector<RunParameter> parameters;
  for (const auto& [name, shape] : shapes) {
    RunParameter parameter{name, shape};
    if (const auto rule = selection.rule_of[parameters.size()]) {
      const TrainableEntry& entry = entries[*rule];
      parameter.is_trainable = true;
      parameter.lr = entry.lr.value_or(recipe.optimizer.lr) * rate_factor(recipe, name);
      parameter.weight_decay = entry.weight_decay.value_or(recipe.optimizer.weight_decay);
    }
    const auto type = types.find(name);
    parameter.memory = memory_of(parameter, recipe, type == types.end() ? std::nullopt : std::optional(type->second));
    parameters.push_back(std::move(parameter));
  }
  return parameters;
}

}  // namespace

MemoryParts& MemoryParts::operator+=(const MemoryParts& other) {
  mapped += other.mapped, weights += other.weights, master += other.master, gradients += other.gradients,
      optimizer += other.optimizer;
  return *this;
}

std::int64_t RunParameter::num_elements() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

RunSetup prepare_run(const Recipe& recipe) {
  RunSetup setup{.source = Checkpoint::open(recipe.model.path), .config = {}, .parameters = {}};
  setup.config = run_config(recipe, setup.source.config());
  setup.recompute = recipe.recompute;
  NamedShapes shapes = parameter_shapes(setup.config);
  if (recipe.lora) {
    setup.adapter = adapter_spec(*recipe.lora, setup.config);
    for (auto& shape : setup.adapter.parameters()) shapes.push_back(std::move(shape));
  }
  std::vector<std::string> names;
  for (const auto& [name, shape] : shapes) names.push_back(name);
  const std::vector<TrainableEntry> entries = trainable_entries(recipe);
  const TrainableSelection selection =
      select_trainable(trainable_rules(entries, esft_names(recipe, setup.config)), names);
  setup.parameters = run_parameters(recipe, shapes, setup.source, entries, selection);
  check_adapted(setup.adapter, setup.parameters, recipe);
  setup.router_gets_gradient = trains_before_a_router(setup.parameters, setup.adapter);
  setup.warnings = settings_without_effect(recipe, setup.config, setup.router_gets_gradient);
  setup.warnings.insert(setup.warnings.end(), selection.warnings.begin(), selection.warnings.end());
  if (recipe.data.max_seq_len > setup.config.max_position_embeddings) {
    setup.warnings.push_back(str("data.max_seq_len (", recipe.data.max_seq_len, ") is more than the ",
                                 setup.config.max_position_embeddings, " positions that the model was trained on"));
  }
  return setup;
}

LoadOptions load_options(const Recipe& recipe, const RunSetup& setup) {
  std::map<std::string, bool> is_trainable;
  for (const RunParameter& parameter : setup.parameters) is_trainable[parameter.name] = parameter.is_trainable;
  LoadOptions options;
  options.compute_dtype = recipe.dtype == ComputeType::kBFloat16 ? at::kBFloat16 : at::kFloat;
  options.is_trainable = [is_trainable](const std::string& name) { return is_trainable.at(name); };
  options.add_dag = recipe.model.dag;
  options.add_router_bias = recipe.router_bias_update_rate > 0;
  options.seed = static_cast<std::uint64_t>(recipe.seed);
  return options;
}

Decoder load_run_model(const Recipe& recipe, const RunSetup& setup) {
  Decoder model = load_decoder(setup.source, load_options(recipe, setup));
  if (setup.adapter.parts.empty()) return model;
  attach_new_adapter(model, setup.adapter, static_cast<std::uint64_t>(recipe.seed));
  std::map<std::string, bool> is_trainable;
  for (const RunParameter& parameter : setup.parameters) is_trainable[parameter.name] = parameter.is_trainable;
  for (const auto& [name, tensor] : model.adapter_parameters()) tensor->set_requires_grad(is_trainable.at(name));
  return model;
}

StepBatchConfig batch_config(const Recipe& recipe) {
  return {.step_tokens = recipe.batch.tokens.value_or(0),
          .step_sequences = recipe.batch.sequences.value_or(0),
          .micro_batch_tokens = recipe.data.packing ? recipe.batch.micro_batch_tokens : 1,
          .lookahead = recipe.data.packing ? recipe.data.packing_lookahead : 1};
}

TrainConfig train_config(const Recipe& recipe, const RunSetup& setup) {
  TrainConfig config;
  config.optimizer = optimizer_config(recipe);
  config.schedule = recipe.schedule;
  config.batch = batch_config(recipe);
  // One schedule for all: rates are relative to the optimizer's, or to the largest where that is 0.
  if (config.optimizer.lr == 0) {
    for (const RunParameter& parameter : setup.parameters)
      config.optimizer.lr = std::max(config.optimizer.lr, parameter.lr);
  }
  std::map<std::string, ParameterRate> rates;
  for (const RunParameter& parameter : setup.parameters) {
    if (!parameter.is_trainable) continue;
    const double unit = config.optimizer.lr;
    rates[parameter.name] = {unit > 0 ? parameter.lr / unit : 1.0, parameter.weight_decay};
  }
  config.rate_of = [rates](const std::string& name) { return rates.at(name); };
  config.max_grad_norm = recipe.max_grad_norm;
  config.label_smoothing = recipe.label_smoothing;
  config.neftune_alpha = recipe.neftune_alpha;
  if (setup.router_gets_gradient) {
    config.aux_loss_coef = recipe.router_aux_loss_coef;
    config.z_loss_coef = recipe.router_z_loss_coef;
  }
  config.balance_scope = recipe.router_aux_loss_scope;
  config.router_bias_update_rate = recipe.router_bias_update_rate;
  if (recipe.lora && recipe.lora->smore) config.adapter_balance_coef = recipe.lora->smore->balance_coef;
  if (recipe.lora && recipe.lora->smora) config.adapter_bias_update_rate = recipe.lora->smora->bias_update_rate;
  config.share_prefixes = shares_prefixes(recipe);
  config.recompute = setup.recompute;
  config.max_skipped_steps = recipe.max_skipped_steps;
  config.seed = static_cast<std::uint64_t>(recipe.seed);
  return config;
}

std::vector<SourceConfig> data_sources(const Recipe& recipe, const std::vector<DataRecipe>& data) {
  std::vector<SourceConfig> result;
  for (const DataRecipe& from : data) {
    try {
      data_files(from.path);
    } catch (const InputError& error) {
      throw InputError(str(error.what(), "; it is listed under data in ", recipe.file));
    }
    SourceConfig source;
    source.path = from.path;
    source.format = from.format;
    if (from.columns) source.columns = from.columns->names;
    source.loss = {.mask_prompt = from.mask_prompt, .last_turn_only = from.loss_turns == LossTurns::kLast};
    source.weight = from.weight;
    source.epochs = from.epochs;
    if (from.format == RecordFormat::kText) {
      // No template, so that a model's own need not be known.
    } else if (from.prompt_template == "auto") {
      source.chat = chat_format_of(recipe.model.path).value_or(chat_format(PromptTemplate::kAlpaca));
    } else {
      source.chat = chat_format(*prompt_template_named(from.prompt_template), recipe.model.path);
    }
    result.push_back(std::move(source));
  }
  return result;
}

namespace {

// Where scans of large files are kept; nowhere without a home.
std::filesystem::path index_folder() {
  if (const char* cache = std::getenv("DAGMOE_CACHE")) return std::filesystem::path(cache) / "index";
  const char* home = std::getenv("HOME");
  return home == nullptr ? std::filesystem::path() : std::filesystem::path(home) / ".cache/dagmoe/index";
}

ExampleStreamOptions common_stream_options(const Recipe& recipe) {
  return {.max_seq_len = recipe.data.max_seq_len,
          .max_bad_records = recipe.data.max_bad_records,
          .seed = static_cast<std::uint64_t>(recipe.seed),
          .tokenization = recipe.data.tokenization,
          .long_samples = recipe.data.long_samples,
          .ends_cut_with_eos = recipe.data.ends_cut_with_eos,
          .deduplicate = recipe.data.deduplicate,
          .valid_fraction = recipe.data.valid_fraction,
          .shuffle_buffer = recipe.data.shuffle_buffer,
          .num_threads = recipe.data.tokenizer_threads,
          .index_folder = index_folder()};
}

}  // namespace

ExampleStreamOptions train_stream_options(const Recipe& recipe) {
  ExampleStreamOptions options = common_stream_options(recipe);
  options.limit = recipe.data.limit;
  options.shuffle = recipe.data.shuffle;
  if (recipe.data.valid_fraction > 0) options.split = DataSplit::kTrain;
  return options;
}

ExampleStreamOptions valid_stream_options(const Recipe& recipe) {
  ExampleStreamOptions options = common_stream_options(recipe);
  options.shuffle = false;
  if (recipe.data.valid_fraction > 0) {
    options.limit = recipe.data.limit;
    options.split = DataSplit::kValid;
  }
  return options;
}

}  // namespace dagmoe
