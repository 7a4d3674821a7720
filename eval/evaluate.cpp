#include "eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <system_error>

#include "base/error.h"
#include "base/text.h"
#include "eval/python_random.h"
#include "eval/valid_loss.h"

namespace dagmoe {
namespace {

void require_file(const std::filesystem::path& file, const std::string& task, std::string_view option) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(file, ignored)) return;
  throw InputError(
      str(file.string(), ": no such file; name the data of task '", task, "' with ", option, " ", task, "=FILE"));
}

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

std::size_t limited(std::size_t count, double limit) {
  if (limit <= 0.0) return count;
  const double wanted = limit < 1.0 ? std::ceil(static_cast<double>(count) * limit) : std::floor(limit);
  return std::min(count, static_cast<std::size_t>(wanted));
}

/// Draws each document's few-shot examples, in the order of the documents (contracts.md 4.4).
class FewshotSampler {
 public:
  FewshotSampler(const TaskConfig& task, const EvalOptions& options, std::int64_t num_fewshot)
      : task_(task), random_(options.fewshot_seed), num_examples_(static_cast<std::size_t>(num_fewshot)) {
    if (num_examples_ == 0) return;
    const auto named = options.fewshot_pools.find(task.task);
    if (named == options.fewshot_pools.end()) {
      throw ConfigError(str("task '", task.task, "': ", num_fewshot,
                            " few-shot examples are asked for; name their file with --fewshot ", task.task, "=FILE"));
    }
    require_file(named->second.data, task.task, "--fewshot");
    pool_ = read_questions(task, named->second);
    const std::size_t num_drawn = num_examples_ + (task.fewshot_draws_one_more ? 1 : 0);
    if (pool_.size() < num_drawn) {
      throw ConfigError(str("task '", task.task, "': ", num_fewshot, " few-shot examples need a file of ", num_drawn,
                            " records or more; ", named->second.data.string(), " has ", pool_.size()));
    }
  }

  /// What stands in front of the document's own text.
  std::string prompt_for(const Question& question) {
    std::string prompt;
    for (const Question* example : draw(question)) {
      if (example->gold < 0 || example->gold >= static_cast<std::int64_t>(example->choices.size())) {
        throw InputError(
            str("a few-shot example, record ", example->line, " of its file, has no answer among its choices"));
      }
      prompt += example->text + task_.target_delimiter + example->choices[static_cast<std::size_t>(example->gold)] +
                task_.fewshot_delimiter;
    }
    return prompt;
  }

 private:
  std::vector<const Question*> draw(const Question& question) {
    std::vector<const Question*> drawn;
    if (num_examples_ == 0) return drawn;
    if (!task_.fewshot_draws_one_more) {
      for (const std::size_t i : random_.sample(pool_.size(), num_examples_)) drawn.push_back(&pool_[i]);
      return drawn;
    }
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

  const TaskConfig& task_;
  PythonRandom random_;
  std::size_t num_examples_;
  std::vector<Question> pool_;
};

// Runs the model's part and adds its time. A request that cannot be scored is named by its place in the data.
template <class Results>
Results timed(TaskResult& result, const std::function<Results()>& ask,
              const std::function<std::string(std::size_t)>& place_of) {
  const auto start = std::chrono::steady_clock::now();
  try {
    Results answers = ask();
    result.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return answers;
  } catch (const RequestError& error) {
    throw InputError(str(place_of(error.index), ": ", error.reason));
  }
}

template <class Result>
ResultHook<Result> counted(std::size_t total, const ProgressHook& on_progress) {
  if (!on_progress) return {};
  return [done = std::int64_t{0}, total, on_progress](std::size_t, const Result&) mutable {
    on_progress(++done, static_cast<std::int64_t>(total));
  };
}

void add_note(TaskResult& result, std::int64_t count, std::string_view what) {
  if (count > 0)
    result.notes.push_back(str(with_commas(count), " of ", with_commas(result.num_documents), " documents: ", what));
}

void add_notes(TaskResult& result, const std::vector<Question>& questions) {
  std::int64_t truncated = 0, merged = 0, without_gold = 0;
  for (std::size_t d = 0; d < result.samples.size(); ++d) {
    const auto& responses = result.samples[d].responses;
    truncated += std::any_of(responses.begin(), responses.end(), [](const LogLikelihood& r) { return r.truncated; });
    merged += std::any_of(responses.begin(), responses.end(), [](const LogLikelihood& r) { return r.merged_boundary; });
    without_gold +=
        questions[d].gold < 0 || questions[d].gold >= static_cast<std::int64_t>(questions[d].choices.size());
  }
  add_note(result, truncated, "the prompt is longer than the model's maximum and lost its beginning");
  add_note(result, merged, "a token spans the border of prompt and choice; scored as lm-evaluation-harness does");
  add_note(result, without_gold, "the gold label is outside the choices; counted as wrong");
}

void evaluate_choices(TaskResult& result, LanguageModel& model, const EvalOptions& options,
                      const ProgressHook& on_progress) {
  const TaskConfig& task = result.task;
  const DatasetFiles files = dataset_of(task, options);
  result.num_fewshot = options.num_fewshot.value_or(task.num_fewshot);
  FewshotSampler sampler(task, options, result.num_fewshot);
  std::vector<Question> questions = read_questions(task, files);
  result.num_documents_in_file = static_cast<std::int64_t>(questions.size());
  questions.resize(limited(questions.size(), options.limit));
  result.num_documents = static_cast<std::int64_t>(questions.size());

  std::vector<LogLikelihoodRequest> requests;
  std::vector<std::size_t> document_of_request;
  for (std::size_t d = 0; d < questions.size(); ++d) {
    const std::string context = task.description + sampler.prompt_for(questions[d]) + questions[d].text;
    for (const std::string& choice : questions[d].choices) {
      requests.push_back({context, task.target_delimiter + choice});
      document_of_request.push_back(d);
    }
  }
  const auto place_of = [&](std::size_t r) {
    const std::size_t d = document_of_request[r];
    const auto first =
        std::lower_bound(document_of_request.begin(), document_of_request.end(), d) - document_of_request.begin();
    return str(files.data.string(), ":", questions[d].line, ": choice ", static_cast<std::ptrdiff_t>(r) - first + 1);
  };
  const auto responses = timed<std::vector<LogLikelihood>>(
      result, [&] { return model.log_likelihood(requests, counted<LogLikelihood>(requests.size(), on_progress)); },
      place_of);
  if (responses.size() != requests.size())
    throw InternalError("the model answered another number of requests than it was asked");

  std::vector<std::vector<double>> values(task.metrics.size());
  std::size_t next = 0;
  for (std::size_t d = 0; d < questions.size(); ++d) {
    const Question& question = questions[d];
    SampleResult sample{.doc_id = static_cast<std::int64_t>(d), .doc = question.doc, .target = question.target};
    for (std::size_t c = 0; c < question.choices.size(); ++c, ++next) {
      sample.requests.push_back(std::move(requests[next]));
      sample.responses.push_back(responses[next]);
    }
    for (std::size_t m = 0; m < task.metrics.size(); ++m) {
      const bool is_right = pick_choice(task.metrics[m], question.choices, sample.responses) == question.gold;
      values[m].push_back(is_right ? 1.0 : 0.0);
      sample.metrics.emplace_back(metric_name(task.metrics[m]), values[m].back());
    }
    result.samples.push_back(std::move(sample));
  }
  for (std::size_t m = 0; m < task.metrics.size(); ++m) {
    result.metrics.push_back(
        {std::string(metric_name(task.metrics[m])), mean(values[m]), mean_standard_error(values[m])});
  }
  add_notes(result, questions);
}

void evaluate_loss(TaskResult& result, LanguageModel& model, const EvalOptions& options,
                   const ProgressHook& on_progress) {
  const TaskConfig& task = result.task;
  const DatasetFiles files = dataset_of(task, options);
  std::vector<LossSample> samples = read_loss_samples(task, files, options.model_folder);
  result.num_documents_in_file = static_cast<std::int64_t>(samples.size());
  samples.resize(limited(samples.size(), options.limit));
  result.num_documents = static_cast<std::int64_t>(samples.size());

  std::vector<SampleLossRequest> requests;
  for (LossSample& sample : samples) requests.push_back({std::move(sample.pieces), task.max_seq_len});
  const auto place_of = [&](std::size_t r) { return str(files.data.string(), ":", samples[r].line); };
  const auto losses = timed<std::vector<SampleLoss>>(
      result, [&] { return model.sample_loss(requests, counted<SampleLoss>(requests.size(), on_progress)); }, place_of);
  if (losses.size() != requests.size())
    throw InternalError("the model answered another number of requests than it was asked");

  std::int64_t truncated = 0, without_target = 0;
  for (std::size_t d = 0; d < samples.size(); ++d) {
    SampleResult sample{.doc_id = static_cast<std::int64_t>(d), .doc = std::move(samples[d].doc), .loss = losses[d]};
    if (losses[d].num_tokens > 0)
      sample.metrics.emplace_back("loss", losses[d].nats / static_cast<double>(losses[d].num_tokens));
    result.samples.push_back(std::move(sample));
    truncated += losses[d].truncated;
    without_target += losses[d].num_tokens == 0;
  }
  const MeanLoss loss = mean_loss(losses);
  MetricResult metric{.name = "loss", .value = loss.value, .higher_is_better = false};
  if (std::isfinite(loss.standard_error)) metric.standard_error = loss.standard_error;
  result.metrics.push_back(metric);
  add_note(result, truncated, "longer than the maximum; the end is not scored");
  add_note(result, without_target, "no supervised token is left");
}

}  // namespace

std::pair<std::string, DatasetFiles> parse_dataset_option(std::string_view text) {
  const std::size_t equals = text.find('=');
  const std::string_view value = equals == std::string_view::npos ? "" : text.substr(equals + 1);
  const std::size_t comma = value.find(',');
  const DatasetFiles files{value.substr(0, comma), comma == std::string_view::npos ? "" : value.substr(comma + 1)};
  if (equals == 0 || files.data.empty())
    throw ConfigError(str("found '", text, "', expected TASK=FILE or TASK=FILE,LABELS"));
  return {std::string(text.substr(0, equals)), files};
}

void check_options(const EvalOptions& options, std::span<const TaskConfig> tasks) {
  std::vector<std::string> known, issues;
  for (const TaskConfig& task : tasks) known.push_back(task.task);
  const auto check = [&](const std::map<std::string, DatasetFiles>& files, std::string_view option) {
    for (const auto& [name, unused] : files) {
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      issues.push_back(str(option, ": '", name, "' is not among the tasks", did_you_mean(name, known)));
    }
  };
  check(options.datasets, "--dataset");
  check(options.fewshot_pools, "--fewshot");
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

TaskResult evaluate(const TaskConfig& task, LanguageModel& model, const EvalOptions& options,
                    const ProgressHook& on_progress) {
  TaskResult result{.task = task};
  switch (task.output_type) {
    case OutputType::kMultipleChoice:
      evaluate_choices(result, model, options, on_progress);
      break;
    case OutputType::kValidLoss:
      evaluate_loss(result, model, options, on_progress);
      break;
  }
  return result;
}

}  // namespace dagmoe
