#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/gguf.h"

namespace dagmoe {

/// The metadata of a file by type; a key of another type is an InputError. Remembers which keys were asked for, so that
/// the others can be named. The file must outlive it.
class GgufMetadata {
 public:
  explicit GgufMetadata(const GgufFile& file) : file_(file) {}

  const GgufFile& file() const { return file_; }
  /// "block_count" -> "llama.block_count": most keys begin with the architecture.
  std::string own(std::string_view name) const { return str(text("general.architecture"), ".", name); }

  std::optional<std::int64_t> integer(std::string_view key) const;
  std::int64_t needed_integer(std::string_view key) const;
  /// Of a float the shortest decimal that is the same float: 9.99999975e-06 was 1e-05 where it came from.
  std::optional<double> real(std::string_view key) const;
  double needed_real(std::string_view key) const;
  std::string text(std::string_view key) const;  ///< "" when absent
  std::optional<bool> boolean(std::string_view key) const;
  /// Null when absent.
  template <class T>
  const std::vector<T>* array(std::string_view key) const {
    const auto* value = get<GgufArray>(key, "a list");
    if (value == nullptr) return nullptr;
    if (const auto* items = std::get_if<std::vector<T>>(value)) return items;
    fail(key, "found a list of another type than expected");
  }

  /// Throws an InputError that names the file and the key.
  [[noreturn]] void fail(std::string_view key, const std::string& message) const;
  /// One warning for every key of the architecture that nobody asked for.
  void warn_of_keys_not_asked_for() const;

 private:
  template <class T>
  const T* get(std::string_view key, std::string_view expected) const {
    asked_.emplace(key);
    const GgufValue* value = file_.find(key);
    if (value == nullptr) return nullptr;
    if (const T* typed = std::get_if<T>(value)) return typed;
    fail(key, str("found another type, expected ", expected));
  }

  const GgufFile& file_;
  mutable std::set<std::string, std::less<>> asked_;
};

}  // namespace dagmoe
