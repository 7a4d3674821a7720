#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace dagmoe {

/// What happens to a record before its fields are used; a task file names it under `preprocess`.
enum class Preprocess {
  kNone,
  kArc,        ///< AI2's layout (question.stem, question.choices) to Hugging Face's, which is left as it is
  kHellaswag,  ///< adds query, choices and gold as lm-evaluation-harness's process_docs does
};

/// Throws InputError with the reason only: "field 'ctx_a' is missing".
Json preprocess_record(Preprocess kind, Json record);

/// lm-evaluation-harness's hellaswag/utils.py: strip, " [title]" to ". ", delete \[.*?\], two spaces to one, once.
std::string hellaswag_clean(std::string_view text);

// Python's str methods, on valid UTF-8.
/// str.isspace of one character: 29 code points, four of which (U+001C-001F) are not \s elsewhere.
bool is_python_space(char32_t code_point);
std::string_view python_strip(std::string_view text);
/// Bytes of white space at the end.
std::size_t trailing_space_bytes(std::string_view text);
/// str.capitalize, for letters of ASCII, Latin-1 (U+00DF becomes "Ss"), Latin Extended-A, Greek and Cyrillic; others
/// stay as they are.
std::string python_capitalize(std::string_view text);

}  // namespace dagmoe
