#include "eval/eval_options.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace dagmoe {
namespace {

const std::vector<std::string> kGenerationKeys = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"};

// What stands behind '=' as JSON where it is that, else as text.
Json option_value(const std::string& text) {
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(text) : value;
}

Json generation_json(std::string_view text) {
  if (trim(text).starts_with('{')) {
    try {
      return parse_json(text, "--gen-kwargs");
    } catch (const InputError& error) {
      throw ConfigError(error.what());
    }
  }
  Json object = Json::object();
  for (const std::string& item : split(text, ',')) {
    const std::size_t equals = item.find('=');
    if (equals == 0 || equals == std::string::npos)
      throw ConfigError(str("--gen-kwargs: found ", quoted_for_message(item),
                            ", expected KEY=VALUE,... or a JSON object; keys: ", join(kGenerationKeys, ", ")));
    object[std::string(trim(item.substr(0, equals)))] = option_value(item.substr(equals + 1));
  }
  return object;
}

[[noreturn]] void wrong_value(const std::string& key, const Json& value, std::string_view expected) {
  throw ConfigError(str("--gen-kwargs: ", key, ": found ", one_line(value.dump()), ", expected ", expected));
}

double number_in(const std::string& key, const Json& value, double low, double high) {
  if (!value.is_number() || value.get<double>() < low || value.get<double>() > high)
    wrong_value(key, value, str("a number from ", low, " to ", high));
  return value.get<double>();
}

std::vector<std::string> stop_texts(const Json& value) {
  if (value.is_string()) return {value.get<std::string>()};
  const bool is_good = value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& item) {
                         return item.is_string() && !item.get_ref<const std::string&>().empty();
                       });
  if (!is_good) wrong_value("until", value, "a text or a list of texts");
  return value.get<std::vector<std::string>>();
}

}  // namespace

std::pair<std::string, DatasetFiles> parse_dataset_option(std::string_view text) {
  const std::size_t equals = text.find('=');
  const std::string_view value = equals == std::string_view::npos ? "" : text.substr(equals + 1);
  const std::size_t comma = value.find(',');
  const DatasetFiles files{value.substr(0, comma), comma == std::string_view::npos ? "" : value.substr(comma + 1)};
  if (equals == 0 || files.data.empty())
    throw ConfigError(str("found '", text, "', expected TASK=FILE or TASK=FILE,LABELS"));
  return {std::string(text.substr(0, equals)), files};
}

GenerationOverrides parse_generation_option(std::string_view text) {
  GenerationOverrides overrides;
  const Json settings = generation_json(text);
  for (const auto& [key, value] : settings.items()) {
    if (key == "until") {
      overrides.until = stop_texts(value);
    } else if (key == "max_gen_toks") {
      if (!value.is_number_integer() || value.get<std::int64_t>() < 1)
        wrong_value(key, value, "a whole number above 0");
      overrides.max_gen_toks = value.get<std::int64_t>();
    } else if (key == "do_sample") {
      const bool is_python = value == "True" || value == "False";
      if (!value.is_boolean() && !is_python) wrong_value(key, value, "true or false");
      overrides.do_sample = value.is_boolean() ? value.get<bool>() : value == "True";
    } else if (key == "temperature") {
      overrides.temperature = number_in(key, value, 0.0, 100.0);
    } else if (key == "top_p") {
      overrides.top_p = number_in(key, value, 0.0, 1.0);
    } else {
      throw ConfigError(str("--gen-kwargs: unknown key ", quoted_for_message(key), did_you_mean(key, kGenerationKeys)));
    }
  }
  return overrides;
}

void check_options(const EvalOptions& options, std::span<const TaskConfig> tasks) {
  std::vector<std::string> known, issues;
  for (const TaskConfig& task : tasks) known.push_back(task.task);
  const auto check = [&](const std::map<std::string, DatasetFiles>& files, std::string_view option) {
    for (const auto& [name, unused] : files) {
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      issues.push_back(str(option, ": '", name, "' is not among the tasks", did_you_mean(name, known)));
    }
  };
  check(options.datasets, "--dataset");
  check(options.fewshot_pools, "--fewshot");
  if (options.fewshot_as_multiturn && !options.chat_format)
    issues.push_back("--fewshot-as-multiturn: means nothing without --apply-chat-template");
  if (options.resume && options.journal_folder.empty())
    issues.push_back("--resume: needs --output DIR, where the earlier run kept its answers");
  if (!issues.empty()) throw ConfigError(std::move(issues), "");
}

}  // namespace dagmoe
