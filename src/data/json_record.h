#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

enum class FieldKind { kString, kNumber, kBoolean, kNull, kObject, kArray };
/// As messages say it: "a string", "an array", "null".
std::string_view kind_text(FieldKind kind);

/// One field of a record. A string is unescaped; everything else keeps its JSON text, objects and arrays too.
struct RawField {
  std::string name, text;
  FieldKind kind = FieldKind::kString;
};

/// One record of an instruction file, in the order of the file. `line` is 1-based; for a JSON array it is the line the
/// record begins in.
struct RawRecord {
  std::vector<RawField> fields;
  std::int64_t line = 0;
  const RawField* find(std::string_view name) const;  ///< nullptr when there is none
};

/// A value of JSON text as a message shows its first character: 'x', or "byte 0x00".
std::string shown_char(char c);
bool is_json_space(char c);
/// Without JSON's white space at both ends.
std::string_view strip_json_space(std::string_view text);

/// Parses one record at a time through simdjson; keeps memory from one to the next. Not for several threads at once.
class RecordParser {
 public:
  /// Bytes behind a text that must be readable; what they are does not matter.
  static constexpr std::size_t kPadding = 64;
  RecordParser();
  ~RecordParser();
  /// Fills `record.fields` and returns "", or the reason why the text is no good record: broken JSON, not an object, a
  /// key twice, invalid UTF-8. `text` has no white space at its ends and is not empty. `in_array`: it is an element of
  /// an array, for the hint in the message.
  std::string parse(std::string_view text, bool in_array, RawRecord& record);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
