#include "base/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

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

}  // namespace

bool regex_matches_all(const std::string& pattern, std::string_view text, const std::string& where) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_code, FreeCode> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &offset, nullptr));
  if (code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    throw InputError(str(where, ": regular expression ", quoted_for_message(pattern), " at character ", offset, ": ",
                         reinterpret_cast<const char*>(message.data())));
  }
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(code.get(), nullptr));
  const int result =
      pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, data.get(), nullptr);
  if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
    throw InputError(str(where, ": regular expression ", quoted_for_message(pattern), " takes too long to match"));
  }
  return result >= 0;
}

}  // namespace dagmoe
