#include "eval/dataset.h"

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/unicode.h"
#include "eval/json_list.h"
#include "eval/python_text.h"
#include "eval/table_file.h"

namespace dagmoe {
namespace {

// Without their line ends, "\n" or "\r\n", and without empty lines at the end.
std::vector<std::string> text_lines(std::string_view text) {
  std::vector<std::string> lines = split(text, '\n');
  for (std::string& line : lines) {
    if (line.ends_with('\r')) line.pop_back();
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

std::vector<Document> read_json_documents(const std::filesystem::path& file, RecordProblems& problems) {
  std::vector<Document> documents;
  for_each_record(file, problems, [&](const RawRecord& raw) { documents.push_back({record_json(raw), raw.line}); });
  return documents;
}

// Records in a list of a JSON object, as BIG-Bench Hard has them.
std::vector<Document> read_listed_documents(const std::filesystem::path& file, const std::string& field,
                                            RecordProblems& problems) {
  const auto mapped = MappedFile::open(file);
  std::vector<Document> documents;
  for (const JsonItem& item : json_list_items(mapped->text(), field, file.string())) {
    try {
      Json doc = parse_json(item.text, "the record");
      if (!doc.is_object()) throw InputError(str("found ", doc.type_name(), ", expected an object"));
      documents.push_back({std::move(doc), item.line});
    } catch (const InputError& error) {
      problems.add(item.line, error.what());
    }
  }
  return documents;
}

std::vector<Document> read_table(const TaskConfig& task, const std::filesystem::path& file, RecordProblems& problems) {
  const auto mapped = MappedFile::open(file);
  std::string_view text = mapped->text();
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::vector<TableRow> rows = file.extension() == ".tsv" ? parse_tsv(text) : parse_csv(text, problems);
  std::vector<std::string> columns = task.columns;
  std::size_t first = 0;
  if (columns.empty() && !rows.empty()) columns = rows.front().cells, first = 1;
  std::vector<Document> documents;
  for (std::size_t r = first; r < rows.size(); ++r) {
    const auto& [cells, line] = rows[r];
    if (cells.size() != columns.size()) {
      problems.add(line, str("found ", cells.size(), " cells, expected ", columns.size(), ": ", join(columns, ", ")));
      continue;
    }
    const auto broken = std::find_if_not(cells.begin(), cells.end(), is_valid_utf8);
    if (broken != cells.end()) {
      problems.add(line, str("column '", one_line(columns[static_cast<std::size_t>(broken - cells.begin())]),
                             "': the text is not valid UTF-8"));
      continue;
    }
    Json doc = Json::object();
    for (std::size_t c = 0; c < columns.size(); ++c) doc[replace_invalid_utf8(columns[c])] = cells[c];
    documents.push_back({std::move(doc), line});
  }
  return documents;
}

// Six lines a document: context, gold, four endings. The fields are those that preprocessing gives a JSON record.
std::vector<Document> read_hellaswag_text(const std::filesystem::path& file, RecordProblems& problems) {
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
      problems.add(line + 1,
                   str("found ", quoted_for_message(lines[i + 1].substr(0, 40)), ", expected the gold ending's index"));
      continue;
    }
    Json endings = Json::array();
    for (std::size_t e = 2; e < kLines; ++e) endings.push_back(lines[i + e]);
    documents.push_back({{{"query", lines[i]}, {"choices", std::move(endings)}, {"gold", *gold}}, line, true});
  }
  return documents;
}

bool begins_page(std::string line) {
  replace_all(line, "= = =", "===");
  replace_all(line, "= =", "==");
  const std::string_view stripped = python_strip(line);
  return stripped.starts_with("= ") && stripped.ends_with(" =");
}

// As the data set wikitext_document_level cuts it: a line "= title =" begins a page, and what stands before the first
// title is one when it is not blank.
std::vector<Document> read_wikitext(const std::filesystem::path& file, RecordProblems& problems) {
  std::vector<Document> documents;
  std::vector<std::string> page;
  std::int64_t line_number = 0, first_line = 1;
  const auto finish = [&](bool is_last) {
    const std::string text = join(page, "\n");
    if (is_last ? !text.empty() : !python_strip(text).empty()) documents.push_back({{{"page", text}}, first_line});
    page.clear();
    first_line = line_number;
  };
  for (std::string& line : split(MappedFile::open(file)->text(), '\n')) {
    ++line_number;
    if (!is_valid_utf8(line)) problems.add(line_number, "the line is not valid UTF-8");
    if (begins_page(line)) finish(false);
    page.push_back(std::move(line));
  }
  finish(true);
  return documents;
}

// Upstream's cot-prompts/NAME.txt: a canary, "-----", the description, then "Q: ...\nA: Let's think step by step." and
// the answer of each example, blank lines between them. The description becomes a field of each.
std::vector<Document> read_bbh_prompt(const std::filesystem::path& file, RecordProblems& problems) {
  constexpr std::string_view kRule = "-----\n", kQuestion = "\n\nQ: ", kAnswer = "\nA: Let's think step by step.";
  const auto mapped = MappedFile::open(file);
  const std::string_view text = mapped->text();
  std::vector<Document> documents;
  const auto line_at = [&](std::size_t place) { return std::count(text.begin(), text.begin() + place, '\n') + 1; };
  if (!is_valid_utf8(text)) {
    problems.add(1, "the text is not valid UTF-8");
    return documents;
  }
  const std::size_t rule = text.find(kRule);
  std::size_t question = text.find(kQuestion);
  if (rule == std::string_view::npos || question == std::string_view::npos || question < rule) {
    problems.add(1, "expected a line '-----', a description, and examples that begin with 'Q: '");
    return documents;
  }
  const std::string description(text.substr(rule + kRule.size(), question - rule - kRule.size()));
  while (question != std::string_view::npos) {
    const std::size_t begin = question + kQuestion.size();
    const std::size_t next = text.find(kQuestion, begin);
    const std::string_view example = text.substr(begin, next == std::string_view::npos ? next : next - begin);
    const std::size_t answer = example.find(kAnswer);
    if (answer == std::string_view::npos || answer + kAnswer.size() == example.size()) {
      problems.add(line_at(begin), "expected a line \"A: Let's think step by step.\" and an answer");
    } else {
      // One file has a space where the others have a line feed.
      std::string_view target = example.substr(answer + kAnswer.size() + 1);
      while (target.ends_with('\n')) target.remove_suffix(1);
      documents.push_back(
          {{{"input", example.substr(0, answer)}, {"target", target}, {"description", description}}, line_at(begin)});
    }
    question = next;
  }
  return documents;
}

DatasetFormat format_of(const TaskConfig& task, DatasetFormat named, const std::filesystem::path& file) {
  if (file.extension() != ".txt" || named != DatasetFormat::kJsonl) return named;
  if (task.preprocess == Preprocess::kHellaswag) return DatasetFormat::kHellaswagTxt;
  if (task.preprocess == Preprocess::kWikitext) return DatasetFormat::kWikitextTxt;
  throw InputError(str(file.string(), ": task '", task.task,
                       "' reads JSON lines; the text forms are those of HellaSwag and WikiText"));
}

}  // namespace

std::optional<std::int64_t> integer_of(std::string_view text) {
  text = trim(text);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Json record_json(const RawRecord& raw) {
  Json doc = Json::object();
  for (const RawField& field : raw.fields) {
    doc[field.name] =
        field.kind == FieldKind::kString ? Json(field.text) : parse_json(field.text, str("field '", field.name, "'"));
  }
  return doc;
}

void for_each_record(const std::filesystem::path& file, RecordProblems& problems,
                     const std::function<void(const RawRecord&)>& use) {
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

std::vector<Document> read_documents(const TaskConfig& task, DatasetFormat format, const std::filesystem::path& file,
                                     RecordProblems& problems) {
  switch (format_of(task, format, file)) {
    case DatasetFormat::kHellaswagTxt:
      return read_hellaswag_text(file, problems);
    case DatasetFormat::kWikitextTxt:
      return read_wikitext(file, problems);
    case DatasetFormat::kBbhPrompt:
      return read_bbh_prompt(file, problems);
    case DatasetFormat::kJsonl:
      break;
  }
  if (file.extension() == ".csv" || file.extension() == ".tsv") return read_table(task, file, problems);
  if (file.extension() == ".json" && !task.records_field.empty())
    return read_listed_documents(file, task.records_field, problems);
  return read_json_documents(file, problems);
}

void attach_labels(std::vector<Document>& documents, const DatasetFiles& files) {
  const std::vector<std::string> lines = text_lines(MappedFile::open(files.labels)->text());
  if (lines.size() != documents.size()) {
    throw InputError(str(files.labels.string(), ": found ", lines.size(), " labels, expected ", documents.size(),
                         ", one for each record of ", files.data.string()));
  }
  RecordProblems problems(files.labels);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto label = integer_of(lines[i]);
    if (!label)
      problems.add(static_cast<std::int64_t>(i) + 1,
                   str("found ", quoted_for_message(lines[i].substr(0, 40)), ", expected an integer"));
    documents[i].doc["label"] = label.value_or(0);
  }
  problems.throw_if_any();
}

}  // namespace dagmoe
