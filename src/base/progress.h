#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dagmoe {

/// One line on stderr that is redrawn in place on a terminal (bar, share done, elapsed, ETA, and what the caller adds).
/// Elsewhere plain lines, at most one every ten seconds and one at the end, so that logs stay short.
class Progress {
 public:
  /// `total` is the number of units (steps, documents); 0 when unknown.
  Progress(std::string label, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `done` units are finished; `note` is shown behind the bar ("loss 1.83  412 tok/s").
  void update(std::int64_t done, std::string_view note);
  /// Ends the line; a log line written after it starts fresh.
  void finish(std::string_view note);

 private:
  void draw(std::int64_t done, std::string_view note, bool last);
  std::string label_;
  std::int64_t total_, done_ = 0;
  double start_seconds_, last_drawn_seconds_ = -1e9;
  bool terminal_, open_ = false;
};

}  // namespace dagmoe
