#pragma once

#include <cstdint>
#include <string>

namespace dagmoe {

/// Version of this program and the commit that it was built from ("unknown" outside a git checkout).
std::string version_text();
std::string commit_text();
/// Largest resident memory of this process so far.
std::int64_t peak_rss_bytes();
/// What this process may still take: the machine's available memory, or what its control group leaves if that is less.
std::int64_t available_memory_bytes();
/// Wall-clock time.
double seconds_since_1970();

}  // namespace dagmoe
