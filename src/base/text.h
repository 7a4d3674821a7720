#pragma once

#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// The arguments one after another as text: str("found ", 3, " rows"). Stands in for std::format, which g++ 12 lacks.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

/// 1234567 -> "1,234,567".
std::string with_commas(std::int64_t value);
/// A number of bytes as a person reads it: "98.4 MB" (decimal units).
std::string human_bytes(std::int64_t bytes);
/// 83.2 -> "1:23"; 3723 -> "1:02:03".
std::string human_seconds(double seconds);
/// Fixed number of decimals.
std::string fixed(double value, int decimals);

/// Pieces between separators; "a,,b" has an empty middle piece, "" is one empty piece.
std::vector<std::string> split(std::string_view text, char separator);
std::string join(std::span<const std::string> parts, std::string_view separator);
/// Without white space (ASCII) at both ends.
std::string_view trim(std::string_view text);
/// [2, 3, 4] -> "[2, 3, 4]", as shapes are printed in messages; of more than 16 sizes the rest are counted.
std::string shape_text(std::span<const std::int64_t> shape);

/// Text with its control characters as "\n" or "\x1b", so that it stays on one line and cannot steer a terminal.
std::string one_line(std::string_view text);
/// Text of a user or a file inside a one-line message: in single quotes, at most 120 bytes, made one line.
std::string quoted_for_message(std::string_view text);

/// A left-aligned text table: first row is the header. Columns whose cells are all numbers align right.
std::string table_text(const std::vector<std::vector<std::string>>& rows);

/// True when `text` is well-formed UTF-8 (no overlong forms, surrogates or values above U+10FFFF).
bool is_valid_utf8(std::string_view text);
/// Number of Unicode code points of valid UTF-8.
std::int64_t count_code_points(std::string_view text);
/// SHA-256 of bytes, as 64 lower-case hexadecimal digits.
std::string sha256_hex(std::string_view bytes);

}  // namespace dagmoe
