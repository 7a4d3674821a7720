#include "eval/record_problems.h"

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

namespace {
constexpr std::size_t kMaxShown = 20;
}  // namespace

void RecordProblems::add(std::int64_t line, const std::string& reason) {
  if (lines_.size() < kMaxShown) lines_.push_back(str(file_, ":", line, ": ", reason));
  ++count_;
}

void RecordProblems::throw_if_any(const std::string& hint) const {
  if (count_ == 0) return;
  std::vector<std::string> lines = lines_;
  if (count_ > lines.size()) lines.push_back(str("and ", count_ - lines.size(), " more bad records in ", file_));
  if (!hint.empty()) lines.push_back(hint);
  throw InputError(join(lines, "\n"));
}

}  // namespace dagmoe
