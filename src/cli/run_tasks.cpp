#include "cli/run_tasks.h"

#include <c10/core/GradMode.h>

#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "data/tokenizer.h"
#include "eval/evaluate.h"
#include "eval/model_runner.h"
#include "eval/task_catalog.h"

namespace dagmoe {
namespace {

void require_data(const TaskConfig& task, const EvalOptions& options) {
  const auto given = options.datasets.find(task.task);
  const std::filesystem::path file =
      given != options.datasets.end() ? given->second.data : options.data_dir / task.dataset_path;
  if (std::filesystem::exists(file)) return;
  throw InputError(str(file.string(), ": no such file; eval.tasks lists ", task.task,
                       "; name its file in eval.datasets (\"", task.task, "=FILE\") or its folder in eval.data_dir"));
}

Json scores_of(const TaskResult& result) {
  Json scores = Json::object();
  for (const MetricResult& metric : result.metrics) {
    const std::string filter = metric.filter == "none" ? "" : "," + metric.filter;
    scores[metric.name + filter] = metric.value;
    if (metric.standard_error) scores[metric.name + "_stderr" + filter] = *metric.standard_error;
  }
  return scores;
}

}  // namespace

std::function<Json(const Decoder&)> task_evaluator(const Recipe& recipe) {
  if (recipe.eval.tasks.empty()) return {};
  const std::vector<TaskConfig> tasks = load_tasks(recipe.eval.tasks);
  EvalOptions options;
  options.data_dir = recipe.eval.data_dir;
  options.limit = static_cast<double>(recipe.eval.limit);
  options.model_folder = recipe.model.path;
  for (const auto& text : recipe.eval.datasets) options.datasets.insert(parse_dataset_option(text));
  check_options(options, tasks);
  for (const TaskConfig& task : tasks) {
    require_data(task, options);
    prepare_task(task, options);  // what is wrong with its records or examples is said now
  }
  const std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer(recipe.model.path);
  return [tasks, options, tokenizer](const Decoder& model) {
    const c10::AutoGradMode no_gradients(false);
    ModelRunner runner(model, *tokenizer);
    Json scores = Json::object();
    for (const TaskConfig& task : tasks) {
      Progress progress(task.task, 0);
      scores[task.task] = scores_of(evaluate(task, runner, options, [&progress](const EvalProgress& at) {
        progress.update(at.done, str(at.done, " of ", at.total, " documents"));
      }));
    }
    return scores;
  };
}

}  // namespace dagmoe
