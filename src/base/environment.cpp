#include "base/environment.h"

#include <chrono>
#include <fstream>
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

}  // namespace dagmoe
