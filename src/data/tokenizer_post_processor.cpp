#include "data/tokenizer_post_processor.h"

#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "data/tokenizer_json_parts.h"

namespace dagmoe {

namespace {

struct TemplateTokens {
  std::vector<std::string> before, behind;
  bool found = false;
};

void read_template(const Json& processor, const std::string& where, TemplateTokens& tokens) {
  const Json* single = find_part(processor, "single");
  if (single == nullptr || !single->is_array()) throw InputError(where + ": 'single' is missing");
  bool behind = false;
  for (const Json& item : *single) {
    if (item.contains("Sequence")) {
      behind = true;
    } else if (item.contains("SpecialToken")) {
      (behind ? tokens.behind : tokens.before).push_back(json_string(item["SpecialToken"], "id", where));
    } else {
      throw InputError(where + ": an item of 'single' is neither 'Sequence' nor 'SpecialToken'");
    }
  }
  tokens.found = true;
}

TemplateTokens read_post_processor(const Json* processor, const std::string& where) {
  TemplateTokens tokens;
  for_each_part(processor, "processors", [&](const Json& step) {
    const std::string type = json_string(step, "type", where);
    if (type == "TemplateProcessing") return read_template(step, where, tokens);
    if (type != "ByteLevel") {  // which moves offsets and adds no ids
      throw InputError(str(where, ": type ", quoted_for_message(type),
                           " is not known; known: ByteLevel, TemplateProcessing, Sequence"));
    }
  });
  return tokens;
}

std::optional<std::string> only_token(const std::vector<std::string>& tokens, std::string_view place,
                                      const std::string& where) {
  if (tokens.size() > 1) {
    throw InputError(str(where, ": puts more than one token ", place, " the text, which is not supported"));
  }
  return tokens.empty() ? std::nullopt : std::optional(tokens.front());
}

void warn_of_flag(const std::optional<bool>& flag, bool adds, std::string_view key, std::string_view what,
                  const std::string& where) {
  if (!flag || *flag == adds) return;
  log_warning(str(where, adds ? " adds " : " adds no ", what, ", but tokenizer_config.json has ", key,
                  *flag ? " true" : " false", "; following the post_processor"));
}

}  // namespace

SpecialFrame special_frame(const TokenizerJson& document, const TokenizerConfig& config) {
  const std::string where = document.where + ": post_processor";
  const TemplateTokens tokens = read_post_processor(find_part(document.settings, "post_processor"), where);
  const bool is_llama = config.tokenizer_class == "LlamaTokenizer" || config.tokenizer_class == "LlamaTokenizerFast";
  if (!tokens.found && is_llama) {
    return {.before = config.add_bos.value_or(false) ? config.bos : std::nullopt,
            .behind = config.add_eos.value_or(false) ? config.eos : std::nullopt};
  }
  SpecialFrame frame{.before = only_token(tokens.before, "before", where),
                     .behind = only_token(tokens.behind, "behind", where)};
  warn_of_flag(config.add_bos, frame.before.has_value(), "add_bos_token", "BOS", where);
  warn_of_flag(config.add_eos, frame.behind.has_value(), "add_eos_token", "EOS", where);
  return frame;
}

}  // namespace dagmoe
