#include "checkpoint/import_gguf_config.h"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "tests/base/helpers.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

const std::filesystem::path kGolden = std::filesystem::path(DAGMOE_SOURCE_DIR) / "tests/golden";

Json config_of(const std::filesystem::path& path) {
  const GgufFile file = GgufFile::open(path);
  const GgufMetadata metadata(file);
  return gguf_config(metadata, find_gguf_architecture(metadata));
}

/// The metadata of a model with 2 heads of 4 values, all but those of its tokenizer.
GgufBuilder model_of(const std::string& architecture) {
  GgufBuilder builder;
  builder.add_text("general.architecture", architecture);
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::uint32_t>>{{"block_count", 1},
                                                                                     {"context_length", 16},
                                                                                     {"embedding_length", 8},
                                                                                     {"feed_forward_length", 6},
                                                                                     {"attention.head_count", 2}}) {
    builder.add_u32(str(architecture, ".", key), value);
  }
  builder.add_f32(architecture + ".attention.layer_norm_rms_epsilon", 1e-6f);
  return builder;
}

using Change = std::function<void(GgufBuilder&)>;

Json config_with(const std::string& architecture, const Change& change) {
  GgufBuilder builder = model_of(architecture);
  change(builder);
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", builder.build());
  return config_of(folder / "m.gguf");
}

/// What reading the config says, without the path in front.
std::string error_with(const std::string& architecture, const Change& change) {
  GgufBuilder builder = model_of(architecture);
  change(builder);
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", builder.build());
  const std::string prefix = (folder / "m.gguf").string() + ": ";
  const std::string message = message_of<InputError>([&] { config_of(folder / "m.gguf"); });
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

/// Llama 3.1's divisors for heads of 128 values and base 500000, in the float arithmetic that llama.cpp's converter
/// has.
std::vector<float> llama31_divisors(float factor) {
  std::vector<float> divisors;
  for (int i = 0; i < 64; ++i) {
    const float frequency = 1.0f / std::pow(500000.0f, static_cast<float>(2 * i) / 128.0f);
    const float wavelength = 2.0f * 3.14159265f / frequency;
    const float smooth = (8192.0f / wavelength - 1.0f) / 3.0f;
    const float between = 1.0f / ((1.0f - smooth) / factor + smooth);
    divisors.push_back(wavelength < 2048.0f ? 1.0f : wavelength > 8192.0f ? factor : between);
  }
  return divisors;
}

Change rotary_divisors(const std::vector<float>& divisors) {
  return [divisors](GgufBuilder& builder) {
    builder.add_u32("llama.rope.dimension_count", 128);
    builder.add_f32("llama.rope.freq_base", 500000.0f);
    builder.add_floats("rope_freqs.weight", {divisors.size()}, divisors);
  };
}

}  // namespace

TEST_CASE("gguf config: every architecture gets the keys of its Hugging Face family", "[import]") {
  const Json golden = read_json_file(kGolden / "tiny_gguf.json");
  REQUIRE(golden.size() == 7);
  for (const auto& [name, entry] : golden.items()) {
    const Json config = config_of(kGolden / "tiny_gguf" / (name + ".gguf"));
    for (const auto& [key, value] : entry["config"].items()) {
      // transformers 5.23.0 writes Mixtral's key for Qwen3-MoE too, and null for a head size that follows.
      const std::string ours = key == "num_local_experts" && !config.contains(key) ? "num_experts" : key;
      const Json expected = key == "head_dim" && value.is_null() ? Json(8) : value;
      INFO(name << ": " << key);
      REQUIRE(config.contains(ours));
      CHECK(config[ours].dump() == expected.dump());
    }
    CHECK(config["rope_scaling"].is_null());
  }
}

TEST_CASE("gguf config: the head size is the rotary dimensions, else the key length, else what follows", "[import]") {
  CHECK(config_with("qwen3", [](GgufBuilder&) {})["head_dim"] == 4);
  CHECK(config_with("qwen3", [](GgufBuilder& b) { b.add_u32("qwen3.attention.key_length", 6); })["head_dim"] == 6);
  CHECK(error_with("llama", [](GgufBuilder& b) {
          b.add_u32("llama.rope.dimension_count", 4);
          b.add_u32("llama.attention.key_length", 6);
        }) == "metadata key 'llama.attention.key_length': found 6, expected the rotary dimensions of a head, 4");
  CHECK(error_with("qwen3", [](GgufBuilder& b) { b.add_u32("qwen3.attention.value_length", 2); }) ==
        "metadata key 'qwen3.attention.value_length': found 2, expected the rotary dimensions of a head, 4");
}

TEST_CASE("gguf config: biases are what the tensors say", "[import]") {
  const auto with_bias = [](GgufBuilder& builder) {
    builder.add_floats("blk.0.attn_q.bias", {8}, {1, 2, 3, 4, 5, 6, 7, 8});
  };
  CHECK(config_with("llama", with_bias)["attention_bias"] == true);
  CHECK(config_with("qwen3", with_bias)["attention_bias"] == true);
  CHECK(config_with("llama", [](GgufBuilder&) {})["attention_bias"] == false);
}

TEST_CASE("gguf config: OLMoE's clipping is kept", "[import]") {
  const auto clipped = [](GgufBuilder& builder) {
    builder.add_u32("olmoe.expert_count", 4);
    builder.add_u32("olmoe.expert_used_count", 2);
    builder.add_f32("olmoe.attention.clamp_kqv", 8.0f);
  };
  CHECK(config_with("olmoe", clipped)["clip_qkv"] == 8.0);
}

TEST_CASE("gguf config: linear scaling of positions, with or without its name", "[import]") {
  const std::string expected = R"({"rope_type":"linear","factor":4.0})";
  CHECK(config_with("llama",
                    [](GgufBuilder& b) {
                      b.add_text("llama.rope.scaling.type", "linear");
                      b.add_f32("llama.rope.scaling.factor", 4.0f);
                    })["rope_scaling"]
            .dump() == expected);
  CHECK(
      config_with("llama", [](GgufBuilder& b) { b.add_f32("llama.rope.scale_linear", 4.0f); })["rope_scaling"].dump() ==
      expected);
  for (const float factor : {0.0f, 1.0f}) {
    CHECK(config_with("llama", [&](GgufBuilder& b) { b.add_f32("llama.rope.scaling.factor", factor); })["rope_scaling"]
              .is_null());
  }
}

TEST_CASE("gguf config: yarn keeps its settings", "[import]") {
  const auto yarn = [](GgufBuilder& builder) {
    builder.add_text("qwen2.rope.scaling.type", "yarn");
    builder.add_f32("qwen2.rope.scaling.factor", 4.0f);
    builder.add_u32("qwen2.rope.scaling.original_context_length", 32768);
  };
  CHECK(config_with("qwen2", yarn)["rope_scaling"].dump() ==
        R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768})");
  CHECK(
      config_with("qwen2",
                  [&](GgufBuilder& b) {
                    yarn(b);
                    b.add_f32("qwen2.rope.scaling.yarn_beta_fast", 16.0f);
                    b.add_f32("qwen2.rope.scaling.yarn_beta_slow", 2.0f);
                    b.add_f32("qwen2.rope.scaling.yarn_ext_factor", 1.0f);
                  })["rope_scaling"]
          .dump() ==
      R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768,"beta_fast":16.0,"beta_slow":2.0})");
  const auto refused = [&](const std::string& key, float value) {
    return error_with("qwen2", [&](GgufBuilder& b) {
      yarn(b);
      b.add_f32("qwen2.rope.scaling." + key, value);
    });
  };
  CHECK(refused("yarn_ext_factor", 0.5f) ==
        "metadata key 'qwen2.rope.scaling.yarn_ext_factor': found 0.5, supported: 1");
  CHECK(refused("attn_factor", 2.0f) == "metadata key 'qwen2.rope.scaling.attn_factor': found 2, supported: 1");
  CHECK(refused("yarn_attn_factor", 1.0f) ==
        "metadata key 'qwen2.rope.scaling.yarn_attn_factor': found 1, expected no such key");
  CHECK(refused("yarn_log_multiplier", 0.1f) ==
        "metadata key 'qwen2.rope.scaling.yarn_log_multiplier': found 0.1, expected no such key");
}

TEST_CASE("gguf config: other scalings of positions are refused", "[import]") {
  CHECK(error_with("llama", [](GgufBuilder& b) { b.add_text("llama.rope.scaling.type", "longrope"); }) ==
        "metadata key 'llama.rope.scaling.type': found 'longrope', supported: none, linear, yarn");
  CHECK(error_with("llama", [](GgufBuilder& b) { b.add_text("llama.rope.scaling.type", "yarn"); }) ==
        "metadata key 'llama.rope.scaling.original_context_length': is missing");
  CHECK(error_with("llama", [](GgufBuilder& b) {
          b.add_text("llama.rope.scaling.type", "none");
          b.add_f32("llama.rope.scaling.factor", 2.0f);
        }) == "metadata key 'llama.rope.scaling.factor': found 2, but the type is 'none'");
}

TEST_CASE("gguf config: rotary divisors are recognised as Llama 3.1's", "[import]") {
  for (const auto& [factor, text] : {std::pair(8.0f, "8.0"), std::pair(32.0f, "32.0")}) {
    CHECK(config_with("llama", rotary_divisors(llama31_divisors(factor)))["rope_scaling"].dump() ==
          str(R"({"rope_type":"llama3","factor":)", text,
              R"(,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192})"));
  }
  CHECK(config_with("llama", rotary_divisors(std::vector<float>(64, 1.0f)))["rope_scaling"].is_null());
}

TEST_CASE("gguf config: other rotary divisors are refused", "[import]") {
  std::vector<float> divisors = llama31_divisors(8.0f);
  CHECK(error_with("llama", rotary_divisors({1, 1})) ==
        "tensor 'rope_freqs.weight': found 2 values, expected one for each pair of a head, 64");
  divisors[31] *= 1.001f;
  CHECK_THAT(error_with("llama", rotary_divisors(divisors)),
             Catch::StartsWith("tensor 'rope_freqs.weight': frequency 31 is divided by ") &&
                 Catch::EndsWith(" of the only known kind, Llama 3.1's"));
  divisors[31] = std::nanf("");
  CHECK_THAT(error_with("llama", rotary_divisors(divisors)), Catch::Contains("frequency 31 is divided by nan"));
  CHECK(error_with("llama", [](GgufBuilder& b) {
          rotary_divisors(llama31_divisors(8.0f))(b);
          b.add_f32("llama.rope.scaling.factor", 2.0f);
        }) == "metadata key 'llama.rope.scaling.type': positions are scaled here and by tensor 'rope_freqs.weight'");
}

TEST_CASE("gguf config: routers that no supported family has are refused", "[import]") {
  CHECK(error_with("qwen3moe", [](GgufBuilder& b) { b.add_u32("qwen3moe.expert_gating_func", 2); }) ==
        "metadata key 'qwen3moe.expert_gating_func': found 2, supported: 1 (softmax)");
  CHECK(error_with("qwen3moe", [](GgufBuilder& b) { b.add_f32("qwen3moe.expert_weights_scale", 2.5f); }) ==
        "metadata key 'qwen3moe.expert_weights_scale': found 2.5; a scale of the experts' weights is not supported");
  CHECK(error_with("qwen3moe", [](GgufBuilder&) {}) == "metadata key 'qwen3moe.expert_count': is missing");
}
