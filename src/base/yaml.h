#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dagmoe {

/// Line and column, counted from 1. Line 0 is what did not come from a file: the command line.
struct YamlPlace {
  int line = 0, column = 0;
};

struct YamlMember;

/// A parsed YAML value. Scalars keep their text: the field that reads one decides what it means, so `no` is a fine
/// name.
struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  YamlPlace place;                  ///< of the key for a null in a mapping, since it has no text of its own
  std::string text;                 ///< of a scalar, without its quotes
  bool quoted = false;              ///< a scalar in quotes or a block scalar: text, never a number or a truth value
  std::vector<YamlNode> items;      ///< of a list
  std::vector<YamlMember> members;  ///< of a mapping, in the order of the file, each key once

  const YamlNode* find(std::string_view key) const;
};

struct YamlMember {
  std::string key;
  YamlPlace place;  ///< of the key
  YamlNode value;
};

/// Something in the text that recipes do not allow. `path` is dotted ("data.train.0.path"), empty at the top.
struct YamlIssue {
  YamlPlace place;
  std::string path, message;
};

struct YamlDocument {
  YamlNode root;  ///< null for an empty text
  std::vector<YamlIssue> issues;
  bool is_broken = false;  ///< a syntax error is among the issues, and root is not to be used
};

/// Reads one YAML document. Keys given twice, anchors, aliases, tags, merge keys, keys that are no text and a second
/// document are issues.
YamlDocument parse_yaml(std::string_view text);

}  // namespace dagmoe
