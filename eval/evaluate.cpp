#include "eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "eval/journal.h"
#include "eval/score_document.h"

namespace dagmoe {
namespace {

/// One evaluation: documents are finished, kept and scored as soon as all their answers are in.
class Evaluation {
 public:
  Evaluation(TaskRequests requests, LanguageModel& model, const EvalOptions& options, const ProgressHook& on_progress)
      : requests_(std::move(requests)), model_(model), on_progress_(on_progress), running_(requests_.task) {
    const std::size_t num_documents = requests_.questions.size();
    samples_.resize(num_documents);
    pending_.resize(num_documents);
    if (options.journal_folder.empty()) return;
    const std::string hash = sha256_hex(str(requests_.hash(), " ", options.model_identity));
    journal_ = Journal(options.journal_folder, requests_.task.task, hash, options.resume);
  }

  TaskResult run() {
    take_finished();
    const EngineCounts before = model_.counts();
    const auto start = std::chrono::steady_clock::now();
    ask();
    TaskResult result;
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const EngineCounts after = model_.counts();
    result.engine = {.tokens_requested = after.tokens_requested - before.tokens_requested,
                     .tokens_computed = after.tokens_computed - before.tokens_computed,
                     .rows_scored = after.rows_scored - before.rows_scored,
                     .seconds = after.seconds - before.seconds};
    if (done_ != static_cast<std::int64_t>(samples_.size()))
      throw InternalError("the model answered another number of requests than it was asked");
    result.num_fewshot = requests_.num_fewshot;
    result.num_documents = done_;
    result.num_documents_in_file = requests_.num_documents_in_file;
    result.num_resumed = num_resumed_;
    result.metrics = aggregate_samples(requests_.task, samples_);
    result.notes = requests_.notes;
    add_notes(result);
    result.samples = std::move(samples_);
    result.task = std::move(requests_.task);
    return result;
  }

 private:
  // A request's document and its place among the document's.
  struct Origin {
    std::size_t document = 0, request = 0;
  };

  void take_finished() {
    for (const auto& [document, answers] : journal_.finished()) {
      // The hash covers every request, so that only a journal somebody edited can fail here.
      if (document >= samples_.size() || answers.scores.size() != num_scores(document))
        throw InputError(str("--resume: document ", document, " of the journal is none of task '", requests_.task.task,
                             "'; run without --resume to begin anew"));
      finish(document, answers);
      ++num_resumed_;
    }
  }

  std::size_t num_scores(std::size_t document) const {
    if (requests_.task.output_type == OutputType::kLogLikelihoodRolling) return 1;
    return requests_.asked[document].scores.size();
  }

  void ask() {
    switch (requests_.task.output_type) {
      case OutputType::kMultipleChoice:
      case OutputType::kLogLikelihood:
        return ask_scores();
      case OutputType::kLogLikelihoodRolling:
        return ask_with<std::string, LogLikelihood>(
            [](const DocumentRequests& asked) { return std::vector<std::string>{asked.text}; },
            [](DocumentAnswers& answers, std::size_t, const LogLikelihood& score) { answers.scores = {score}; },
            [this](const auto& texts, const auto& hook) { model_.rolling_log_likelihood(texts, hook); });
      case OutputType::kGenerateUntil:
        return ask_with<GenerateRequest, std::string>(
            [](const DocumentRequests& asked) { return std::vector<GenerateRequest>{asked.generation}; },
            [](DocumentAnswers& answers, std::size_t, const std::string& text) { answers.text = text; },
            [this](const auto& prompts, const auto& hook) { model_.generate(prompts, hook); });
      case OutputType::kValidLoss:
        return ask_with<SampleLossRequest, SampleLoss>(
            [](const DocumentRequests& asked) { return std::vector<SampleLossRequest>{asked.loss}; },
            [](DocumentAnswers& answers, std::size_t, const SampleLoss& loss) { answers.loss = loss; },
            [this](const auto& samples, const auto& hook) { model_.sample_loss(samples, hook); });
    }
  }

  void ask_scores() {
    ask_with<LogLikelihoodRequest, LogLikelihood>(
        [](const DocumentRequests& asked) { return asked.scores; },
        [](DocumentAnswers& answers, std::size_t request, const LogLikelihood& score) {
          answers.scores[request] = score;
        },
        [this](const auto& scores, const auto& hook) { model_.log_likelihood(scores, hook); });
  }

  // Asks what unfinished documents have to ask, all at once, and finishes each document with its last answer.
  template <class Request, class Answer>
  void ask_with(const std::function<std::vector<Request>(const DocumentRequests&)>& requests_in,
                const std::function<void(DocumentAnswers&, std::size_t, const Answer&)>& keep,
                const std::function<void(const std::vector<Request>&, const ResultHook<Answer>&)>& call) {
    std::vector<Request> requests;
    std::vector<Origin> origins;
    std::vector<DocumentAnswers> answers(samples_.size());
    for (std::size_t d = 0; d < samples_.size(); ++d) {
      if (journal_.finished().contains(d)) continue;
      std::vector<Request> own = requests_in(requests_.asked[d]);
      pending_[d] = own.size();
      answers[d].scores.resize(num_scores(d));
      for (std::size_t r = 0; r < own.size(); ++r) {
        requests.push_back(std::move(own[r]));
        origins.push_back({d, r});
      }
    }
    if (requests.empty()) return;
    try {
      call(requests, [&](std::size_t index, const Answer& answer) {
        const auto& [document, request] = origins.at(index);
        keep(answers[document], request, answer);
        if (--pending_[document] != 0) return;
        journal_.append(document, answers[document]);
        finish(document, std::move(answers[document]));
      });
    } catch (const RequestError& error) {
      const Origin& origin = origins.at(error.index);
      throw InputError(str(requests_.place_of(origin.document, origin.request), ": ", error.reason));
    }
  }

  void finish(std::size_t document, DocumentAnswers answers) {
    try {
      samples_[document] = score_document(requests_, document, std::move(answers));
    } catch (const InputError& error) {
      throw InputError(str(requests_.place_of(document, 0), ": ", error.what()));
    }
    ++done_;
    running_.add(samples_[document]);
    if (!on_progress_) return;
    on_progress_({.done = done_,
                  .total = static_cast<std::int64_t>(samples_.size()),
                  .metric = std::string(metric_name(requests_.task.metrics.front())),
                  .value = running_.value()});
  }

  static void add_note(TaskResult& result, std::int64_t count, std::string_view what) {
    if (count > 0)
      result.notes.push_back(str(with_commas(count), " of ", with_commas(result.num_documents), " documents: ", what));
  }

  void add_notes(TaskResult& result) const {
    std::int64_t truncated = 0, merged = 0, without_gold = 0, cut = 0, without_target = 0;
    const bool has_choices = requests_.task.output_type == OutputType::kMultipleChoice;
    const bool is_loss = requests_.task.output_type == OutputType::kValidLoss;
    for (std::size_t d = 0; d < samples_.size(); ++d) {
      const DocumentAnswers& answers = samples_[d].answers;
      const auto any = [&answers](bool LogLikelihood::*flag) {
        return std::any_of(answers.scores.begin(), answers.scores.end(),
                           [flag](const LogLikelihood& score) { return score.*flag; });
      };
      truncated += any(&LogLikelihood::truncated);
      merged += any(&LogLikelihood::merged_boundary);
      without_gold += has_choices && !requests_.questions[d].has_gold_choice();
      cut += answers.loss.truncated;
      without_target += is_loss && answers.loss.num_tokens == 0;
    }
    add_note(result, truncated, "the prompt is longer than the model's maximum and lost its beginning");
    add_note(result, merged, "a token spans the border of prompt and choice; scored as lm-evaluation-harness does");
    add_note(result, without_gold, "the gold label is outside the choices; counted as wrong");
    add_note(result, cut, "longer than the maximum; the end is not scored");
    add_note(result, without_target, "no supervised token is left");
  }

  TaskRequests requests_;
  LanguageModel& model_;
  const ProgressHook& on_progress_;
  RunningScore running_;
  Journal journal_;
  std::vector<SampleResult> samples_;
  std::vector<std::size_t> pending_;
  std::int64_t done_ = 0, num_resumed_ = 0;
};

}  // namespace

TaskResult evaluate(TaskRequests requests, LanguageModel& model, const EvalOptions& options,
                    const ProgressHook& on_progress) {
  return Evaluation(std::move(requests), model, options, on_progress).run();
}

TaskResult evaluate(const TaskConfig& task, LanguageModel& model, const EvalOptions& options,
                    const ProgressHook& on_progress) {
  return evaluate(prepare_task(task, options), model, options, on_progress);
}

}  // namespace dagmoe
