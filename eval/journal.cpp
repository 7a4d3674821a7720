#include "eval/journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace dagmoe {
namespace {

// JSON has no numbers for these.
Json number_json(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0.0 ? "inf" : "-inf";
}

double number_of(const Json& json) {
  return json.is_string() ? std::strtod(json.get_ref<const std::string&>().c_str(), nullptr) : json.get<double>();
}

Json score_json(const LogLikelihood& score) {
  return Json::array(
      {number_json(score.log_prob), score.is_greedy, score.num_tokens, score.merged_boundary, score.truncated});
}

LogLikelihood score_of(const Json& json) {
  return {.log_prob = number_of(json.at(0)),
          .is_greedy = json.at(1).get<bool>(),
          .num_tokens = json.at(2).get<std::int64_t>(),
          .merged_boundary = json.at(3).get<bool>(),
          .truncated = json.at(4).get<bool>()};
}

std::string line_of(std::size_t document, const DocumentAnswers& answers) {
  Json json = {{"doc_id", document}};
  if (!answers.scores.empty()) {
    Json& scores = json["scores"] = Json::array();
    for (const LogLikelihood& score : answers.scores) scores.push_back(score_json(score));
  }
  json["text"] = answers.text;
  json["loss"] = Json::array({number_json(answers.loss.nats), answers.loss.num_tokens, answers.loss.truncated});
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

DocumentAnswers answers_of(const Json& json) {
  DocumentAnswers answers;
  if (json.contains("scores")) {
    for (const Json& score : json.at("scores")) answers.scores.push_back(score_of(score));
  }
  answers.text = json.at("text").get<std::string>();
  const Json& loss = json.at("loss");
  answers.loss = {
      .nats = number_of(loss.at(0)), .num_tokens = loss.at(1).get<std::int64_t>(), .truncated = loss.at(2).get<bool>()};
  return answers;
}

[[noreturn]] void refuse(const std::filesystem::path& path, std::size_t line, std::string_view why) {
  throw InputError(str(path.string(), ":", line, ": ", why, "; run without --resume to begin anew"));
}

}  // namespace

std::filesystem::path Journal::path_of(const std::filesystem::path& folder, const std::string& task) {
  return folder / str("samples_", task, ".partial.jsonl");
}

void Journal::remove(const std::filesystem::path& folder, const std::string& task) {
  std::error_code ignored;
  std::filesystem::remove(path_of(folder, task), ignored);
}

Journal::Journal(const std::filesystem::path& folder, const std::string& task, const std::string& hash, bool resume)
    : path_(path_of(folder, task)) {
  std::error_code problem;
  std::filesystem::create_directories(folder, problem);
  if (problem) throw InputError(str(folder.string(), ": the folder cannot be made: ", problem.message()));
  const std::size_t kept = resume && std::filesystem::exists(path_) ? read_earlier(hash) : 0;
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND, 0644);
  if (descriptor_ < 0 || ::ftruncate(descriptor_, static_cast<off_t>(kept)) != 0)
    throw InputError(str(path_.string(), ": cannot be written: ", std::strerror(errno)));
  if (kept == 0) write_line(Json({{"task", task}, {"hash", hash}}).dump() + "\n");
}

Journal::~Journal() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Journal::Journal(Journal&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      finished_(std::move(other.finished_)) {}

Journal& Journal::operator=(Journal&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(finished_, other.finished_);
  return *this;
}

std::size_t Journal::read_earlier(const std::string& hash) {
  const auto mapped = MappedFile::open(path_);
  const std::size_t whole = mapped->text().rfind('\n') + 1;  // 0 when there is none; what follows was cut
  std::vector<std::string> lines = split(mapped->text().substr(0, whole), '\n');
  lines.pop_back();
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Json json = Json::parse(lines[i], nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() || !json.is_object()) refuse(path_, i + 1, "is no line of a journal");
    try {
      if (i == 0) {
        if (json.at("hash").get<std::string>() != hash)
          refuse(path_, 1, "was written by a run with another model, other data or other settings");
        continue;
      }
      finished_[json.at("doc_id").get<std::size_t>()] = answers_of(json);
    } catch (const Json::exception& error) {
      refuse(path_, i + 1, str("is no line of a journal: ", error.what()));
    }
  }
  return whole;
}

void Journal::append(std::size_t document, const DocumentAnswers& answers) {
  if (descriptor_ >= 0) write_line(line_of(document, answers));
}

void Journal::write_line(const std::string& line) const {
  for (std::size_t written = 0; written < line.size();) {
    const ssize_t count = ::write(descriptor_, line.data() + written, line.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw InputError(str(path_.string(), ": cannot be written: ", std::strerror(errno)));
    written += static_cast<std::size_t>(count);
  }
}

}  // namespace dagmoe
