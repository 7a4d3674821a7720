#include "eval/table_file.h"

#include "base/text.h"

namespace dagmoe {
namespace {

class CsvParser {
 public:
  CsvParser(std::string_view text, RecordProblems& problems) : text_(text), problems_(problems) {}

  std::vector<TableRow> parse() {
    while (place_ < text_.size()) read_row();
    return std::move(rows_);
  }

 private:
  void read_row() {
    TableRow row{.cells = {}, .line = line_};
    while (true) {
      row.cells.push_back(read_cell());
      if (place_ >= text_.size() || text_[place_] != ',') break;
      ++place_;
    }
    if (place_ < text_.size() && text_[place_] == '\r') ++place_;
    if (place_ < text_.size() && text_[place_] == '\n') ++place_, ++line_;
    const bool is_blank = row.cells.size() == 1 && row.cells.front().empty();
    if (!is_blank) rows_.push_back(std::move(row));
  }

  std::string read_cell() {
    std::string cell;
    if (place_ < text_.size() && text_[place_] == '"') cell = read_quoted();
    // Behind a closing quote Python's reader takes what follows as it stands.
    while (place_ < text_.size() && text_[place_] != ',' && text_[place_] != '\n' && text_[place_] != '\r')
      cell += text_[place_++];
    return cell;
  }

  std::string read_quoted() {
    const std::int64_t first_line = line_;
    std::string cell;
    for (++place_; place_ < text_.size(); ++place_) {
      if (text_[place_] == '"') {
        const bool is_doubled = place_ + 1 < text_.size() && text_[place_ + 1] == '"';
        if (!is_doubled) {
          ++place_;
          return cell;
        }
        ++place_;
      }
      line_ += text_[place_] == '\n' ? 1 : 0;
      cell += text_[place_];
    }
    problems_.add(first_line, "a quote is never closed");
    return cell;
  }

  std::string_view text_;
  RecordProblems& problems_;
  std::size_t place_ = 0;
  std::int64_t line_ = 1;
  std::vector<TableRow> rows_;
};

}  // namespace

std::vector<TableRow> parse_csv(std::string_view text, RecordProblems& problems) {
  return CsvParser(text, problems).parse();
}

std::vector<TableRow> parse_tsv(std::string_view text) {
  std::vector<TableRow> rows;
  std::int64_t line = 0;
  for (std::string& content : split(text, '\n')) {
    ++line;
    if (content.ends_with('\r')) content.pop_back();
    if (!content.empty()) rows.push_back({split(content, '\t'), line});
  }
  return rows;
}

}  // namespace dagmoe
