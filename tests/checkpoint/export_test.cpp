#include "checkpoint/export.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

bool equal_tensors(const Checkpoint& a, const Checkpoint& b) {
  const auto tensors = a.tensors();
  return tensors.size() == b.tensors().size() && std::ranges::all_of(tensors, [&](const TensorInfo* info) {
           return b.find(info->name) != nullptr && std::ranges::equal(a.bytes(info->name), b.bytes(info->name));
         });
}

}  // namespace

TEST_CASE("export: a plain family keeps its tensors, their layout and the text of its config", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const auto& entry : std::filesystem::directory_iterator(golden("families"))) {
    INFO(entry.path());
    export_model(entry.path(), folder / "out", /*force=*/true);
    REQUIRE(equal_tensors(Checkpoint::open(entry.path()), Checkpoint::open(folder / "out")));
    REQUIRE(read_text(folder / "out/model.safetensors") == read_text(entry.path() / "model.safetensors"));
    REQUIRE(read_text(folder / "out/config.json") == read_text(entry.path() / "config.json"));
  }
}

TEST_CASE("export: loading and saving changes neither tensors nor config, for every family", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const auto& entry : std::filesystem::directory_iterator(golden("families"))) {
    INFO(entry.path());
    const Checkpoint source = Checkpoint::open(entry.path());
    for (const bool trained : {false, true}) {
      Decoder model = load_decoder(source, {.is_trainable = [trained](const std::string&) { return trained; }});
      const std::filesystem::path out = folder / (entry.path().filename().string() + (trained ? "_trained" : ""));
      std::filesystem::create_directories(out);
      save_model(out, model, source);
      REQUIRE(equal_tensors(source, Checkpoint::open(out)));
      REQUIRE(read_text(out / "config.json") == read_text(entry.path() / "config.json"));
    }
  }
}

TEST_CASE("export: in a fused tensor only the trained expert changes", "[checkpoint]") {
  const TemporaryFolder folder;
  const Checkpoint source = Checkpoint::open(golden("families/olmoe_fused"));
  const std::string trained = "model.layers.1.mlp.experts.2.up_proj.weight";
  Decoder model = load_decoder(source, {.compute_dtype = at::kBFloat16,
                                        .is_trainable = [&](const std::string& name) { return name == trained; }});
  for (const auto& [name, tensor] : model.parameters()) {
    if (name == trained) tensor->detach().add_(1.0);
  }
  std::filesystem::create_directories(folder / "out");
  save_model(folder / "out", model, source);
  Decoder before = load_decoder(source, {}), after = load_decoder(Checkpoint::open(folder / "out"), {});
  const auto old_parameters = before.parameters(), new_parameters = after.parameters();
  for (std::size_t i = 0; i < old_parameters.size(); ++i) {
    INFO(old_parameters[i].name);
    const bool is_trained = old_parameters[i].name == trained;
    const at::Tensor expected = is_trained ? *old_parameters[i].tensor + 1.0 : *old_parameters[i].tensor;
    REQUIRE(at::equal(*new_parameters[i].tensor, expected));
  }
}

TEST_CASE("export: a DAG-MoE carries the remote code and names it in its config", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  const auto names = export_model(folder / "model", folder / "out", /*force=*/false);
  for (const char* name : {"configuration_dagmoe.py", "modeling_dagmoe.py", "tokenizer.json", "config.json"}) {
    REQUIRE(std::ranges::count(names, name) == 1);
  }
  const std::filesystem::path code = std::filesystem::path(DAGMOE_SOURCE_DIR) / "src/checkpoint/remote_code";
  for (const char* name : {"configuration_dagmoe.py", "modeling_dagmoe.py"}) {
    REQUIRE(read_text(folder / "out" / name) == read_text(code / name));
  }
  const Json config = read_json_file(folder / "out/config.json");
  REQUIRE(config["auto_map"]["AutoModelForCausalLM"] == "modeling_dagmoe.DagMoeForCausalLM");
  REQUIRE(equal_tensors(Checkpoint::open(folder / "model"), Checkpoint::open(folder / "out")));
  REQUIRE_THROWS_AS(export_model(folder / "model", folder / "out", /*force=*/false), InputError);
}

TEST_CASE("export: the experts of a DAG-MoE are written one by one, whatever they were", "[checkpoint]") {
  const TemporaryFolder folder;
  for (const char* family : {"mixtral", "qwen2_moe", "deepseek_v2"}) {
    INFO(family);
    const auto make = [&](const std::string& suffix) {
      const Checkpoint source = Checkpoint::open(golden("families/" + (family + suffix)));
      Decoder model = load_decoder(source, {.add_dag = DagConfig{.num_iterations = 1, .node_size = 4}});
      const std::filesystem::path saved = folder / (std::string("dagmoe_") + family + suffix);
      std::filesystem::create_directories(saved);
      save_model(saved, model, source);
      export_model(saved, folder / (std::string("out_") + family + suffix), /*force=*/false);
      return Checkpoint::open(folder / (std::string("out_") + family + suffix));
    };
    REQUIRE(equal_tensors(make(""), make("_fused")));
  }
}
