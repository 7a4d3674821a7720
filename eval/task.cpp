#include "eval/task.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/config_reader.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "base/text.h"
#include "data/unicode.h"

namespace dagmoe {
namespace {

constexpr std::int64_t kMaxFewshot = 1000, kMaxSeqLen = 1 << 20;

constexpr std::array kOutputTypes = {
    std::pair{std::string_view("multiple_choice"), OutputType::kMultipleChoice},
    std::pair{std::string_view("loglikelihood"), OutputType::kLogLikelihood},
    std::pair{std::string_view("loglikelihood_rolling"), OutputType::kLogLikelihoodRolling},
    std::pair{std::string_view("generate_until"), OutputType::kGenerateUntil},
    std::pair{std::string_view("valid_loss"), OutputType::kValidLoss},
};

std::vector<Metric> metrics_for(OutputType type) {
  switch (type) {
    case OutputType::kMultipleChoice:
      return {Metric::kAcc, Metric::kAccNorm, Metric::kAccBytes, Metric::kAccMutualInfo, Metric::kExactMatch};
    case OutputType::kLogLikelihood:
      return {Metric::kPerplexity, Metric::kAcc};
    case OutputType::kLogLikelihoodRolling:
      return {Metric::kWordPerplexity, Metric::kBytePerplexity, Metric::kBitsPerByte};
    case OutputType::kGenerateUntil:
      return {Metric::kExactMatch};
    case OutputType::kValidLoss:
      return {Metric::kLoss};
  }
  throw InternalError("metrics_for: unknown output type");
}

bool is_task_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

TextTemplate parse_template(ConfigReader& fields, std::string_view key, const std::string& text) {
  try {
    return TextTemplate(text);
  } catch (const ConfigError& error) {
    fields.issue(key, error.what());
    return {};
  }
}

TextTemplate required_template(ConfigReader& fields, std::string_view key) {
  std::string text;
  fields.required(key, text);
  return parse_template(fields, key, text);
}

TextTemplate optional_template(ConfigReader& fields, std::string_view key) {
  std::string text;
  fields.optional(key, text);
  return parse_template(fields, key, text);
}

std::vector<TextTemplate> parse_templates(ConfigReader& fields, std::string_view key,
                                          const std::vector<std::string>& texts) {
  std::vector<TextTemplate> templates;
  for (const std::string& text : texts) templates.push_back(parse_template(fields, key, text));
  return templates;
}

std::vector<Regex> parse_regex(ConfigReader& fields, const std::string& key, const std::string& pattern) {
  try {
    return {Regex(pattern)};
  } catch (const InputError& error) {
    fields.issue(key, error.what());
    return {};
  }
}

void bind_metrics(ConfigReader& fields, TaskConfig& task) {
  const std::vector<Metric> allowed = metrics_for(task.output_type);
  std::vector<std::string> names, known;
  for (const Metric metric : allowed) known.emplace_back(metric_name(metric));
  fields.required("metrics", names);
  if (names.empty() && fields.has("metrics"))
    fields.issue("metrics", str("expected one or more of ", join(known, ", ")));
  for (const std::string& name : names) {
    const auto metric = metric_named(name);
    if (!metric) {
      fields.issue("metrics", str("unknown metric '", name, "'", did_you_mean(name, known)));
    } else if (std::find(allowed.begin(), allowed.end(), *metric) == allowed.end()) {
      fields.issue("metrics", str("'", name, "' is no metric of output type ", output_type_name(task.output_type),
                                  "; expected ", join(known, ", ")));
    } else if (std::find(task.metrics.begin(), task.metrics.end(), *metric) != task.metrics.end()) {
      fields.issue("metrics", str("'", name, "' is given twice"));
    } else {
      task.metrics.push_back(*metric);
    }
  }
}

void bind_format(ConfigReader& fields, std::string_view key, DatasetFormat& format) {
  fields.choice(key, format,
                {{"jsonl", DatasetFormat::kJsonl},
                 {"hellaswag_txt", DatasetFormat::kHellaswagTxt},
                 {"wikitext_txt", DatasetFormat::kWikitextTxt},
                 {"bbh_prompt", DatasetFormat::kBbhPrompt}});
}

void bind_data(ConfigReader& fields, TaskConfig& task) {
  fields.optional("dataset_name", task.dataset_name);
  fields.optional("labels_path", task.labels_path);
  fields.optional("records_field", task.records_field);
  fields.optional("columns", task.columns);
  bind_format(fields, "dataset_format", task.dataset_format);
  fields.choice("preprocess", task.preprocess,
                {{"none", Preprocess::kNone},
                 {"arc", Preprocess::kArc},
                 {"boolq", Preprocess::kBoolq},
                 {"commonsense_qa", Preprocess::kCommonsenseQa},
                 {"copa", Preprocess::kCopa},
                 {"gpqa", Preprocess::kGpqa},
                 {"hellaswag", Preprocess::kHellaswag},
                 {"lambada", Preprocess::kLambada},
                 {"mmlu", Preprocess::kMmlu},
                 {"openbookqa", Preprocess::kOpenbookqa},
                 {"social_iqa", Preprocess::kSocialIqa},
                 {"wikitext", Preprocess::kWikitext},
                 {"winogrande", Preprocess::kWinogrande}});
  fields.optional("shuffle_seed", task.shuffle_seed, {.min = 0});
}

void bind_fewshot(ConfigReader& fields, TaskConfig& task) {
  fields.optional("num_fewshot", task.num_fewshot, {.min = 0, .max = kMaxFewshot});
  fields.optional("fewshot_path", task.fewshot_path);
  bind_format(fields, "fewshot_format", task.fewshot_format);
  fields.choice("fewshot_sampler", task.fewshot_sampler,
                {{"default", FewshotSampler::kDefault}, {"first_n", FewshotSampler::kFirstN}});
  fields.optional("fewshot_draws_one_more", task.fewshot_draws_one_more);
  if (task.fewshot_draws_one_more && task.fewshot_sampler == FewshotSampler::kFirstN)
    fields.issue("fewshot_draws_one_more", "means nothing with fewshot_sampler first_n, which draws nothing");
  task.description = optional_template(fields, "description");
  fields.optional("target_delimiter", task.target_delimiter);
  fields.optional("fewshot_delimiter", task.fewshot_delimiter);
}

void bind_multiple_choice(ConfigReader& fields, TaskConfig& task) {
  bind_fewshot(fields, task);
  task.doc_to_continuation = optional_template(fields, "doc_to_continuation");
  if (task.doc_to_continuation.empty()) {
    task.doc_to_text = required_template(fields, "doc_to_text");
  } else if (fields.has("doc_to_text")) {
    fields.issue("doc_to_text", "means nothing beside doc_to_continuation, where the choices are the prompts");
  }
  std::vector<std::string> choices, labels;
  fields.required("doc_to_choice", choices);
  task.doc_to_choice = parse_templates(fields, "doc_to_choice", choices);
  task.doc_to_target = required_template(fields, "doc_to_target");
  fields.optional("target_labels", labels);
  task.target_labels = parse_templates(fields, "target_labels", labels);
}

void bind_generation(ConfigReader& fields, TaskConfig& task) {
  bind_fewshot(fields, task);
  task.doc_to_text = required_template(fields, "doc_to_text");
  task.doc_to_target = required_template(fields, "doc_to_target");
  fields.section("generation_kwargs", task.generation);
  if (task.generation.until.empty()) task.generation.until = {task.fewshot_delimiter};
  fields.section("filter_list", task.filters);
  if (task.filters.empty()) task.filters.push_back({});
  std::vector<std::string> names;
  for (const FilterPipeline& pipeline : task.filters) {
    if (std::find(names.begin(), names.end(), pipeline.name) != names.end())
      fields.issue("filter_list", str("'", pipeline.name, "' is given twice"));
    names.push_back(pipeline.name);
  }
  ExactMatch& match = task.exact_match;
  fields.optional("regexes_to_ignore", match.regexes_to_ignore);
  for (std::size_t i = 0; i < match.regexes_to_ignore.size(); ++i) {
    for (Regex& regex : parse_regex(fields, str("regexes_to_ignore.", i), match.regexes_to_ignore[i]))
      match.compiled.push_back(std::move(regex));
  }
  fields.optional("ignore_case", match.ignore_case);
  fields.optional("ignore_punctuation", match.ignore_punctuation);
  fields.optional("ignore_numbers", match.ignore_numbers);
}

void bind_valid_loss(ConfigReader& fields, TaskConfig& task) {
  std::string format = "alpaca", prompt_template = "alpaca";
  fields.optional("format", format);
  fields.optional("template", prompt_template);
  fields.optional("max_seq_len", task.max_seq_len, {.min = 0, .max = kMaxSeqLen});
  if (const auto known = record_format_named(format)) {
    task.record_format = *known;
  } else {
    fields.issue("format", str("unknown format '", format, "'", did_you_mean(format, record_format_names())));
  }
  if (task.record_format == RecordFormat::kText && fields.has("template"))
    fields.issue("template", "means nothing for format text, which is scored as it stands; leave it out");
  if (const auto known = prompt_template_named(prompt_template)) {
    task.prompt_template = *known;
  } else {
    fields.issue("template", str("unknown template '", prompt_template, "'",
                                 did_you_mean(prompt_template, prompt_template_names())));
  }
}

void bind_output(ConfigReader& fields, TaskConfig& task) {
  if (task.output_type == OutputType::kValidLoss) {
    bind_valid_loss(fields, task);
    task.metrics = {Metric::kLoss};
    return;
  }
  bind_data(fields, task);
  switch (task.output_type) {
    case OutputType::kMultipleChoice:
      bind_multiple_choice(fields, task);
      break;
    case OutputType::kLogLikelihood:
      bind_fewshot(fields, task);
      task.doc_to_text = required_template(fields, "doc_to_text");
      task.doc_to_target = required_template(fields, "doc_to_target");
      break;
    case OutputType::kLogLikelihoodRolling:
      task.doc_to_target = required_template(fields, "doc_to_target");
      task.doc_to_words = optional_template(fields, "doc_to_words");
      if (task.doc_to_words.empty()) task.doc_to_words = task.doc_to_target;
      break;
    case OutputType::kGenerateUntil:
      bind_generation(fields, task);
      break;
    case OutputType::kValidLoss:
      break;
  }
  bind_metrics(fields, task);
}

}  // namespace

// Found by ConfigReader::section through their arguments.
void bind(ConfigReader& fields, GenerationSettings& settings) {
  fields.optional("until", settings.until);
  fields.optional("max_gen_toks", settings.max_gen_toks, {.min = 1, .max = kMaxSeqLen});
  fields.optional("temperature", settings.temperature, {.min = 0.0, .max = 100.0});
  fields.optional("top_p", settings.top_p, {.min = 0.0, .max = 1.0});
  settings.do_sample = settings.temperature > 0.0;
  fields.optional("do_sample", settings.do_sample);
}

void bind(ConfigReader& fields, FilterStep& step) {
  fields.choice("function", step.function,
                {{"take_first", FilterStep::Function::kTakeFirst},
                 {"regex", FilterStep::Function::kRegex},
                 {"remove_whitespace", FilterStep::Function::kRemoveWhitespace},
                 {"lowercase", FilterStep::Function::kLowercase},
                 {"uppercase", FilterStep::Function::kUppercase}});
  if (!fields.has("function")) fields.issue("function", "is missing");
  if (step.function != FilterStep::Function::kRegex) return;
  fields.optional("regex_pattern", step.regex_pattern);
  fields.optional("group_select", step.group_select, {.min = -1000, .max = 1000});
  fields.optional("fallback", step.fallback);
  step.compiled = parse_regex(fields, "regex_pattern", step.regex_pattern);
}

void bind(ConfigReader& fields, FilterPipeline& pipeline) {
  fields.required("name", pipeline.name);
  if (pipeline.name.find(',') != std::string::npos)
    fields.issue("name", "a comma ends the name in results.json; leave it out");
  fields.section_or_word("filter", pipeline.steps, "function");
}

std::string_view output_type_name(OutputType type) {
  for (const auto& [name, known] : kOutputTypes) {
    if (known == type) return name;
  }
  throw InternalError("output_type_name: unknown output type");
}

TaskConfig parse_task(std::string_view text, const std::string& name) {
  ConfigReader fields = ConfigReader::parse(text, name);
  TaskConfig task;
  task.source = text;
  fields.required("task", task.task);
  if (!task.task.empty() && !is_task_name(task.task)) {
    fields.issue("task", str("'", task.task, "' is no name; use letters, digits, '_' and '-'"));
  }
  std::vector<std::string> variants;  // replaced in the text before it came here (task_catalog)
  fields.optional("variants", variants);
  fields.optional("task_alias", task.alias);
  fields.optional("version", task.version, {.min = 0.0, .max = 1e6});
  fields.choice("output_type", task.output_type,
                {{"multiple_choice", OutputType::kMultipleChoice},
                 {"loglikelihood", OutputType::kLogLikelihood},
                 {"loglikelihood_rolling", OutputType::kLogLikelihoodRolling},
                 {"generate_until", OutputType::kGenerateUntil},
                 {"valid_loss", OutputType::kValidLoss}});
  fields.required("dataset_path", task.dataset_path);
  bind_output(fields, task);
  fields.finish();
  return task;
}

std::string with_variant(std::string text, const std::string& variant) {
  std::string words = variant;
  std::replace(words.begin(), words.end(), '_', ' ');
  replace_all(text, "${variant}", variant);
  replace_all(text, "${variant_words}", words);
  return text;
}

TaskConfig read_task(const std::filesystem::path& file, const std::string& variant) {
  const std::string text(MappedFile::open(file)->text());
  return parse_task(variant.empty() ? text : with_variant(text, variant), file.string());
}

}  // namespace dagmoe
