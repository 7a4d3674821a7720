#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/json_lines.h"
#include "eval/record_problems.h"
#include "eval/task.h"

namespace dagmoe {

/// Where one task's data lies, when the command line says so: "FILE" or "FILE,LABELS".
struct DatasetFiles {
  std::filesystem::path data, labels;
};

/// A record as its file has it.
struct Document {
  Json doc;
  std::int64_t line = 0;
  bool is_prepared = false;  ///< has the fields that preprocessing would add, and must not be preprocessed
};

/// All records of a file, read as its extension and `format` say. What is wrong with single records goes to
/// `problems`; a file that cannot be read at all throws InputError.
std::vector<Document> read_documents(const TaskConfig& task, DatasetFormat format, const std::filesystem::path& file,
                                     RecordProblems& problems);
/// Puts line i of a labels file into document i as `label`.
void attach_labels(std::vector<Document>& documents, const DatasetFiles& files);

Json record_json(const RawRecord& raw);
/// Calls use(raw) for every good record; what it throws as InputError is that record's problem.
void for_each_record(const std::filesystem::path& file, RecordProblems& problems,
                     const std::function<void(const RawRecord&)>& use);

/// "12" or " 12 " as a number; nullopt for anything else.
std::optional<std::int64_t> integer_of(std::string_view text);

}  // namespace dagmoe
