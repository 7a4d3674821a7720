#pragma once

#include <cstdint>
#include <filesystem>
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

/// A record that could not be read: `reason` knows no place, the caller puts "file:line: " in front. `text` is how the
/// record begins, at most 200 bytes of it.
struct BadRecord {
  std::int64_t line = 0;
  std::string reason, text;
};

/// Streams a .jsonl file, or a file named .json that is one array of objects, through simdjson: the file is mapped, one
/// record is parsed at a time, memory grows with the longest record and not with the file. Copes with a UTF-8
/// byte-order mark, CRLF and blank lines.
class RecordReader {
 public:
  /// Throws InputError when the file is missing, or a .json file is no array.
  static std::unique_ptr<RecordReader> open(const std::filesystem::path& path);
  ~RecordReader();
  /// The next record, or what is wrong with it (broken JSON, not an object, a key twice, invalid UTF-8): then `bad` is
  /// set. A JSON array whose own syntax is broken ends there, as one bad record. False at the end.
  bool next(RawRecord& record, std::unique_ptr<BadRecord>& bad);
  /// Back to the first record.
  void rewind();
  /// Where the next record is looked for, and a way back there: offset() and line() as they were before a next().
  std::uint64_t offset() const;
  std::int64_t line() const;
  void seek(std::uint64_t offset, std::int64_t line);

 private:
  struct Impl;
  explicit RecordReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
