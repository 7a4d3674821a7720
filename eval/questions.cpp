#include "eval/questions.h"

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/json_lines.h"
#include "data/record.h"

namespace dagmoe {
namespace {

constexpr std::size_t kMaxShownProblems = 20;

// Every bad record of a file, reported at once.
class Problems {
 public:
  explicit Problems(const std::filesystem::path& file) : file_(file.string()) {}
  void add(std::int64_t line, const std::string& reason) {
    if (lines_.size() < kMaxShownProblems) lines_.push_back(str(file_, ":", line, ": ", reason));
    ++count_;
  }
  void throw_if_any(const std::string& hint = "") {
    if (count_ == 0) return;
    if (count_ > lines_.size()) lines_.push_back(str("and ", count_ - lines_.size(), " more bad records in ", file_));
    if (!hint.empty()) lines_.push_back(hint);
    throw InputError(join(lines_, "\n"));
  }

 private:
  std::string file_;
  std::vector<std::string> lines_;
  std::size_t count_ = 0;
};

std::optional<std::int64_t> integer_of(std::string_view text) {
  text = trim(text);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Without their line ends, "\n" or "\r\n", and without empty lines at the end.
std::vector<std::string> text_lines(std::string_view text) {
  std::vector<std::string> lines = split(text, '\n');
  for (std::string& line : lines) {
    if (line.ends_with('\r')) line.pop_back();
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

struct Document {
  Json doc;
  std::int64_t line = 0;
};

Json record_json(const RawRecord& raw) {
  Json doc = Json::object();
  for (const RawField& field : raw.fields) {
    doc[field.name] =
        field.kind == FieldKind::kString ? Json(field.text) : parse_json(field.text, str("field '", field.name, "'"));
  }
  return doc;
}

// Calls use(raw) for every good record; what it throws as InputError is that record's problem.
template <class Use>
void for_each_record(const std::filesystem::path& file, Problems& problems, Use use) {
  const std::unique_ptr<RecordReader> reader = RecordReader::open(file);
  RawRecord raw;
  std::unique_ptr<BadRecord> bad;
  while (reader->next(raw, bad)) {
    if (bad) {
      problems.add(bad->line, bad->reason);
      bad.reset();
      continue;
    }
    try {
      use(raw);
    } catch (const InputError& error) {
      problems.add(raw.line, error.what());
    }
  }
}

std::vector<Document> read_json_documents(const std::filesystem::path& file, Problems& problems) {
  std::vector<Document> documents;
  for_each_record(file, problems, [&](const RawRecord& raw) { documents.push_back({record_json(raw), raw.line}); });
  return documents;
}

// Six lines a document: context, gold, four endings. The fields are those that preprocessing gives a JSON record.
std::vector<Document> read_hellaswag_text(const std::filesystem::path& file, Problems& problems) {
  constexpr std::size_t kLines = 6;
  const std::vector<std::string> lines = text_lines(MappedFile::open(file)->text());
  std::vector<Document> documents;
  for (std::size_t i = 0; i < lines.size(); i += kLines) {
    const auto line = static_cast<std::int64_t>(i) + 1;
    if (lines.size() - i < kLines) {
      problems.add(
          line, str("found ", lines.size() - i, " lines of a last document, expected 6: context, gold, four endings"));
      break;
    }
    const auto broken = std::find_if_not(lines.begin() + line - 1, lines.begin() + line - 1 + kLines, is_valid_utf8);
    if (broken < lines.begin() + line - 1 + kLines) {
      problems.add(broken - lines.begin() + 1, "the line is not valid UTF-8");
      continue;
    }
    const auto gold = integer_of(lines[i + 1]);
    if (!gold) {
      problems.add(line + 1, str("found '", lines[i + 1].substr(0, 40), "', expected the gold ending's index"));
      continue;
    }
    Json endings = Json::array();
    for (std::size_t e = 2; e < kLines; ++e) endings.push_back(lines[i + e]);
    documents.push_back({{{"query", lines[i]}, {"choices", std::move(endings)}, {"gold", *gold}}, line});
  }
  return documents;
}

void attach_labels(std::vector<Document>& documents, const DatasetFiles& files) {
  const std::vector<std::string> lines = text_lines(MappedFile::open(files.labels)->text());
  if (lines.size() != documents.size()) {
    throw InputError(str(files.labels.string(), ": found ", lines.size(), " labels, expected ", documents.size(),
                         ", one for each record of ", files.data.string()));
  }
  Problems problems(files.labels);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto label = integer_of(lines[i]);
    if (!label)
      problems.add(static_cast<std::int64_t>(i) + 1, str("found '", lines[i].substr(0, 40), "', expected an integer"));
    documents[i].doc["label"] = label.value_or(0);
  }
  problems.throw_if_any();
}

std::vector<std::string> render_all(const std::vector<TextTemplate>& templates, const Json& doc) {
  std::vector<std::string> texts;
  for (const TextTemplate& one : templates) {
    for (std::string& text : one.render_list(doc)) texts.push_back(std::move(text));
  }
  return texts;
}

std::int64_t gold_index(const TaskConfig& task, const Json& doc, std::size_t num_choices) {
  const std::string target = task.doc_to_target.render(doc);
  if (task.target_labels.empty()) {
    if (const auto index = integer_of(target)) return *index;
    throw InputError(str("the target is '", target, "', expected an index from 0 to ", num_choices - 1));
  }
  const std::vector<std::string> labels = render_all(task.target_labels, doc);
  if (labels.size() != num_choices)
    throw InputError(str("found ", labels.size(), " labels for ", num_choices, " choices"));
  const auto found = std::find(labels.begin(), labels.end(), target);
  if (found == labels.end())
    throw InputError(str("the target is '", target, "', expected one of the labels ", join(labels, ", ")));
  return found - labels.begin();
}

Question make_question(const TaskConfig& task, const Document& document) {
  Question question;
  question.line = document.line;
  question.doc = document.doc;
  question.text = task.doc_to_text.render(question.doc);
  question.choices = render_all(task.doc_to_choice, question.doc);
  if (question.choices.size() < 2)
    throw InputError(str("found ", question.choices.size(), " choices, expected two or more"));
  question.gold = gold_index(task, question.doc, question.choices.size());
  question.target = std::to_string(question.gold);
  return question;
}

}  // namespace

std::vector<Question> read_questions(const TaskConfig& task, const DatasetFiles& files) {
  Problems problems(files.data);
  const bool is_text = task.dataset_format == DatasetFormat::kHellaswagTxt || files.data.extension() == ".txt";
  if (is_text && task.dataset_format != DatasetFormat::kHellaswagTxt && task.preprocess != Preprocess::kHellaswag) {
    throw InputError(
        str(files.data.string(), ": task '", task.task, "' reads JSON lines; the six-line text form is HellaSwag's"));
  }
  std::vector<Document> documents =
      is_text ? read_hellaswag_text(files.data, problems) : read_json_documents(files.data, problems);
  problems.throw_if_any();
  if (documents.empty()) throw InputError(str(files.data.string(), ": no records"));
  if (!files.labels.empty()) attach_labels(documents, files);

  std::vector<Question> questions;
  for (Document& document : documents) {
    try {
      if (!is_text) document.doc = preprocess_record(task.preprocess, std::move(document.doc));
      questions.push_back(make_question(task, document));
    } catch (const InputError& error) {
      problems.add(document.line, error.what());
    }
  }
  const bool lacks_labels = !task.labels_path.empty() && files.labels.empty();
  problems.throw_if_any(lacks_labels ? str("labels in a file of their own are given as ", task.task, "=FILE,LABELS")
                                     : "");
  return questions;
}

std::vector<LossSample> read_loss_samples(const TaskConfig& task, const DatasetFiles& files,
                                          const std::filesystem::path& model_folder) {
  Problems problems(files.data);
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
