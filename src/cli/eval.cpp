#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/model_session.h"
#include "eval/evaluate.h"
#include "eval/model_runner.h"
#include "eval/results.h"

namespace dagmoe {
namespace {

struct EvalFlags {
  std::string model, tasks, dtype = "float32", output, compare, data_dir = "datasets";
  std::vector<std::string> adapters, datasets, fewshot_pools;
  double limit = 0.0;
  std::int64_t num_fewshot = -1, max_batch_tokens = 0;
  bool log_samples = false, list = false, json = false;
};

EvalOptions eval_options(const EvalFlags& flags) {
  EvalOptions options;
  options.data_dir = flags.data_dir;
  for (const auto& text : flags.datasets) options.datasets.insert(parse_dataset_option(text));
  for (const auto& text : flags.fewshot_pools) options.fewshot_pools.insert(parse_dataset_option(text));
  options.limit = flags.limit;
  if (flags.num_fewshot >= 0) options.num_fewshot = flags.num_fewshot;
  return options;
}

std::vector<TaskConfig> requested_tasks(const std::string& list) {
  if (list.empty()) throw ConfigError(str("--tasks: is missing; known: ", join(task_names(tasks_folder()), ", ")));
  return load_tasks(split(list, ','));
}

int eval_command(const EvalFlags& flags) {
  if (flags.list) {
    for (const auto& name : task_names(tasks_folder())) std::cout << name << '\n';
    return 0;
  }
  if (flags.model.empty()) throw ConfigError("--model: is required; expected a model folder");
  if (flags.log_samples && flags.output.empty()) throw ConfigError("--log-samples: needs --output DIR to write to");
  // Everything that can be wrong is checked before the model is loaded.
  const std::vector<TaskConfig> tasks = requested_tasks(flags.tasks);
  EvalOptions options = eval_options(flags);
  check_options(options, tasks);
  std::vector<Score> before;
  if (!flags.compare.empty()) before = read_scores(read_json_file(flags.compare), flags.compare);

  const auto started = std::chrono::steady_clock::now();
  const ModelSession session = open_model(flags.model, compute_type(flags.dtype), flags.adapters);
  options.model_folder = flags.model;
  ModelRunner runner(session.model, *session.tokenizer, {.max_batch_tokens = flags.max_batch_tokens});
  std::vector<TaskResult> results;
  for (const TaskConfig& task : tasks) {
    Progress progress(task.task, 0);
    results.push_back(evaluate(task, runner, options, [&progress](std::int64_t done, std::int64_t total) {
      progress.update(done, str(done, " of ", total, " requests"));
    }));
    const TaskResult& result = results.back();
    progress.finish(str(result.num_documents, " documents, ",
                        fixed(static_cast<double>(result.num_documents) / result.seconds, 2), " a second"));
    for (const auto& note : result.notes) log_warning(str(task.task, ": ", note));
  }

  RunInfo info;
  info.model = flags.model;
  info.dtype = flags.dtype;
  info.device = "cpu";
  info.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  info.log_samples = flags.log_samples;
  const Json document = results_json(results, info, options);
  if (!flags.output.empty()) write_results(flags.output, results, info, options);
  if (flags.json) {
    std::cout << document.dump(2) << std::endl;
    return 0;
  }
  std::cout << results_table(results);
  if (!flags.compare.empty()) {
    std::cout << "\nbefore: " << flags.compare << "\nafter:  " << flags.model << "\n\n"
              << comparison_table(compare_scores(before, read_scores(document, flags.model)));
  }
  std::cout << std::flush;
  return 0;
}

}  // namespace

void register_eval(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "accuracy harness: ARC, PIQA, HellaSwag, held-out loss");
  command->add_option("--adapter", flags->adapters, "adapter folder on the model; may be given more than once")
      ->take_all();
  command->add_option("--model", flags->model, "model folder");
  command->add_option("--tasks", flags->tasks, "names or task files, separated by commas");
  command->add_flag("--list", flags->list, "print the known tasks");
  command->add_option("--data-dir", flags->data_dir, "folder that a task's relative dataset_path is resolved against")
      ->capture_default_str();
  command->add_option("--dataset", flags->datasets, "TASK=FILE or TASK=FILE,LABELS: another data file for a task")
      ->take_all();
  command->add_option("--fewshot", flags->fewshot_pools, "TASK=FILE: where a task's examples are drawn from")
      ->take_all();
  command->add_option("--num-fewshot", flags->num_fewshot, "examples before each question (default: the task's own)")
      ->check(CLI::Range(0, 1000));
  command->add_option("--limit", flags->limit, "first n documents of each task; below 1: a share of them")
      ->check(CLI::Range(0.0, 1e12));
  command->add_option("--dtype", flags->dtype, "compute type: float32 or bfloat16")->capture_default_str();
  command->add_option("--max-batch-tokens", flags->max_batch_tokens, "tokens of one forward pass; 0: found from memory")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--output", flags->output, "folder for results.json");
  command->add_flag("--log-samples", flags->log_samples, "also write samples_TASK.jsonl");
  command->add_option("--compare", flags->compare, "results.json of an earlier run: adds a before/after table");
  command->add_flag("--json", flags->json, "results as one JSON document on stdout");
  command->callback([flags, &run] { run = [flags] { return eval_command(*flags); }; });
}

}  // namespace dagmoe
