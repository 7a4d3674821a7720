#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace dagmoe {

/// Every bad record of one file, reported at once: a line "file:line: reason" each, twenty at most, then how many more.
class RecordProblems {
 public:
  explicit RecordProblems(const std::filesystem::path& file) : file_(file.string()) {}
  void add(std::int64_t line, const std::string& reason);
  /// Throws InputError; `hint` is its last line.
  void throw_if_any(const std::string& hint = "") const;

 private:
  std::string file_;
  std::vector<std::string> lines_;
  std::size_t count_ = 0;
};

}  // namespace dagmoe
