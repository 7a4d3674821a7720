#include "finetune/recipe.h"

#include "base/config_reader.h"
#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kMaxCount = std::int64_t{1} << 40;

// Two keys that say the same thing in two ways. In one file that is a contradiction; on the command line the later word
// wins.
void keep_one(ConfigReader& fields, std::string_view first_key, std::optional<std::int64_t>& first,
              std::string_view second_key, std::optional<std::int64_t>& second) {
  if (!first || !second) return;
  const bool first_given = fields.place(first_key).starts_with("command line");
  const bool second_given = fields.place(second_key).starts_with("command line");
  if (first_given == second_given) {
    fields.issue(second_key, str("contradicts ", first_key, "; give one of the two"));
  } else {
    (first_given ? second : first).reset();
  }
}
void keep_one(ConfigWriter&, std::string_view, const std::optional<std::int64_t>&, std::string_view,
              const std::optional<std::int64_t>&) {}

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

template <class Fields>
void bind(Fields& fields, DataRecipe& config) {
  fields.required("path", config.path);
  fields.choice("format", config.format,
                {{"alpaca", RecordFormat::kAlpaca},
                 {"metamath", RecordFormat::kMetaMath},
                 {"messages", RecordFormat::kMessages},
                 {"sharegpt", RecordFormat::kShareGpt},
                 {"prompt_completion", RecordFormat::kPromptCompletion}});
  fields.optional("template", config.prompt_template);
  if (config.prompt_template != "auto" && !prompt_template_named(config.prompt_template)) {
    std::vector<std::string> known = prompt_template_names();
    known.emplace_back("auto");
    fields.issue("template", str("found '", config.prompt_template, "', expected a prompt template",
                                 did_you_mean(config.prompt_template, known)));
  }
  fields.optional("weight", config.weight, {.min = 0.0});
  if (config.weight != 1.0) fields.issue("weight", "only 1.0 is supported; mixing by weight is not built yet");
}

template <class Fields>
void bind(Fields& fields, Recipe::Data& config) {
  fields.section("train", config.train);
  fields.section("valid", config.valid);
  fields.optional("max_seq_len", config.max_seq_len, {.min = 8, .max = kMaxCount});
  fields.optional("packing", config.packing);
  fields.optional("max_bad_records", config.max_bad_records, {.min = 0, .max = kMaxCount});
  fields.optional("limit", config.limit, {.min = 0, .max = kMaxCount});
}

template <class Fields>
void bind(Fields& fields, Recipe::Batch& config) {
  fields.template optional<std::int64_t>("tokens", config.tokens, {.min = 1, .max = kMaxCount});
  fields.template optional<std::int64_t>("sequences", config.sequences, {.min = 1, .max = kMaxCount});
  fields.optional("micro_batch_tokens", config.micro_batch_tokens, {.min = 16, .max = kMaxCount});
  keep_one(fields, "tokens", config.tokens, "sequences", config.sequences);
}

template <class Fields>
void bind(Fields& fields, Recipe::Optimizer& config) {
  fields.optional("name", config.name);
  if (config.name != "adamw") fields.issue("name", str("found '", config.name, "', expected adamw"));
  fields.optional("lr", config.lr, {.min = 0.0, .max = 1e3});
  fields.optional("betas", config.betas);
  const bool betas_fit = config.betas.size() == 2 && config.betas[0] >= 0.0 && config.betas[0] < 1.0 &&
                         config.betas[1] >= 0.0 && config.betas[1] < 1.0;
  if (!betas_fit) fields.issue("betas", "expected two numbers, each at least 0 and below 1");
  fields.optional("eps", config.eps, {.min = 0.0, .max = 1.0});
  fields.optional("weight_decay", config.weight_decay, {.min = 0.0, .max = 1e3});
}

template <class Fields>
void bind(Fields& fields, ScheduleConfig& config) {
  fields.choice("kind", config.kind,
                {{"constant", ScheduleKind::kConstant},
                 {"linear", ScheduleKind::kLinear},
                 {"cosine", ScheduleKind::kCosine},
                 {"wsd", ScheduleKind::kWsd}});
  fields.optional("warmup_steps", config.warmup_steps, {.min = 0, .max = kMaxCount});
  fields.optional("min_lr_ratio", config.min_lr_ratio, {.min = 0.0, .max = 1.0});
  fields.optional("decay_fraction", config.decay_fraction, {.min = 0.0, .max = 1.0});
}

template <class Fields>
void bind(Fields& fields, Recipe::Eval& config) {
  fields.optional("every_steps", config.every_steps, {.min = 0, .max = kMaxCount});
  fields.optional("tasks", config.tasks);
  if (!config.tasks.empty())
    fields.issue("tasks", "tasks inside a run are not built yet; use dagmoe eval on the result");
}

template <class Fields>
void bind(Fields& fields, Recipe::Checkpoints& config) {
  fields.optional("every_steps", config.every_steps, {.min = 0, .max = kMaxCount});
  fields.optional("keep_last", config.keep_last, {.min = 1, .max = kMaxCount});
}

template <class Fields>
void bind(Fields& fields, Recipe& recipe) {
  fields.required("version", recipe.version, {.min = 1, .max = 1});
  fields.optional("seed", recipe.seed, {.min = 0, .max = kMaxCount});
  fields.required("output_dir", recipe.output_dir);
  fields.choice("device", recipe.device, {{"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}});
  fields.choice("dtype", recipe.dtype, {{"float32", ComputeType::kFloat32}, {"bfloat16", ComputeType::kBFloat16}});
  fields.section("model", recipe.model);
  fields.required("trainable", recipe.trainable);
  fields.section("data", recipe.data);
  fields.section("batch", recipe.batch);
  fields.template optional<std::int64_t>("epochs", recipe.epochs, {.min = 1, .max = kMaxCount});
  fields.template optional<std::int64_t>("steps", recipe.steps, {.min = 1, .max = kMaxCount});
  fields.section("optimizer", recipe.optimizer);
  fields.section("schedule", recipe.schedule);
  fields.optional("max_grad_norm", recipe.max_grad_norm, {.min = 0.0, .max = 1e9});
  fields.optional("router_aux_loss_coef", recipe.router_aux_loss_coef, {.min = 0.0, .max = 1e3});
  fields.optional("router_z_loss_coef", recipe.router_z_loss_coef, {.min = 0.0, .max = 1e3});
  fields.section("eval", recipe.eval);
  fields.section("checkpoint", recipe.checkpoint);
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
  if (!recipe.epochs && !recipe.steps) recipe.epochs = 1;
  if (recipe.steps && recipe.schedule.warmup_steps > *recipe.steps) {
    reader.issue("schedule",
                 str("warmup_steps (", recipe.schedule.warmup_steps, ") is more than steps (", *recipe.steps, ")"));
  }
  if (recipe.trainable.empty() && reader.has("trainable"))
    reader.issue("trainable", "expected at least one group, 'full' or a glob");
  if (recipe.device == Device::kCuda) reader.issue("device", "training on cuda is not built yet; expected auto or cpu");
  reader.finish();
  recipe.trainable_places.assign(recipe.trainable.size(), reader.place("trainable"));
  if (!recipe.batch.tokens && !recipe.batch.sequences) recipe.batch.tokens = 4096;
  return recipe;
}

std::string to_yaml(Recipe recipe) {
  ConfigWriter writer;
  bind(writer, recipe);
  return writer.text();
}

std::vector<std::string> settings_without_effect(const Recipe& recipe, const ModelConfig& model) {
  std::vector<std::string> lines;
  const ScheduleConfig defaults;
  if (recipe.schedule.kind != ScheduleKind::kWsd && recipe.schedule.decay_fraction != defaults.decay_fraction) {
    lines.emplace_back("schedule.decay_fraction has no effect unless schedule.kind is wsd");
  }
  if (recipe.schedule.kind == ScheduleKind::kConstant && recipe.schedule.min_lr_ratio != defaults.min_lr_ratio) {
    lines.emplace_back("schedule.min_lr_ratio has no effect with schedule.kind constant");
  }
  if (!model.moe && recipe.router_aux_loss_coef > 0)
    lines.emplace_back("router_aux_loss_coef has no effect: the model has no router");
  if (!model.moe && recipe.router_z_loss_coef > 0)
    lines.emplace_back("router_z_loss_coef has no effect: the model has no router");
  if (recipe.model.dag && model.dag && !model.moe) lines.emplace_back("model.dag has no effect: the model is dense");
  if (recipe.data.valid.empty() && recipe.eval.every_steps > 0)
    lines.emplace_back("eval.every_steps has no effect without data.valid");
  return lines;
}

}  // namespace dagmoe
