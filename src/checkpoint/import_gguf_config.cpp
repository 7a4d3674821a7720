#include "checkpoint/import_gguf_config.h"

#include <array>
#include <cmath>
#include <numbers>
#include <vector>

namespace dagmoe {
namespace {

constexpr double kDefaultRopeTheta = 10000.0;
constexpr const char* kRopeFreqs = "rope_freqs.weight";

std::int64_t head_dim(const GgufMetadata& metadata, std::int64_t hidden_size, std::int64_t num_heads) {
  const std::string key_length = metadata.own("attention.key_length");
  const auto rotary = metadata.integer(metadata.own("rope.dimension_count")), length = metadata.integer(key_length);
  const std::int64_t d = rotary ? *rotary : length ? *length : num_heads > 0 ? hidden_size / num_heads : 0;
  for (const std::string& key : {key_length, metadata.own("attention.value_length")}) {
    const std::int64_t found = metadata.integer(key).value_or(d);
    if (found != d) metadata.fail(key, str("found ", found, ", expected the rotary dimensions of a head, ", d));
  }
  return d;
}

/// Scaling of positions as the metadata say; null for none.
Json scaling_of_keys(const GgufMetadata& metadata) {
  const std::string type_key = metadata.own("rope.scaling.type"), factor_key = metadata.own("rope.scaling.factor");
  const std::string type = metadata.text(type_key);
  const std::optional<double> old_factor = metadata.real(metadata.own("rope.scale_linear"));  // files of 2023
  double factor = metadata.real(factor_key).value_or(old_factor.value_or(1.0));
  if (factor == 0.0) factor = 1.0;  // llama.cpp takes 0 for "none"
  const std::string original_key = metadata.own("rope.scaling.original_context_length");
  const std::optional<std::int64_t> original = metadata.integer(original_key);
  if (type == "none" && factor != 1.0) metadata.fail(factor_key, str("found ", factor, ", but the type is 'none'"));
  if (type == "none" || (type.empty() && factor == 1.0)) return nullptr;
  // Without a type llama.cpp scales linearly.
  if (type == "linear" || type.empty()) {
    return factor == 1.0 ? Json(nullptr) : Json{{"rope_type", "linear"}, {"factor", factor}};
  }
  if (type != "yarn") {
    metadata.fail(type_key, str("found ", quoted_for_message(type), ", supported: none, linear, yarn"));
  }
  if (!original) metadata.fail(original_key, "is missing");
  Json scaling = {{"rope_type", "yarn"}, {"factor", factor}, {"original_max_position_embeddings", *original}};
  for (const char* name : {"beta_fast", "beta_slow"}) {
    if (const auto beta = metadata.real(metadata.own(str("rope.scaling.yarn_", name)))) scaling[name] = *beta;
  }
  // transformers knows the first two not at all, and takes the third for the whole factor where llama.cpp multiplies.
  for (const auto& [name, neutral] : {std::pair("yarn_ext_factor", 1.0), std::pair("attn_factor", 1.0)}) {
    const std::string key = metadata.own(str("rope.scaling.", name));
    const double found = metadata.real(key).value_or(neutral);
    if (found != neutral) metadata.fail(key, str("found ", found, ", supported: ", neutral));
  }
  for (const char* name : {"yarn_attn_factor", "yarn_log_multiplier"}) {
    const std::string key = metadata.own(str("rope.scaling.", name));
    if (const auto found = metadata.real(key)) metadata.fail(key, str("found ", *found, ", expected no such key"));
  }
  return scaling;
}

/// The divisor of an inverse frequency in Llama 3.1's scaling (contracts.md 1.3).
struct Llama3Scaling {
  double factor, low_freq_factor = 1.0, high_freq_factor = 4.0, old_context = 8192.0;
  double divisor(double frequency) const {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength > old_context / low_freq_factor) return factor;
    if (wavelength < old_context / high_freq_factor) return 1.0;
    const double smooth = (old_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
    return 1.0 / ((1.0 - smooth) / factor + smooth);
  }
};

/// Scaling as divisors of the inverse frequencies; null when they are all ones or when there are none. Files hold only
/// the divisors: those of Llama 3.1 to 3.3, which differ in nothing but the factor, are recognised by computing them.
Json scaling_of_divisors(const GgufFile& file, std::int64_t head_dim, double theta) {
  // The file's divisors went through float powers and wavelengths.
  constexpr double kTolerance = 1e-5;
  const GgufTensor* tensor = file.tensor(kRopeFreqs);
  if (tensor == nullptr) return nullptr;
  const std::string where = str(file.path().string(), ": tensor '", kRopeFreqs, "': ");
  const std::vector<float> divisors = dequantize(file, *tensor);
  const auto half = static_cast<std::size_t>(head_dim / 2);
  if (divisors.size() != half) {
    throw InputError(str(where, "found ", divisors.size(), " values, expected one for each pair of a head, ", half));
  }
  const Llama3Scaling llama3 = {.factor = divisors.back()};
  bool all_ones = true;
  for (std::size_t i = 0; i < half; ++i) {
    all_ones = all_ones && divisors[i] == 1.0f;
    const double expected =
        llama3.divisor(std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)));
    if (!(std::abs(divisors[i] - expected) <= kTolerance * expected)) {
      throw InputError(str(where, "frequency ", i, " is divided by ", divisors[i], ", expected ", expected,
                           " of the only known kind, Llama 3.1's"));
    }
  }
  if (all_ones) return nullptr;
  return {{"rope_type", "llama3"},
          {"factor", llama3.factor},
          {"low_freq_factor", llama3.low_freq_factor},
          {"high_freq_factor", llama3.high_freq_factor},
          {"original_max_position_embeddings", static_cast<std::int64_t>(llama3.old_context)}};
}

Json rope_scaling(const GgufMetadata& metadata, std::int64_t head_dim, double theta) {
  Json by_keys = scaling_of_keys(metadata), by_divisors = scaling_of_divisors(metadata.file(), head_dim, theta);
  if (by_keys.is_null()) return by_divisors;
  if (!by_divisors.is_null()) {
    metadata.fail(metadata.own("rope.scaling.type"), str("positions are scaled here and by tensor '", kRopeFreqs, "'"));
  }
  return by_keys;
}

Json null_or(const std::optional<std::int64_t>& value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

Json gguf_config(const GgufMetadata& metadata, const GgufArchitecture& architecture) {
  const auto own = [&](std::string_view name) { return metadata.needed_integer(metadata.own(name)); };
  Json json = Json::object();
  json["model_type"] = nullptr;  // comes first in the file; the architecture's to say
  json["num_hidden_layers"] = own("block_count");
  json["max_position_embeddings"] = own("context_length");
  json["hidden_size"] = own("embedding_length");
  json["intermediate_size"] = own("feed_forward_length");
  json["num_attention_heads"] = own("attention.head_count");
  json["num_key_value_heads"] = null_or(metadata.integer(metadata.own("attention.head_count_kv")));
  json["head_dim"] = head_dim(metadata, json["hidden_size"], json["num_attention_heads"]);
  json["rms_norm_eps"] = metadata.needed_real(metadata.own("attention.layer_norm_rms_epsilon"));
  json["rope_theta"] = metadata.real(metadata.own("rope.freq_base")).value_or(kDefaultRopeTheta);
  json["rope_scaling"] = rope_scaling(metadata, json["head_dim"], json["rope_theta"]);
  const auto* tokens = metadata.array<std::string>("tokenizer.ggml.tokens");
  const std::int64_t num_tokens = tokens == nullptr ? 0 : static_cast<std::int64_t>(tokens->size());
  json["vocab_size"] = metadata.integer(metadata.own("vocab_size")).value_or(num_tokens);
  json["tie_word_embeddings"] = metadata.file().tensor("output.weight") == nullptr;
  json["bos_token_id"] = null_or(metadata.integer("tokenizer.ggml.bos_token_id"));
  json["eos_token_id"] = null_or(metadata.integer("tokenizer.ggml.eos_token_id"));
  json["pad_token_id"] = null_or(metadata.integer("tokenizer.ggml.padding_token_id"));
  architecture.add_settings(metadata, json);
  return json;
}

}  // namespace dagmoe
