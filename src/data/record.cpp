#include "data/record.h"

#include <algorithm>
#include <array>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// What a format asks of a record: for messages, and for the search.
struct FormatInfo {
  std::string_view name, needs;
};
FormatInfo info_of(RecordFormat format) {
  switch (format) {
    case RecordFormat::kAlpaca:
      return {"alpaca", "instruction, output"};
    case RecordFormat::kMetaMath:
      return {"metamath", "query, response"};
    case RecordFormat::kMathInstruct:
      return {"mathinstruct", "instruction, output"};
    case RecordFormat::kOpenOrca:
      return {"openorca", "question, response"};
    case RecordFormat::kDolly:
      return {"dolly", "instruction, response"};
    case RecordFormat::kGsm8k:
      return {"gsm8k", "question, answer"};
    case RecordFormat::kMessages:
      return {"messages", "messages"};
    case RecordFormat::kShareGpt:
      return {"sharegpt", "conversations"};
    case RecordFormat::kPromptCompletion:
      return {"prompt_completion", "prompt, completion"};
    case RecordFormat::kText:
      return {"text", "text"};
  }
  throw InternalError("info_of: unknown record format");
}

constexpr std::array kFormats = {RecordFormat::kAlpaca,   RecordFormat::kMetaMath, RecordFormat::kMathInstruct,
                                 RecordFormat::kOpenOrca, RecordFormat::kDolly,    RecordFormat::kGsm8k,
                                 RecordFormat::kMessages, RecordFormat::kShareGpt, RecordFormat::kPromptCompletion,
                                 RecordFormat::kText};

const RawField& required_field(const RawRecord& raw, std::string_view name, RecordFormat format, FieldKind kind) {
  const auto [format_name, needs] = info_of(format);
  const RawField* field = raw.find(name);
  if (field == nullptr) {
    throw InputError(str("field '", name, "' is missing; format '", format_name, "' needs ", needs));
  }
  if (field->kind != kind) {
    throw InputError(str("field '", name, "' of format '", format_name, "': found ", kind_text(field->kind),
                         ", expected ", kind_text(kind)));
  }
  return *field;
}

const std::string& required_text(const RawRecord& raw, std::string_view name, RecordFormat format) {
  return required_field(raw, name, format, FieldKind::kString).text;
}

// A text the model is to learn; without one there is nothing to train on.
const std::string& target_text(const RawRecord& raw, std::string_view name, RecordFormat format) {
  const std::string& text = required_text(raw, name, format);
  if (text.empty())
    throw InputError(str("field '", name, "' of format '", info_of(format).name, "': found an empty text"));
  return text;
}

// A text that may be absent or null, which both mean "".
std::string optional_text(const RawRecord& raw, std::string_view name, RecordFormat format) {
  const RawField* field = raw.find(name);
  return field == nullptr || field->kind == FieldKind::kNull ? "" : required_text(raw, name, format);
}

Record read_alpaca(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kAlpaca;
  return {.instruction = required_text(raw, "instruction", kFormat),
          .input = optional_text(raw, "input", kFormat),
          .output = target_text(raw, "output", kFormat)};
}

Record read_mathinstruct(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kMathInstruct;
  return {.instruction = required_text(raw, "instruction", kFormat), .output = target_text(raw, "output", kFormat)};
}

Record read_dolly(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kDolly;
  return {.instruction = required_text(raw, "instruction", kFormat),
          .input = optional_text(raw, "context", kFormat),
          .output = target_text(raw, "response", kFormat)};
}

Record read_gsm8k(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kGsm8k;
  return {.instruction = required_text(raw, "question", kFormat), .output = target_text(raw, "answer", kFormat)};
}

Record read_openorca(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kOpenOrca;
  const std::string& question = required_text(raw, "question", kFormat);
  const std::string& response = target_text(raw, "response", kFormat);
  const std::string system = optional_text(raw, "system_prompt", kFormat);
  if (system.empty()) return {.instruction = question, .output = response};
  return {.messages = {{"system", system}, {"user", question}, {"assistant", response}}};
}

Record read_metamath(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kMetaMath;
  const std::string& query = required_text(raw, "query", kFormat);
  const std::size_t line_end = query.find('\n');
  return {.instruction = query.substr(0, line_end),
          .input = line_end == std::string::npos ? "" : query.substr(line_end + 1),
          .output = target_text(raw, "response", kFormat)};
}

Record read_prompt_completion(const RawRecord& raw) {
  constexpr auto kFormat = RecordFormat::kPromptCompletion;
  return {.instruction = required_text(raw, "prompt", kFormat), .output = target_text(raw, "completion", kFormat)};
}

// How a conversation format spells things.
struct ConversationKeys {
  RecordFormat format;
  std::string_view list, role, content;
  std::array<std::pair<std::string_view, std::string_view>, 3> roles;  // theirs, ours
};
constexpr ConversationKeys kMessagesKeys = {RecordFormat::kMessages,
                                            "messages",
                                            "role",
                                            "content",
                                            {{{"system", "system"}, {"user", "user"}, {"assistant", "assistant"}}}};
constexpr ConversationKeys kShareGptKeys = {RecordFormat::kShareGpt,
                                            "conversations",
                                            "from",
                                            "value",
                                            {{{"system", "system"}, {"human", "user"}, {"gpt", "assistant"}}}};

std::string found_kind(const Json& value) {
  const std::string name = value.type_name();
  if (name == "null") return name;
  return str(name == "array" || name == "object" ? "an " : "a ", name);
}

std::string message_text(const Json& message, std::string_view key, const ConversationKeys& keys,
                         const std::string& where) {
  const auto found = message.find(key);
  if (found == message.end()) {
    throw InputError(str(where, ": field '", key, "' is missing; format '", info_of(keys.format).name, "' needs ",
                         keys.role, ", ", keys.content));
  }
  if (!found->is_string())
    throw InputError(str(where, ": field '", key, "': found ", found_kind(*found), ", expected a string"));
  return found->get<std::string>();
}

// OpenAI's and SlimOrca's way to leave an answer out of the loss is the weight 0; that of other turns changes nothing.
bool is_learnt(const Json& message, std::string_view role, const std::string& where) {
  const auto weight = message.find("weight");
  if (role != "assistant" || weight == message.end() || weight->is_null()) return true;
  const bool is_known = weight->is_boolean() || (weight->is_number() && (*weight == 0.0 || *weight == 1.0));
  if (!is_known) throw InputError(str(where, ": field 'weight': found ", weight->dump(), ", expected 0 or 1"));
  return weight->is_boolean() ? weight->get<bool>() : *weight == 1.0;
}

Message read_message(const Json& json, const ConversationKeys& keys, const std::string& where) {
  if (!json.is_object()) throw InputError(str(where, ": found ", found_kind(json), ", expected an object"));
  const std::string role = message_text(json, keys.role, keys, where);
  const auto known =
      std::find_if(keys.roles.begin(), keys.roles.end(), [&](const auto& pair) { return pair.first == role; });
  if (known == keys.roles.end()) {
    throw InputError(str(where, ": field '", keys.role, "': found ", quoted_for_message(role), ", expected ",
                         keys.roles[0].first, ", ", keys.roles[1].first, " or ", keys.roles[2].first));
  }
  return {std::string(known->second), message_text(json, keys.content, keys, where),
          is_learnt(json, known->second, where)};
}

void check_turns(const std::vector<Message>& messages, const ConversationKeys& keys) {
  const auto spelled = [&](std::string_view ours) {
    return std::find_if(keys.roles.begin(), keys.roles.end(), [&](const auto& pair) { return pair.second == ours; })
        ->first;
  };
  const std::size_t first = !messages.empty() && messages[0].role == "system" ? 1 : 0;
  for (std::size_t i = first; i < messages.size(); ++i) {
    const std::string_view expected = (i - first) % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != expected) {
      throw InputError(str("field '", keys.list, "': message ", i + 1, " is of '", spelled(messages[i].role),
                           "', expected '", spelled(expected), "'; after an optional system turn ", spelled("user"),
                           " and ", spelled("assistant"), " alternate"));
    }
    if (expected == "assistant" && messages[i].content.empty()) {
      throw InputError(
          str("field '", keys.list, "': message ", i + 1, ": field '", keys.content, "': found an empty text"));
    }
  }
  if (messages.size() == first) throw InputError(str("field '", keys.list, "': there is no exchange in it"));
  if (messages.back().role != "assistant") {
    throw InputError(str("field '", keys.list, "': the last message is of '", spelled("user"), "', expected '",
                         spelled("assistant"), "'"));
  }
}

Record read_conversation(const RawRecord& raw, const ConversationKeys& keys) {
  const RawField& field = required_field(raw, keys.list, keys.format, FieldKind::kArray);
  const std::string where = str("field '", keys.list, "'");
  const Json list = parse_json(field.text, where);
  Record record;
  for (const Json& message : list) {
    record.messages.push_back(read_message(message, keys, str(where, ": message ", record.messages.size() + 1)));
  }
  check_turns(record.messages, keys);
  if (std::ranges::none_of(record.messages, [](const Message& m) { return m.role == "assistant" && m.is_learnt; }))
    throw InputError(str(where, ": every answer has the weight 0, so that there is nothing to learn"));
  return record;
}

// A conversation as the one question and answer that the Alpaca forms have room for.
Record single_exchange(const Record& record) {
  if (record.messages.empty()) return record;
  if (record.messages.size() != 2) {
    throw InputError(str("a conversation of ", record.messages.size(),
                         record.messages[0].role == "system" ? " messages with a system turn" : " messages",
                         "; the Alpaca templates have room for one question and one answer: use template 'chatml', or "
                         "'orca' for one with a system turn"));
  }
  return {.instruction = record.messages[0].content, .output = record.messages[1].content};
}

std::vector<Message> as_messages(const Record& record, PromptTemplate form) {
  if (!record.messages.empty()) return record.messages;
  const bool is_tight = form == PromptTemplate::kLlamaFactoryAlpaca || form == PromptTemplate::kMammoth;
  const std::string input = record.input.empty() ? "" : (is_tight ? "\n" : "\n\n") + record.input;
  return {{"user", record.instruction + input}, {"assistant", record.output}};
}

}  // namespace

std::optional<RecordFormat> record_format_named(std::string_view name) {
  for (const RecordFormat format : kFormats) {
    if (info_of(format).name == name) return format;
  }
  return std::nullopt;
}

const std::vector<std::string>& record_format_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const RecordFormat format : kFormats) all.emplace_back(info_of(format).name);
    return all;
  }();
  return names;
}

Record read_record(RecordFormat format, const RawRecord& raw) {
  switch (format) {
    case RecordFormat::kAlpaca:
      return read_alpaca(raw);
    case RecordFormat::kMetaMath:
      return read_metamath(raw);
    case RecordFormat::kMathInstruct:
      return read_mathinstruct(raw);
    case RecordFormat::kOpenOrca:
      return read_openorca(raw);
    case RecordFormat::kDolly:
      return read_dolly(raw);
    case RecordFormat::kGsm8k:
      return read_gsm8k(raw);
    case RecordFormat::kMessages:
      return read_conversation(raw, kMessagesKeys);
    case RecordFormat::kShareGpt:
      return read_conversation(raw, kShareGptKeys);
    case RecordFormat::kPromptCompletion:
      return read_prompt_completion(raw);
    case RecordFormat::kText:
      return {.text = target_text(raw, "text", format)};
  }
  throw InternalError("read_record: unknown record format");
}

namespace {

std::vector<PromptPiece> plain_text(const Record& record, const ChatFormat& format) {
  if (!record.text.empty()) {
    PromptPiece document;
    document.text = record.text;
    document.is_supervised = true;
    document.ends_turn = true;
    return {std::move(document)};
  }
  if (format.form != PromptTemplate::kAlpaca && format.form != PromptTemplate::kAlpacaLora) {
    return render_chat(format, as_messages(record, format.form), /*add_generation_prompt=*/false);
  }
  const Record exchange = single_exchange(record);
  // The prompt is one piece, as generation encodes it. It holds users' text, and the template's own has no control
  // tokens.
  PromptPiece prompt, answer;
  prompt.text = alpaca_prompt(exchange.instruction, exchange.input, format.form);
  answer.text = exchange.output;
  answer.is_supervised = true;
  answer.ends_turn = true;
  return {std::move(prompt), std::move(answer)};
}

}  // namespace

std::vector<PromptPiece> sample_text(const Record& record, const ChatFormat& format, LossRule loss) {
  std::vector<PromptPiece> pieces;
  if (loss.last_turn_only && record.messages.size() > 2) {
    Record last = record;
    for (std::size_t i = 0; i + 1 < last.messages.size(); ++i) last.messages[i].is_learnt = false;
    if (!last.messages.back().is_learnt) throw InputError("the last answer has the weight 0, and no other is learnt");
    pieces = plain_text(last, format);
  } else {
    pieces = plain_text(record, format);
  }
  if (!loss.mask_prompt) {
    for (PromptPiece& piece : pieces) piece.is_supervised = true;
  }
  return pieces;
}

void rename_fields(const ColumnMap& columns, RawRecord& raw) {
  if (columns.empty()) return;
  std::vector<RawField> renamed;
  for (const auto& [ours, theirs] : columns) {
    const auto field = std::ranges::find(raw.fields, theirs, &RawField::name);
    if (field == raw.fields.end()) continue;
    renamed.push_back(*field);
    renamed.back().name = ours;
  }
  std::erase_if(raw.fields, [&columns](const RawField& field) {
    return std::ranges::find(columns, field.name, &ColumnMap::value_type::first) != columns.end();
  });
  for (RawField& field : renamed) raw.fields.push_back(std::move(field));
}

const std::vector<std::string>& field_names(RecordFormat format) {
  using Names = std::vector<std::string>;
  static const std::map<RecordFormat, Names> names = {
      {RecordFormat::kAlpaca, {"instruction", "input", "output"}},
      {RecordFormat::kMetaMath, {"query", "response"}},
      {RecordFormat::kMathInstruct, {"instruction", "output"}},
      {RecordFormat::kOpenOrca, {"system_prompt", "question", "response"}},
      {RecordFormat::kDolly, {"instruction", "context", "response"}},
      {RecordFormat::kGsm8k, {"question", "answer"}},
      {RecordFormat::kMessages, {"messages"}},
      {RecordFormat::kShareGpt, {"conversations"}},
      {RecordFormat::kPromptCompletion, {"prompt", "completion"}},
      {RecordFormat::kText, {"text"}}};
  return names.at(format);
}

ContentHash content_hash(const Record& record) {
  std::string text;
  // The length in front keeps "ab" + "c" apart from "a" + "bc".
  const auto add = [&text](std::string_view part) {
    text.append(std::to_string(part.size())).append(1, ':').append(part);
  };
  for (const std::string* part : {&record.instruction, &record.input, &record.output, &record.text}) add(*part);
  for (const Message& message : record.messages) add(message.role), add(message.content);
  return hash_of(text);
}

}  // namespace dagmoe
