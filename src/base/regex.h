#pragma once

#include <string>
#include <string_view>

namespace dagmoe {

/// Whether a regular expression (PCRE2, whose common part is Python's) matches all of `text`. Throws InputError, which
/// names `where`, for one that is malformed.
bool regex_matches_all(const std::string& pattern, std::string_view text, const std::string& where);

}  // namespace dagmoe
