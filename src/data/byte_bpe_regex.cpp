// The PCRE2 route of the pre-tokenizer; see byte_bpe_split.h.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "base/error.h"
#include "base/text.h"
#include "data/byte_bpe_split.h"
#include "data/unicode.h"

namespace dagmoe {

namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

std::string pcre2_message(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

[[noreturn]] void refuse(std::string_view pattern, std::string_view construct, const std::string& where) {
  throw InputError(str(where, ": regular expression ", quoted_for_message(pattern), " uses ",
                       quoted_for_message(construct),
                       ", which is not supported because regex engines disagree about it"));
}

/// The spelling for PCRE2 of `\` + `letter`; empty for one that stays as it is.
std::string_view escape_for_pcre2(char letter, bool in_class) {
  switch (letter) {
    case 's':
      return R"(\p{White_Space})";
    case 'S':
      return R"(\P{White_Space})";
    case 'w':
      return in_class ? R"(\p{L}\p{M}\p{N}\p{Pc})" : R"([\p{L}\p{M}\p{N}\p{Pc}])";
    default:
      return {};
  }
}

}  // namespace

std::string onig_to_pcre2(std::string_view pattern, const std::string& where) {
  std::string result;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view two = pattern.substr(i, 2);
    if (pattern[i] == '\\' && two.size() == 2) {
      // Unicode's word boundary, hexadecimal digits, text segments, ...: another meaning or none in PCRE2.
      if (std::string_view("bBhHRXyYKGzZAkg").find(two[1]) != std::string_view::npos) refuse(pattern, two, where);
      if (two[1] == 'W') refuse(pattern, two, where);
      const std::string_view replacement = escape_for_pcre2(two[1], in_class);
      result += replacement.empty() ? two : replacement;
      ++i;
      if (two[1] == 'p' || two[1] == 'P') {  // with its name in braces
        const std::size_t end = pattern.find('}', i);
        if (end == std::string_view::npos) refuse(pattern, two, where);
        result += pattern.substr(i + 1, end - i);
        i = end;
      }
      continue;
    }
    if (in_class && (two == "&&" || pattern[i] == '[')) refuse(pattern, two, where);
    if (!in_class && two == "}+") refuse(pattern, two, where);  // possessive in PCRE2 only
    if (!in_class && two == "(?") {
      // Options before ':' or ')': i means the same, m and x do not.
      const std::size_t end = pattern.find_first_not_of("imxs-", i + 2);
      const std::string_view options = pattern.substr(i + 2, end == std::string_view::npos ? 0 : end - i - 2);
      if (options.find_first_of("mxs") != std::string_view::npos) refuse(pattern, str("(?", options), where);
    }
    if (pattern[i] == '[') in_class = true;
    if (pattern[i] == ']') in_class = false;
    result += pattern[i];
  }
  return result;
}

struct RegexSplitter::Impl {
  std::unique_ptr<pcre2_code, FreeCode> code;
  std::string where;
};

RegexSplitter::RegexSplitter(std::string_view pattern, const std::string& where) : impl_(std::make_unique<Impl>()) {
  impl_->where = where;
  const std::string translated = onig_to_pcre2(pattern, where);
  const std::unique_ptr<pcre2_compile_context, FreeContext> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Oniguruma's ^ and $ stand at every line.
  const std::uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_MATCH_INVALID_UTF;
  int error = 0;
  PCRE2_SIZE offset = 0;
  impl_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                  &offset, context.get()));
  if (!impl_->code) {
    throw InputError(
        str(where, ": regular expression ", quoted_for_message(pattern), " cannot be read: ", pcre2_message(error)));
  }
  // Without a just-in-time compiler on this machine the interpreter does the same, slower.
  pcre2_jit_compile(impl_->code.get(), PCRE2_JIT_COMPLETE);
}

RegexSplitter::~RegexSplitter() = default;
RegexSplitter::RegexSplitter(RegexSplitter&&) noexcept = default;
RegexSplitter& RegexSplitter::operator=(RegexSplitter&&) noexcept = default;

void RegexSplitter::split(std::string_view text, Pieces& pieces) const {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(impl_->code.get(), nullptr));
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto match = [&](std::size_t from, std::uint32_t options) {
    return pcre2_match(impl_->code.get(), subject, text.size(), from, options, data.get(), nullptr);
  };
  const auto add_piece = [&](std::size_t begin, std::size_t end) {
    if (end > begin) pieces.push_back(text.substr(begin, end - begin));
  };
  std::size_t done = 0;
  for (std::size_t from = 0; from < text.size();) {
    int result = match(from, 0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(from, PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0)
      throw InputError(str(impl_->where, ": regular expression failed on a text: ", pcre2_message(result)));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    add_piece(done, ends[0]);
    add_piece(ends[0], ends[1]);
    done = ends[1];
    // An empty match moves on by one character; it cuts the text all the same.
    from = ends[1] > ends[0] ? ends[1] : ends[1] + (ends[1] < text.size() ? decode_utf8(text, ends[1]).length : 1);
  }
  add_piece(done, text.size());
}

}  // namespace dagmoe
