#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace dagmoe {

/// Inclusive bounds; NaN and infinity are outside every range.
template <class T>
struct Range {
  T min = std::numeric_limits<T>::lowest();
  T max = std::numeric_limits<T>::max();
};

template <class Enum>
using Names = std::initializer_list<std::pair<std::string_view, Enum>>;

struct YamlNode;  // a parsed YAML value with its place; base/yaml.h

/// Reads one mapping of a YAML file into a struct. A key that nobody asked for is an issue, with the nearest known
/// name, and so is a key given twice, a wrong type, a value out of range and a required key that is missing.
/// ConfigWriter has the same member names and writes every field: one `bind(Fields&, Struct&)` template serves both, so
/// they cannot drift.
///
///   template <class Fields> void bind(Fields& fields, LoraConfig& config) {
///     fields.optional("rank", config.rank, {.min = 1, .max = 4096});
///     fields.required("targets", config.targets);
///   }
class ConfigReader {
 public:
  /// `overrides` are "a.b.c=value" texts, split at the first '='; the value is read as YAML; a path may go through a
  /// list by index ("data.train.0.path=x"). Their place in messages is "command line". A missing file throws InputError
  /// at once, broken YAML ConfigError.
  static ConfigReader open(const std::filesystem::path& path, std::span<const std::string> overrides = {});
  /// The same from text; `name` stands where the path would in messages.
  static ConfigReader parse(std::string_view text, const std::string& name,
                            std::span<const std::string> overrides = {});
  ConfigReader(ConfigReader&&) noexcept;
  ConfigReader& operator=(ConfigReader&&) noexcept;
  ~ConfigReader();

  void required(std::string_view key, std::int64_t& value, Range<std::int64_t> range = {});
  void required(std::string_view key, double& value, Range<double> range = {});
  void required(std::string_view key, bool& value);
  void required(std::string_view key, std::string& value);
  void required(std::string_view key, std::vector<std::string>& value);
  void optional(std::string_view key, std::int64_t& value, Range<std::int64_t> range = {});
  void optional(std::string_view key, double& value, Range<double> range = {});
  void optional(std::string_view key, bool& value);
  void optional(std::string_view key, std::string& value);
  void optional(std::string_view key, std::vector<std::string>& value);
  void optional(std::string_view key, std::vector<double>& value);
  void optional(std::string_view key, std::vector<std::int64_t>& value);
  /// A key that may be absent altogether; `null` reads as absent.
  template <class T>
  void optional(std::string_view key, std::optional<T>& value, Range<T> range = {}) {
    ask(key);
    if (!has(key)) return;
    T read = value.value_or(T{});
    if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
      optional(key, read, range);
    } else {
      optional(key, read);
    }
    value = read;
  }
  /// One of a closed set of words.
  template <class Enum>
  void choice(std::string_view key, Enum& value, Names<Enum> names) {
    std::vector<std::string> known;
    for (const auto& [name, unused] : names) known.emplace_back(name);
    std::size_t index = 0;
    if (!read_choice(key, known, index)) return;
    value = (names.begin() + index)->second;
  }
  /// A nested mapping: calls bind(child, value), also when it is absent, so that its required keys are asked for. The
  /// overloads take one that may be absent altogether and a list of mappings.
  template <class T>
  void section(std::string_view key, T& value) {
    std::vector<ConfigReader> children = open_section(key, Section::kOne);
    for (auto& child : children) bind(child, value), child.close();
  }
  template <class T>
  void section(std::string_view key, std::optional<T>& value) {
    std::vector<ConfigReader> children = open_section(key, Section::kOptional);
    for (auto& child : children) bind(child, value.emplace()), child.close();
  }
  template <class T>
  void section(std::string_view key, std::vector<T>& value) {
    section_or_word(key, value, "");
  }
  /// A list whose items may be written short: a lone word `x` stands for {word_key: x}.
  template <class T>
  void section_or_word(std::string_view key, std::vector<T>& value, std::string_view word_key) {
    std::vector<ConfigReader> children = open_section(key, Section::kList, word_key);
    if (has(key)) value.clear();
    for (auto& child : children) bind(child, value.emplace_back()), child.close();
  }

  /// True when the key is there and not null. Does not count as asking for it.
  bool has(std::string_view key) const;
  /// "file:line:column" of a key's value, of the mapping itself when the key is absent. Here and in has() and issue()
  /// the key may be a dotted path from this mapping ("schedule.warmup_steps", "trainable.0").
  std::string place(std::string_view key) const;
  /// Adds a problem; place and dotted path are put in front: "a.yaml:3:9: lora.rank: <message>".
  void issue(std::string_view key, const std::string& message);
  /// Every issue so far, of this mapping and the nested ones.
  const std::vector<std::string>& issues() const;
  /// Adds unknown keys, then throws ConfigError with every issue (in the order of the file) and a summary line
  /// "3 problems in recipes/a.yaml; nothing was run".
  void finish();

 private:
  enum class Section { kOne, kOptional, kList };
  enum class Presence { kRequired, kOptional };
  struct Shared;
  ConfigReader(std::shared_ptr<Shared> shared, const YamlNode* node, std::string path);
  const YamlNode* ask(std::string_view key);  // remembers that the key is known
  template <class T, class... Limits>
  void read(std::string_view key, Presence presence, T& value, const Limits&... limits);
  std::vector<ConfigReader> open_section(std::string_view key, Section kind, std::string_view word_key = "");
  bool read_choice(std::string_view key, const std::vector<std::string>& known, std::size_t& index);
  void close();  // reports keys nobody asked for

  std::shared_ptr<Shared> shared_;
  const YamlNode* node_ = nullptr;
  std::string path_;  // dotted, empty at the top
  std::vector<std::string> asked_;
};

/// Writes what ConfigReader reads, as block YAML with every field, so that reading it back gives an equal struct.
class ConfigWriter {
 public:
  ConfigWriter();
  ConfigWriter(ConfigWriter&&) noexcept;
  ~ConfigWriter();
  template <class T>
  void required(std::string_view key, const T& value, Range<std::type_identity_t<T>> = {}) {
    write(key, value);
  }
  template <class T>
  void optional(std::string_view key, const T& value, Range<std::type_identity_t<T>> = {}) {
    write(key, value);
  }
  template <class T>
  void optional(std::string_view key, const std::optional<T>& value, Range<std::type_identity_t<T>> = {}) {
    if (value) write(key, *value);
  }
  template <class Enum>
  void choice(std::string_view key, const Enum& value, Names<Enum> names) {
    for (const auto& [name, candidate] : names) {
      if (candidate == value) return write(key, std::string(name));
    }
  }
  template <class T>
  void section(std::string_view key, T& value) {
    begin_section(key), bind(*this, value), end_section();
  }
  template <class T>
  void section(std::string_view key, std::optional<T>& value) {
    if (value) begin_section(key), bind(*this, *value), end_section();
  }
  template <class T>
  void section(std::string_view key, std::vector<T>& value) {
    begin_list(key);
    for (auto& item : value) begin_item(), bind(*this, item), end_section();
    end_list();
  }
  template <class T>
  void section_or_word(std::string_view key, std::vector<T>& value, std::string_view) {
    section(key, value);
  }
  bool has(std::string_view) const { return true; }
  std::string place(std::string_view) const { return ""; }
  void issue(std::string_view, const std::string&) {}
  std::string text() const;

 private:
  void write(std::string_view key, std::int64_t value);
  void write(std::string_view key, double value);
  void write(std::string_view key, bool value);
  void write(std::string_view key, const std::string& value);
  void write(std::string_view key, const std::vector<std::string>& value);
  void write(std::string_view key, const std::vector<double>& value);
  void write(std::string_view key, const std::vector<std::int64_t>& value);
  void begin_section(std::string_view key);
  void end_section();
  void begin_list(std::string_view key);
  void begin_item();
  void end_list();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dagmoe
