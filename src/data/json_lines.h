#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace dagmoe {

/// One record of an instruction file: its fields by name, as text. Numbers and booleans are kept as their JSON text; nested
/// values (lists of messages) too. `line` is 1-based; for a JSON array it is the line the record begins in.
struct RawRecord {
  std::vector<std::pair<std::string, std::string>> fields;
  std::int64_t line = 0;
  const std::string* find(const std::string& name) const;
};

/// A record that could not be read, for reports: "file:line: reason".
struct BadRecord {
  std::int64_t line = 0;
  std::string reason, text;
};

/// Streams a .jsonl file, or a .json file that is one array of objects, through simdjson: the file is mapped, one record is
/// parsed at a time, memory does not grow with the file. Copes with a UTF-8 byte-order mark, CRLF and blank lines.
class RecordReader {
 public:
  /// Throws InputError when the file is missing, or a .json file is no array.
  static std::unique_ptr<RecordReader> open(const std::filesystem::path& path);
  ~RecordReader();
  /// The next record, or what is wrong with it (broken JSON, not an object, a key twice, invalid UTF-8). False at the end.
  bool next(RawRecord& record, std::unique_ptr<BadRecord>& bad);
  /// Back to the first record.
  void rewind();
  /// Byte offset of the next record, and a way back to it: what a checkpoint stores.
  std::uint64_t offset() const;
  void seek(std::uint64_t offset, std::int64_t line);
  std::int64_t line() const;

 private:
  struct Impl;
  explicit RecordReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
