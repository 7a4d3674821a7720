#include "base/problems.h"

#include <algorithm>
#include <cstddef>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::size_t kMaxProblemsShown = 20;

}  // namespace

void throw_problems(const std::string& where, const std::vector<std::string>& problems) {
  if (problems.empty()) return;
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < std::min(problems.size(), kMaxProblemsShown); ++i) {
    lines.push_back(where + ": " + problems[i]);
  }
  if (problems.size() > kMaxProblemsShown) {
    lines.push_back(str(where, ": and ", problems.size() - kMaxProblemsShown, " more problems"));
  }
  throw InputError(join(lines, "\n"));
}

}  // namespace dagmoe
