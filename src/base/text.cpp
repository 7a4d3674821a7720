#include "base/text.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <iomanip>

namespace dagmoe {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_continuation_byte(char c) { return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u; }

// "-1,234.5e-6" or "12.5%".
bool is_number_cell(std::string_view cell) {
  if (cell.ends_with('%')) cell.remove_suffix(1);
  if (cell.starts_with('-') || cell.starts_with('+')) cell.remove_prefix(1);
  if (cell.empty() || !(is_digit(cell.front()) || cell.front() == '.')) return false;
  const auto belongs = [](char c) {
    return is_digit(c) || std::string_view(",.eE+-").find(c) != std::string_view::npos;
  };
  return std::all_of(cell.begin(), cell.end(), belongs);
}

constexpr std::size_t kMaxQuotedBytes = 120;
constexpr std::size_t kMaxSizesShown = 16;

struct Column {
  std::size_t width = 0;
  bool align_right = false;
};

// Empty and "-" cells stand for a missing value and suit a column of either kind.
Column measure_column(const std::vector<std::vector<std::string>>& rows, std::size_t index) {
  Column column;
  bool any_number = false, any_text = false;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (index >= rows[r].size()) continue;
    const std::string& cell = rows[r][index];
    column.width = std::max(column.width, static_cast<std::size_t>(count_code_points(cell)));
    if (r == 0 || cell.empty() || cell == "-") continue;
    (is_number_cell(cell) ? any_number : any_text) = true;
  }
  column.align_right = any_number && !any_text;
  return column;
}

// First 32 bits of the fractional parts of the cube roots of the first 64 primes, FIPS 180-4 section 4.2.2.
constexpr std::array<std::uint32_t, 64> kSha256Constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::size_t kSha256BlockBytes = 64;

using Sha256State = std::array<std::uint32_t, 8>;

// One block, FIPS 180-4 section 6.2.2.
void sha256_block(Sha256State& state, const char* block) {
  std::array<std::uint32_t, 64> w;
  for (std::size_t i = 0; i < 16; ++i) {
    w[i] = 0;
    for (std::size_t k = 0; k < 4; ++k) w[i] = w[i] << 8 | static_cast<unsigned char>(block[4 * i + k]);
  }
  for (std::size_t i = 16; i < 64; ++i) {
    const std::uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const std::uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
    const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Constants[i] + w[i];
    const std::uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
    const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const Sha256State add = {a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < state.size(); ++i) state[i] += add[i];
}

}  // namespace

std::string with_commas(std::int64_t value) {
  std::string text = std::to_string(value);
  const std::size_t first_digit = value < 0 ? 1 : 0;
  for (std::size_t end = text.size(); end > first_digit + 3; end -= 3) text.insert(end - 3, ",");
  return text;
}

std::string human_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {" kB", " MB", " GB", " TB", " PB"};
  if (bytes > -1000 && bytes < 1000) return str(bytes, " B");
  double value = static_cast<double>(bytes) / 1000.0;
  std::size_t unit = 0;
  // 999.95 would print as "1000.0", so it belongs to the next unit already.
  for (; std::abs(value) >= 999.95 && unit + 1 < kUnits.size(); ++unit) value /= 1000.0;
  return fixed(value, 1) + kUnits[unit];
}

std::string human_seconds(double seconds) {
  const std::int64_t total = std::llround(seconds);
  const std::int64_t hours = total / 3600, minutes = total / 60 % 60;
  std::ostringstream stream;
  stream << std::setfill('0');
  if (hours > 0) stream << hours << ':' << std::setw(2);
  stream << minutes << ':' << std::setw(2) << total % 60;
  return stream.str();
}

std::string fixed(double value, int decimals) {
  std::ostringstream stream;
  stream << std::fixed << std::setprecision(decimals) << value;
  return stream.str();
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> pieces;
  std::size_t begin = 0;
  for (std::size_t end = text.find(separator); end != std::string_view::npos; end = text.find(separator, begin)) {
    pieces.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  pieces.emplace_back(text.substr(begin));
  return pieces;
}

std::string join(std::span<const std::string> parts, std::string_view separator) {
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) text += separator;
    text += parts[i];
  }
  return text;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";
  const std::size_t first = text.find_first_not_of(kWhiteSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kWhiteSpace) - first + 1);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(shape.size(), kMaxSizesShown); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  if (shape.size() > kMaxSizesShown) text += str(", ... (", shape.size(), " sizes)");
  return text + "]";
}

std::string one_line(std::string_view text) {
  constexpr std::string_view kHexDigits = "0123456789abcdef";
  std::string line;
  bool after_c2 = false;  // U+0080 to U+009F, C2 80 to C2 9F, are control characters too
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    const bool is_c1 = after_c2 && byte >= 0x80 && byte < 0xA0;
    after_c2 = byte == 0xC2;
    if (is_c1) line.pop_back();
    if (c == '\n') {
      line += "\\n";
    } else if (byte < 0x20 || byte == 0x7F || is_c1) {
      line += {'\\', 'x', kHexDigits[byte >> 4], kHexDigits[byte & 0xF]};
    } else {
      line += c;
    }
  }
  return line;
}

std::string quoted_for_message(std::string_view text) {
  if (text.size() <= kMaxQuotedBytes) return "'" + one_line(text) + "'";
  text = text.substr(0, kMaxQuotedBytes);
  while (!is_valid_utf8(text)) text.remove_suffix(1);
  return "'" + one_line(text) + "...'";
}

std::string table_text(const std::vector<std::vector<std::string>>& rows) {
  std::size_t num_columns = 0;
  for (const auto& row : rows) num_columns = std::max(num_columns, row.size());
  std::vector<Column> columns;
  for (std::size_t c = 0; c < num_columns; ++c) columns.push_back(measure_column(rows, c));

  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string padding(columns[c].width - static_cast<std::size_t>(count_code_points(row[c])), ' ');
      if (c > 0) line += "  ";
      line += columns[c].align_right ? padding + row[c] : row[c] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

bool is_valid_utf8(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const unsigned lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // The second byte's bounds exclude overlong forms, surrogates and values above U+10FFFF: Unicode 15, table 3-7.
    const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() - i < length) return false;
    const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    const unsigned second = static_cast<unsigned char>(text[i + 1]);
    if (second < low || second > high) return false;
    for (std::size_t k = 2; k < length; ++k) {
      if (!is_continuation_byte(text[i + k])) return false;
    }
    i += length;
  }
  return true;
}

std::int64_t count_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return !is_continuation_byte(c); });
}

std::string sha256_hex(std::string_view bytes) {
  Sha256State state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const std::size_t num_whole = bytes.size() / kSha256BlockBytes;
  for (std::size_t i = 0; i < num_whole; ++i) sha256_block(state, bytes.data() + i * kSha256BlockBytes);

  // The rest, a 1 bit, zeros, and the length in bits as a big-endian 64-bit number: one block or two.
  std::string tail(bytes.substr(num_whole * kSha256BlockBytes));
  tail += '\x80';
  while (tail.size() % kSha256BlockBytes != kSha256BlockBytes - 8) tail += '\0';
  const std::uint64_t num_bits = static_cast<std::uint64_t>(bytes.size()) * 8;
  for (int shift = 56; shift >= 0; shift -= 8) tail += static_cast<char>(num_bits >> shift & 0xFF);
  for (std::size_t i = 0; i < tail.size(); i += kSha256BlockBytes) sha256_block(state, tail.data() + i);

  std::ostringstream stream;
  stream << std::hex << std::setfill('0');
  for (const std::uint32_t word : state) stream << std::setw(8) << word;
  return stream.str();
}

}  // namespace dagmoe
