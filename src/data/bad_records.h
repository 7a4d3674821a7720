#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"

namespace dagmoe {

/// What was wrong with the records of a stream's files: counted, the first hundred kept for messages, all of them
/// written to a file with their text.
class BadRecords {
 public:
  /// `file`: where they go, a line each: {"file", "line", "reason", "text"}, or "text_base64" for a text that is no
  /// UTF-8. Empty: nowhere. The file is made with the first of them.
  explicit BadRecords(std::filesystem::path file) : file_(std::move(file)) {}
  void add(const std::filesystem::path& source, std::int64_t line, const std::string& reason, std::string_view text);
  /// Puts the file there, or takes an older one away where this time nothing was bad.
  void finish();
  /// Throws InputError that names the first ten when there are more than `budget` among `num_records`.
  void check_budget(std::int64_t budget, std::int64_t num_records) const;
  std::int64_t count() const { return count_; }
  const std::vector<std::string>& reports() const { return reports_; }  ///< "file:line: reason"

 private:
  std::filesystem::path file_;
  std::unique_ptr<AtomicFile> writer_;
  std::int64_t count_ = 0;
  std::vector<std::string> reports_;
};

}  // namespace dagmoe
