#include "eval/fewshot.h"

#include <system_error>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

void require_file(const std::filesystem::path& file, const std::string& task, std::string_view option) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(file, ignored)) return;
  throw InputError(
      str(file.string(), ": no such file; name the data of task '", task, "' with ", option, " ", task, "=FILE"));
}

DatasetFiles pool_of(const TaskConfig& task, const EvalOptions& options, std::int64_t num_fewshot) {
  DatasetFiles files;
  if (const auto named = options.fewshot_pools.find(task.task); named != options.fewshot_pools.end()) {
    files = named->second;
  } else if (!task.fewshot_path.empty()) {
    files.data = options.data_dir / task.fewshot_path;
  } else {
    throw ConfigError(str("task '", task.task, "': ", num_fewshot,
                          " few-shot examples are asked for; name their file with --fewshot ", task.task, "=FILE"));
  }
  require_file(files.data, task.task, "--fewshot");
  if (!files.labels.empty()) require_file(files.labels, task.task, "--fewshot");
  return files;
}

}  // namespace

DatasetFiles dataset_of(const TaskConfig& task, const EvalOptions& options) {
  DatasetFiles files;
  if (const auto named = options.datasets.find(task.task); named != options.datasets.end()) {
    files = named->second;
  } else {
    files.data = options.data_dir / task.dataset_path;
    if (!task.labels_path.empty()) files.labels = options.data_dir / task.labels_path;
  }
  require_file(files.data, task.task, "--dataset");
  if (!files.labels.empty()) require_file(files.labels, task.task, "--dataset");
  return files;
}

FewshotExamples::FewshotExamples(const TaskConfig& task, const EvalOptions& options, std::int64_t num_fewshot)
    : task_(task), random_(options.fewshot_seed), num_examples_(static_cast<std::size_t>(num_fewshot)) {
  if (num_examples_ == 0 && !task.description.has_fields()) return;
  const DatasetFiles files = pool_of(task, options, num_fewshot);
  pool_ = read_examples(task, files);
  require_enough(files);
}

void FewshotExamples::require_enough(const DatasetFiles& files) const {
  const std::size_t num_drawn = num_examples_ + (task_.fewshot_draws_one_more && num_examples_ > 0 ? 1 : 0);
  if (pool_.size() < num_drawn) {
    throw ConfigError(str("task '", task_.task, "': ", num_examples_, " few-shot examples need a file of ", num_drawn,
                          " records or more; ", files.data.string(), " has ", pool_.size()));
  }
  if (task_.output_type != OutputType::kMultipleChoice) return;
  RecordProblems problems(files.data);
  for (const Question& example : pool_) {
    if (!example.has_gold_choice()) problems.add(example.line, "a few-shot example has no answer among its choices");
  }
  problems.throw_if_any();
}

std::vector<const Question*> FewshotExamples::next(const Question& question) {
  std::vector<const Question*> examples;
  if (num_examples_ == 0) return examples;
  if (task_.fewshot_sampler == FewshotSampler::kFirstN) {
    for (std::size_t i = 0; i < num_examples_; ++i) examples.push_back(&pool_[i]);
    return examples;
  }
  if (task_.fewshot_draws_one_more) return draw_without(question);
  for (const std::size_t i : random_.sample(pool_.size(), num_examples_)) examples.push_back(&pool_[i]);
  return examples;
}

std::vector<const Question*> FewshotExamples::draw_without(const Question& question) {
  std::vector<const Question*> drawn;
  for (const std::size_t i : random_.sample(pool_.size(), num_examples_ + 1)) {
    if (pool_[i].doc != question.doc && drawn.size() < num_examples_) drawn.push_back(&pool_[i]);
  }
  if (drawn.size() == num_examples_) return drawn;
  // Several copies of the document were drawn: again, from the others.
  std::vector<const Question*> others;
  for (const Question& other : pool_) {
    if (other.doc != question.doc) others.push_back(&other);
  }
  if (others.size() < num_examples_)
    throw ConfigError(str("task '", task_.task, "': too few records in the few-shot file differ from the document"));
  drawn.clear();
  for (const std::size_t i : random_.sample(others.size(), num_examples_)) drawn.push_back(others[i]);
  return drawn;
}

std::string FewshotExamples::description() const {
  return task_.description.render(pool_.empty() ? Json::object() : pool_.front().doc);
}

}  // namespace dagmoe
