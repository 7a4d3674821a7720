#include "checkpoint/import_gguf_metadata.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/log.h"
#include "base/text.h"

namespace dagmoe {
namespace {

double shortest_decimal(double value) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), static_cast<float>(value)).ptr;
  double result = value;
  std::from_chars(text.data(), end, result);
  return result;
}

// Keys that say where the weights come from and nothing about how they are used.
constexpr std::array<std::string_view, 2> kHarmlessKeys = {"rope.scaling.finetuned", "tensor_data_layout"};

}  // namespace

std::optional<std::int64_t> GgufMetadata::integer(std::string_view key) const {
  if (const auto* value = get<std::int64_t>(key, "one integer")) return *value;
  return std::nullopt;
}

std::int64_t GgufMetadata::needed_integer(std::string_view key) const {
  const std::optional<std::int64_t> value = integer(key);
  if (!value) fail(key, "is missing");
  return *value;
}

std::optional<double> GgufMetadata::real(std::string_view key) const {
  if (const auto* value = get<double>(key, "one real number")) return shortest_decimal(*value);
  return std::nullopt;
}

double GgufMetadata::needed_real(std::string_view key) const {
  const std::optional<double> value = real(key);
  if (!value) fail(key, "is missing");
  return *value;
}

std::string GgufMetadata::text(std::string_view key) const {
  const auto* value = get<std::string>(key, "text");
  return value == nullptr ? "" : *value;
}

std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
  if (const auto* value = get<bool>(key, "a truth value")) return *value;
  return std::nullopt;
}

void GgufMetadata::fail(std::string_view key, const std::string& message) const {
  throw InputError(str(file_.path().string(), ": metadata key ", quoted_for_message(key), ": ", message));
}

void GgufMetadata::warn_of_keys_not_asked_for() const {
  const std::string prefix = own("");
  for (const auto& [key, value] : file_.metadata()) {
    if (!key.starts_with(prefix) || asked_.contains(key)) continue;
    const std::string_view name = std::string_view(key).substr(prefix.size());
    if (std::find(kHarmlessKeys.begin(), kHarmlessKeys.end(), name) != kHarmlessKeys.end()) continue;
    log_warning(
        str(file_.path().string(), ": metadata key ", quoted_for_message(key), " is not known and has no effect"));
  }
}

}  // namespace dagmoe
