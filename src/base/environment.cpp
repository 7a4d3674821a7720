#include "base/environment.h"

#include <sys/resource.h>

#include <cstdlib>

namespace dagmoe {

std::string version_text() { return DAGMOE_VERSION; }

std::string commit_text() { return DAGMOE_COMMIT; }

std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // Linux counts kibibytes
}

std::filesystem::path cache_folder() {
  if (const char* folder = std::getenv("DAGMOE_CACHE"); folder != nullptr && *folder != '\0') return folder;
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr ? home : "/tmp") / ".cache" / "dagmoe";
}

}  // namespace dagmoe
