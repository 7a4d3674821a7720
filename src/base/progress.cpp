#include "base/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <utility>

#include "base/log.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr double kSecondsBetweenRedraws = 0.1, kSecondsBetweenLines = 10.0;
constexpr std::size_t kBarWidth = 24, kUsualTerminalWidth = 80;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kUsualTerminalWidth;
  return size.ws_col;
}

std::string bar(double share) {
  const std::size_t filled = static_cast<std::size_t>(share * kBarWidth);
  return "[" + std::string(filled, '#') + std::string(kBarWidth - filled, '.') + "]";
}

// A line longer than the terminal would wrap, and the next redraw would leave its first half standing.
std::string cut_to_width(const std::string& line, std::size_t width) {
  std::size_t end = 0;
  for (std::size_t columns = 0; end < line.size(); ++end) {
    const bool starts_character = (static_cast<unsigned char>(line[end]) & 0xC0u) != 0x80u;
    if (starts_character && ++columns > width) break;
  }
  return line.substr(0, end);
}

}  // namespace

Progress::Progress(std::string label, std::int64_t total)
    : label_(std::move(label)), total_(total), start_seconds_(now_seconds()), terminal_(stderr_is_terminal()) {
  // A log of a short job needs its last line only.
  if (!terminal_) last_drawn_seconds_ = start_seconds_;
}

Progress::~Progress() {
  if (open_) std::fputc('\n', stderr);
}

void Progress::update(std::int64_t done, std::string_view note) {
  done_ = done;
  const double pause = terminal_ ? kSecondsBetweenRedraws : kSecondsBetweenLines;
  if (now_seconds() - last_drawn_seconds_ >= pause) draw(done, note, false);
}

void Progress::finish(std::string_view note) { draw(done_, note, true); }

void Progress::draw(std::int64_t done, std::string_view note, bool last) {
  const double now = now_seconds(), elapsed = now - start_seconds_;
  last_drawn_seconds_ = now;
  std::string line = label_;
  if (total_ > 0) {
    const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0);
    if (terminal_) line += "  " + bar(share);
    line += str("  ", done, "/", total_, "  ", static_cast<int>(share * 100.0), "%  ", human_seconds(elapsed));
    if (!last && share > 0.0) line += "  ETA " + human_seconds(elapsed / share - elapsed);
  } else {
    line += str("  ", done, "  ", human_seconds(elapsed));
  }
  if (!note.empty()) line += "  " + std::string(note);

  open_ = terminal_ && !last;
  // The last column stays free: a character there makes some terminals wrap.
  if (terminal_) line = "\r\x1b[K" + cut_to_width(line, terminal_width() - 1);
  if (!open_) line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace dagmoe
