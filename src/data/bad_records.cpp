#include "data/bad_records.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace dagmoe {
namespace {

constexpr std::size_t kMaxKeptReports = 100;
constexpr std::size_t kMaxShownReports = 10;

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (std::size_t k = 0; k < 4; ++k) text += k <= count ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

}  // namespace

void BadRecords::add(const std::filesystem::path& source, std::int64_t line, const std::string& reason,
                     std::string_view text) {
  ++count_;
  if (reports_.size() < kMaxKeptReports) reports_.push_back(str(source.string(), ":", line, ": ", reason));
  if (file_.empty()) return;
  if (!writer_) {
    std::filesystem::create_directories(file_.parent_path());
    writer_ = std::make_unique<AtomicFile>(file_);
  }
  Json entry = {{"file", source.string()}, {"line", line}, {"reason", reason}};
  if (is_valid_utf8(text)) {
    entry["text"] = text;
  } else {
    entry["text_base64"] = base64(text);
  }
  writer_->write(entry.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

void BadRecords::finish() {
  if (writer_) {
    writer_->commit();
    writer_.reset();
  } else if (!file_.empty() && count_ == 0) {
    std::error_code ignored;
    std::filesystem::remove(file_, ignored);
  }
}

void BadRecords::check_budget(std::int64_t budget, std::int64_t num_records) const {
  if (count_ <= budget) return;
  const std::size_t num_shown = std::min(reports_.size(), kMaxShownReports);
  std::string message;
  for (std::size_t i = 0; i < num_shown; ++i) message += reports_[i] + "\n";
  const std::int64_t num_more = count_ - static_cast<std::int64_t>(num_shown);
  if (num_more > 0) message += str("and ", num_more, " more\n");
  throw InputError(str(message, count_, " bad ", count_ == 1 ? "record" : "records", " of ", num_records,
                       ", max_bad_records is ", budget, "; repair the data or raise it",
                       file_.empty() ? "" : str("; all of them are in ", file_.string())));
}

}  // namespace dagmoe
