#include "eval/preprocess.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <utility>

#include "base/error.h"
#include "base/regex.h"
#include "base/text.h"
#include "data/unicode.h"

namespace dagmoe {
namespace {

const Json& field(const Json& record, const char* name) {
  const auto found = record.find(name);
  if (found == record.end()) throw InputError(str("field '", name, "' is missing"));
  return *found;
}

std::string text_field(const Json& record, const char* name) {
  const Json& value = field(record, name);
  if (!value.is_string()) throw InputError(str("field '", name, "': found ", value.type_name(), ", expected a text"));
  return value.get<std::string>();
}

const std::string& checked_text(const Json& value, std::string_view where) {
  if (!value.is_string()) throw InputError(str(where, ": found ", value.type_name(), ", expected a text"));
  return value.get_ref<const std::string&>();
}

std::int64_t index_field(const Json& record, const char* name, std::string_view expected) {
  // Upstream's labels are often numbers where Hugging Face's are texts of numbers.
  const Json& label = field(record, name);
  const std::string text = label.is_string() ? label.get<std::string>() : label.dump();
  std::int64_t index = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (text.empty() || error != std::errc() || end != text.data() + text.size())
    throw InputError(str("field '", name, "': found ", label.dump(), ", expected ", expected));
  return index;
}

// Every choice's text and label: {"text": [], "label": []}.
Json choice_lists(const Json& question) {
  const Json& choices = field(question, "choices");
  if (!choices.is_array())
    throw InputError(str("field 'question.choices': found ", choices.type_name(), ", expected a list"));
  Json texts = Json::array(), labels = Json::array();
  for (const Json& choice : choices) {
    if (!choice.is_object())
      throw InputError(
          str("field 'question.choices': found an item that is ", choice.type_name(), ", expected an object"));
    texts.push_back(text_field(choice, "text"));
    labels.push_back(text_field(choice, "label"));
  }
  return {{"text", std::move(texts)}, {"label", std::move(labels)}};
}

// {"id", "question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}, AI2's layout of multiple choice, to
// {"id", STEM, "choices": {"text": [], "label": []}, "answerKey"}. Upstream's order of id and answerKey differs; the
// result has Hugging Face's.
Json ai2_record(const Json& record, const char* stem, bool has_concept = false) {
  const Json& question = field(record, "question");
  if (!question.is_object())
    throw InputError(str("field 'question': found ", question.type_name(), ", expected an object or a text"));
  Json result = Json::object();
  for (const auto& [name, value] : record.items()) {
    if (name != "question" && name != "answerKey") result[name] = value;
  }
  result[stem] = text_field(question, "stem");
  if (has_concept) result["question_concept"] = text_field(question, "question_concept");
  result["choices"] = choice_lists(question);
  result["answerKey"] = text_field(record, "answerKey");
  return result;
}

Json arc_record(const Json& record) {
  return field(record, "question").is_string() ? record : ai2_record(record, "question");
}

Json commonsense_record(const Json& record) {
  if (field(record, "question").is_string()) return record;
  Json result = ai2_record(record, "question", /*has_concept=*/true);
  // Hugging Face has the two lists the other way round than in ARC.
  const Json choices = result["choices"];
  result["choices"] = {{"label", choices["label"]}, {"text", choices["text"]}};
  return result;
}

// Fields that Hugging Face's records do not have, or have at the end.
Json without(Json record, const char* name) {
  record.erase(name);
  return record;
}

Json with_last(Json record, const char* name) {
  const Json value = field(record, name);
  record.erase(name);
  record[name] = value;
  return record;
}

// "(A) some text (B) other text": upstream's table has all choices in one cell.
Json openbookqa_table_row(const Json& record) {
  const std::string cell = text_field(record, "Choices");
  static const Regex kLabel(R"((?:^| )\(([A-D])\) )");
  std::vector<std::pair<std::size_t, std::size_t>> marks;  // where a label begins and where its text does
  Json texts = Json::array(), labels = Json::array();
  kLabel.for_each_match(cell, [&](Regex::Groups groups) {
    const auto begin = static_cast<std::size_t>(groups[0].data() - cell.data());
    marks.emplace_back(begin, begin + groups[0].size());
    labels.push_back(std::string(groups[1]));
  });
  if (marks.empty())
    throw InputError(str("field 'Choices': found ", quoted_for_message(cell), ", expected (A) ... (B) ..."));
  for (std::size_t i = 0; i < marks.size(); ++i) {
    const std::size_t end = i + 1 < marks.size() ? marks[i + 1].first : cell.size();
    texts.push_back(cell.substr(marks[i].second, end - marks[i].second));
  }
  return {{"id", text_field(record, "ID")},
          {"question_stem", text_field(record, "Question Stem")},
          {"choices", {{"text", std::move(texts)}, {"label", std::move(labels)}}},
          {"answerKey", text_field(record, "Answer Key")}};
}

Json openbookqa_record(const Json& record) {
  if (record.contains("Question Stem")) return openbookqa_table_row(record);
  return record.contains("question_stem") ? record : ai2_record(record, "question_stem");
}

Json boolq_record(Json record) {
  if (!record.contains("label") && record.contains("answer")) {
    record["label"] = record["answer"];
    record.erase("answer");
  }
  if (!record.contains("label")) throw InputError("field 'label' is missing");
  Json& label = record["label"];
  if (label.is_boolean()) label = label.get<bool>() ? 1 : 0;
  if (label == "true" || label == "false") label = label == "true" ? 1 : 0;
  return record;
}

std::string lower_first(const std::string& text) {
  if (text.empty()) return text;
  const std::size_t length = decode_utf8(text, 0).length;
  return python_lower(text.substr(0, length)) + text.substr(length);
}

Json copa_view(const Json& record) {
  const std::string question = text_field(record, "question");
  if (question != "cause" && question != "effect")
    throw InputError(str("field 'question': found ", quoted_for_message(question), ", expected 'cause' or 'effect'"));
  std::string premise(python_strip(text_field(record, "premise")));
  // The full stop, or whatever the last character is.
  while (!premise.empty() && (static_cast<unsigned char>(premise.back()) & 0xC0u) == 0x80u) premise.pop_back();
  if (!premise.empty()) premise.pop_back();
  const std::string first = " " + lower_first(text_field(record, "choice1"));
  const std::string second = " " + lower_first(text_field(record, "choice2"));
  const bool is_first = index_field(record, "label", "0 or 1") == 0;
  return {{"prompt", premise + (question == "cause" ? " because" : " therefore")},
          {"choices", {first, second}},
          {"target", is_first ? first : second}};
}

// As gpqa/zeroshot/utils.py: HellaSwag's cleaning without the brackets; what is missing becomes a space.
std::string gpqa_clean(const Json& record, const char* name) {
  const Json& value = field(record, name);
  if (value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty())) return " ";
  std::string text(python_strip(text_field(record, name)));
  replace_all(text, " [title]", ". ");
  replace_all(text, "  ", " ");
  return text;
}

Json gpqa_record(Json record, PythonRandom& random) {
  std::vector<std::string> choices;
  for (const char* name : {"Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Correct Answer"})
    choices.push_back(gpqa_clean(record, name));
  const std::string right = choices.back();
  std::vector<std::string> shuffled;
  for (const std::size_t i : random.shuffled(choices.size())) shuffled.push_back(choices[i]);
  for (std::size_t c = 0; c < shuffled.size(); ++c) record[str("choice", c + 1)] = shuffled[c];
  const auto place = std::find(shuffled.begin(), shuffled.end(), right) - shuffled.begin();
  record["answer"] = str("(", static_cast<char>('A' + place), ")");
  return record;
}

Json lambada_record(Json record) {
  if (record.contains("text")) return record;
  return {{"text", text_field(record, "context") + " " + text_field(record, "continuation")}};
}

Json lambada_view(const Json& record) {
  const std::string text = text_field(record, "text");
  const std::size_t space = text.rfind(' ');
  // Without a space the context is empty and everything is the last word.
  return {{"context", space == std::string::npos ? "" : text.substr(0, space)},
          {"last_word", " " + (space == std::string::npos ? text : text.substr(space + 1))}};
}

Json mmlu_record(const Json& record, const std::string& subject) {
  constexpr std::array kChoices = {"A", "B", "C", "D"};
  if (record.contains("choices")) return record;
  Json choices = Json::array();
  for (const char* name : kChoices) choices.push_back(text_field(record, name));
  const std::string answer = text_field(record, "answer");
  const auto found = std::find(kChoices.begin(), kChoices.end(), answer);
  if (found == kChoices.end())
    throw InputError(str("the answer is ", quoted_for_message(answer), ", expected A, B, C or D"));
  return {{"question", text_field(record, "question")},
          {"subject", subject},
          {"choices", std::move(choices)},
          {"answer", found - kChoices.begin()}};
}

// LLM-Adapters' form: "Please choose the correct answer to the question: CONTEXT QUESTION\n\nAnswer1: ... Answer2:
// ...". Context and question are only ever printed one behind the other, so the last sentence may count as the
// question.
Json social_iqa_record(Json record) {
  if (!record.contains("instruction")) {
    // A text in Hugging Face's records, a number when it came from a file of labels.
    const auto label = record.find("label");
    if (label != record.end() && label->is_number_integer()) *label = std::to_string(label->get<std::int64_t>());
    return record;
  }
  static const Regex kForm(
      R"(^Please choose the correct answer to the question: (?s:(.*?))\n\nAnswer1: (?s:(.*?)) Answer2: )"
      R"((?s:(.*?)) Answer3: (?s:(.*?))\n\nAnswer format)");
  std::vector<std::string> parts;
  const std::string instruction = text_field(record, "instruction");
  kForm.for_each_match(instruction, [&](Regex::Groups groups) { parts.assign(groups.begin() + 1, groups.end()); });
  if (parts.empty())
    throw InputError(str("field 'instruction': found ", quoted_for_message(instruction),
                         ", expected a question with Answer1 to Answer3"));
  const std::string answer = text_field(record, "answer");
  if (answer != "answer1" && answer != "answer2" && answer != "answer3")
    throw InputError(
        str("field 'answer': found ", quoted_for_message(answer), ", expected answer1, answer2 or answer3"));
  const std::size_t stop = parts[0].rfind(". ");
  const std::size_t begin = stop == std::string::npos ? 0 : stop + 2;
  return {{"context", begin == 0 ? "" : parts[0].substr(0, begin - 1)},
          {"question", parts[0].substr(begin)},
          {"answerA", parts[1]},
          {"answerB", parts[2]},
          {"answerC", parts[3]},
          {"label", answer.substr(answer.size() - 1)}};
}

Json winogrande_view(const Json& record) {
  const std::string sentence = text_field(record, "sentence");
  const std::size_t gap = sentence.find('_');
  if (gap == std::string::npos) throw InputError("field 'sentence': has no '_' where the options go");
  const std::string begin = sentence.substr(0, gap);
  return {{"contexts", {begin + text_field(record, "option1"), begin + text_field(record, "option2")}},
          {"ending", python_strip(sentence.substr(gap + 1))}};
}

Json hellaswag_record(Json record) {
  const std::string context = text_field(record, "ctx_a") + " " + python_capitalize(text_field(record, "ctx_b"));
  record["query"] = hellaswag_clean(text_field(record, "activity_label") + ": " + context);
  const Json& endings = field(record, "endings");
  if (!endings.is_array()) throw InputError(str("field 'endings': found ", endings.type_name(), ", expected a list"));
  Json choices = Json::array();
  for (const Json& ending : endings) {
    choices.push_back(hellaswag_clean(checked_text(ending, "field 'endings': an item")));
  }
  record["choices"] = std::move(choices);
  record["gold"] = index_field(record, "label", "the index of an ending");
  return record;
}

// re.sub(r"\[.*?\]", "", text): a bracket is closed on its own line or stays.
std::string without_brackets(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[') {
      const std::size_t end = text.find_first_of("]\n", i);
      if (end != std::string_view::npos && text[end] == ']') {
        i = end;
        continue;
      }
    }
    result += text[i];
  }
  return result;
}

// The white space that Python's \s means: PCRE2's lacks U+001C to U+001F.
constexpr const char* kSpace = R"([\s\x1C-\x1F]*)";

// \(\s*([^\)]*?)\s*\) and its like: no white space just inside a pair.
std::string tightened(const std::string& text, const Regex& pair) {
  return pair.replace(text, [](Regex::Groups groups) { return str(groups[0].front(), groups[1], groups[0].back()); });
}

}  // namespace

PreparedRecord Preprocessor::operator()(Json record) {
  const auto with_view = [](Json doc, const Json& added) {
    Json view = doc;
    view.update(added);
    return PreparedRecord{std::move(doc), std::move(view)};
  };
  const auto plain = [](Json doc) {
    Json view = doc;
    return PreparedRecord{std::move(doc), std::move(view)};
  };
  switch (kind_) {
    case Preprocess::kNone:
      return plain(std::move(record));
    case Preprocess::kArc:
      return plain(arc_record(record));
    case Preprocess::kBoolq:
      return plain(boolq_record(std::move(record)));
    case Preprocess::kCommonsenseQa:
      return plain(commonsense_record(record));
    case Preprocess::kCopa: {
      const Json added = copa_view(record);
      return with_view(with_last(std::move(record), "label"), added);
    }
    case Preprocess::kGpqa:
      return plain(gpqa_record(std::move(record), random_));
    case Preprocess::kHellaswag:
      return plain(hellaswag_record(std::move(record)));
    case Preprocess::kLambada: {
      Json doc = lambada_record(std::move(record));
      const Json added = lambada_view(doc);
      return with_view(std::move(doc), added);
    }
    case Preprocess::kMmlu:
      return plain(mmlu_record(record, dataset_name_));
    case Preprocess::kOpenbookqa:
      return plain(openbookqa_record(record));
    case Preprocess::kSocialIqa:
      return plain(social_iqa_record(std::move(record)));
    case Preprocess::kWikitext: {
      const Json added = {{"text", wikitext_detokenized(text_field(record, "page"))}};
      return with_view(std::move(record), added);
    }
    case Preprocess::kWinogrande: {
      const Json added = winogrande_view(record);
      return with_view(without(std::move(record), "qID"), added);
    }
  }
  throw InternalError("Preprocessor: unknown kind");
}

std::string hellaswag_clean(std::string_view text) {
  std::string cleaned(python_strip(text));
  replace_all(cleaned, " [title]", ". ");
  cleaned = without_brackets(cleaned);
  replace_all(cleaned, "  ", " ");
  return cleaned;
}

std::string wikitext_detokenized(std::string_view page) {
  const std::string space = kSpace;
  static const std::array kPairs = {
      Regex(R"(\()" + space + R"(([^\)]*?))" + space + R"(\))"),
      Regex(R"(\[)" + space + R"(([^\]]*?))" + space + R"(\])"), Regex("[{]" + space + "([^}]*?)" + space + "[}]"),
      Regex("\"" + space + "([^\"]*?)" + space + "\""), Regex("'" + space + "([^']*?)" + space + "'")};
  constexpr std::array<std::pair<std::string_view, std::string_view>, 10> kBefore = {{{"s '", "s'"},
                                                                                      {" @-@ ", "-"},
                                                                                      {" @,@ ", ","},
                                                                                      {" @.@ ", "."},
                                                                                      {" : ", ": "},
                                                                                      {" ; ", "; "},
                                                                                      {" . ", ". "},
                                                                                      {" ! ", "! "},
                                                                                      {" ? ", "? "},
                                                                                      {" , ", ", "}}};
  constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kBehind = {{{"= = = =", "===="},
                                                                                     {"= = =", "==="},
                                                                                     {"= =", "=="},
                                                                                     {" \xC2\xB0 ", "\xC2\xB0"},
                                                                                     {" \n", "\n"},
                                                                                     {"\n ", "\n"},
                                                                                     {" N ", " 1 "},
                                                                                     {" 's", "'s"}}};
  std::string text(page);
  for (const auto& [from, to] : kBefore) replace_all(text, from, to);
  for (const Regex& pair : kPairs) text = tightened(text, pair);
  for (const auto& [from, to] : kBehind) replace_all(text, from, to);
  return text;
}

}  // namespace dagmoe
