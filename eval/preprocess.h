#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "eval/python_random.h"
#include "eval/python_text.h"

namespace dagmoe {

/// What happens to a record before its fields are used; a task file names it under `preprocess`. Upstream's layout
/// becomes Hugging Face's, which is left as it is; what lm-evaluation-harness computes in Python becomes fields.
enum class Preprocess {
  kNone,
  kArc,            ///< AI2's layout (question.stem, question.choices)
  kBoolq,          ///< a label that is true or false, as such or as text, or Google's `answer`, to 1 or 0
  kCommonsenseQa,  ///< upstream's layout, the same as AI2's
  kCopa,           ///< adds prompt, choices and target
  kGpqa,           ///< adds choice1 to choice4, shuffled, and answer
  kHellaswag,      ///< adds query, choices and gold
  kLambada,        ///< adds context and last_word; a text in two parts (context, continuation) is joined first
  kMmlu,           ///< a row of six columns to question, subject, choices and answer
  kOpenbookqa,     ///< AI2's layout, as JSON or as a table
  kSocialIqa,      ///< LLM-Adapters' instructions to context, question, answerA to answerC and label
  kWikitext,       ///< adds text, the page without its tokenisation
  kWinogrande      ///< adds contexts and ending
};

/// A record for its documents: `doc` is what samples and hashes show, `view` has the fields that only templates see.
struct PreparedRecord {
  Json doc, view;
};

/// Prepares the records of one file in their order, since a shuffle goes on from record to record.
class Preprocessor {
 public:
  /// `dataset_name` is MMLU's subject; the seed is for kGpqa.
  Preprocessor(Preprocess kind, std::string dataset_name, std::uint64_t shuffle_seed)
      : kind_(kind), dataset_name_(std::move(dataset_name)), random_(shuffle_seed) {}
  /// Throws InputError with the reason only: "field 'ctx_a' is missing".
  PreparedRecord operator()(Json record);

 private:
  Preprocess kind_;
  std::string dataset_name_;
  PythonRandom random_;
};

/// lm-evaluation-harness's hellaswag/utils.py: strip, " [title]" to ". ", delete \[.*?\], two spaces to one, once.
std::string hellaswag_clean(std::string_view text);
/// lm-evaluation-harness's wikitext_detokenizer.
std::string wikitext_detokenized(std::string_view page);

}  // namespace dagmoe
