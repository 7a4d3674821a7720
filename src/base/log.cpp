#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <string>

namespace dagmoe {
namespace {

// A progress bar may stand on the terminal's current line; going back to its start and erasing it keeps the two apart.
constexpr std::string_view kEraseLine = "\r\x1b[K";

std::atomic<bool> is_silent{false};

void write_line(std::string_view prefix, std::string_view line) {
  if (is_silent) return;
  std::string text;
  if (stderr_is_terminal()) text += kEraseLine;
  text += prefix;
  text += line;
  text += '\n';
  // One call, so that lines of several threads do not mix.
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace

void log_info(std::string_view line) { write_line("", line); }

void log_warning(std::string_view line) { write_line("warning: ", line); }

void silence_log() { is_silent = true; }

bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) == 1; }

}  // namespace dagmoe
