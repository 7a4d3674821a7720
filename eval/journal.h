#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "eval/task_requests.h"

namespace dagmoe {

/// The answers of one task as they come, one document a line, so that a run that was killed can go on:
/// samples_TASK.partial.jsonl. The first line says what was asked of which model. Lines are written whole and at once;
/// of a run that was killed only the last can be cut, and then it is left out. Gone when the task is finished.
class Journal {
 public:
  /// Keeps nothing.
  Journal() = default;
  /// `hash` names requests, model and settings. With `resume` the answers of an earlier run with the same hash are in
  /// finished(), and another hash or a damaged line throws InputError; without it a new file is begun.
  Journal(const std::filesystem::path& folder, const std::string& task, const std::string& hash, bool resume);
  ~Journal();
  Journal(Journal&& other) noexcept;
  Journal& operator=(Journal&& other) noexcept;

  const std::map<std::size_t, DocumentAnswers>& finished() const { return finished_; }
  /// Throws InputError when the disk is full or the folder unwritable.
  void append(std::size_t document, const DocumentAnswers& answers);
  /// What is kept of a task is no longer needed.
  static void remove(const std::filesystem::path& folder, const std::string& task);
  static std::filesystem::path path_of(const std::filesystem::path& folder, const std::string& task);

 private:
  std::size_t read_earlier(const std::string& hash);  // bytes of whole lines
  void write_line(const std::string& line) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::map<std::size_t, DocumentAnswers> finished_;
};

}  // namespace dagmoe
