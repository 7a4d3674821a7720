#include "data/prompt_template_jinja.h"

#include <vector>

namespace dagmoe {

namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

bool is_name(std::string_view text) {
  for (const char c : text) {
    if (!is_name_char(c)) return false;
  }
  return !text.empty() && !(text.front() >= '0' && text.front() <= '9');
}

/// A lexical token of an expression: a string literal by its value, or a run of other characters.
struct Lexeme {
  std::string text;
  bool is_string = false;
};

char unescape(char c) { return c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c; }

/// The literal that begins with the quote at `position`; moves behind it.
std::string read_string(std::string_view text, std::size_t& position) {
  const char quote = text[position++];
  std::string value;
  while (position < text.size() && text[position] != quote) {
    if (text[position] == '\\' && position + 1 < text.size())
      ++position, value += unescape(text[position]);
    else
      value += text[position];
    ++position;
  }
  ++position;
  return value;
}

std::vector<Lexeme> lex(std::string_view text) {
  std::vector<Lexeme> lexemes;
  for (std::size_t position = 0; position < text.size();) {
    const char c = text[position];
    if (is_space(c)) {
      ++position;
    } else if (c == '\'' || c == '"') {
      lexemes.push_back({.text = read_string(text, position), .is_string = true});
    } else if (is_name_char(c)) {
      std::size_t end = position;
      while (end < text.size() && is_name_char(text[end])) ++end;
      lexemes.push_back({.text = std::string(text.substr(position, end - position))});
      position = end;
    } else {
      lexemes.push_back({.text = std::string(1, c)});
      ++position;
    }
  }
  return lexemes;
}

/// x['name'] -> x.name
std::vector<Lexeme> with_dots(const std::vector<Lexeme>& lexemes) {
  std::vector<Lexeme> result;
  for (std::size_t i = 0; i < lexemes.size(); ++i) {
    const bool is_attribute = i > 0 && i + 2 < lexemes.size() && lexemes[i].text == "[" && !lexemes[i].is_string &&
                              lexemes[i + 1].is_string && is_name(lexemes[i + 1].text) && lexemes[i + 2].text == "]";
    if (!is_attribute) {
      result.push_back(lexemes[i]);
      continue;
    }
    result.push_back({.text = "."});
    result.push_back({.text = lexemes[i + 1].text});
    i += 2;
  }
  return result;
}

std::string expression_text(const std::vector<Lexeme>& lexemes) {
  std::string text;
  for (const Lexeme& lexeme : lexemes) {
    const bool touches = !text.empty() && is_name_char(text.back());
    if (lexeme.is_string) {
      text += "'" + lexeme.text + "'";
    } else {
      if (touches && is_name_char(lexeme.text.front())) text += ' ';
      text += lexeme.text;
    }
  }
  return text;
}

/// What {{ a + 'b' }} prints: terms between '+', literals as text.
std::string printed_terms(const std::vector<Lexeme>& lexemes) {
  std::string text;
  std::vector<Lexeme> term;
  const auto end_term = [&] {
    if (term.size() == 1 && term.front().is_string)
      text += term.front().text;
    else
      text += "{{" + expression_text(term) + "}}";
    term.clear();
  };
  for (const Lexeme& lexeme : lexemes) {
    if (!lexeme.is_string && lexeme.text == "+")
      end_term();
    else
      term.push_back(lexeme);
  }
  end_term();
  return text;
}

void strip_left_end(std::string& text) {
  while (!text.empty() && is_space(text.back())) text.pop_back();
}

/// lstrip_blocks: white space between the start of a line and a block tag goes.
void strip_indent(std::string& text, bool at_start) {
  std::size_t end = text.size();
  while (end > 0 && (text[end - 1] == ' ' || text[end - 1] == '\t')) --end;
  if (end == 0 ? at_start : text[end - 1] == '\n') text.resize(end);
}

/// Where the tag that begins at `open` closes, outside string literals; npos when it does not.
std::size_t find_close(std::string_view jinja, std::size_t open, std::string_view close) {
  for (std::size_t position = open + 2; position + 1 < jinja.size();) {
    if (jinja.substr(position, 2) == close) return position;
    const char c = jinja[position];
    if (close != "#}" && (c == '\'' || c == '"'))
      read_string(jinja, position);
    else
      ++position;
  }
  return std::string_view::npos;
}

/// Where the next tag of any kind opens; npos when there is none.
std::size_t find_tag(std::string_view jinja, std::size_t position) {
  std::size_t open = jinja.find('{', position);
  while (open != std::string_view::npos) {
    const std::string_view two = jinja.substr(open, 2);
    if (two == "{{" || two == "{%" || two == "{#") break;
    open = jinja.find('{', open + 1);
  }
  return open;
}

std::string_view closing_of(char kind) { return kind == '{' ? "}}" : kind == '%' ? "%}" : "#}"; }

}  // namespace

std::string canonical_jinja(std::string_view jinja) {
  if (jinja.ends_with('\n')) jinja.remove_suffix(1);
  std::string result;
  bool strip_next = false, trim_newline = false, at_line_start = true;
  for (std::size_t position = 0; position < jinja.size();) {
    const std::size_t open = find_tag(jinja, position);
    const bool is_last = open == std::string_view::npos;
    std::string text(jinja.substr(position, is_last ? open : open - position));
    if (trim_newline && text.starts_with('\n')) text.erase(0, 1), at_line_start = true;
    if (strip_next) text.erase(0, text.find_first_not_of(" \t\r\n"));
    if (is_last) return result + text;

    const char kind = jinja[open + 1];
    const std::size_t close = find_close(jinja, open, closing_of(kind));
    if (close == std::string_view::npos) return result + text + std::string(jinja.substr(open));
    std::string_view inner = jinja.substr(open + 2, close - open - 2);
    if (inner.starts_with('-')) {
      strip_left_end(text);
      inner.remove_prefix(1);
    } else if (kind != '{') {
      strip_indent(text, at_line_start);
    }
    strip_next = inner.ends_with('-');
    if (strip_next) inner.remove_suffix(1);
    result += text;
    const std::vector<Lexeme> lexemes = with_dots(lex(inner));
    if (kind == '{') result += printed_terms(lexemes);
    if (kind == '%') result += "{%" + expression_text(lexemes) + "%}";
    trim_newline = kind != '{';
    at_line_start = false;
    position = close + 2;
  }
  return result;
}

}  // namespace dagmoe
