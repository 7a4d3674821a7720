#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace dagmoe {

/// Small documents (config.json, tokenizer.json, headers, results). Key order is kept, so what we do not know is
/// written back as it was. JSONL data goes through data/json_lines instead.
using Json = nlohmann::ordered_json;

/// Parses one strict JSON document. Throws InputError `where: ...` with line and column for broken syntax, invalid
/// UTF-8 and, unlike most parsers, for a key that occurs twice in one object.
Json parse_json(std::string_view text, const std::string& where);
/// The same from a file; `where` is the path. A missing file is an InputError too.
Json read_json_file(const std::filesystem::path& path);
/// Typed access with a message: throws InputError "where: 'key' is missing" or "...: found string, expected integer".
std::int64_t json_int(const Json& object, std::string_view key, const std::string& where);
double json_number(const Json& object, std::string_view key, const std::string& where);
std::string json_string(const Json& object, std::string_view key, const std::string& where);

}  // namespace dagmoe
