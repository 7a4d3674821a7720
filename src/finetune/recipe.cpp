#include "finetune/recipe.h"

#include <algorithm>

#include "base/config_reader.h"
#include "base/error.h"
#include "base/text.h"
#include "base/yaml.h"
#include "data/byte_stream.h"
#include "data/data_files.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kMaxCount = std::int64_t{1} << 40;

// Two keys that say the same thing in two ways. In one file that is a contradiction; on the command line the later word
// wins.
template <class First, class Second>
void keep_one(ConfigReader& fields, std::string_view first_key, First& first, std::string_view second_key,
              Second& second) {
  if (!first || !second) return;
  const bool first_given = fields.place(first_key).starts_with("command line");
  const bool second_given = fields.place(second_key).starts_with("command line");
  if (first_given == second_given) {
    fields.issue(second_key, str("contradicts ", first_key, "; give one of the two"));
  } else if (first_given) {
    second = {};
  } else {
    first = {};
  }
}
void keep_one(ConfigWriter&, std::string_view, const std::optional<std::int64_t>&, std::string_view,
              const std::optional<std::int64_t>&) {}

// What is wrong with the shape of a mixture, "KEY: ..." each.
std::vector<std::string> mixture_problems(const LoraRecipe& lora) {
  if (lora.kind == AdapterKind::kSmora)
    return problems_of(SmoraConfig{.rank = lora.rank, .num_active = lora.smora->num_active, .alpha = lora.alpha});
  SmoreConfig config = lora.smore->config;
  config.alpha = lora.alpha;
  return problems_of(config);
}

}  // namespace

// One bind per struct serves ConfigReader and ConfigWriter alike; found through argument-dependent lookup.

template <class Fields>
void bind(Fields& fields, DagConfig& config) {
  fields.optional("num_iterations", config.num_iterations, {.min = 1, .max = 64});
  fields.optional("node_size", config.node_size, {.min = 1, .max = 65536});
  fields.choice("node_residual", config.node_residual,
                {{"hidden_state", NodeResidual::kHiddenState},
                 {"normed_input", NodeResidual::kNormedInput},
                 {"none", NodeResidual::kNone}});
  fields.choice("norm", config.norm, {{"layer_norm", DagNorm::kLayerNorm}, {"rms_norm", DagNorm::kRmsNorm}});
}

template <class Fields>
void bind(Fields& fields, Recipe::Model& config) {
  fields.required("path", config.path);
  fields.section("dag", config.dag);
}

// Of every format: which of them the source's reads is for check_columns to say.
template <class Fields>
void bind(Fields& fields, DataColumns& config) {
  std::vector<std::string> known;
  for (const auto& format : record_format_names()) {
    for (const auto& name : field_names(*record_format_named(format))) {
      if (std::ranges::find(known, name) == known.end()) known.push_back(name);
    }
  }
  for (const auto& name : known) {
    const auto found = std::ranges::find(config.names, name, &ColumnMap::value_type::first);
    std::optional<std::string> theirs = found == config.names.end() ? std::nullopt : std::optional(found->second);
    fields.template optional<std::string>(name, theirs);
    if (theirs && found == config.names.end()) config.names.emplace_back(name, *theirs);
  }
}

template <class Fields>
void check_columns(Fields& fields, const DataRecipe& config) {
  if (!config.columns) return;
  const std::vector<std::string>& known = field_names(config.format);
  for (const auto& [ours, theirs] : config.columns->names) {
    if (std::ranges::find(known, ours) == known.end())
      fields.issue("columns", str(ours, ": is no field of this format, which reads ", join(known, ", ")));
  }
}

template <class Fields>
void bind(Fields& fields, DataRecipe& config) {
  fields.required("path", config.path);
  fields.choice("format", config.format,
                {{"alpaca", RecordFormat::kAlpaca},
                 {"metamath", RecordFormat::kMetaMath},
                 {"mathinstruct", RecordFormat::kMathInstruct},
                 {"openorca", RecordFormat::kOpenOrca},
                 {"dolly", RecordFormat::kDolly},
                 {"gsm8k", RecordFormat::kGsm8k},
                 {"messages", RecordFormat::kMessages},
                 {"sharegpt", RecordFormat::kShareGpt},
                 {"slimorca", RecordFormat::kShareGpt},
                 {"prompt_completion", RecordFormat::kPromptCompletion},
                 {"text", RecordFormat::kText}});
  fields.optional("template", config.prompt_template);
  if (config.format == RecordFormat::kText && config.prompt_template != "auto")
    fields.issue("template", "means nothing for format text, which is learnt as it stands; leave it out");
  if (config.prompt_template != "auto" && !prompt_template_named(config.prompt_template)) {
    std::vector<std::string> known = prompt_template_names();
    known.emplace_back("auto");
    fields.issue("template", str("found '", config.prompt_template, "', expected a prompt template",
                                 did_you_mean(config.prompt_template, known)));
  }
  fields.template optional<double>("weight", config.weight, {.min = 1e-6, .max = 1e6});
  fields.template optional<double>("epochs", config.epochs, {.min = 1e-6, .max = 1e6});
  if (config.weight && config.epochs) fields.issue("epochs", "contradicts weight; give one of the two");
  fields.optional("mask_prompt", config.mask_prompt);
  fields.choice("loss_turns", config.loss_turns, {{"all", LossTurns::kAll}, {"last", LossTurns::kLast}});
  fields.section("columns", config.columns);
  check_columns(fields, config);
}

template <class Fields>
void bind(Fields& fields, TrainableEntry& config) {
  fields.required("group", config.group);
  config.where = fields.place("group");
  fields.optional("layers", config.layers);
  for (const auto& layers : config.layers) {
    if (parse_layer_range(layers)) continue;
    fields.issue("layers", str("found '", layers, "', expected a number or two with dots between (8..15)"));
  }
  fields.template optional<double>("lr", config.lr, {.min = 0.0, .max = 1e3});
  fields.template optional<double>("weight_decay", config.weight_decay, {.min = 0.0, .max = 1e3});
  if (config.group.starts_with('!') && (config.lr || config.weight_decay))
    fields.issue(config.lr ? "lr" : "weight_decay", "means nothing for what a rule freezes; leave it out");
}

template <class Fields>
void bind(Fields& fields, Recipe::Esft& config) {
  fields.required("experts", config.experts);
}

template <class Fields>
void bind(Fields& fields, LoraPattern& config) {
  fields.required("target", config.target);
  config.where = fields.place("target");
  fields.template optional<std::int64_t>("rank", config.rank, {.min = 1, .max = 65536});
  fields.template optional<double>("alpha", config.alpha, {.min = 0.0, .max = 1e6});
}

template <class Fields>
void bind(Fields& fields, SmoreRecipe& recipe) {
  SmoreConfig& config = recipe.config;
  fields.optional("num_experts", config.num_experts);
  fields.optional("num_active", config.num_active);
  fields.optional("ranks", config.ranks);
  fields.optional("router_dim", config.router_dim, {.min = 1, .max = 65536});
  fields.optional("key_dim", config.key_dim, {.min = 1, .max = 65536});
  fields.optional("balance_coef", recipe.balance_coef, {.min = 0.0, .max = 1e3});
}

template <class Fields>
void bind(Fields& fields, SmoraRecipe& recipe) {
  fields.optional("num_active", recipe.num_active, {.min = 1, .max = 65536});
  fields.optional("bias_update_rate", recipe.bias_update_rate, {.min = 0.0, .max = 1.0});
}

// What of `lora` does not go with its kind.
template <class Fields>
void check_kind(Fields& fields, LoraRecipe& config) {
  const bool is_smore = config.kind == AdapterKind::kSmore, is_smora = config.kind == AdapterKind::kSmora;
  if (config.smore && !is_smore) fields.issue("smore", "is of kind smore; set lora.kind, or leave it out");
  if (config.smora && !is_smora) fields.issue("smora", "is of kind smora; set lora.kind, or leave it out");
  if (config.kind == AdapterKind::kDora && config.init == LoraInit::kPissa)
    fields.issue("init", "pissa and kind dora exclude each other; give one of the two");
  if (!is_mixture(config.kind)) return;
  if (is_smore && !config.smore) config.smore.emplace();
  if (is_smora && !config.smora) config.smora.emplace();
  const LoraRecipe defaults;
  const std::string_view kind = is_smore ? "smore" : "smora";
  const auto refuse = [&fields, kind](bool is_set, std::string_view key, std::string_view instead = "leave it out") {
    if (is_set) fields.issue(key, str("means nothing with kind ", kind, "; ", instead));
  };
  refuse(config.init != defaults.init, "init");
  refuse(config.dropout != defaults.dropout, "dropout");
  refuse(config.rslora != defaults.rslora, "rslora");
  refuse(is_smore && config.rank != defaults.rank, "rank", "give lora.smore.ranks");
  refuse(is_smore && config.lr_ratio != defaults.lr_ratio, "lr_ratio");
  for (std::size_t i = 0; i < config.patterns.size(); ++i)
    refuse(is_smore && config.patterns[i].rank.has_value(), str("patterns.", i, ".rank"), "give lora.smore.ranks");
  for (const std::string& problem : mixture_problems(config)) fields.issue(kind, problem);
}

template <class Fields>
void bind(Fields& fields, LoraRecipe& config) {
  fields.choice("kind", config.kind,
                {{"lora", AdapterKind::kLora},
                 {"dora", AdapterKind::kDora},
                 {"smore", AdapterKind::kSmore},
                 {"smora", AdapterKind::kSmora}});
  fields.choice("init", config.init, {{"default", LoraInit::kDefault}, {"pissa", LoraInit::kPissa}});
  fields.optional("rank", config.rank, {.min = 1, .max = 65536});
  fields.optional("alpha", config.alpha, {.min = 0.0, .max = 1e6});
  fields.optional("dropout", config.dropout, {.min = 0.0, .max = 0.99});
  fields.optional("rslora", config.rslora);
  fields.optional("lr_ratio", config.lr_ratio, {.min = 0.0, .max = 1e6});
  fields.required("targets", config.targets);
  config.where = fields.place("targets");
  fields.section("patterns", config.patterns);
  fields.section("smore", config.smore);
  fields.section("smora", config.smora);
  check_kind(fields, config);
}

// Weights say what share of an epoch a source has, epochs how long it makes it: one list can have only one of them.
template <class Fields>
void check_mixture(Fields& fields, const Recipe::Data& config) {
  const auto has = [](const auto& member) {
    return [member](const DataRecipe& source) { return (source.*member).has_value(); };
  };
  if (std::ranges::any_of(config.train, has(&DataRecipe::weight)) &&
      std::ranges::any_of(config.train, has(&DataRecipe::epochs)))
    fields.issue("train", "some sources have a weight and some have epochs; give all of them one of the two");
  for (std::size_t i = 0; i < config.valid.size(); ++i) {
    for (const auto& [key, member] : {std::pair{"weight", &DataRecipe::weight}, {"epochs", &DataRecipe::epochs}}) {
      if (config.valid[i].*member && config.valid[i].*member != 1.0)
        fields.issue(str("valid.", i, ".", key), "every record validates once; leave it out");
    }
  }
}

template <class Fields>
void bind(Fields& fields, Recipe::Data& config) {
  fields.section("train", config.train);
  fields.section("valid", config.valid);
  fields.optional("max_seq_len", config.max_seq_len, {.min = 8, .max = kMaxCount});
  fields.optional("packing", config.packing);
  fields.optional("shuffle", config.shuffle);
  fields.optional("max_bad_records", config.max_bad_records, {.min = 0, .max = kMaxCount});
  fields.optional("limit", config.limit, {.min = 0, .max = kMaxCount});
  fields.optional("valid_fraction", config.valid_fraction, {.min = 0.0, .max = 0.99});
  if (config.valid_fraction > 0 && !config.valid.empty())
    fields.issue("valid_fraction", "contradicts data.valid; give one of the two");
  fields.optional("deduplicate", config.deduplicate);
  fields.optional("packing_lookahead", config.packing_lookahead, {.min = 1, .max = 65536});
  fields.choice("tokenization", config.tokenization,
                {{"separate", Tokenization::kSeparate}, {"joined", Tokenization::kJoined}});
  fields.choice("long_samples", config.long_samples,
                {{"truncate", LongSamples::kTruncate},
                 {"truncate_prompt", LongSamples::kTruncatePrompt},
                 {"drop", LongSamples::kDrop},
                 {"error", LongSamples::kError}});
  fields.optional("ends_cut_with_eos", config.ends_cut_with_eos);
  fields.optional("shuffle_buffer", config.shuffle_buffer, {.min = 1, .max = kMaxCount});
  fields.optional("tokenizer_threads", config.tokenizer_threads, {.min = 0, .max = 256});
  check_mixture(fields, config);
}

template <class Fields>
void bind(Fields& fields, Recipe::Batch& config) {
  fields.template optional<std::int64_t>("tokens", config.tokens, {.min = 1, .max = kMaxCount});
  fields.template optional<std::int64_t>("sequences", config.sequences, {.min = 1, .max = kMaxCount});
  fields.optional("micro_batch_tokens", config.micro_batch_tokens, {.min = 16, .max = kMaxCount});
  fields.optional("share_prefixes", config.share_prefixes);
  keep_one(fields, "tokens", config.tokens, "sequences", config.sequences);
}

template <class Fields>
void bind(Fields& fields, Recipe::Optimizer& config) {
  fields.choice("name", config.name,
                {{"adamw", OptimizerKind::kAdamW},
                 {"adamw_8bit", OptimizerKind::kAdamW8bit},
                 {"muon", OptimizerKind::kMuon},
                 {"sgd", OptimizerKind::kSgd}});
  fields.optional("lr", config.lr, {.min = 0.0, .max = 1e3});
  fields.optional("betas", config.betas);
  const bool betas_fit = config.betas.size() == 2 && config.betas[0] >= 0.0 && config.betas[0] < 1.0 &&
                         config.betas[1] >= 0.0 && config.betas[1] < 1.0;
  if (!betas_fit) fields.issue("betas", "expected two numbers, each at least 0 and below 1");
  fields.optional("eps", config.eps, {.min = 0.0, .max = 1.0});
  fields.optional("weight_decay", config.weight_decay, {.min = 0.0, .max = 1e3});
  fields.optional("momentum", config.momentum, {.min = 0.0, .max = 0.9999});
  fields.optional("nesterov", config.nesterov);
}

template <class Fields>
void bind(Fields& fields, ScheduleConfig& config) {
  fields.choice("kind", config.kind,
                {{"constant", ScheduleKind::kConstant},
                 {"linear", ScheduleKind::kLinear},
                 {"cosine", ScheduleKind::kCosine},
                 {"wsd", ScheduleKind::kWsd},
                 {"inverse_sqrt", ScheduleKind::kInverseSqrt}});
  fields.optional("warmup_steps", config.warmup_steps, {.min = 0, .max = kMaxCount});
  fields.optional("min_lr_ratio", config.min_lr_ratio, {.min = 0.0, .max = 1.0});
  fields.optional("decay_fraction", config.decay_fraction, {.min = 0.0, .max = 1.0});
  fields.choice("decay", config.decay,
                {{"cosine", WsdDecay::kCosine}, {"linear", WsdDecay::kLinear}, {"sqrt", WsdDecay::kSqrt}});
}

template <class Fields>
void bind(Fields& fields, Recipe::Memory& config) {
  fields.required("budget_gb", config.budget_gb, {.min = 1e-3, .max = 1e6});
}

template <class Fields>
void bind(Fields& fields, Recipe::Eval& config) {
  fields.optional("every_steps", config.every_steps, {.min = 0, .max = kMaxCount});
  fields.optional("tasks", config.tasks);
  fields.optional("limit", config.limit, {.min = 0, .max = kMaxCount});
  fields.optional("data_dir", config.data_dir);
  fields.optional("datasets", config.datasets);
  fields.optional("early_stopping_patience", config.early_stopping_patience, {.min = 0, .max = kMaxCount});
  fields.optional("early_stopping_min_delta", config.early_stopping_min_delta, {.min = 0.0, .max = 1e3});
}

template <class Fields>
void bind(Fields& fields, Recipe::Checkpoints& config) {
  fields.optional("every_steps", config.every_steps, {.min = 0, .max = kMaxCount});
  fields.optional("keep_last", config.keep_last, {.min = 1, .max = kMaxCount});
  fields.optional("keep_best", config.keep_best);
}

template <class Fields>
void bind(Fields& fields, Recipe& recipe) {
  fields.required("version", recipe.version, {.min = 1, .max = 1});
  fields.optional("seed", recipe.seed, {.min = 0, .max = kMaxCount});
  fields.required("output_dir", recipe.output_dir);
  fields.choice("device", recipe.device, {{"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}});
  fields.choice("dtype", recipe.dtype, {{"float32", ComputeType::kFloat32}, {"bfloat16", ComputeType::kBFloat16}});
  fields.section("model", recipe.model);
  fields.section_or_word("trainable", recipe.trainable, "group");
  fields.section("esft", recipe.esft);
  fields.section("lora", recipe.lora);
  fields.choice("save_as", recipe.save_as,
                {{"auto", SaveAs::kAuto}, {"model", SaveAs::kModel}, {"adapter", SaveAs::kAdapter}});
  if (recipe.lora && recipe.save_as == SaveAs::kModel)
    fields.issue("save_as", "a run with lora saves an adapter; leave save_as out, and make a model with dagmoe merge");
  fields.section("data", recipe.data);
  fields.section("batch", recipe.batch);
  fields.template optional<std::int64_t>("epochs", recipe.epochs, {.min = 1, .max = kMaxCount});
  fields.template optional<std::int64_t>("steps", recipe.steps, {.min = 1, .max = kMaxCount});
  fields.section("optimizer", recipe.optimizer);
  fields.section("schedule", recipe.schedule);
  fields.optional("max_grad_norm", recipe.max_grad_norm, {.min = 0.0, .max = 1e9});
  fields.optional("label_smoothing", recipe.label_smoothing, {.min = 0.0, .max = 0.999});
  fields.optional("neftune_alpha", recipe.neftune_alpha, {.min = 0.0, .max = 1e4});
  fields.optional("router_aux_loss_coef", recipe.router_aux_loss_coef, {.min = 0.0, .max = 1e3});
  fields.optional("router_z_loss_coef", recipe.router_z_loss_coef, {.min = 0.0, .max = 1e3});
  fields.choice("router_aux_loss_scope", recipe.router_aux_loss_scope,
                {{"global", BalanceScope::kGlobal}, {"batch", BalanceScope::kBatch}});
  fields.optional("router_bias_update_rate", recipe.router_bias_update_rate, {.min = 0.0, .max = 1.0});
  fields.optional("recompute", recipe.recompute);
  fields.section("memory", recipe.memory);
  fields.optional("max_skipped_steps", recipe.max_skipped_steps, {.min = 0, .max = kMaxCount});
  fields.section("eval", recipe.eval);
  fields.section("checkpoint", recipe.checkpoint);
}

bool saves_adapter(const Recipe& recipe) {
  return recipe.save_as == SaveAs::kAdapter || (recipe.save_as == SaveAs::kAuto && recipe.lora.has_value());
}

Recipe load_recipe(const std::filesystem::path& path, std::span<const std::string> overrides) {
  ConfigReader reader = ConfigReader::open(path, overrides);
  Recipe recipe;
  recipe.file = path.string();
  bind(reader, recipe);
  // Rules across sections: each names the key a user would change.
  if (!reader.has("model")) reader.issue("model", "required key is missing; expected {path: FOLDER}");
  if (!reader.has("data")) reader.issue("data", "required key is missing; expected {train: [{path: FILE}]}");
  if (reader.has("data") && recipe.data.train.empty())
    reader.issue("data", "train: expected at least one {path: FILE}");
  keep_one(reader, "epochs", recipe.epochs, "steps", recipe.steps);
  keep_one(reader, "recompute", recipe.recompute, "memory.budget_gb", recipe.memory);
  if (!recipe.epochs && !recipe.steps) recipe.epochs = 1;
  if (recipe.steps && recipe.schedule.warmup_steps > *recipe.steps) {
    reader.issue("schedule",
                 str("warmup_steps (", recipe.schedule.warmup_steps, ") is more than steps (", *recipe.steps, ")"));
  }
  if (recipe.trainable.empty() && !recipe.lora) {
    reader.issue("trainable", str(reader.has("trainable") ? "" : "required key is missing; ",
                                  "expected at least one group, 'full' or a glob, or a section lora"));
  }
  if (!recipe.esft && std::ranges::any_of(recipe.trainable, &TrainableEntry::is_esft)) {
    reader.issue("esft", "required by trainable: esft; expected {experts: FILE}, which dagmoe profile-experts writes");
  }
  if (recipe.lora && recipe.lora->targets.empty())
    reader.issue("lora", "targets: expected at least one group, module name or glob");
  if (saves_adapter(recipe) && recipe.router_bias_update_rate > 0)
    reader.issue("router_bias_update_rate",
                 "changes a part of the model that an adapter cannot hold; leave it out, or "
                 "save_as model without lora");
  if (recipe.device == Device::kCuda) reader.issue("device", "training on cuda is not built yet; expected auto or cpu");
  reader.finish();
  if (!recipe.batch.tokens && !recipe.batch.sequences) recipe.batch.tokens = 4096;
  return recipe;
}

std::string to_yaml(Recipe recipe) {
  ConfigWriter writer;
  bind(writer, recipe);
  return writer.text();
}

namespace {

void collect(const YamlNode& node, const std::string& path, std::map<std::string, std::string>& settings) {
  const auto child_path = [&path](const std::string& key) { return path.empty() ? key : path + "." + key; };
  if (node.kind == YamlNode::Kind::kScalar) settings[path] = node.text;
  for (std::size_t i = 0; i < node.items.size(); ++i) collect(node.items[i], child_path(std::to_string(i)), settings);
  for (const YamlMember& member : node.members) collect(member.value, child_path(member.key), settings);
}

}  // namespace

std::map<std::string, std::string> recipe_settings(std::string_view yaml) {
  std::map<std::string, std::string> settings;
  collect(parse_yaml(yaml).root, "", settings);
  return settings;
}

namespace {

/// Collects "KEY has no effect REASON" lines.
class DeadSettings {
 public:
  /// `is_set`: the key has another value than its default.
  void add(bool is_set, std::string_view key, std::string_view reason) {
    if (is_set) lines.push_back(str(key, " has no effect ", reason));
  }
  std::vector<std::string> lines;
};

void check_optimizer(DeadSettings& dead, const Recipe::Optimizer& optimizer, const Recipe::Optimizer& defaults) {
  const bool is_sgd = optimizer.name == OptimizerKind::kSgd;
  const bool has_momentum = is_sgd || optimizer.name == OptimizerKind::kMuon;
  dead.add(is_sgd && optimizer.betas != defaults.betas, "optimizer.betas", "with optimizer.name sgd");
  dead.add(is_sgd && optimizer.eps != defaults.eps, "optimizer.eps", "with optimizer.name sgd");
  dead.add(!has_momentum && optimizer.momentum != defaults.momentum, "optimizer.momentum",
           "unless optimizer.name is muon or sgd");
  dead.add(!has_momentum && optimizer.nesterov != defaults.nesterov, "optimizer.nesterov",
           "unless optimizer.name is muon or sgd");
  dead.add(is_sgd && optimizer.momentum == 0 && optimizer.nesterov != defaults.nesterov, "optimizer.nesterov",
           "without momentum");
}

void check_schedule(DeadSettings& dead, const ScheduleConfig& schedule) {
  const ScheduleConfig defaults;
  const bool is_wsd = schedule.kind == ScheduleKind::kWsd;
  dead.add(!is_wsd && schedule.decay_fraction != defaults.decay_fraction, "schedule.decay_fraction",
           "unless schedule.kind is wsd");
  dead.add(!is_wsd && schedule.decay != defaults.decay, "schedule.decay", "unless schedule.kind is wsd");
  dead.add(schedule.kind == ScheduleKind::kConstant && schedule.min_lr_ratio != defaults.min_lr_ratio,
           "schedule.min_lr_ratio", "with schedule.kind constant");
}

void check_router(DeadSettings& dead, const Recipe& recipe, const ModelConfig& model, bool router_gets_gradient) {
  for (const auto& [key, value] : {std::pair{"router_aux_loss_coef", recipe.router_aux_loss_coef},
                                   {"router_z_loss_coef", recipe.router_z_loss_coef}}) {
    dead.add(value > 0 && !model.moe, key, "because the model has no router");
    dead.add(value > 0 && model.moe && !router_gets_gradient, key,
             "because nothing that trains lies before a router or in one");
  }
  dead.add(recipe.router_bias_update_rate > 0 && !model.moe, "router_bias_update_rate",
           "because the model has no router");
  dead.add(recipe.router_aux_loss_scope != BalanceScope::kGlobal && recipe.router_aux_loss_coef == 0,
           "router_aux_loss_scope", "without router_aux_loss_coef");
  dead.add(recipe.model.dag && !model.moe, "model.dag", "because the model is dense; run dagmoe upcycle first");
}

void check_mixture(DeadSettings& dead, const LoraRecipe& lora) {
  if (lora.kind != AdapterKind::kSmora || lora.smora->num_active != lora.rank) return;
  dead.lines.push_back(str("lora.smora.num_active is lora.rank (", lora.rank,
                           "): every rank is always chosen, and the bias that balances them has no effect"));
}

void check_validation(DeadSettings& dead, const Recipe& recipe) {
  const Recipe::Eval defaults;
  const bool has_tasks = !recipe.eval.tasks.empty(),
             has_valid = !recipe.data.valid.empty() || recipe.data.valid_fraction > 0;
  const bool validates = has_valid && recipe.eval.every_steps > 0;
  const std::string_view no_validation = "without data.valid and eval.every_steps";
  dead.add(recipe.eval.every_steps > 0 && !has_valid && !has_tasks, "eval.every_steps",
           "without data.valid or eval.tasks");
  dead.add(!has_tasks && recipe.eval.limit != defaults.limit, "eval.limit", "without eval.tasks");
  dead.add(!has_tasks && recipe.eval.data_dir != defaults.data_dir, "eval.data_dir", "without eval.tasks");
  dead.add(!has_tasks && !recipe.eval.datasets.empty(), "eval.datasets", "without eval.tasks");
  dead.add(!validates && recipe.eval.early_stopping_patience > 0, "eval.early_stopping_patience", no_validation);
  dead.add(recipe.eval.early_stopping_patience == 0 && recipe.eval.early_stopping_min_delta > 0,
           "eval.early_stopping_min_delta", "without eval.early_stopping_patience");
  dead.add(!validates && recipe.checkpoint.keep_best, "checkpoint.keep_best", no_validation);
  dead.add(recipe.checkpoint.every_steps == 0 && recipe.checkpoint.keep_last != Recipe::Checkpoints().keep_last,
           "checkpoint.keep_last", "without checkpoint.every_steps");
}

bool is_compressed_source(const DataRecipe& source) {
  return std::ranges::any_of(data_files(source.path), is_compressed);
}

void check_data(DeadSettings& dead, const Recipe::Data& data) {
  const Recipe::Data defaults;
  dead.add(
      data.ends_cut_with_eos && (data.long_samples == LongSamples::kDrop || data.long_samples == LongSamples::kError),
      "data.ends_cut_with_eos", "because no sample is cut (data.long_samples)");
  dead.add(data.packing_lookahead != defaults.packing_lookahead && !data.packing, "data.packing_lookahead",
           "with data.packing false");
  dead.add(data.shuffle_buffer != defaults.shuffle_buffer &&
               (!data.shuffle || std::ranges::none_of(data.train, is_compressed_source)),
           "data.shuffle_buffer", data.shuffle ? "because no file is compressed" : "with data.shuffle false");
  dead.add(data.train.size() == 1 && data.train[0].weight && *data.train[0].weight != 1.0, "data.train.0.weight",
           "with one source");
  for (const auto* sources : {&data.train, &data.valid}) {
    for (std::size_t i = 0; i < sources->size(); ++i) {
      const DataRecipe& source = (*sources)[i];
      const std::string key = str("data.", sources == &data.train ? "train." : "valid.", i);
      const bool has_turns = source.format == RecordFormat::kMessages || source.format == RecordFormat::kShareGpt;
      dead.add(source.loss_turns != LossTurns::kAll && !has_turns, key + ".loss_turns",
               "with a format of one answer a record");
      dead.add(!source.mask_prompt && source.format == RecordFormat::kText, key + ".mask_prompt",
               "with format text, which has no prompt");
    }
  }
}

}  // namespace

std::string why_prefixes_stay_apart(const Recipe& recipe) {
  if (!recipe.data.packing) return "because data.packing is false";
  if (recipe.neftune_alpha > 0) return "because neftune_alpha gives every sample noise of its own";
  if (recipe.lora && recipe.lora->dropout > 0) return "because lora.dropout is drawn for every sample";
  const bool is_mixture = recipe.lora && (recipe.lora->smore || recipe.lora->smora);
  return is_mixture ? "because the adapter's own router balances the tokens of all samples" : "";
}

bool shares_prefixes(const Recipe& recipe) {
  return recipe.batch.share_prefixes && why_prefixes_stay_apart(recipe).empty();
}

std::vector<std::string> settings_without_effect(const Recipe& recipe, const ModelConfig& model,
                                                 bool router_gets_gradient) {
  const Recipe defaults;
  DeadSettings dead;
  check_optimizer(dead, recipe.optimizer, defaults.optimizer);
  check_schedule(dead, recipe.schedule);
  check_router(dead, recipe, model, router_gets_gradient);
  check_validation(dead, recipe);
  if (recipe.lora) check_mixture(dead, *recipe.lora);
  check_data(dead, recipe.data);
  dead.add(!recipe.data.packing && recipe.batch.micro_batch_tokens != defaults.batch.micro_batch_tokens,
           "batch.micro_batch_tokens", "with data.packing false: every sample is a micro batch of its own");
  const std::string why = why_prefixes_stay_apart(recipe);
  dead.add(!recipe.batch.share_prefixes && !why.empty(), "batch.share_prefixes", why);
  const bool draws = recipe.data.shuffle || recipe.neftune_alpha > 0 || (recipe.model.dag && model.dag) || recipe.lora;
  dead.add(recipe.esft && std::ranges::none_of(recipe.trainable, &TrainableEntry::is_esft), "esft.experts",
           "unless a rule says esft");
  dead.add(recipe.seed != defaults.seed && !draws, "seed", "because nothing is drawn at random");
  return std::move(dead.lines);
}

}  // namespace dagmoe
