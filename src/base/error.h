#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// What the process returns to its caller; documented in the README.
enum class ExitCode : int { kOk = 0, kConfig = 2, kInput = 3, kNumerics = 4, kInternal = 70 };

/// Base of everything this library throws on purpose. what() is one line: `where: what is wrong: found X, expected Y;
/// what to do`.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), exit_code_(code) {}
  ExitCode exit_code() const noexcept { return exit_code_; }

 private:
  ExitCode exit_code_;
};

/// Text that the user wrote (a recipe, a task file, a flag) is wrong. Holds every issue found, not only the first.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message);
  /// what() is the issues, one a line, closed by `summary` when it is not empty.
  ConfigError(std::vector<std::string> issues, const std::string& summary);
  const std::vector<std::string>& issues() const noexcept { return issues_; }

 private:
  std::vector<std::string> issues_;
};

/// A file is missing, damaged, unfit or cannot be written.
class InputError : public Error {
 public:
  explicit InputError(const std::string& message) : Error(ExitCode::kInput, message) {}
};

/// A value that no optimizer step should use (NaN, infinity).
class NumericsError : public Error {
 public:
  explicit NumericsError(const std::string& message) : Error(ExitCode::kNumerics, message) {}
};

/// A state that only a bug of ours can reach.
class InternalError : public Error {
 public:
  explicit InternalError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// The known names nearest to `target` by edit distance, best first, at most three; empty when none is near.
std::vector<std::string> closest_names(std::string_view target, const std::vector<std::string>& known);

/// "; did you mean 'rank'?" or, when nothing is near, "; known: a, b, c". Empty when `known` is.
std::string did_you_mean(std::string_view target, const std::vector<std::string>& known);

}  // namespace dagmoe
