#include "eval/questions.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "data/record.h"
#include "eval/python_text.h"

namespace dagmoe {
namespace {

std::vector<std::string> render_all(const std::vector<TextTemplate>& templates, const Json& view) {
  std::vector<std::string> texts;
  for (const TextTemplate& one : templates) {
    for (std::string& text : one.render_list(view)) texts.push_back(std::move(text));
  }
  return texts;
}

// Sets gold, and target to what lm-evaluation-harness's doc_to_target gives: the choice's text where the record has
// that, its index otherwise.
void find_gold(const TaskConfig& task, const Json& view, Question& question) {
  const std::string target = task.doc_to_target.render(view);
  const std::size_t num_choices = question.choices.size();
  if (!task.target_labels.empty()) {
    const std::vector<std::string> labels = render_all(task.target_labels, view);
    if (labels.size() != num_choices)
      throw InputError(str("found ", labels.size(), " labels for ", num_choices, " choices"));
    const auto found = std::find(labels.begin(), labels.end(), target);
    if (found == labels.end()) {
      throw InputError(str("the target is ", quoted_for_message(target), ", expected one of the labels ",
                           one_line(join(labels, ", "))));
    }
    question.gold = found - labels.begin();
  } else if (const auto index = integer_of(target)) {
    question.gold = *index;
  } else {
    const auto found = std::find(question.choices.begin(), question.choices.end(), target);
    if (found == question.choices.end()) {
      throw InputError(str("the target is ", quoted_for_message(target), ", expected an index from 0 to ",
                           num_choices - 1, " or the text of a choice"));
    }
    question.gold = found - question.choices.begin();
    question.target = target;
    return;
  }
  question.target = std::to_string(question.gold);
}

void make_choices(const TaskConfig& task, const Json& view, Question& question) {
  question.choices = render_all(task.doc_to_choice, view);
  if (question.choices.size() < 2)
    throw InputError(str("found ", question.choices.size(), " choices, expected two or more"));
  find_gold(task, view, question);
  if (task.doc_to_continuation.empty()) {
    question.text = task.doc_to_text.render(view);
    return;
  }
  question.continuation = task.doc_to_continuation.render(view);
  question.target = question.continuation;
  if (question.has_gold_choice()) question.text = question.choices[static_cast<std::size_t>(question.gold)];
}

Question make_question(const TaskConfig& task, const PreparedRecord& record, std::int64_t line) {
  Question question;
  question.line = line;
  question.doc = record.doc;
  if (task.output_type == OutputType::kMultipleChoice) {
    make_choices(task, record.view, question);
    return question;
  }
  question.target = task.doc_to_target.render(record.view);
  if (task.output_type == OutputType::kLogLikelihoodRolling) {
    const std::string counted = task.doc_to_words.render(record.view);
    question.num_words = count_words(counted);
    question.num_bytes = static_cast<std::int64_t>(counted.size());
  } else {
    question.text = task.doc_to_text.render(record.view);
  }
  return question;
}

std::vector<Question> read_all(const TaskConfig& task, DatasetFormat format, const DatasetFiles& files) {
  RecordProblems problems(files.data);
  std::vector<Document> documents = read_documents(task, format, files.data, problems);
  problems.throw_if_any();
  if (documents.empty()) throw InputError(str(files.data.string(), ": no records"));
  if (!files.labels.empty()) attach_labels(documents, files);

  const bool is_prompt = format == DatasetFormat::kBbhPrompt;
  Preprocessor prepare(task.preprocess, task.dataset_name, static_cast<std::uint64_t>(task.shuffle_seed));
  std::vector<Question> questions;
  for (Document& document : documents) {
    try {
      const bool as_it_is = document.is_prepared || is_prompt;
      const PreparedRecord record =
          as_it_is ? PreparedRecord{document.doc, document.doc} : prepare(std::move(document.doc));
      questions.push_back(make_question(task, record, document.line));
    } catch (const InputError& error) {
      problems.add(document.line, error.what());
    }
  }
  const bool lacks_labels = !task.labels_path.empty() && files.labels.empty();
  problems.throw_if_any(lacks_labels ? str("labels in a file of their own are given as ", task.task, "=FILE,LABELS")
                                     : "");
  return questions;
}

}  // namespace

std::vector<Question> read_questions(const TaskConfig& task, const DatasetFiles& files) {
  return read_all(task, task.dataset_format, files);
}

std::vector<Question> read_examples(const TaskConfig& task, const DatasetFiles& files) {
  return read_all(task, task.fewshot_format, files);
}

std::vector<LossSample> read_loss_samples(const TaskConfig& task, const DatasetFiles& files,
                                          const std::filesystem::path& model_folder) {
  RecordProblems problems(files.data);
  const ChatFormat format = chat_format(task.prompt_template, model_folder);
  std::vector<LossSample> samples;
  for_each_record(files.data, problems, [&](const RawRecord& raw) {
    samples.push_back({record_json(raw), sample_text(read_record(task.record_format, raw), format), raw.line});
  });
  problems.throw_if_any();
  if (samples.empty()) throw InputError(str(files.data.string(), ": no records"));
  return samples;
}

}  // namespace dagmoe
