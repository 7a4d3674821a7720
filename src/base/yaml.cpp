#include "base/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <sstream>
#include <utility>

#include "base/text.h"

namespace dagmoe {
namespace {

using Kind = YamlNode::Kind;

constexpr std::string_view kNoAlias = "aliases are not supported; a text that starts with '*' needs quotes";
constexpr std::string_view kNoAnchor = "anchors are not supported; a text that starts with '&' needs quotes";
constexpr std::string_view kNoTag = "tags are not supported; a text that starts with '!' needs quotes";

YamlPlace place_of(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

std::string join_path(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

/// Builds our tree from yaml-cpp's events. Its own nodes lose keys given twice and treat aliases as what they stand
/// for.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(YamlDocument& document, std::string_view text) : document_(document), text_(text) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    check_properties(mark, "?", anchor);
    YamlNode node;
    node.place = place_of(mark);
    add(std::move(node));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    report(place_of(mark), current_path(), kNoAlias);
    YamlNode node;
    node.place = place_of(mark);
    add(std::move(node));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    check_properties(mark, tag, anchor);
    YamlNode node;
    node.kind = Kind::kScalar;
    node.place = place_of(mark);
    node.text = text;
    node.quoted = tag != "?";
    if (node.quoted) check_closed(mark);
    add(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    check_properties(mark, tag, anchor);
    open(Kind::kList, mark);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    check_properties(mark, tag, anchor);
    open(Kind::kMap, mark);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    bool has_key = false;  // of a mapping: the next value belongs to `key`
    std::string key;
    YamlPlace key_place;
  };

  void report(YamlPlace place, std::string path, std::string_view message) {
    document_.issues.push_back({place, std::move(path), std::string(message)});
  }

  // Where the value that comes next belongs.
  std::string current_path() const {
    std::string path;
    for (const auto& open : open_) {
      if (open.node.kind == Kind::kList) path = join_path(path, std::to_string(open.node.items.size()));
      if (open.has_key) path = join_path(path, open.key);
    }
    return path;
  }

  // yaml-cpp gives plain values the tag "?" and quoted ones "!".
  void check_properties(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) report(place_of(mark), current_path(), kNoAnchor);
    if (tag != "?" && tag != "!" && !tag.empty()) report(place_of(mark), current_path(), kNoTag);
  }

  // yaml-cpp ends a quoted text at the end of the file as well, so that one forgotten quote swallows all that follows.
  void check_closed(const YAML::Mark& mark) {
    const std::size_t begin = static_cast<std::size_t>(mark.pos);
    const char quote = text_[begin];
    if (quote != '"' && quote != '\'') return;
    for (std::size_t i = begin + 1; i < text_.size(); ++i) {
      const bool is_escape = quote == '"' ? text_[i] == '\\' : text_.substr(i, 2) == "''";
      if (is_escape) {
        ++i;
      } else if (text_[i] == quote) {
        return;
      }
    }
    report(place_of(mark), current_path(), "broken YAML: the quote is never closed");
    document_.is_broken = true;
  }

  void open(Kind kind, const YAML::Mark& mark) {
    Open opened;
    opened.node.kind = kind;
    opened.node.place = place_of(mark);
    open_.push_back(std::move(opened));
  }

  void close() {
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    add(std::move(node));
  }

  void add(YamlNode node) {
    if (open_.empty()) {
      document_.root = std::move(node);
    } else if (open_.back().node.kind == Kind::kList) {
      open_.back().node.items.push_back(std::move(node));
    } else if (open_.back().has_key) {
      add_member(std::move(node));
    } else {
      add_key(node);
    }
  }

  void add_key(const YamlNode& node) {
    const std::string path = current_path();
    if (node.kind != Kind::kScalar) report(node.place, path, "a key must be text");
    if (node.text == "<<" && !node.quoted) report(node.place, path, "merge keys are not supported; write the keys out");
    Open& map = open_.back();
    map.has_key = true;
    map.key = node.text;
    map.key_place = node.place;
  }

  void add_member(YamlNode node) {
    Open& map = open_.back();
    const auto same_key = [&](const YamlMember& member) { return member.key == map.key; };
    const auto first = std::find_if(map.node.members.begin(), map.node.members.end(), same_key);
    if (first != map.node.members.end()) {
      report(map.key_place, current_path(), str("key is given twice; the first is in line ", first->place.line));
    } else {
      if (node.kind == Kind::kNull) node.place = map.key_place;
      map.node.members.push_back({map.key, map.key_place, std::move(node)});
    }
    map.has_key = false;
  }

  YamlDocument& document_;
  std::string_view text_;
  std::vector<Open> open_;
};

// A second ':' in a line is one inside a text; a first one in the wrong place belongs to a key.
std::string unexpected_colon(std::string_view text, std::size_t offset) {
  const std::size_t line_start = text.substr(0, offset).rfind('\n') + 1;  // npos + 1 is 0: the first line
  const std::string_view before = text.substr(line_start, offset - line_start);
  if (before.find(": ") != std::string_view::npos) {
    return "broken YAML: unexpected ':'; a text that contains ': ' needs quotes";
  }
  return "broken YAML: unexpected key; check its indentation, and that the line before has a ':'";
}

// yaml-cpp's reasons name its own states; the common ones are told as what the user did.
std::string syntax_message(const YAML::Exception& problem, std::string_view text) {
  struct Translation {
    std::string_view reason, message;
  };
  const std::array translations = {
      Translation{YAML::ErrorMsg::UNKNOWN_ANCHOR, kNoAlias},
      Translation{YAML::ErrorMsg::ALIAS_NOT_FOUND, kNoAlias},
      Translation{YAML::ErrorMsg::CHAR_IN_ALIAS, kNoAlias},
      Translation{YAML::ErrorMsg::ANCHOR_NOT_FOUND, kNoAnchor},
      Translation{YAML::ErrorMsg::CHAR_IN_ANCHOR, kNoAnchor},
      Translation{YAML::ErrorMsg::END_OF_MAP_FLOW,
                  "broken YAML: expected ',' or '}'; a text with a comma or brackets needs quotes"},
      Translation{YAML::ErrorMsg::END_OF_SEQ_FLOW,
                  "broken YAML: expected ',' or ']'; a text with a comma or brackets needs quotes"},
      Translation{YAML::ErrorMsg::END_OF_MAP, "broken YAML: expected 'key: value'; check the indentation"},
      Translation{YAML::ErrorMsg::END_OF_SEQ, "broken YAML: expected '- item'; check the indentation"},
      Translation{YAML::ErrorMsg::BLOCK_ENTRY, "broken YAML: unexpected '-'; check the indentation (spaces, no tabs)"},
      Translation{YAML::ErrorMsg::FLOW_END, "broken YAML: closing bracket without an opening one"},
      Translation{YAML::ErrorMsg::TAB_IN_INDENTATION, "broken YAML: found a tab in the indentation, expected spaces"},
      Translation{YAML::ErrorMsg::UNKNOWN_TOKEN, "broken YAML: a text that starts with '%', '@' or '`' needs quotes"},
  };
  if (problem.msg.starts_with(YAML::ErrorMsg::MAP_VALUE)) {
    return unexpected_colon(text, static_cast<std::size_t>(problem.mark.pos));
  }
  for (const auto& translation : translations) {
    if (problem.msg.starts_with(translation.reason)) return std::string(translation.message);
  }
  return "broken YAML: " + problem.msg;
}

// yaml-cpp takes a byte 4 for the end of the text, and YAML allows no control characters anyway.
bool is_forbidden(char c) {
  const unsigned char byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && c != '\t' && c != '\n' && c != '\r') || byte == 0x7F;
}

YamlDocument broken(YamlPlace place, std::string message) {
  YamlDocument document;
  document.issues.push_back({place, "", std::move(message)});
  document.is_broken = true;
  return document;
}

YamlPlace place_at(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, offset);
  const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0: the first line
  return {static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1,
          static_cast<int>(offset - line_start) + 1};
}

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  for (const auto& member : members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

YamlDocument parse_yaml(std::string_view text) {
  if (!is_valid_utf8(text)) {
    std::size_t line_start = 0;
    while (is_valid_utf8(text.substr(line_start, text.find('\n', line_start) - line_start))) {
      line_start = text.find('\n', line_start) + 1;
    }
    return broken(place_at(text, line_start), "the line is not valid UTF-8; save the file as UTF-8");
  }
  const auto forbidden = std::find_if(text.begin(), text.end(), is_forbidden);
  if (forbidden != text.end()) {
    return broken(place_at(text, static_cast<std::size_t>(forbidden - text.begin())),
                  "found the control character " + quoted_for_message({&*forbidden, 1}) + "; remove it");
  }

  // A byte order mark, so that yaml-cpp's offsets are ours.
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  YamlDocument document;
  document.root.place = {1, 1};
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder(document, text);
    if (!parser.HandleNextDocument(builder)) return document;
    YamlDocument second;
    TreeBuilder second_builder(second, text);
    if (parser.HandleNextDocument(second_builder)) {
      document.issues.push_back(
          {second.root.place, "", "a second document starts here; check the indentation and remove any '---'"});
    }
  } catch (const YAML::Exception& problem) {
    document.issues.push_back({place_of(problem.mark), "", syntax_message(problem, text)});
    document.is_broken = true;
  }
  return document;
}

}  // namespace dagmoe
