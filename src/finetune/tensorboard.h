#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace dagmoe {

/// Scalars of a run as TensorBoard reads them: one file events.out.tfevents.<seconds>.<host>.<pid> in the run folder,
/// TFRecord frames (length, masked CRC32C of the length, bytes, masked CRC32C of the bytes) around tensorflow.Event
/// messages, the first of them {file_version: "brain.Event:2"}. What was written lies in the file after flush().
class TensorBoardWriter {
 public:
  /// A new file in `folder`, which must exist. Throws InputError when it cannot be written.
  static TensorBoardWriter create(const std::filesystem::path& folder);
  /// Goes on with the newest event file of `folder` (or a new one when there is none). All of its event files lose the
  /// events of steps after `resume_step`, which the resumed run writes again, and whatever begins with a broken record:
  /// what a killed process left.
  static TensorBoardWriter reopen(const std::filesystem::path& folder, std::int64_t resume_step);

  /// `wall_time` in seconds since 1970.
  void scalar(std::string_view tag, std::int64_t step, double value, double wall_time);
  /// Every number of a line of metrics.jsonl but its step, by its key, nested ones as "scores/arc_easy/acc".
  void metrics_line(const Json& line, double wall_time);
  /// Once a step, so that TensorBoard never sees half of one. Throws InputError (disk full).
  void flush();
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  explicit TensorBoardWriter(std::filesystem::path path);
  std::filesystem::path path_;
  std::string pending_;
  std::ofstream file_;
};

/// CRC-32C (Castagnoli) of `bytes`, rotated and offset as TFRecord stores it.
std::uint32_t masked_crc32c(std::string_view bytes);
/// One frame of a TFRecord file.
std::string tfrecord(std::string_view payload);
/// The payloads of `bytes` up to its end or the first record whose length or checksums are wrong.
std::vector<std::string_view> read_tfrecords(std::string_view bytes);
/// The serialized tensorflow.Event of one scalar: wall_time 1, step 2, summary 5 {value 1 {tag 1, simple_value 2}}.
std::string scalar_event(std::string_view tag, std::int64_t step, double value, double wall_time);

}  // namespace dagmoe
