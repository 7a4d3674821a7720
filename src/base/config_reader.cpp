#include "base/config_reader.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <deque>
#include <system_error>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "base/yaml.h"

namespace dagmoe {
namespace {

using Kind = YamlNode::Kind;

// ---- Values: each parse function fills `value` or returns what is wrong

/// `key` is what comes behind the field's path: "2" for the third item of a list.
struct Problem {
  std::string key;
  YamlPlace place;
  std::string message;
};

std::string number_text(std::int64_t value) { return std::to_string(value); }

// The shortest text that reads back to the same double.
std::string number_text(double value) {
  std::array<char, 32> buffer;
  return std::string(buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr);
}

std::string describe(const YamlNode& node) {
  switch (node.kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kScalar:
      return quoted_for_message(node.text);
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a mapping";
  }
  throw InternalError("YAML value of an unknown kind");
}

std::vector<Problem> wrong_type(const YamlNode& node, std::string_view expected, std::string_view hint = "") {
  return {{"", node.place, str("found ", describe(node), ", expected ", expected, hint)}};
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::size_t count_digits(std::string_view text) {
  return static_cast<std::size_t>(std::find_if_not(text.begin(), text.end(), is_digit) - text.begin());
}

std::string_view without_sign(std::string_view text) {
  return text.starts_with('+') || text.starts_with('-') ? text.substr(1) : text;
}

bool is_integer_text(std::string_view text) {
  text = without_sign(text);
  return !text.empty() && count_digits(text) == text.size();
}

// Digits with an optional fraction and exponent: no "inf", no "nan", no hexadecimal.
bool is_double_text(std::string_view text) {
  text = without_sign(text);
  const std::size_t num_whole = count_digits(text);
  text.remove_prefix(num_whole);
  std::size_t num_fraction = 0;
  if (text.starts_with('.')) {
    num_fraction = count_digits(text.substr(1));
    text.remove_prefix(1 + num_fraction);
  }
  if (num_whole + num_fraction == 0) return false;
  if (text.empty()) return true;
  return (text.front() == 'e' || text.front() == 'E') && is_integer_text(text.substr(1));
}

constexpr std::string_view kRemoveQuotes = "; remove the quotes";

template <class T>
std::vector<Problem> parse_number(const YamlNode& node, T& value, const Range<T>& range) {
  // from_chars takes a minus sign but no plus.
  const std::string_view digits = node.text.starts_with('+') ? std::string_view(node.text).substr(1) : node.text;
  T parsed{};
  if (std::from_chars(digits.data(), digits.data() + digits.size(), parsed).ec != std::errc{}) {
    return {{"", node.place, "found " + describe(node) + ", which does not fit in 64 bits"}};
  }
  if (range.min <= parsed && parsed <= range.max) {
    value = parsed;
    return {};
  }
  const bool has_min = range.min != Range<T>{}.min, has_max = range.max != Range<T>{}.max;
  const std::string min = number_text(range.min), max = number_text(range.max);
  const std::string expected = has_min && has_max ? "between " + min + " and " + max
                               : has_min          ? "at least " + min
                                                  : "at most " + max;
  return {{"", node.place, str("found ", node.text, ", expected ", expected)}};
}

std::vector<Problem> parse_value(const YamlNode& node, std::int64_t& value, const Range<std::int64_t>& range = {}) {
  if (!is_integer_text(node.text)) return wrong_type(node, "an integer");
  if (node.quoted) return wrong_type(node, "an integer", kRemoveQuotes);
  return parse_number(node, value, range);
}

std::vector<Problem> parse_value(const YamlNode& node, double& value, const Range<double>& range = {}) {
  if (!is_double_text(node.text)) return wrong_type(node, "a number");
  if (node.quoted) return wrong_type(node, "a number", kRemoveQuotes);
  return parse_number(node, value, range);
}

std::vector<Problem> parse_value(const YamlNode& node, bool& value) {
  if (node.text != "true" && node.text != "false") return wrong_type(node, "true or false");
  if (node.quoted) return wrong_type(node, "true or false", kRemoveQuotes);
  value = node.text == "true";
  return {};
}

std::vector<Problem> parse_value(const YamlNode& node, std::string& value) {
  if (node.kind != Kind::kScalar) return wrong_type(node, "text");
  value = node.text;
  return {};
}

template <class T>
std::vector<Problem> parse_items(const YamlNode& node, std::vector<T>& value) {
  std::vector<T> parsed(node.items.size());
  std::vector<Problem> problems;
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    for (auto& problem : parse_value(node.items[i], parsed[i])) {
      problem.key = std::to_string(i);
      problems.push_back(std::move(problem));
    }
  }
  if (problems.empty()) value = std::move(parsed);
  return problems;
}

// A single text stands for a list of one: "trainable: full".
std::vector<Problem> parse_value(const YamlNode& node, std::vector<std::string>& value) {
  if (node.kind == Kind::kList) return parse_items(node, value);
  if (node.kind != Kind::kScalar) return wrong_type(node, "a list of texts");
  value = {node.text};
  return {};
}

std::vector<Problem> parse_value(const YamlNode& node, std::vector<double>& value) {
  if (node.kind != Kind::kList) return wrong_type(node, "a list of numbers");
  return parse_items(node, value);
}

std::vector<Problem> parse_value(const YamlNode& node, std::vector<std::int64_t>& value) {
  if (node.kind != Kind::kList) return wrong_type(node, "a list of integers");
  return parse_items(node, value);
}

// ---- Dotted paths

std::string join_path(const std::string& path, std::string_view key) {
  if (path.empty() || key.empty()) return path + std::string(key);
  return str(path, ".", key);
}

struct PathParts {
  std::string_view first, rest;
};

PathParts split_path(std::string_view path) {
  const std::size_t dot = path.find('.');
  if (dot == std::string_view::npos) return {path, {}};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

// The list's item that `key` names by its index.
const YamlNode* find_item(const YamlNode& list, std::string_view key) {
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
  const bool is_index = error == std::errc{} && end == key.data() + key.size();
  return is_index && index < list.items.size() ? &list.items[index] : nullptr;
}

/// The deepest value on a path that exists, and whether that is the whole path.
struct Located {
  const YamlNode* node;
  bool is_complete;
};

Located locate(const YamlNode& top, std::string_view path) {
  const YamlNode* node = &top;
  while (!path.empty()) {
    const auto [first, rest] = split_path(path);
    const YamlNode* const next = node->kind == Kind::kList ? find_item(*node, first) : node->find(first);
    if (next == nullptr) return {node, false};
    node = next;
    path = rest;
  }
  return {node, true};
}

// ---- Overrides

// Values from the command line have no line of their own.
void forget_places(YamlNode& node) {
  node.place = {};
  for (auto& item : node.items) forget_places(item);
  for (auto& member : node.members) member.place = {}, forget_places(member.value);
}

YamlNode& find_or_add(YamlNode& map, std::string_view key) {
  for (auto& member : map.members) {
    if (member.key == key) return member.value;
  }
  return map.members.emplace_back(YamlMember{std::string(key), {}, {}}).value;
}

// Puts `value` at `path` below `top`, making the mappings on the way; returns what stands in the way, or nothing.
std::string set_at_path(YamlNode& top, const std::string& path, YamlNode value) {
  const std::vector<std::string> keys = split(path, '.');
  if (std::find(keys.begin(), keys.end(), "") != keys.end()) return "the path has an empty part";
  YamlNode* node = &top;
  std::string walked;
  for (const auto& key : keys) {
    if (node->kind == Kind::kScalar) return str("'", walked, "' is no mapping");
    if (node->kind == Kind::kList) {
      const YamlNode* const item = find_item(*node, key);
      if (item == nullptr) {
        return str("'", walked, "' is a list of ", node->items.size(), ", counted from 0; found ",
                   quoted_for_message(key), ", expected an index");
      }
      node = &node->items[static_cast<std::size_t>(item - node->items.data())];
    } else {
      node->kind = Kind::kMap;
      node = &find_or_add(*node, key);
    }
    walked = join_path(walked, key);
  }
  *node = std::move(value);
  return {};
}

// Applies "a.b=value" and returns the issues.
std::vector<YamlIssue> apply_override(YamlNode& root, const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) return {{{}, "", "found " + quoted_for_message(text) + ", expected key=value"}};
  const std::string path = text.substr(0, equals);
  YamlDocument document = parse_yaml(std::string_view(text).substr(equals + 1));
  for (auto& issue : document.issues) {
    issue.place = {};
    issue.path = join_path(path, issue.path);
  }
  if (document.is_broken) return document.issues;
  forget_places(document.root);
  const std::string obstacle = set_at_path(root, path, std::move(document.root));
  if (!obstacle.empty()) document.issues.push_back({{}, path, obstacle});
  return document.issues;
}

}  // namespace

// ---- ConfigReader

struct ConfigReader::Shared {
  std::string name;
  YamlNode root;
  std::deque<YamlNode> made_nodes;      // not in the file; a deque, so that pointers to its elements stay good
  std::vector<YamlPlace> issue_places;  // one per issue
  std::vector<std::string> issues;      // in the order of the file, the command line's last

  std::string place_text(YamlPlace place) const {
    return place.line == 0 ? "command line" : str(name, ":", place.line, ":", place.column);
  }

  void add_issue(YamlPlace place, const std::string& path, const std::string& message) {
    const auto comes_before = [](const YamlPlace& a, const YamlPlace& b) {
      const auto line = [](const YamlPlace& p) { return p.line == 0 ? std::numeric_limits<int>::max() : p.line; };
      return std::pair(line(a), a.column) < std::pair(line(b), b.column);
    };
    const auto position = std::upper_bound(issue_places.begin(), issue_places.end(), place, comes_before);
    const std::string path_text = path.empty() ? "" : path + ": ";
    issues.insert(issues.begin() + (position - issue_places.begin()),
                  place_text(place) + ": " + one_line(path_text + message));
    issue_places.insert(position, place);
  }

  void throw_issues() const {
    const char* const problems = issues.size() == 1 ? " problem in " : " problems in ";
    throw ConfigError(issues, str(issues.size(), problems, name, "; nothing was run"));
  }
};

ConfigReader::ConfigReader(std::shared_ptr<Shared> shared, const YamlNode* node, std::string path)
    : shared_(std::move(shared)), node_(node), path_(std::move(path)) {}
ConfigReader::ConfigReader(ConfigReader&&) noexcept = default;
ConfigReader& ConfigReader::operator=(ConfigReader&&) noexcept = default;
ConfigReader::~ConfigReader() = default;

ConfigReader ConfigReader::open(const std::filesystem::path& path, std::span<const std::string> overrides) {
  return parse(MappedFile::open(path)->text(), path.string(), overrides);
}

ConfigReader ConfigReader::parse(std::string_view text, const std::string& name,
                                 std::span<const std::string> overrides) {
  const auto shared = std::make_shared<Shared>();
  shared->name = name;
  YamlDocument document = parse_yaml(text);
  shared->root = std::move(document.root);
  for (const auto& issue : document.issues) shared->add_issue(issue.place, issue.path, issue.message);
  const Kind kind = shared->root.kind;
  if (!document.is_broken && kind != Kind::kMap && kind != Kind::kNull) {
    shared->add_issue(shared->root.place, "", str("found ", describe(shared->root), ", expected 'key: value' lines"));
    document.is_broken = true;
  }
  if (document.is_broken) shared->throw_issues();
  for (const auto& override_text : overrides) {
    for (const auto& issue : apply_override(shared->root, override_text)) {
      shared->add_issue(issue.place, issue.path, issue.message);
    }
  }
  return ConfigReader(shared, &shared->root, "");
}

const YamlNode* ConfigReader::ask(std::string_view key) {
  if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) asked_.emplace_back(key);
  return node_->find(key);
}

template <class T, class... Limits>
void ConfigReader::read(std::string_view key, Presence presence, T& value, const Limits&... limits) {
  const YamlNode* const found = ask(key);
  if (found == nullptr) {
    if (presence == Presence::kRequired) issue(key, "required key is missing");
    return;
  }
  for (const auto& problem : parse_value(*found, value, limits...)) {
    shared_->add_issue(problem.place, join_path(join_path(path_, key), problem.key), problem.message);
  }
}

void ConfigReader::required(std::string_view key, std::int64_t& value, Range<std::int64_t> range) {
  read(key, Presence::kRequired, value, range);
}
void ConfigReader::required(std::string_view key, double& value, Range<double> range) {
  read(key, Presence::kRequired, value, range);
}
void ConfigReader::required(std::string_view key, bool& value) { read(key, Presence::kRequired, value); }
void ConfigReader::required(std::string_view key, std::string& value) { read(key, Presence::kRequired, value); }
void ConfigReader::required(std::string_view key, std::vector<std::string>& value) {
  read(key, Presence::kRequired, value);
}
void ConfigReader::optional(std::string_view key, std::int64_t& value, Range<std::int64_t> range) {
  read(key, Presence::kOptional, value, range);
}
void ConfigReader::optional(std::string_view key, double& value, Range<double> range) {
  read(key, Presence::kOptional, value, range);
}
void ConfigReader::optional(std::string_view key, bool& value) { read(key, Presence::kOptional, value); }
void ConfigReader::optional(std::string_view key, std::string& value) { read(key, Presence::kOptional, value); }
void ConfigReader::optional(std::string_view key, std::vector<std::string>& value) {
  read(key, Presence::kOptional, value);
}
void ConfigReader::optional(std::string_view key, std::vector<double>& value) { read(key, Presence::kOptional, value); }
void ConfigReader::optional(std::string_view key, std::vector<std::int64_t>& value) {
  read(key, Presence::kOptional, value);
}

bool ConfigReader::has(std::string_view key) const {
  const Located located = locate(*node_, key);
  return located.is_complete && located.node->kind != Kind::kNull;
}

std::string ConfigReader::place(std::string_view key) const {
  return shared_->place_text(locate(*node_, key).node->place);
}

void ConfigReader::issue(std::string_view key, const std::string& message) {
  shared_->add_issue(locate(*node_, key).node->place, join_path(path_, key), message);
}

const std::vector<std::string>& ConfigReader::issues() const { return shared_->issues; }

void ConfigReader::finish() {
  close();
  if (!shared_->issues.empty()) shared_->throw_issues();
}

std::vector<ConfigReader> ConfigReader::open_section(std::string_view key, Section kind, std::string_view word_key) {
  const YamlNode* found = ask(key);
  const std::string path = join_path(path_, key);
  std::vector<ConfigReader> children;
  if (!has(key)) {
    if (kind != Section::kOne) return children;
    YamlNode& absent = shared_->made_nodes.emplace_back();
    absent.kind = Kind::kMap;
    absent.place = locate(*node_, key).node->place;
    children.push_back(ConfigReader(shared_, &absent, path));
    return children;
  }
  const bool is_list = kind == Section::kList;
  if (is_list && !word_key.empty() && found->kind == Kind::kScalar) {  // one word is a list of one
    YamlNode& list = shared_->made_nodes.emplace_back();
    list.kind = Kind::kList;
    list.place = found->place;
    list.items.push_back(*found);
    found = &list;
  }
  if (found->kind != (is_list ? Kind::kList : Kind::kMap)) {
    const char* list = word_key.empty() ? "a list of mappings" : "a list of words or mappings";
    issue(key, wrong_type(*found, is_list ? list : "a mapping").front().message);
    return children;
  }
  if (!is_list) {
    children.push_back(ConfigReader(shared_, found, path));
    return children;
  }
  for (std::size_t i = 0; i < found->items.size(); ++i) {
    const YamlNode& item = found->items[i];
    const std::string item_path = join_path(path, std::to_string(i));
    if (item.kind == Kind::kMap) {
      children.push_back(ConfigReader(shared_, &item, item_path));
    } else if (item.kind == Kind::kScalar && !word_key.empty()) {
      YamlNode& mapping = shared_->made_nodes.emplace_back();
      mapping.kind = Kind::kMap;
      mapping.place = item.place;
      mapping.members.push_back({std::string(word_key), item.place, item});
      children.push_back(ConfigReader(shared_, &mapping, item_path));
    } else {
      shared_->add_issue(item.place, item_path, wrong_type(item, "a mapping").front().message);
    }
  }
  return children;
}

bool ConfigReader::read_choice(std::string_view key, const std::vector<std::string>& known, std::size_t& index) {
  const YamlNode* const found = ask(key);
  if (found == nullptr) return false;
  const auto name = std::find(known.begin(), known.end(), found->text);
  if (found->kind == Kind::kScalar && name != known.end()) {
    index = static_cast<std::size_t>(name - known.begin());
    return true;
  }
  const auto near = closest_names(found->text, known);
  const std::string hint = near.empty() ? "" : "; did you mean '" + near.front() + "'?";
  issue(key, str("found ", describe(*found), ", expected one of ", join(known, ", "), hint));
  return false;
}

void ConfigReader::close() {
  for (const auto& member : node_->members) {
    if (std::find(asked_.begin(), asked_.end(), member.key) != asked_.end()) continue;
    shared_->add_issue(member.place, join_path(path_, member.key), "unknown key" + did_you_mean(member.key, asked_));
  }
}

// ---- ConfigWriter

namespace {

std::string lower_case(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

// True when neither our reader nor another program could take the bare text for anything but this text.
bool is_safe_unquoted(const std::string& text) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto is_plain = [&](char c) {
    return is_letter(c) || is_digit(c) || std::string_view("_./- ").find(c) != std::string_view::npos;
  };
  if (text.empty() || !std::all_of(text.begin(), text.end(), is_plain)) return false;
  if (text.front() == '-' || text.front() == ' ' || text.back() == ' ') return false;
  // Numbers, dates and versions: digits with signs, dots, an exponent or a radix letter. A slash makes it a path.
  const bool starts_like_number = is_digit(text.front()) || text.front() == '.';
  if (starts_like_number && text.find_first_not_of("0123456789abcdefABCDEFxXoOinIN_.-") == std::string::npos)
    return false;
  constexpr std::array<std::string_view, 9> kWords = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"};
  return std::find(kWords.begin(), kWords.end(), lower_case(text)) == kWords.end();
}

std::string scalar_text(const std::string& text) {
  if (is_safe_unquoted(text)) return text;
  constexpr std::string_view kHexDigits = "0123456789ABCDEF";
  std::string quoted = "\"";
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (byte < 0x20 || byte == 0x7F) {
      quoted += {'\\', 'x', kHexDigits[byte >> 4], kHexDigits[byte & 0xF]};
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

// With a point, so that programs which tell integers from floats by it agree with us: "1.0", "2.0e-05".
std::string scalar_text(double value) {
  if (!std::isfinite(value)) throw InternalError("a config value is not finite");
  std::string text = number_text(value);
  if (text.find('.') == std::string::npos) text.insert(std::min(text.find('e'), text.size()), ".0");
  return text;
}

std::string scalar_text(std::int64_t value) { return number_text(value); }

template <class T>
std::string list_text(const std::vector<T>& values) {
  std::vector<std::string> items;
  for (const auto& value : values) items.push_back(scalar_text(value));
  return "[" + join(items, ", ") + "]";
}

}  // namespace

struct ConfigWriter::Impl {
  std::string text;
  std::size_t depth = 0;     // of the next line, two spaces each
  bool starts_item = false;  // the next line is the first of a list's item
  std::vector<std::size_t>
      empty;  // per open section and list, how long `text` is while nothing has been written into it

  void line(std::string_view key, std::string_view value) {
    std::string indentation(2 * depth, ' ');
    if (starts_item) indentation.replace(indentation.size() - 2, 2, "- ");
    starts_item = false;
    text += str(indentation, key, ":", value.empty() ? "" : " ", value, "\n");
  }

  void open(std::size_t added_depth) {
    depth += added_depth;
    empty.push_back(text.size());
  }

  // `nothing` is what stands for a section or list without content.
  void close(std::size_t removed_depth, std::string_view nothing) {
    if (empty.back() == text.size()) {
      if (starts_item) {
        text += str(std::string(2 * depth - 2, ' '), "- ", nothing, "\n");
      } else {
        text.insert(text.size() - 1, str(" ", nothing));
      }
    }
    starts_item = false;
    empty.pop_back();
    depth -= removed_depth;
  }
};

ConfigWriter::ConfigWriter() : impl_(std::make_unique<Impl>()) {}
ConfigWriter::ConfigWriter(ConfigWriter&&) noexcept = default;
ConfigWriter::~ConfigWriter() = default;

std::string ConfigWriter::text() const { return impl_->text; }

void ConfigWriter::write(std::string_view key, std::int64_t value) { impl_->line(key, number_text(value)); }
void ConfigWriter::write(std::string_view key, double value) { impl_->line(key, scalar_text(value)); }
void ConfigWriter::write(std::string_view key, bool value) { impl_->line(key, value ? "true" : "false"); }
void ConfigWriter::write(std::string_view key, const std::string& value) { impl_->line(key, scalar_text(value)); }
void ConfigWriter::write(std::string_view key, const std::vector<std::string>& value) {
  impl_->line(key, list_text(value));
}
void ConfigWriter::write(std::string_view key, const std::vector<double>& value) { impl_->line(key, list_text(value)); }
void ConfigWriter::write(std::string_view key, const std::vector<std::int64_t>& value) {
  impl_->line(key, list_text(value));
}

void ConfigWriter::begin_section(std::string_view key) {
  impl_->line(key, "");
  impl_->open(1);
}
void ConfigWriter::end_section() { impl_->close(1, "{}"); }
void ConfigWriter::begin_list(std::string_view key) {
  impl_->line(key, "");
  impl_->open(1);
}
void ConfigWriter::begin_item() {
  impl_->open(1);
  impl_->starts_item = true;
}
void ConfigWriter::end_list() { impl_->close(1, "[]"); }

}  // namespace dagmoe
