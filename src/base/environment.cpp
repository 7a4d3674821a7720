#include "base/environment.h"

#include <sys/resource.h>

#include <chrono>

namespace dagmoe {

std::string version_text() { return DAGMOE_VERSION; }

std::string commit_text() { return DAGMOE_COMMIT; }

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // Linux counts kibibytes
}

}  // namespace dagmoe
