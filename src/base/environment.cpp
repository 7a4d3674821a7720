#include "base/environment.h"

#include <sys/resource.h>

namespace dagmoe {

std::string version_text() { return DAGMOE_VERSION; }

std::string commit_text() { return DAGMOE_COMMIT; }

std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // Linux counts kibibytes
}

}  // namespace dagmoe
