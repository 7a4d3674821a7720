#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/text.h"
#include "checkpoint/import.h"
#include "checkpoint/safetensors.h"
#include "model/config.h"
#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

const std::filesystem::path kGolden = std::filesystem::path(DAGMOE_SOURCE_DIR) / "tests/golden";

/// Compares names, shapes and bytes of an imported file with what transformers knows the model by.
void check_import(const std::string& name) {
  INFO(name);
  const Json expected = read_json_file(kGolden / "tiny_gguf.json")[name];
  const TemporaryFolder folder;
  import_model(kGolden / "tiny_gguf" / (name + ".gguf"), folder / "out",
               {.dtype = DType::kF32, .force = false, .on_tensor = {}});
  const SafetensorsFile weights = SafetensorsFile::open(folder / "out/model.safetensors");
  CHECK(weights.tensors().size() == expected["tensors"].size());
  for (const auto& [tensor, shape_and_hash] : expected["tensors"].items()) {
    INFO(tensor);
    const TensorInfo* info = weights.find(tensor);
    REQUIRE(info != nullptr);
    CHECK(info->shape == shape_and_hash[0].get<std::vector<std::int64_t>>());
    const std::span<const std::byte> bytes = weights.bytes(*info);
    CHECK(sha256_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()}) == shape_and_hash[1]);
  }
  ModelConfig found = read_model_config(folder / "out");
  ModelConfig config = parse_model_config(expected["config"], name);
  found.dtype.clear();  // what it was imported as
  found.extra = config.extra = Json::object();
  CHECK(found == config);
}

}  // namespace

TEST_CASE("import: a Llama of several types has the values that transformers decodes", "[import]") {
  check_import("llama");
}

TEST_CASE("import: a Mixtral of several types has the values it was made of", "[import]") { check_import("mixtral"); }

TEST_CASE("import: a Qwen2 with biases and tied embeddings has the values that transformers decodes", "[import]") {
  check_import("qwen2");
}

TEST_CASE("import: a Qwen3 with a head size of its own has the values that transformers decodes", "[import]") {
  check_import("qwen3");
}

TEST_CASE("import: an OLMoE with norms over whole projections has the values it was made of", "[import]") {
  check_import("olmoe");
}

TEST_CASE("import: a Qwen2-MoE with a shared expert has the values that transformers decodes", "[import]") {
  check_import("qwen2moe");
}

TEST_CASE("import: a Qwen3-MoE with a head size of its own has the values that transformers decodes", "[import]") {
  check_import("qwen3moe");
}
