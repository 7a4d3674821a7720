#include "data/json_lines.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "data/byte_stream.h"

namespace dagmoe {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::size_t kExcerptBytes = 200;
static_assert(ByteWindow::kPadding >= RecordParser::kPadding);

std::int64_t count_lines(std::string_view text) { return std::count(text.begin(), text.end(), '\n'); }

// The end of one value of an array, by its brackets and quotes alone; what is inside them is for the parser to judge.
struct ValueEnd {
  std::size_t end = 0;
  std::string reason;      // why there is no end
  bool is_inside = false;  // the text ends before the value does
};
ValueEnd find_value_end(std::string_view text) {
  std::string open;  // the brackets that wait for their partner
  std::size_t i = 0;
  while (i < text.size()) {
    const char c = text[i];
    if (open.empty() && (c == ',' || c == ']' || c == '}' || is_json_space(c))) return {i, ""};  // ends a bare scalar
    ++i;
    if (c == '"') {
      while (i < text.size() && text[i] != '"') i += text[i] == '\\' ? 2 : 1;
      ++i;
      if (open.empty() && i <= text.size()) return {i, ""};
    } else if (c == '{' || c == '[') {
      open.push_back(c);
    } else if (c == '}' || c == ']') {
      if ((open.back() == '{') != (c == '}')) return {i, str("broken JSON: '", c, "' closes a '", open.back(), "'")};
      open.pop_back();
      if (open.empty()) return {i, ""};
    }
  }
  return {text.size(), "broken array: the file ends inside a record; is it complete?", true};
}

}  // namespace

struct RecordReader::Impl {
  Impl(std::filesystem::path from, bool array)
      : path(std::move(from)), window(ByteStream::open(path)), is_array(array) {}

  std::filesystem::path path;
  ByteWindow window;
  bool is_array = false, is_broken = false;  // broken: nothing behind can be read
  std::int64_t line = 1;
  std::unique_ptr<BadRecord> pending;  // what broke between two records of an array; next() reports it
  RecordParser parser;
  std::string_view text;  // of the last record, in the window or in `kept`
  std::string kept;

  void begin();
  bool at_end() { return window.view().empty() && !window.grow(); }
  char first() const { return window.view().front(); }
  bool next_line(RawRecord& record, std::unique_ptr<BadRecord>& bad);
  bool next_element(RawRecord& record, std::unique_ptr<BadRecord>& bad);
  void skip_space();
  void break_off(const std::string& reason);
  void to_next_element();
  void read(std::string_view piece, std::int64_t piece_line, RawRecord& record, std::unique_ptr<BadRecord>& bad);
};

// To the first record.
void RecordReader::Impl::begin() {
  pending.reset();
  is_broken = false;
  window.seek(0);
  while (window.view().size() < kByteOrderMark.size() && window.grow()) {
  }
  if (window.view().starts_with(kByteOrderMark)) window.advance(kByteOrderMark.size());
  line = 1;
  if (!is_array) return;
  skip_space();
  if (at_end() || first() != '[') {
    const std::string found = at_end() ? "nothing" : shown_char(first());
    throw InputError(str(path.string(), ":", line, ": found ", found,
                         ", expected '[': a .json file is one array of objects; name it .jsonl if each line is an "
                         "object"));
  }
  window.advance(1);
  skip_space();
  if (at_end()) return break_off("broken array: the file ends without ']'");
  if (first() == ']') to_next_element();
}

void RecordReader::Impl::skip_space() {
  while (!at_end() && is_json_space(first())) {
    line += first() == '\n';
    window.advance(1);
  }
}

// Nothing behind this place can be read.
void RecordReader::Impl::break_off(const std::string& reason) {
  while (window.view().size() < kExcerptBytes && window.grow()) {
  }
  pending = std::make_unique<BadRecord>(BadRecord{line, reason, std::string(window.view().substr(0, kExcerptBytes))});
  is_broken = true;
}

// From behind one record to the first byte of the next, or to the end of the file.
void RecordReader::Impl::to_next_element() {
  skip_space();
  if (at_end()) return break_off("broken array: the file ends without ']'");
  if (first() == ']') {
    window.advance(1);
    skip_space();
    if (!at_end()) break_off(str("found ", shown_char(first()), " behind the end of the array"));
    return;
  }
  if (first() != ',') return break_off(str("broken array: found ", shown_char(first()), ", expected ',' or ']'"));
  window.advance(1);
  skip_space();
  if (at_end()) break_off("broken array: the file ends without ']'");
}

bool RecordReader::Impl::next_line(RawRecord& record, std::unique_ptr<BadRecord>& bad) {
  while (!at_end()) {
    std::size_t end = window.view().find('\n');
    while (end == std::string_view::npos) {
      const std::size_t searched = window.view().size();
      end = window.grow() ? window.view().find('\n', searched) : searched;
    }
    const std::string_view piece = strip_json_space(window.view().substr(0, end));
    window.advance(std::min(end + 1, window.view().size()));
    const std::int64_t piece_line = line++;
    if (piece.empty()) continue;
    read(piece, piece_line, record, bad);
    return true;
  }
  return false;
}

bool RecordReader::Impl::next_element(RawRecord& record, std::unique_ptr<BadRecord>& bad) {
  if (pending) {
    text = kept = pending->text;
    bad = std::move(pending);
    return true;
  }
  if (is_broken || at_end()) return false;
  ValueEnd value = find_value_end(window.view());
  while (value.is_inside && window.grow()) value = find_value_end(window.view());
  std::string broken = value.reason;
  if (value.end == 0) broken = str("broken array: found ", shown_char(first()), ", expected an object");
  if (!broken.empty()) {
    break_off(broken);
    text = kept = pending->text;
    bad = std::move(pending);
    return true;
  }
  const std::string_view piece = window.view().substr(0, value.end);
  const std::int64_t piece_line = line;
  read(piece, piece_line, record, bad);
  line += count_lines(piece);
  kept.assign(piece);  // looking for the next one moves the window
  text = kept;
  window.advance(value.end);
  to_next_element();
  return true;
}

void RecordReader::Impl::read(std::string_view piece, std::int64_t piece_line, RawRecord& record,
                              std::unique_ptr<BadRecord>& bad) {
  text = piece;
  record.line = piece_line;
  const std::string reason = parser.parse(piece, is_array, record);
  if (!reason.empty()) bad = std::make_unique<BadRecord>(BadRecord{piece_line, reason, std::string(piece)});
}

RecordReader::RecordReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RecordReader::~RecordReader() = default;

std::unique_ptr<RecordReader> RecordReader::open(const std::filesystem::path& path) {
  auto impl = std::make_unique<Impl>(path, uncompressed_name(path).extension() == ".json");
  impl->begin();
  return std::unique_ptr<RecordReader>(new RecordReader(std::move(impl)));
}

bool RecordReader::next(RawRecord& record, std::unique_ptr<BadRecord>& bad) {
  bad.reset();
  return impl_->is_array ? impl_->next_element(record, bad) : impl_->next_line(record, bad);
}

void RecordReader::rewind() { impl_->begin(); }
std::uint64_t RecordReader::offset() const { return impl_->window.offset(); }
std::int64_t RecordReader::line() const { return impl_->line; }
std::string_view RecordReader::text() const { return impl_->text; }

void RecordReader::seek(std::uint64_t offset, std::int64_t line) {
  impl_->pending.reset();
  impl_->is_broken = false;
  impl_->window.seek(offset);
  impl_->line = line;
}

}  // namespace dagmoe
