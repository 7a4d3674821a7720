#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/content_hash.h"
#include "data/json_lines.h"
#include "data/prompt_template.h"

namespace dagmoe {

/// How the fields of a file's records are read (method.md 7.1).
enum class RecordFormat {
  kAlpaca,            ///< instruction, input (may be absent or null), output
  kMetaMath,          ///< query (first line instruction, rest input), response
  kMathInstruct,      ///< instruction, output
  kOpenOrca,          ///< system_prompt (may be absent, null or empty), question, response
  kDolly,             ///< instruction, context (may be absent, null or empty), response
  kGsm8k,             ///< question, answer
  kMessages,          ///< messages: [{role, content}]
  kShareGpt,          ///< conversations: [{from, value}]; SlimOrca too
  kPromptCompletion,  ///< prompt, completion
  kText,              ///< text: a document to read on, without template, prompt or answer
};
std::optional<RecordFormat> record_format_named(std::string_view name);
const std::vector<std::string>& record_format_names();
/// The fields that a format reads, those it can do without among them.
const std::vector<std::string>& field_names(RecordFormat format);

/// A format's name of a field -> the file's own.
using ColumnMap = std::vector<std::pair<std::string, std::string>>;
/// Gives fields the names that the format asks for. A field that bears such a name already, without being meant, goes.
void rename_fields(const ColumnMap& columns, RawRecord& raw);

/// A record as an instruction with its answer, a conversation, or a document.
struct Record {
  std::string instruction = {}, input = {}, output = {};  ///< the single-turn formats
  std::vector<Message> messages = {};                     ///< the conversation formats; empty otherwise
  std::string text = {};                                  ///< format text; empty otherwise
};
/// Fields that a format does not name are left alone. A conversation may begin with a system turn, then user and
/// assistant alternate and the assistant has the last word; "weight": 0 takes an answer out of the loss. Throws
/// InputError with the reason only (no place): "field 'output' is missing; format 'alpaca' needs instruction, output".
Record read_record(RecordFormat format, const RawRecord& raw);

/// Of all texts of a record and the roles in it: equal for records that are the same but for other fields.
ContentHash content_hash(const Record& record);

/// Which tokens of a sample are learnt.
struct LossRule {
  bool mask_prompt = true;      ///< else every token, the prompt's too
  bool last_turn_only = false;  ///< of a conversation; else every answer
};

/// The text of a sample under a template. A single-turn record under a chat template is one user turn (instruction,
/// then a blank line and the input when there is one) and one assistant turn. A conversation under an alpaca form must
/// be a single exchange. A document is one supervised piece that EOS ends, whatever the template. Throws InputError
/// with the reason only.
std::vector<PromptPiece> sample_text(const Record& record, const ChatFormat& format, LossRule loss = {});

}  // namespace dagmoe
