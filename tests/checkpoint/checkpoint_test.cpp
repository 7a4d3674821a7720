#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// Writes the tensors of `source` again, as `change` wants them.
void rewrite(const std::filesystem::path& folder, const Checkpoint& source,
             const std::function<void(std::vector<TensorSource>&)>& change) {
  std::vector<TensorSource> tensors;
  for (const TensorInfo* info : source.tensors()) {
    tensors.push_back(
        {info->name, info->dtype, info->shape, [&source, name = info->name] { return source.bytes(name); }});
  }
  change(tensors);
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(source.folder() / "config.json", folder / "config.json");
  write_safetensors(folder / "model.safetensors", std::move(tensors));
}

}  // namespace

TEST_CASE("checkpoint: every missing, unexpected and misshaped tensor is named in one error", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  const Checkpoint source = Checkpoint::open(folder / "model");
  rewrite(folder / "broken", source, [](std::vector<TensorSource>& tensors) {
    std::erase_if(tensors, [](const TensorSource& tensor) { return tensor.name == "model.norm.weight"; });
    for (auto& tensor : tensors) {
      if (tensor.name == "model.layers.0.self_attn.q_proj.weight") tensor.shape = {8, 32};
      if (tensor.name == "model.layers.1.block_sparse_moe.experts.3.w1.weight")
        tensor.name = "model.layers.1.block_sparse_moe.experts.4.w1.weight";
    }
  });
  try {
    load_decoder(Checkpoint::open(folder / "broken"), {});
    FAIL("expected InputError");
  } catch (const InputError& error) {
    const std::string text = error.what();
    REQUIRE_THAT(text, Catch::Contains("tensor 'model.norm.weight' is missing; expected shape [16]"));
    REQUIRE_THAT(text, Catch::Contains(
                           "tensor 'model.layers.0.self_attn.q_proj.weight': found shape [8, 32], expected [16, 16]"));
    REQUIRE_THAT(text, Catch::Contains("tensor 'model.layers.1.block_sparse_moe.experts.3.w1.weight' is missing"));
    REQUIRE_THAT(text, Catch::Contains("tensor 'model.layers.1.block_sparse_moe.experts.4.w1.weight' is not expected"));
  }
}

TEST_CASE("checkpoint: a weight of integers is refused by name and dtype", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  const Checkpoint source = Checkpoint::open(folder / "model");
  rewrite(folder / "broken", source, [](std::vector<TensorSource>& tensors) {
    for (auto& tensor : tensors) {
      if (tensor.name == "model.embed_tokens.weight") tensor.dtype = DType::kI32;
    }
  });
  REQUIRE_THROWS_WITH(load_decoder(Checkpoint::open(folder / "broken"), {}),
                      Catch::Contains("'model.embed_tokens.weight': found dtype I32, expected F32, BF16, F16 or F64"));
}

TEST_CASE("checkpoint: frozen weights in the compute dtype stay in their file, trained ones get memory",
          "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  const Checkpoint source = Checkpoint::open(folder / "model");
  Decoder model = load_decoder(source, {.compute_dtype = at::kFloat, .is_trainable = [](const std::string& name) {
                                          return name.find(".dag.") != std::string::npos;
                                        }});
  REQUIRE(model.embed_tokens_VD.const_data_ptr() ==
          static_cast<const void*>(source.bytes("model.embed_tokens.weight").data()));
  const at::Tensor& trained = model.layers[0].dag[0].down_GD;
  REQUIRE(trained.requires_grad());
  REQUIRE(trained.const_data_ptr() !=
          static_cast<const void*>(source.bytes("model.layers.0.mlp.dag.0.down_proj.weight").data()));
}

TEST_CASE("checkpoint: what is saved loads to the same bits", "[checkpoint]") {
  const TemporaryFolder folder;
  write_tiny_folder(folder / "model");
  const Checkpoint source = Checkpoint::open(folder / "model");
  Decoder model = load_decoder(source, {.compute_dtype = at::kBFloat16, .is_trainable = [](const std::string& name) {
                                          return name.find("q_proj") != std::string::npos;
                                        }});
  std::filesystem::create_directories(folder / "saved");
  save_model(folder / "saved", model, source);
  // bfloat16 compute must not leak into frozen weights: the files are the same, byte for byte.
  REQUIRE(read_text(folder / "saved" / "model.safetensors") == read_text(folder / "model" / "model.safetensors"));
  REQUIRE(read_text(folder / "saved" / "tokenizer.json") == read_text(folder / "model" / "tokenizer.json"));
}

TEST_CASE("checkpoint: a router bias is added as zeros and changes no bit of the forward pass", "[checkpoint]") {
  for (const char* name :
       {"dagmoe_mixtral", "dagmoe_mixtral_sigmoid", "dagmoe_qwen2_moe", "dagmoe_deepseek_v2_groups"}) {
    INFO(name);
    const Checkpoint source = Checkpoint::open(golden(name));
    const Decoder plain = load_decoder(source, {}), biased = load_decoder(source, {.add_router_bias = true});
    REQUIRE(biased.config.moe->router_bias);
    REQUIRE(biased.layers.back().router_bias_E.count_nonzero().item<std::int64_t>() == 0);
    const ModelInput input = packed_input(at::arange(20), {13, 7});
    const ModelOutput a = plain.forward(input), b = biased.forward(input);
    REQUIRE(at::equal(a.hidden_TD, b.hidden_TD));
    for (std::size_t n = 0; n < a.routing.size(); ++n)
      REQUIRE(at::equal(a.routing[n].expert_ids_TK, b.routing[n].expert_ids_TK));
  }
  // A DAG and a bias at once make a dagmoe of a Mixtral.
  const Decoder both =
      load_decoder(Checkpoint::open(golden("families/mixtral")),
                   {.add_dag = DagConfig{.num_iterations = 1, .node_size = 4}, .add_router_bias = true});
  REQUIRE(both.layers[0].router_bias_E.defined());
}

TEST_CASE("checkpoint: a model without a place for a router bias is refused", "[checkpoint]") {
  REQUIRE_THROWS_AS(load_decoder(Checkpoint::open(golden("families/mixtral")), {.add_router_bias = true}), ConfigError);
  REQUIRE_THROWS_WITH(load_decoder(Checkpoint::open(golden("families/mixtral")), {.add_router_bias = true}),
                      Catch::Contains("is of model_type 'mixtral', which has no router bias; expected dagmoe: add "
                                      "model.dag, or set the rate to 0"));
  REQUIRE_THROWS_WITH(load_decoder(Checkpoint::open(golden("families/qwen2")), {.add_router_bias = true}),
                      Catch::Contains("is of model_type 'qwen2'") && Catch::Contains("after dagmoe upcycle"));
}

TEST_CASE("checkpoint: a router bias that changed is saved in float, whatever is trained and computed in",
          "[checkpoint]") {
  const TemporaryFolder folder;
  for (const char* name : {"dagmoe_mixtral", "dagmoe_mixtral_bias", "dagmoe_olmoe"}) {
    for (const bool trains : {false, true}) {
      INFO(name << ", all the rest trains: " << trains);
      const Checkpoint source = Checkpoint::open(golden(name));
      Decoder model = load_decoder(source, {.compute_dtype = at::kBFloat16,
                                            .is_trainable = [&](const std::string&) { return trains; },
                                            .add_router_bias = true});
      const std::int64_t E = model.config.moe->num_experts;
      ExpertCounts counts;
      for (const DecoderLayer& layer : model.layers) {
        REQUIRE_FALSE(layer.router_bias_E.requires_grad());
        REQUIRE(layer.router_bias_E.scalar_type() == at::kFloat);
        counts.counts_LE.emplace_back(static_cast<std::size_t>(E), 0).back() = 10;
      }
      update_router_bias(model, counts, 1e-3);
      const std::filesystem::path saved = folder / (std::string(name) + (trains ? "_trained" : ""));
      std::filesystem::create_directories(saved);
      save_model(saved, model, source);
      const Checkpoint again = Checkpoint::open(saved);
      REQUIRE(again.config().moe->router_bias);
      const Decoder loaded = load_decoder(again, {});
      for (std::size_t n = 0; n < model.layers.size(); ++n)
        REQUIRE(at::equal(loaded.layers[n].router_bias_E, model.layers[n].router_bias_E));
      std::int64_t num_biases = 0;
      for (const TensorInfo* info : again.tensors()) {
        if (info->name.ends_with(".gate.e_score_correction_bias")) {
          ++num_biases;
          REQUIRE(info->dtype == DType::kF32);
        } else if (!trains) {
          REQUIRE(std::ranges::equal(again.bytes(info->name), source.bytes(info->name)));
        }
      }
      REQUIRE(num_biases == static_cast<std::int64_t>(model.layers.size()));
    }
  }
}

TEST_CASE("checkpoint: an unchanged router bias saves to the same bytes", "[checkpoint]") {
  const TemporaryFolder folder;
  const Checkpoint source = Checkpoint::open(golden("dagmoe_mixtral_bias"));
  Decoder model = load_decoder(source, {.compute_dtype = at::kBFloat16});
  save_model(folder.path(), model, source);
  const Checkpoint again = Checkpoint::open(folder.path());
  for (const TensorInfo* info : source.tensors())
    REQUIRE(std::ranges::equal(again.bytes(info->name), source.bytes(info->name)));
  REQUIRE(read_text(folder / "config.json") == read_text(golden("dagmoe_mixtral_bias") / "config.json"));
}

TEST_CASE("checkpoint: a config that asks for millions of tensors is refused before they are listed", "[checkpoint]") {
  for (const char* name : {"families/qwen3_moe", "families/qwen3_moe_fused"}) {
    INFO(name);
    const TemporaryFolder folder;
    std::filesystem::create_symlink(golden(name) / "model.safetensors", folder / "model.safetensors");
    Json config = read_json_file(golden(name) / "config.json");
    config["num_hidden_layers"] = 4096;
    config[config.contains("num_experts") ? "num_experts" : "num_local_experts"] = 16384;
    write_text(folder / "config.json", config.dump());
    REQUIRE_THROWS_WITH(Checkpoint::open(folder.path()),
                        Catch::Contains(folder.path().string() + ": config.json asks for 201,") &&
                            Catch::Contains(" weight matrices and vectors, but the files hold "));
  }
}

TEST_CASE("checkpoint: a folder that is not there is named", "[checkpoint]") {
  REQUIRE_THROWS_WITH(Checkpoint::open("/no/such/model"),
                      "/no/such/model: no such folder; expected a model folder with config.json");
}
