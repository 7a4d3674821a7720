#include "finetune/run.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/text.h"
#include "finetune/checkpoints.h"
#include "finetune/flops.h"
#include "finetune/group_table.h"
#include "finetune/plan_recompute.h"
#include "finetune/report.h"
#include "finetune/run_data.h"
#include "finetune/run_folder.h"
#include "finetune/run_setup.h"
#include "finetune/trainer.h"
#include "finetune/validation_history.h"
#include "model/edge_strength.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kSampleCount = 4;  // shown in the report
// That the learned graph is looked at with: few, because the first step waits for it.
constexpr std::int64_t kAnalysisTokens = 512;

/// Sums over the step lines of a run, which are all that a resumed run knows of the steps before.
class StepTotals {
 public:
  /// The loss is a mean over the last tenth of the run, so that one lucky step does not stand for it.
  explicit StepTotals(std::int64_t num_steps) : first_counted_(num_steps - std::max<std::int64_t>(1, num_steps / 10)) {}
  void add(const Json& line) {
    if (!line.contains("loss")) return;
    num_tokens_ += line.at("tokens").get<double>();
    seconds_ += line.at("seconds").get<double>();
    if (line.value("skipped", false)) return;
    if (line.at("step").get<std::int64_t>() <= first_counted_) {
      sum_ = weight_ = 0.0;
    }
    const double weight = line.at("supervised_tokens").get<double>();
    sum_ += line.at("loss").get<double>() * weight;
    weight_ += weight;
  }
  double loss() const { return weight_ > 0 ? sum_ / weight_ : std::numeric_limits<double>::quiet_NaN(); }
  double seconds() const { return seconds_; }
  double tokens_per_second() const { return seconds_ > 0 ? num_tokens_ / seconds_ : 0.0; }

 private:
  std::int64_t first_counted_;
  double sum_ = 0.0, weight_ = 0.0, num_tokens_ = 0.0, seconds_ = 0.0;
};

Ranks& ranks_of(const RunOptions& options) { return options.ranks ? *options.ranks : Ranks::alone(); }

TrainConfig full_config(const Recipe& recipe, const RunOptions& options, const RunSetup& setup, const RunData& data) {
  TrainConfig config = train_config(recipe, setup);
  config.num_steps = data.num_steps;
  config.on_module = options.on_module;
  return config;
}

/// What all ranks do together; the first one says when.
enum class JointTask : std::int64_t { kStep, kValidation, kCheck, kEnd };

bool any_should_stop(const RunOptions& options, Ranks& ranks) { return ranks.min(options.should_stop() ? 0 : 1) == 0; }

/// The other ranks of a run. An error of the first one ends its process, and mpirun ends these.
void follow(const Recipe& recipe, const RunOptions& options, const RunSetup& setup, RunData& data) {
  Ranks& ranks = *options.ranks;
  const auto resumed = options.resume ? newest_checkpoint(recipe.output_dir) : std::nullopt;
  Decoder model = load_decoder(setup.source, load_options(recipe, setup));
  Trainer trainer(model, data.train, full_config(recipe, options, setup, data), ranks);
  if (resumed) trainer.load_state(resumed->path);
  while (true) {
    switch (static_cast<JointTask>(ranks.from(0, std::int64_t{0}))) {
      case JointTask::kStep:
        try {
          trainer.step();
          any_should_stop(options, ranks);
        } catch (const NumericsError&) {
          // The first rank has the same one; it saves and reports.
        }
        break;
      case JointTask::kValidation:
        validation_loss(model, *data.valid, recipe.batch.micro_batch_tokens, ranks);
        break;
      case JointTask::kCheck:
        trainer.check_equal_ranks();
        break;
      case JointTask::kEnd:
        return;
    }
  }
}

/// One run from its first or resumed step to its end.
class Run {
 public:
  Run(const Recipe& recipe, const RunOptions& options, const RunSetup& setup, RunData& data)
      : recipe_(recipe),
        options_(options),
        setup_(setup),
        data_(data),
        ranks_(ranks_of(options)),
        config_(full_config(recipe, options, setup, data)),
        resumed_(options.resume ? newest_checkpoint(recipe.output_dir) : std::nullopt),
        model_(load_run_model(recipe, setup)),
        trainer_(model_, data.train, config_, ranks_),
        folder_(open_folder()),
        history_(recipe.eval.early_stopping_min_delta),
        totals_(config_.num_steps),
        flops_per_token_(step_flops(setup, {.tokens = 1, .supervised_tokens = 0})),
        flops_per_target_(step_flops(setup, {.tokens = 0, .supervised_tokens = 1})) {
    // The peak of one rank is no measure for several.
    if (options_.measure_gemm_peak && ranks_.count() == 1)
      gemm_peak_ = options_.measure_gemm_peak(model_.compute_dtype);
  }

  RunResult run() {
    check_equal_ranks();
    for (const Json& line : folder_.earlier_lines()) remember(line);
    if (!resumed_) begin();
    const StreamCounters counted_before = data_.train.counters();
    // An interrupted run saved before it validated.
    if (resumed_ && is_validation_step() && !has_validation(trainer_.num_steps_done())) validate();
    Progress progress("training", config_.num_steps);
    while (trainer_.num_steps_done() < config_.num_steps && !result_.interrupted && !result_.stopped_early) {
      one_step(progress);
    }
    progress.finish(str("loss ", fixed(totals_.loss(), 4)));
    // A run of so many steps never packs its samples beforehand: what was cut is known only now.
    if (!recipe_.epochs) report_cuts(counted_before, data_.train.counters(), 1, recipe_.data.max_seq_len);
    if (!result_.interrupted) finish();
    begin_jointly(JointTask::kEnd);
    report();
    result_.steps = trainer_.num_steps_done();
    result_.train_loss = totals_.loss();
    result_.best_step = history_.best_step();
    result_.seconds = totals_.seconds();
    result_.tokens_per_second = totals_.tokens_per_second();
    return result_;
  }

 private:
  void begin_jointly(JointTask task) const { ranks_.from(0, static_cast<std::int64_t>(task)); }

  RunFolder open_folder() {
    if (resumed_) {
      trainer_.load_state(resumed_->path);
      log_info(str("resumed from ", resumed_->path.string(), " at step ", resumed_->step));
      return RunFolder::reopen(recipe_, resumed_->step);
    }
    const bool has_begun = std::filesystem::exists(std::filesystem::path(recipe_.output_dir) / "environment.json");
    if (options_.resume) log_info(str(recipe_.output_dir, ": no checkpoint yet; the run starts from the beginning"));
    return options_.resume && has_begun ? RunFolder::reopen(recipe_, -1) : RunFolder::create(recipe_, ranks_.count());
  }

  // What a line of metrics.jsonl means for the rest of the run.
  void remember(const Json& line) {
    totals_.add(line);
    if (!line.contains("valid_loss")) return;
    const double loss = line.at("valid_loss").get<double>();
    const auto step = line.at("step").get<std::int64_t>();
    if (step == 0) result_.valid_loss_before = loss;
    result_.valid_loss_after = loss;
    history_.add(step, loss);
  }

  bool has_validation(std::int64_t step) const {
    return std::ranges::any_of(folder_.earlier_lines(), [step](const Json& line) {
      return line.at("step") == step && (line.contains("valid_loss") || line.contains("scores"));
    });
  }

  bool is_validation_step() const {
    const std::int64_t every = recipe_.eval.every_steps, step = trainer_.num_steps_done();
    return (data_.valid || !recipe_.eval.tasks.empty()) && every > 0 && step % every == 0;
  }

  void begin() {
    folder_.write_analysis("groups", group_json(group_rows(setup_)));
    folder_.write_analysis("samples", sample_json(data_.train, *data_.tokenizer, kSampleCount));
    if (setup_.config.dag) folder_.write_analysis("edges", {{"before", edges()}, {"after", nullptr}});
    validate();
  }

  // How strong the learned edges are, on the first samples of data.valid, of data.train without it.
  Json edges() {
    const std::int64_t micro_batch_tokens = recipe_.batch.micro_batch_tokens;
    const std::vector<PackedBatch> batches =
        analysis_batches(data_.valid ? *data_.valid : data_.train, micro_batch_tokens, kAnalysisTokens);
    std::vector<ModelInput> inputs;
    for (const PackedBatch& batch : batches) inputs.push_back(model_input(batch));
    return edge_strength_json(edge_strength(model_, inputs));
  }

  // A page that cannot be written is no reason to lose a run.
  void report() {
    try {
      const std::filesystem::path folder = folder_.path();
      write_report(folder / "report.html", std::span(&folder, 1));
    } catch (const InputError& error) {
      log_warning(str("report.html was not written: ", error.what()));
    }
  }

  // Loss on data.valid and scores of the tasks; nothing without them.
  void validate() {
    const std::int64_t step = trainer_.num_steps_done();
    if (data_.valid) {
      begin_jointly(JointTask::kValidation);
      const ValidLoss loss = validation_loss(model_, *data_.valid, recipe_.batch.micro_batch_tokens, ranks_);
      remember(folder_.write_validation(step, loss));
      log_info(str("step ", step, ": valid loss ", fixed(loss.loss, 4), " nats per token over ",
                   with_commas(loss.supervised_tokens), " tokens"));
    }
    if (recipe_.eval.tasks.empty()) return;
    if (!options_.evaluate) throw InternalError("eval.tasks without a program that can score them");
    const Json scores = options_.evaluate(model_);
    folder_.write_scores(step, scores);
    for (const auto& [task, metrics] : scores.items()) log_info(str("step ", step, ": ", task, " ", metrics.dump()));
  }

  void save_weights(const std::filesystem::path& folder) {
    if (saves_adapter(recipe_)) {
      save_adapter(folder, model_, setup_.adapter, setup_.source);
    } else {
      save_model(folder, model_, setup_.source);
    }
  }

  void check_equal_ranks() const {
    begin_jointly(JointTask::kCheck);
    trainer_.check_equal_ranks();
  }

  void save() {
    check_equal_ranks();
    const std::int64_t step = trainer_.num_steps_done();
    result_.output = checkpoint_path(folder_.path(), step);
    folder_.sync();
    save_checkpoint(
        result_.output, [this](const auto& folder) { save_weights(folder); }, trainer_);
    drop_old_checkpoints(folder_.path(), recipe_.checkpoint.keep_last,
                         recipe_.checkpoint.keep_best ? history_.best_step() : std::nullopt);
  }

  StepMetrics train_step() {
    begin_jointly(JointTask::kStep);
    try {
      return trainer_.step();
    } catch (const NumericsError& error) {
      save();
      throw NumericsError(str(error.what(), "; ", result_.output.string(), " has the weights as they were before it"));
    }
  }

  // 0 when the peak was not measured.
  double gemm_share(const StepMetrics& metrics) const {
    if (gemm_peak_ == 0) return 0.0;
    const double flops = flops_per_token_ * static_cast<double>(metrics.computed_tokens) +
                         flops_per_target_ * static_cast<double>(metrics.supervised_tokens);
    return flops / metrics.seconds / gemm_peak_;
  }

  void one_step(Progress& progress) {
    const StepMetrics metrics = train_step();
    const bool should_stop = any_should_stop(options_, ranks_);
    const double share = gemm_share(metrics);
    remember(folder_.write_step(metrics, share));
    if (!metrics.fault.empty()) log_warning(metrics.fault + "; the step was skipped and no weight was changed");
    progress.update(metrics.step, str("loss ", fixed(metrics.loss, 4), "  ",
                                      fixed(static_cast<double>(metrics.tokens) / metrics.seconds, 0), " tok/s",
                                      share > 0 ? str("  ", fixed(100 * share, 0), "% of GEMM peak") : ""));
    const bool last = metrics.step == config_.num_steps;
    result_.interrupted = !last && should_stop;
    if (!result_.interrupted && !last && is_validation_step()) {
      progress.finish("");
      validate();
    }
    const std::int64_t patience = recipe_.eval.early_stopping_patience;
    result_.stopped_early = !last && patience > 0 && history_.num_without_improvement() >= patience;
    const bool is_best = recipe_.checkpoint.keep_best && history_.best_step() == metrics.step;
    const bool is_due = recipe_.checkpoint.every_steps > 0 && metrics.step % recipe_.checkpoint.every_steps == 0;
    if (result_.interrupted || (!last && (is_due || is_best))) save();
  }

  void finish() {
    if (result_.stopped_early) {
      log_info(str("stopped early at step ", trainer_.num_steps_done(), ": ", history_.num_without_improvement(),
                   " validations without improvement; the best was ", fixed(history_.best_loss(), 4), " at step ",
                   history_.best_step().value_or(0)));
    } else {
      validate();
    }
    check_equal_ranks();
    result_.output = folder_.final_path();
    write_folder_atomically(result_.output, {.replace = true},
                            [this](const std::filesystem::path& path) { save_weights(path); });
    if (!setup_.config.dag) return;
    const Json analysis = folder_.read_analysis("edges");
    folder_.write_analysis("edges", {{"before", analysis.value("before", Json())}, {"after", edges()}});
  }

  const Recipe& recipe_;
  const RunOptions& options_;
  const RunSetup& setup_;
  RunData& data_;
  Ranks& ranks_;
  TrainConfig config_;
  std::optional<FoundCheckpoint> resumed_;
  Decoder model_;
  Trainer trainer_;
  RunFolder folder_;
  ValidationHistory history_;
  StepTotals totals_;
  double flops_per_token_,
      flops_per_target_;  // step_flops is linear in both counts, and long to add up for many experts
  RunResult result_{.valid_loss_before = std::numeric_limits<double>::quiet_NaN(),
                    .valid_loss_after = std::numeric_limits<double>::quiet_NaN()};
  double gemm_peak_ = 0.0;
};

}  // namespace

namespace {

// Going on does not depend on how far a run had come: what the beginning counted is in its checkpoints.
std::optional<std::int64_t> planned_steps(const Recipe& recipe, const RunOptions& options) {
  if (!options.resume || !RunFolder::is_of(recipe)) return std::nullopt;
  const auto checkpoint = newest_checkpoint(recipe.output_dir);
  return checkpoint ? std::optional(Trainer::planned_steps(checkpoint->path)) : std::nullopt;
}

}  // namespace

RunResult run_finetune(const Recipe& recipe, const RunOptions& options) {
  // Policy before weights: it decides which of them stay in their file.
  RunSetup setup = prepare_run(recipe);
  for (const auto& line : setup.warnings) log_warning(line);
  log_info(group_table(group_rows(setup)));
  if (const std::string why = why_prefixes_stay_apart(recipe); recipe.batch.share_prefixes && !why.empty())
    log_info("beginnings that samples have in common are computed for each of them, " + why);
  const Ranks& ranks = ranks_of(options);
  RunData data = open_data(recipe, ranks.is_first() ? recipe.output_dir : "", planned_steps(recipe, options));
  if (recipe.memory) {
    const RecomputeChoice choice = choose_recompute(recipe, setup, data.valid ? data.valid->size() : 0,
                                                    options.program_bytes.value_or(program_bytes()));
    setup.recompute = choice.recompute;
    log_info(recompute_text(recipe, choice));
  }
  if (!ranks.is_first()) {
    follow(recipe, options, setup, data);
    return {};
  }
  log_info(str(with_commas(data.num_steps), " steps",
               ranks.count() > 1 ? str(", ", ranks.count(), " processes of ", at::get_num_threads(), " threads") : ""));
  return Run(recipe, options, setup, data).run();
}

}  // namespace dagmoe
