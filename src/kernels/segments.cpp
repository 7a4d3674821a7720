#include "kernels/segments.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

void check_segments(const char* what, const Segments& segments, std::int64_t num_rows) {
  const std::vector<std::int64_t>& offsets = segments.offsets;
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != num_rows ||
      !std::is_sorted(offsets.begin(), offsets.end()))
    throw InternalError(str(what, ": offsets must rise from 0 to the ", num_rows, " tokens"));
  if (!segments.share_prefixes()) return;
  if (segments.prefixes.size() != segments.count())
    throw InternalError(
        str(what, ": found ", segments.prefixes.size(), " prefixes for ", segments.count(), " segments"));
  for (std::size_t s = 0; s < segments.count(); ++s) {
    const std::int64_t prefix = segments.prefix(s);
    const bool is_sound = prefix == -1 || (prefix >= 0 && prefix < static_cast<std::int64_t>(s) &&
                                           segments.prefix(static_cast<std::size_t>(prefix)) == -1);
    if (!is_sound) throw InternalError(str(what, ": segment ", s, " cannot go on from segment ", prefix));
  }
}

SpreadRows spread_rows(const Segments& segments) {
  SpreadRows spread;
  spread.offsets = {0};
  const auto add = [&](std::size_t s) {
    for (std::int64_t row = segments.begin(s); row < segments.begin(s) + segments.size(s); ++row)
      spread.rows.push_back(row);
  };
  for (std::size_t s = 0; s < segments.count(); ++s) {
    if (segments.prefix(s) >= 0) add(static_cast<std::size_t>(segments.prefix(s)));
    const auto first = static_cast<std::int64_t>(spread.rows.size());
    for (std::int64_t i = 0; i < segments.size(s); ++i) spread.own.push_back(first + i);
    add(s);
    spread.offsets.push_back(static_cast<std::int64_t>(spread.rows.size()));
  }
  return spread;
}

}  // namespace dagmoe
