#include "base/json.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// Deeper documents are damage or an attack, and writing one back would recurse as deep.
constexpr std::size_t kMaxDepth = 512;

// "config.json:3:14", lines and columns (in bytes) counted from 1.
std::string place_of(std::string_view text, std::size_t offset, const std::string& where) {
  const std::string_view before = text.substr(0, offset);
  const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0: the first line
  return str(where, ":", std::count(before.begin(), before.end(), '\n') + 1, ":", before.size() - line_start + 1);
}

// The reason within nlohmann's text: "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error
// while parsing value - <reason>; last read: '<text>'; expected ...", or "[json.exception.out_of_range.406] <reason>".
// What was read last starts anywhere and may end within a character, so it stays out.
std::string reason_of(const std::string& what) {
  constexpr std::string_view kOverflow = "number overflow parsing '";
  if (const std::size_t overflow = what.find(kOverflow); overflow != std::string::npos) {
    const std::size_t number = overflow + kOverflow.size();
    return "number overflow parsing " +
           quoted_for_message(std::string_view(what).substr(number, what.size() - number - 1));
  }
  const std::size_t dash = what.find(" - ");
  std::string reason = what.substr(dash == std::string::npos ? what.find("] ") + 2 : dash + 3);
  const std::size_t last_read = reason.find("; last read: ");
  if (last_read == std::string::npos) return reason;
  const std::size_t expected = reason.rfind("; expected ");
  const bool is_behind = expected != std::string::npos && expected > last_read;
  return reason.substr(0, last_read) + (is_behind ? reason.substr(expected) : "");
}

/// Text whose read position is known outside the parser.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  CountingIterator(const char* position, const char** furthest) : position_(position), furthest_(furthest) {}
  reference operator*() const { return *position_; }
  CountingIterator& operator++() {
    *furthest_ = ++position_;
    return *this;
  }
  bool operator==(const CountingIterator& other) const { return position_ == other.position_; }

 private:
  const char* position_;
  const char** furthest_;
};

/// Builds the document from the parser's events. Members are appended without the search for an equal key that
/// ordered_json makes for each: a vocabulary has 100,000 of them.
class DocumentBuilder : public nlohmann::json_sax<Json> {
 public:
  DocumentBuilder(std::string_view text, const std::string& where) : text_(text), where_(where), read_(text.data()) {}

  Json parse() {
    const CountingIterator begin(text_.data(), &read_), end(text_.data() + text_.size(), &read_);
    Json::sax_parse(begin, end, this);
    return std::move(document_);
  }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { throw InternalError("JSON text has no binary values"); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!open_.back().keys.insert(name).second) {
      throw InputError(str(place_of(text_, key_offset(), where_), ": key ", quoted_for_message(name),
                           " is given twice in one object"));
    }
    open_.back().key = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& problem) override {
    const std::size_t offset = std::min(position > 0 ? position - 1 : 0, text_.size());
    throw InputError(str(place_of(text_, offset, where_), ": broken JSON: ", reason_of(problem.what())));
  }

 private:
  struct Open {
    Json* value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  Json& place(Json value) {
    if (open_.empty()) return document_ = std::move(value);
    Json& parent = *open_.back().value;
    if (parent.is_array()) return parent.get_ref<Json::array_t&>().emplace_back(std::move(value));
    auto& members = parent.get_ref<Json::object_t&>();
    return static_cast<Json::object_t::Container&>(members)
        .emplace_back(std::move(open_.back().key), std::move(value))
        .second;
  }

  template <class Value>
  bool add(Value&& value) {
    place(Json(std::forward<Value>(value)));
    return true;
  }

  bool open(Json value) {
    if (open_.size() == kMaxDepth) {
      const std::size_t offset = static_cast<std::size_t>(read_ - text_.data()) - 1;
      throw InputError(str(place_of(text_, offset, where_), ": nested deeper than ", kMaxDepth, " levels"));
    }
    // An open container is its parent's last element, so the pointer stays good while it is open.
    open_.push_back({&place(std::move(value)), {}, {}});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  // The parser has just read the key's closing quote; the opening one is the nearest before it that no backslash
  // escapes.
  std::size_t key_offset() const {
    std::size_t quote = static_cast<std::size_t>(read_ - text_.data()) - 1;
    bool escaped = true;
    while (escaped && quote > 0) {
      quote = text_.rfind('"', quote - 1);
      std::size_t first = quote;
      while (first > 0 && text_[first - 1] == '\\') --first;
      escaped = (quote - first) % 2 == 1;
    }
    return quote;
  }

  std::string_view text_;
  const std::string& where_;
  const char* read_;
  Json document_;
  std::vector<Open> open_;
};

const Json& member(const Json& object, std::string_view key, const std::string& where) {
  if (!object.is_object()) throw InputError(str(where, ": found ", object.type_name(), ", expected object"));
  const auto found = object.find(key);
  if (found == object.end()) throw InputError(str(where, ": '", key, "' is missing"));
  return *found;
}

[[noreturn]] void throw_wrong_type(const Json& value, std::string_view key, const std::string& where,
                                   std::string_view expected) {
  const std::string found = value.is_number() ? value.dump() : value.type_name();
  throw InputError(str(where, ": '", key, "': found ", found, ", expected ", expected));
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) { return DocumentBuilder(text, where).parse(); }

Json read_json_file(const std::filesystem::path& path) {
  return parse_json(MappedFile::open(path)->text(), path.string());
}

std::int64_t json_int(const Json& object, std::string_view key, const std::string& where) {
  const Json& value = member(object, key, where);
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
  if (!fits) throw_wrong_type(value, key, where, "integer");
  return value.get<std::int64_t>();
}

double json_number(const Json& object, std::string_view key, const std::string& where) {
  const Json& value = member(object, key, where);
  if (!value.is_number()) throw_wrong_type(value, key, where, "number");
  return value.get<double>();
}

std::string json_string(const Json& object, std::string_view key, const std::string& where) {
  const Json& value = member(object, key, where);
  if (!value.is_string()) throw_wrong_type(value, key, where, "string");
  return value.get<std::string>();
}

}  // namespace dagmoe
