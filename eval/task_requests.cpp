#include "eval/task_requests.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "eval/fewshot.h"
#include "eval/prompts.h"

namespace dagmoe {
namespace {

std::size_t limited(std::size_t count, double limit) {
  if (limit <= 0.0) return count;
  const double wanted = limit < 1.0 ? std::ceil(static_cast<double>(count) * limit) : std::floor(limit);
  return std::min(count, static_cast<std::size_t>(wanted));
}

bool has_metric(const TaskConfig& task, Metric metric) {
  return std::find(task.metrics.begin(), task.metrics.end(), metric) != task.metrics.end();
}

void apply_overrides(GenerationSettings& settings, const GenerationOverrides& overrides) {
  settings.until = overrides.until.value_or(settings.until);
  settings.max_gen_toks = overrides.max_gen_toks.value_or(settings.max_gen_toks);
  settings.temperature = overrides.temperature.value_or(settings.temperature);
  settings.top_p = overrides.top_p.value_or(settings.top_p);
  if (overrides.temperature) settings.do_sample = settings.temperature > 0.0;
  settings.do_sample = overrides.do_sample.value_or(settings.do_sample);
}

std::vector<LogLikelihoodRequest> choice_requests(const TaskConfig& task, const PromptWriter& writer,
                                                  const std::vector<const Question*>& examples,
                                                  const Question& question) {
  const std::string& delimiter = writer.choice_delimiter();
  std::vector<LogLikelihoodRequest> requests;
  if (!task.doc_to_continuation.empty()) {
    for (const std::string& choice : question.choices)
      requests.push_back({writer.write(examples, choice), delimiter + question.continuation});
  } else {
    const std::string prompt = writer.write(examples, question.text);
    for (const std::string& choice : question.choices) requests.push_back({prompt, delimiter + choice});
  }
  if (has_metric(task, Metric::kAccMutualInfo)) {
    for (const std::string& choice : question.choices) requests.push_back({"", delimiter + choice});
  }
  return requests;
}

GenerateRequest generate_request(const GenerationSettings& settings, std::string prompt, std::uint64_t seed) {
  return {.prompt = std::move(prompt),
          .stop = settings.until,
          .max_new_tokens = settings.max_gen_toks,
          .temperature = settings.do_sample ? settings.temperature : 0.0,
          .top_p = settings.top_p,
          .seed = seed};
}

DocumentRequests requests_of(const TaskConfig& task, const PromptWriter& writer,
                             const std::vector<const Question*>& examples, const Question& question,
                             std::uint64_t document) {
  switch (task.output_type) {
    case OutputType::kMultipleChoice:
      return {.scores = choice_requests(task, writer, examples, question)};
    case OutputType::kLogLikelihood:
      return {.scores = {{writer.write(examples, question.text), question.target}}};
    case OutputType::kLogLikelihoodRolling:
      return {.text = question.target};
    case OutputType::kGenerateUntil:
      return {.generation = generate_request(task.generation, writer.write(examples, question.text), document)};
    case OutputType::kValidLoss:
      break;
  }
  throw InternalError("requests_of: no request of this type");
}

void prepare_questions(TaskRequests& result, const EvalOptions& options, const DatasetFiles& files) {
  const TaskConfig& task = result.task;
  const bool takes_examples = task.output_type != OutputType::kLogLikelihoodRolling;
  result.num_fewshot = takes_examples ? options.num_fewshot.value_or(task.num_fewshot) : 0;
  FewshotExamples examples(task, options, result.num_fewshot);
  const PromptWriter writer(task, options, examples.description());
  result.questions = read_questions(task, files);
  result.num_documents_in_file = static_cast<std::int64_t>(result.questions.size());
  result.questions.resize(limited(result.questions.size(), options.limit));
  for (const Question& question : result.questions) {
    try {
      result.asked.push_back(requests_of(task, writer, examples.next(question), question,
                                         static_cast<std::uint64_t>(result.asked.size())));
    } catch (const InputError& error) {
      throw InputError(str(files.data.string(), ":", question.line, ": ", error.what()));
    }
  }
  if (writer.dropped_system())
    result.notes.emplace_back(
        "the chat template has no system turn; prompts are without system instruction and description");
}

void prepare_losses(TaskRequests& result, const EvalOptions& options, const DatasetFiles& files) {
  std::vector<LossSample> samples = read_loss_samples(result.task, files, options.model_folder);
  result.num_documents_in_file = static_cast<std::int64_t>(samples.size());
  samples.resize(limited(samples.size(), options.limit));
  for (LossSample& sample : samples) {
    Question question;
    question.doc = std::move(sample.doc);
    question.line = sample.line;
    result.questions.push_back(std::move(question));
    result.asked.push_back({.loss = {std::move(sample.pieces), result.task.max_seq_len}});
  }
}

// Each text with its length, so that no two lists of texts hash alike.
void append_text(std::string& bytes, std::string_view text) { bytes += str(text.size(), ":", text); }

void append_request(std::string& bytes, const DocumentRequests& asked) {
  for (const auto& [context, continuation] : asked.scores) {
    append_text(bytes, context);
    append_text(bytes, continuation);
  }
  append_text(bytes, asked.text);
  const GenerateRequest& generation = asked.generation;
  append_text(bytes, generation.prompt);
  for (const std::string& stop : generation.stop) append_text(bytes, stop);
  append_text(bytes,
              Json({generation.max_new_tokens, generation.temperature, generation.top_p, generation.seed}).dump());
  for (const PromptPiece& piece : asked.loss.pieces) {
    append_text(bytes, piece.text);
    append_text(bytes, Json({piece.is_template, piece.is_supervised, piece.ends_turn}).dump());
  }
  append_text(bytes, std::to_string(asked.loss.max_tokens));
}

}  // namespace

std::string TaskRequests::hash() const {
  std::string digests;
  for (const DocumentRequests& document : asked) {
    std::string bytes;
    append_request(bytes, document);
    digests += sha256_hex(bytes);
  }
  return sha256_hex(digests);
}

std::string TaskRequests::place_of(std::size_t document, std::size_t request) const {
  const std::string place = str(data_file.string(), ":", questions[document].line);
  const std::size_t num_choices = questions[document].choices.size();
  return num_choices == 0 ? place : str(place, ": choice ", request % num_choices + 1);
}

TaskRequests prepare_task(const TaskConfig& task, const EvalOptions& options) {
  TaskRequests result{.task = task};
  apply_overrides(result.task.generation, options.generation);
  const DatasetFiles files = dataset_of(task, options);
  result.data_file = files.data;
  if (task.output_type == OutputType::kValidLoss) {
    prepare_losses(result, options, files);
  } else {
    prepare_questions(result, options, files);
  }
  return result;
}

}  // namespace dagmoe
