#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace dagmoe {

/// Text with fields of a document in it: "Question: {{question}}\nAnswer:". A field is a dotted path: a name goes into
/// an object, a number into a list, and `*` through every item of a list ("choices.*.text"). Behind it may stand one of
/// Python's strip, lstrip and rstrip: "{{question | strip}}". Substitution and nothing else; smarter things are C++
/// functions that a task names under `preprocess`. lm-evaluation-harness's Jinja is not read.
class TextTemplate {
 public:
  TextTemplate() = default;
  /// Throws ConfigError with the reason only: "'{{' is never closed".
  explicit TextTemplate(std::string_view text);

  /// The text for one document. Throws InputError with the reason only: "field 'goal' is missing".
  std::string render(const Json& document) const;
  /// As render, but a template that is one field and nothing else gives all texts of a list.
  std::vector<std::string> render_list(const Json& document) const;
  bool empty() const { return pieces_.empty(); }
  bool has_fields() const;

 private:
  enum class Trim { kNone, kBoth, kLeft, kRight };
  struct Piece {
    std::string text;  // literal text, or the path of a field
    bool is_field = false;
    Trim trim = Trim::kNone;
  };
  static std::string trimmed(std::string text, Trim trim);
  std::vector<Piece> pieces_;
};

}  // namespace dagmoe
