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
#include "data/tokenizer_config.h"
#include "eval/comparison.h"
#include "eval/evaluate.h"
#include "eval/journal.h"
#include "eval/model_identity.h"
#include "eval/model_runner.h"
#include "eval/results.h"
#include "eval/task_catalog.h"

namespace dagmoe {
namespace {

struct EvalFlags {
  std::string model, tasks, dtype = "float32", output, compare, data_dir = "datasets", system_instruction, gen_kwargs;
  std::vector<std::string> adapters, datasets, fewshot_pools;
  double limit = 0.0;
  std::int64_t num_fewshot = -1, max_batch_tokens = 0, fewshot_seed = 1234;
  bool log_samples = false, list = false, json = false, resume = false, apply_chat_template = false,
       fewshot_as_multiturn = false;
};

void add_chat_format(const EvalFlags& flags, EvalOptions& options) {
  if (!flags.apply_chat_template) return;
  options.chat_format = chat_format_of(flags.model);
  if (!options.chat_format)
    throw ConfigError(str("--apply-chat-template: ", flags.model,
                          " has no chat template (tokenizer_config.json, chat_template.jinja)"));
}

EvalOptions eval_options(const EvalFlags& flags) {
  EvalOptions options;
  options.data_dir = flags.data_dir;
  for (const auto& text : flags.datasets) options.datasets.insert(parse_dataset_option(text));
  for (const auto& text : flags.fewshot_pools) options.fewshot_pools.insert(parse_dataset_option(text));
  options.limit = flags.limit;
  if (flags.num_fewshot >= 0) options.num_fewshot = flags.num_fewshot;
  options.fewshot_seed = static_cast<std::uint64_t>(flags.fewshot_seed);
  options.model_folder = flags.model;
  options.system_instruction = flags.system_instruction;
  options.fewshot_as_multiturn = flags.fewshot_as_multiturn;
  add_chat_format(flags, options);
  if (!flags.gen_kwargs.empty()) options.generation = parse_generation_option(flags.gen_kwargs);
  options.journal_folder = flags.output;
  options.resume = flags.resume;
  return options;
}

TaskSelection requested_tasks(const std::string& list) {
  if (list.empty())
    throw ConfigError(str("--tasks: is missing; known: ", join(TaskCatalog(tasks_folder()).names(), ", ")));
  return select_tasks(split(list, ','));
}

// Reads every task's data before the model is loaded; the problems of all tasks at once.
std::vector<TaskRequests> prepare_tasks(const TaskSelection& selection, const EvalOptions& options) {
  std::vector<TaskRequests> prepared;
  std::vector<std::string> config_problems, input_problems;
  for (const TaskConfig& task : selection.tasks) {
    try {
      prepared.push_back(prepare_task(task, options));
    } catch (const ConfigError& error) {
      config_problems.push_back(error.what());
    } catch (const InputError& error) {
      input_problems.push_back(error.what());
    }
  }
  if (!config_problems.empty()) throw ConfigError(std::move(config_problems), "");
  if (!input_problems.empty()) throw InputError(join(input_problems, "\n"));
  return prepared;
}

TaskResult run_task(TaskRequests requests, LanguageModel& model, const EvalOptions& options) {
  const std::string name = requests.task.task;
  Progress progress(name, static_cast<std::int64_t>(requests.questions.size()));
  const auto started = std::chrono::steady_clock::now();
  const auto rate = [started](std::int64_t done) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    return fixed(static_cast<double>(done) / std::max(seconds, 1e-9), 2);
  };
  TaskResult result = evaluate(std::move(requests), model, options, [&](const EvalProgress& at) {
    progress.update(at.done, str(rate(at.done), " documents/s  ", at.metric, " ", fixed(at.value, 4)));
  });
  const std::int64_t asked = result.num_documents - result.num_resumed;
  progress.finish(str(result.num_documents, " documents, ",
                      fixed(static_cast<double>(asked) / std::max(result.seconds, 1e-9), 2), " a second",
                      result.num_resumed > 0 ? str(", ", result.num_resumed, " from the earlier run") : ""));
  for (const auto& note : result.notes) log_warning(str(name, ": ", note));
  return result;
}

void print_results(const std::vector<TaskResult>& results, const std::vector<GroupResult>& groups, const Json& document,
                   const EvalFlags& flags, const std::optional<EarlierRun>& before) {
  if (flags.json) {
    std::cout << document.dump(2) << std::endl;
    return;
  }
  std::cout << results_table(results, groups);
  if (before) {
    const auto changes = compare_runs(*before, read_scores(document, flags.model), document_scores(results));
    std::cout << "\nbefore: " << before->name << "\nafter:  " << flags.model << "\n\n" << comparison_table(changes);
  }
  std::cout << std::flush;
}

int eval_command(const EvalFlags& flags) {
  if (flags.list) {
    std::cout << catalog_text(TaskCatalog(tasks_folder()));
    return 0;
  }
  if (flags.model.empty()) throw ConfigError("--model: is required; expected a model folder");
  if (flags.log_samples && flags.output.empty()) throw ConfigError("--log-samples: needs --output DIR to write to");
  // Everything that can be wrong is checked before the model is loaded.
  const TaskSelection selection = requested_tasks(flags.tasks);
  EvalOptions options = eval_options(flags);
  check_options(options, selection.tasks);
  std::optional<EarlierRun> before;
  if (!flags.compare.empty()) before = read_earlier_run(flags.compare);
  std::vector<TaskRequests> prepared = prepare_tasks(selection, options);

  const auto started = std::chrono::steady_clock::now();
  if (!flags.output.empty()) options.model_identity = model_identity(flags.model, flags.adapters, flags.dtype);
  const ModelSession session = open_model(flags.model, compute_type(flags.dtype), flags.adapters);
  ModelRunner runner(session.model, *session.tokenizer, {.max_batch_tokens = flags.max_batch_tokens});
  std::vector<TaskResult> results;
  for (TaskRequests& requests : prepared) results.push_back(run_task(std::move(requests), runner, options));
  const std::vector<GroupResult> groups = group_scores(selection.groups, results);

  RunInfo info{.model = flags.model, .adapters = flags.adapters, .dtype = flags.dtype, .device = "cpu"};
  info.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  info.log_samples = flags.log_samples;
  if (flags.apply_chat_template) info.chat_template = chat_template_text(flags.model);
  const Json document = results_json(results, groups, info, options);
  if (!flags.output.empty()) {
    write_results(flags.output, results, groups, info, options);
    for (const TaskResult& result : results) Journal::remove(flags.output, result.task.task);
  }
  print_results(results, groups, document, flags, before);
  return 0;
}

void add_task_options(CLI::App& command, EvalFlags& flags) {
  command.add_option("--tasks", flags.tasks, "names of tasks, groups and suites, or task files, separated by commas");
  command.add_flag("--list", flags.list, "print the known tasks, groups and suites");
  command.add_option("--data-dir", flags.data_dir, "folder that a task's relative paths are resolved against")
      ->capture_default_str();
  command.add_option("--dataset", flags.datasets, "TASK=FILE or TASK=FILE,LABELS: another data file for a task")
      ->take_all();
  command.add_option("--fewshot", flags.fewshot_pools, "TASK=FILE: where a task's examples are drawn from")->take_all();
  command.add_option("--num-fewshot", flags.num_fewshot, "examples before each question (default: the task's own)")
      ->check(CLI::Range(0, 1000));
  command.add_option("--fewshot-seed", flags.fewshot_seed, "seed of the draw of examples")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 62));
  command.add_option("--limit", flags.limit, "first n documents of each task; below 1: a share of them")
      ->check(CLI::Range(0.0, 1e12));
}

void add_prompt_options(CLI::App& command, EvalFlags& flags) {
  command.add_option("--system-instruction", flags.system_instruction, "text in front of every prompt");
  command.add_flag("--apply-chat-template", flags.apply_chat_template, "prompts are conversations in the model's form");
  command.add_flag("--fewshot-as-multiturn", flags.fewshot_as_multiturn,
                   "examples are turns of their own, with --apply-chat-template");
  command.add_option("--gen-kwargs", flags.gen_kwargs,
                     "KEY=VALUE,... or a JSON object: until, max_gen_toks, do_sample, temperature, top_p");
}

void add_output_options(CLI::App& command, EvalFlags& flags) {
  command.add_option("--output", flags.output, "folder for results.json; answers are kept there as they come");
  command.add_flag("--log-samples", flags.log_samples, "also write samples_TASK.jsonl");
  command.add_flag("--resume", flags.resume, "take the answers that a run which was killed left in --output");
  command.add_option(
      "--compare", flags.compare,
      "results.json or output folder of an earlier run: adds a before/after table, paired when it has samples");
  command.add_flag("--json", flags.json, "results as one JSON document on stdout");
}

}  // namespace

void register_eval(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "accuracy harness: scores equal to lm-evaluation-harness's");
  command->add_option("--adapter", flags->adapters, "adapter folder on the model; may be given more than once")
      ->take_all();
  command->add_option("--model", flags->model, "model folder");
  add_task_options(*command, *flags);
  add_prompt_options(*command, *flags);
  command->add_option("--dtype", flags->dtype, "compute type: float32 or bfloat16")->capture_default_str();
  command
      ->add_option("--max-batch-tokens", flags->max_batch_tokens,
                   "tokens of one forward pass (default: found from memory)")
      ->check(CLI::Range(16, 1 << 20));
  add_output_options(*command, *flags);
  command->callback([flags, &run] { run = [flags] { return eval_command(*flags); }; });
}

}  // namespace dagmoe
