#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dagmoe {

// Python's str methods, on valid UTF-8. Case is that of Unicode's simple mappings: of the characters that Python maps
// to several only U+00DF is treated so.

/// str.isspace of one character: 29 code points, four of which (U+001C-001F) are not \s elsewhere.
bool is_python_space(char32_t code_point);
std::string_view python_strip(std::string_view text);
std::string_view python_lstrip(std::string_view text);
/// Bytes of white space at the end.
std::size_t trailing_space_bytes(std::string_view text);
/// str.capitalize; U+00DF becomes "Ss".
std::string python_capitalize(std::string_view text);
std::string python_lower(std::string_view text);
/// str.upper; U+00DF becomes "SS".
std::string python_upper(std::string_view text);
/// len(re.split(r"\s+", text)): a run of white space at an end bounds an empty word.
std::int64_t count_words(std::string_view text);

}  // namespace dagmoe
