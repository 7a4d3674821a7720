#include "base/environment.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

namespace dagmoe {

std::string version_text() { return DAGMOE_VERSION; }

std::string commit_text() { return DAGMOE_COMMIT; }

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::int64_t peak_rss_bytes() {
  // getrusage's maximum would begin with that of the program which started this one: it outlives exec.
  std::ifstream status("/proc/self/status");
  constexpr std::string_view kPeak = "VmHWM:";
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(kPeak)) return std::stoll(line.substr(kPeak.size())) * 1024;  // in kibibytes
  }
  return 0;  // no /proc
}

namespace {

// The whole number that a file holds, or that stands behind `key` in it; nothing for "max" or without the file.
std::optional<std::int64_t> number_in(const char* path, std::string_view key = "") {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (!key.empty() && word != key) continue;
    if (!key.empty() && !(file >> word)) break;
    std::int64_t number = 0;
    const auto parsed = std::from_chars(word.data(), word.data() + word.size(), number);
    if (parsed.ec == std::errc()) return number;
    break;
  }
  return std::nullopt;
}

}  // namespace

std::int64_t available_memory_bytes() {
  std::int64_t available = number_in("/proc/meminfo", "MemAvailable:").value_or(0) * 1024;
  const auto limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
  if (limit && used) available = std::min(available, std::max<std::int64_t>(0, *limit - *used));
  return available;
}

}  // namespace dagmoe
