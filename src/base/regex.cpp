#include "base/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <memory>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

std::string compile_error(const std::string& pattern, int error, PCRE2_SIZE offset) {
  std::array<PCRE2_UCHAR, 256> message{};
  pcre2_get_error_message(error, message.data(), message.size());
  return str("regular expression ", quoted_for_message(pattern), " at character ", offset, ": ",
             reinterpret_cast<const char*>(message.data()));
}

}  // namespace

bool regex_matches_all(const std::string& pattern, std::string_view text, const std::string& where) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_code, FreeCode> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &offset, nullptr));
  if (code == nullptr) throw InputError(str(where, ": ", compile_error(pattern, error, offset)));
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(code.get(), nullptr));
  const int result =
      pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, data.get(), nullptr);
  if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
    throw InputError(str(where, ": regular expression ", quoted_for_message(pattern), " takes too long to match"));
  }
  return result >= 0;
}

struct Regex::Compiled {
  std::string pattern;
  std::unique_ptr<pcre2_code, FreeCode> code;
};

Regex::Regex(const std::string& pattern) {
  struct FreeContext {
    void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
  };
  const std::unique_ptr<pcre2_compile_context, FreeContext> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto compiled = std::make_shared<Compiled>();
  compiled->pattern = pattern;
  compiled->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &offset, context.get()));
  if (compiled->code == nullptr) throw InputError(compile_error(pattern, error, offset));
  compiled_ = std::move(compiled);
}

void Regex::for_each_match(std::string_view text, const std::function<void(Groups)>& use) const {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(compiled_->code.get(), nullptr));
  std::uint32_t options = 0;
  for (std::size_t start = 0; start <= text.size();) {
    const int count = pcre2_match(compiled_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                                  options, data.get(), nullptr);
    if (count == PCRE2_ERROR_NOMATCH) return;
    if (count < 0) {
      throw InputError(str("regular expression ", quoted_for_message(compiled_->pattern), " takes too long to match"));
    }
    const PCRE2_SIZE* places = pcre2_get_ovector_pointer(data.get());
    std::vector<std::string_view> groups;
    for (std::uint32_t g = 0; g < pcre2_get_ovector_count(data.get()); ++g) {
      const bool took_part = static_cast<int>(g) < count && places[2 * g] != PCRE2_UNSET;
      const std::size_t end = std::max(places[2 * g], places[2 * g + 1]);  // \K may begin a match behind its end
      groups.push_back(took_part ? text.substr(places[2 * g], end - places[2 * g]) : std::string_view());
    }
    use(groups);
    // Behind an empty match the next one must not be empty at the same place, which is Python's rule too.
    const bool is_empty = places[1] <= places[0];
    start = std::max(places[0], places[1]);
    options = is_empty ? PCRE2_NOTEMPTY_ATSTART : 0;
  }
}

std::vector<std::vector<std::string>> Regex::find_all(std::string_view text) const {
  std::vector<std::vector<std::string>> found;
  for_each_match(text, [&found](Groups groups) {
    const Groups shown = groups.size() == 1 ? groups : groups.subspan(1);
    found.emplace_back(shown.begin(), shown.end());
  });
  return found;
}

std::string Regex::replace(std::string_view text, const std::function<std::string(Groups)>& replacement) const {
  std::string result;
  std::size_t copied = 0;
  for_each_match(text, [&](Groups groups) {
    const auto begin = static_cast<std::size_t>(groups[0].data() - text.data());
    result += text.substr(copied, begin - copied);
    result += replacement(groups);
    copied = begin + groups[0].size();
  });
  result += text.substr(copied);
  return result;
}

}  // namespace dagmoe
