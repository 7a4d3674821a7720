#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "data/json_record.h"

namespace dagmoe {

/// A record that could not be read: `reason` knows no place, the caller puts "file:line: " in front. `text` is all of
/// the record as the file has it; of a broken array its first 200 bytes.
struct BadRecord {
  std::int64_t line = 0;
  std::string reason, text;
};

/// Streams a file of one JSON object a line, or one named .json that is one array of objects; behind .gz and .zst the
/// same, unpacked on the way. One record is in memory at a time, however long the file is. Copes with a UTF-8
/// byte-order mark, CRLF, blank lines and lines of any length.
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
  /// Where the next record is looked for, and a way back there: offset() and line() as they were before a next(). In a
  /// compressed file the way back begins at its first byte.
  std::uint64_t offset() const;
  std::int64_t line() const;
  void seek(std::uint64_t offset, std::int64_t line);
  /// The text of the record that next() read last, good or bad. Valid until the next call.
  std::string_view text() const;

 private:
  struct Impl;
  explicit RecordReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
