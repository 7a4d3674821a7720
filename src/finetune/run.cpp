#include "finetune/run.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"
#include "finetune/run_folder.h"
#include "finetune/trainer.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

std::vector<TrainableRule> trainable_rules(const Recipe& recipe) {
  std::vector<TrainableRule> rules;
  for (std::size_t i = 0; i < recipe.trainable.size(); ++i)
    rules.push_back({recipe.trainable[i], recipe.trainable_places[i]});
  return rules;
}

// The config that the run trains: the checkpoint's, with the DAG that the recipe adds.
ModelConfig run_config(const Recipe& recipe, const ModelConfig& checkpoint) {
  ModelConfig config = checkpoint;
  if (recipe.model.dag && config.moe && !config.dag) config.dag = recipe.model.dag;
  const auto differs = [](const DagConfig& a, const DagConfig& b) {
    return a.num_iterations != b.num_iterations || a.node_size != b.node_size || a.node_residual != b.node_residual ||
           a.norm != b.norm;
  };
  if (recipe.model.dag && checkpoint.dag && differs(*recipe.model.dag, *checkpoint.dag)) {
    throw ConfigError(str(recipe.file, ": model.dag: differs from the DAG that ", recipe.model.path,
                          " already has; leave model.dag out, or start from a checkpoint without one"));
  }
  return config;
}

std::vector<SourceConfig> sources(const Recipe& recipe, const std::vector<DataRecipe>& data) {
  std::vector<SourceConfig> result;
  for (const DataRecipe& from : data) {
    SourceConfig source;
    source.path = from.path;
    source.format = from.format;
    if (from.prompt_template == "auto") {
      source.chat = chat_format_of(recipe.model.path).value_or(chat_format(PromptTemplate::kAlpaca));
    } else {
      source.chat = chat_format(*prompt_template_named(from.prompt_template), recipe.model.path);
    }
    result.push_back(std::move(source));
  }
  for (const SourceConfig& source : result) {
    if (!std::filesystem::exists(source.path)) {
      throw InputError(str(source.path.string(), ": no such file; it is listed under data in ", recipe.file));
    }
  }
  return result;
}

StepBatchConfig batch_config(const Recipe& recipe) {
  return {.step_tokens = recipe.batch.tokens.value_or(0),
          .step_sequences = recipe.batch.sequences.value_or(0),
          .micro_batch_tokens = recipe.data.packing ? recipe.batch.micro_batch_tokens : 1};
}

// Steps depend on how examples pack, so they are counted by packing once.
std::int64_t count_steps(ExampleStream& stream, const StepBatchConfig& config, std::int64_t epochs) {
  const StreamPosition start = stream.position();
  std::int64_t steps = 0;
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
    while (next_step_batch(stream, config)) ++steps;
  }
  stream.seek(start);
  return steps;
}

void save_checkpoint(const std::filesystem::path& path, Decoder& model, const Checkpoint& source,
                     const Trainer& trainer) {
  write_folder_atomically(path, {.replace = true}, [&](const std::filesystem::path& folder) {
    save_model(folder, model, source);
    trainer.save_state(folder);
  });
}

void report_counters(const std::string& label, const StreamCounters& counters) {
  log_info(str(label, ": ", with_commas(counters.records), " records"));
  for (const auto& report : counters.bad_record_reports) log_warning(report);
  if (counters.bad_records > 0)
    log_warning(str(label, ": ", counters.bad_records, " bad records were left out (data.max_bad_records allows it)"));
}

// `num_passes`: how often the stream went over its samples for these counts.
void report_cuts(const std::string& label, const StreamCounters& counters, std::int64_t num_passes,
                 std::int64_t max_seq_len) {
  const std::int64_t truncated = counters.truncated / num_passes, skipped = counters.without_target / num_passes;
  if (truncated > 0) {
    log_warning(str(label, ": ", truncated, " samples were cut at data.max_seq_len (", max_seq_len,
                    " tokens), so they lost their end token"));
  }
  if (skipped > 0) {
    log_warning(str(label, ": ", skipped, " samples were skipped: nothing to learn was left after the cut"));
  }
}

// Loss over the last tenth of the run, so that one lucky step does not stand for it.
class LossTail {
 public:
  explicit LossTail(std::int64_t num_steps) : first_(num_steps - std::max<std::int64_t>(1, num_steps / 10)) {}
  void add(const StepMetrics& metrics) {
    if (metrics.step <= first_) return;
    sum_ += metrics.loss * static_cast<double>(metrics.supervised_tokens);
    weight_ += static_cast<double>(metrics.supervised_tokens);
  }
  double mean() const { return weight_ > 0 ? sum_ / weight_ : std::numeric_limits<double>::quiet_NaN(); }

 private:
  std::int64_t first_;
  double sum_ = 0.0, weight_ = 0.0;
};

}  // namespace

std::vector<GroupRow> group_rows(const ModelConfig& config, const std::vector<bool>& trainable) {
  std::map<std::string, GroupRow> by_group;
  const auto shapes = parameter_shapes(config);
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    std::int64_t count = 1;
    for (const std::int64_t size : shapes[i].second) count *= size;
    GroupRow& row = by_group[parameter_group(shapes[i].first)];
    row.num_tensors += 1;
    row.num_parameters += count;
    if (trainable[i]) row.num_trainable += count;
  }
  std::vector<GroupRow> rows;
  for (const auto& group : parameter_groups()) {
    if (!by_group.contains(group)) continue;
    rows.push_back(by_group[group]);
    rows.back().group = group;
  }
  return rows;
}

std::string group_table(const std::vector<GroupRow>& rows) {
  std::vector<std::vector<std::string>> cells{{"group", "tensors", "parameters", "trainable"}};
  GroupRow total{.group = "total"};
  const auto add = [&cells](const GroupRow& row) {
    cells.push_back(
        {row.group, with_commas(row.num_tensors), with_commas(row.num_parameters), with_commas(row.num_trainable)});
  };
  for (const GroupRow& row : rows) {
    add(row);
    total.num_tensors += row.num_tensors, total.num_parameters += row.num_parameters,
        total.num_trainable += row.num_trainable;
  }
  add(total);
  return table_text(cells);
}

RunResult run_finetune(const Recipe& recipe, const RunOptions& options) {
  const std::optional<FoundCheckpoint> resumed = options.resume ? newest_checkpoint(recipe.output_dir) : std::nullopt;
  if (options.resume && !resumed)
    log_info(str(recipe.output_dir, ": no checkpoint yet; the run starts from the beginning"));

  // Policy before weights: it decides which of them stay in their file.
  const Checkpoint source = Checkpoint::open(recipe.model.path);
  const ModelConfig config = run_config(recipe, source.config());
  for (const auto& line : settings_without_effect(recipe, config)) log_warning(line);
  std::vector<std::string> names;
  for (const auto& [name, shape] : parameter_shapes(config)) names.push_back(name);
  const std::vector<bool> trainable = select_trainable(trainable_rules(recipe), names);
  log_info(group_table(group_rows(config, trainable)));

  const auto tokenizer = load_tokenizer(recipe.model.path);
  ExampleStreamOptions stream_options{.max_seq_len = recipe.data.max_seq_len,
                                      .max_bad_records = recipe.data.max_bad_records,
                                      .limit = recipe.data.limit,
                                      .shuffle = true,
                                      .seed = static_cast<std::uint64_t>(recipe.seed)};
  ExampleStream train(sources(recipe, recipe.data.train), *tokenizer, stream_options);
  report_counters("train", train.counters());
  std::optional<ExampleStream> valid;
  stream_options.shuffle = false, stream_options.limit = 0;
  if (!recipe.data.valid.empty()) {
    valid.emplace(sources(recipe, recipe.data.valid), *tokenizer, stream_options);
    report_counters("valid", valid->counters());
  }

  TrainConfig train_config;
  train_config.optimizer = {.lr = recipe.optimizer.lr,
                            .beta1 = recipe.optimizer.betas[0],
                            .beta2 = recipe.optimizer.betas[1],
                            .eps = recipe.optimizer.eps,
                            .weight_decay = recipe.optimizer.weight_decay};
  train_config.schedule = recipe.schedule;
  train_config.batch = batch_config(recipe);
  train_config.max_grad_norm = recipe.max_grad_norm;
  train_config.aux_loss_coef = recipe.router_aux_loss_coef;
  train_config.z_loss_coef = recipe.router_z_loss_coef;
  train_config.num_steps = recipe.steps ? *recipe.steps : count_steps(train, train_config.batch, *recipe.epochs);
  if (recipe.epochs) report_cuts("train", train.counters(), *recipe.epochs, recipe.data.max_seq_len);
  log_info(str(with_commas(train_config.num_steps), " steps"));
  RunResult result;
  result.valid_loss_before = result.valid_loss_after = std::numeric_limits<double>::quiet_NaN();
  if (options.dry_run) return result;

  std::map<std::string, bool> is_trainable;
  for (std::size_t i = 0; i < names.size(); ++i) is_trainable[names[i]] = trainable[i];
  LoadOptions load;
  load.compute_dtype = recipe.dtype == ComputeType::kBFloat16 ? at::kBFloat16 : at::kFloat;
  load.is_trainable = [&](const std::string& name) { return is_trainable.at(name); };
  load.add_dag = recipe.model.dag;
  load.seed = static_cast<std::uint64_t>(recipe.seed);
  Decoder model = load_decoder(source, load);
  Trainer trainer(model, train, train_config);
  if (resumed) {
    trainer.load_state(resumed->path);
    log_info(str("resumed from ", resumed->path.string(), " at step ", resumed->step));
  }
  RunFolder folder = resumed ? RunFolder::reopen(recipe, resumed->step) : RunFolder::create(recipe);
  const auto validate = [&](std::int64_t step) {
    const ValidLoss loss = validation_loss(model, *valid, recipe.batch.micro_batch_tokens);
    folder.write_validation(step, loss);
    log_info(str("step ", step, ": valid loss ", fixed(loss.loss, 4), " nats per token over ",
                 with_commas(loss.supervised_tokens), " tokens"));
    return loss.loss;
  };
  if (valid) result.valid_loss_before = validate(trainer.num_steps_done());

  LossTail tail(train_config.num_steps);
  std::int64_t num_tokens = 0;
  Progress progress("training", train_config.num_steps);
  while (trainer.num_steps_done() < train_config.num_steps) {
    const StepMetrics metrics = trainer.step();
    folder.write_step(metrics);
    tail.add(metrics);
    num_tokens += metrics.tokens;
    result.seconds += metrics.seconds;
    progress.update(metrics.step, str("loss ", fixed(metrics.loss, 4), "  ",
                                      fixed(static_cast<double>(metrics.tokens) / metrics.seconds, 0), " tok/s"));
    const bool last = metrics.step == train_config.num_steps;
    result.interrupted = !last && options.should_stop();
    const bool due = recipe.checkpoint.every_steps > 0 && metrics.step % recipe.checkpoint.every_steps == 0 && !last;
    if (due || result.interrupted) {
      result.output = folder.checkpoint_path(metrics.step);
      save_checkpoint(result.output, model, source, trainer);
      folder.drop_old_checkpoints(recipe.checkpoint.keep_last);
    }
    if (result.interrupted) break;
    if (valid && !last && recipe.eval.every_steps > 0 && metrics.step % recipe.eval.every_steps == 0) {
      progress.finish("");
      validate(metrics.step);
    }
  }
  progress.finish(str("loss ", fixed(tail.mean(), 4)));
  // A run of so many steps never packs its samples beforehand: what was cut is known only now.
  if (!recipe.epochs) report_cuts("train", train.counters(), 1, recipe.data.max_seq_len);
  result.steps = trainer.num_steps_done();
  result.train_loss = tail.mean();
  result.tokens_per_second = result.seconds > 0 ? static_cast<double>(num_tokens) / result.seconds : 0.0;
  if (result.interrupted) return result;

  if (valid) result.valid_loss_after = validate(result.steps);
  result.output = folder.final_path();
  write_folder_atomically(result.output, {.replace = true},
                          [&](const std::filesystem::path& path) { save_model(path, model, source); });
  return result;
}

}  // namespace dagmoe
