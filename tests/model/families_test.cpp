// Every family against transformers: logits of three inputs, loss with the balance loss, and every gradient by name.
#include "model/families.h"

#include "checkpoint/checkpoint.h"
#include "kernels/ops.h"
#include "model/losses.h"
#include "model/parameter_count.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr double kAuxCoefficient = 0.01;  // of make_families.py

ModelInput alone(const at::Tensor& ids) { return packed_input(ids, {ids.size(0)}); }

Decoder load_all_trainable(const std::string& folder) {
  return load_decoder(Checkpoint::open(golden(folder)),
                      {.compute_dtype = at::kFloat, .is_trainable = [](const std::string&) { return true; }});
}

void check_logits(const Decoder& model, const SafetensorsFile& expected) {
  std::vector<at::Tensor> ids, logits;
  std::vector<std::int64_t> lengths;
  for (const std::string i : {"0", "1", "2"}) {
    ids.push_back(golden_tensor(expected, "ids_" + i));
    logits.push_back(golden_tensor(expected, "logits_" + i));
    lengths.push_back(ids.back().size(0));
    INFO("input " << i);
    require_close(model.logits(model.forward(alone(ids.back())).hidden_TD), logits.back(), 1e-4, 0);
    KvCache cache = model.make_cache(lengths.back());
    const std::int64_t head = lengths.back() / 2;  // a prompt, then token by token
    std::vector<at::Tensor> steps = {model.forward_cached(ids.back().narrow(0, 0, head).to(at::kLong), cache)};
    for (std::int64_t t = head; t < lengths.back(); ++t) {
      steps.push_back(model.forward_cached(ids.back().narrow(0, t, 1).to(at::kLong), cache));
    }
    require_close(model.logits(at::cat(steps)), logits.back(), 1e-4, 0);
  }
  INFO("packed");
  require_close(model.logits(model.forward(packed_input(at::cat(ids), lengths)).hidden_TD), at::cat(logits), 1e-4, 0);
}

void check_gradients(Decoder& model, const SafetensorsFile& expected) {
  const at::Tensor ids = golden_tensor(expected, "ids_0").to(at::kLong);
  const auto T = ids.size(0);
  const at::Tensor labels = at::full_like(ids, -100);
  labels.narrow(0, 0, T - 1).copy_(ids.narrow(0, 1, T - 1));
  const ModelOutput output = model.forward(alone(ids));
  at::Tensor loss =
      masked_cross_entropy(output.hidden_TD, model.output_weight(), labels, 1.0 / static_cast<double>(T - 1));
  if (expected.find("aux_loss") != nullptr) {
    const at::Tensor aux = load_balancing_loss(output.routing, *model.config.moe);
    require_close(aux, golden_tensor(expected, "aux_loss"), 1e-5, 1e-5);
    loss = loss + kAuxCoefficient * aux;
  }
  require_close(loss, golden_tensor(expected, "loss"), 1e-5, 1e-5);
  loss.backward();
  for (const auto& [name, tensor] : model.parameters()) {
    const std::string on_disk = "grad." + disk_name(model.config, name);
    INFO(on_disk);
    const at::Tensor wanted = golden_tensor(expected, on_disk);
    const at::Tensor found = tensor->grad().defined() ? tensor->grad() : at::zeros_like(*tensor);
    // 1e-3 relative to the tensor's own size.
    require_close(found, wanted, 1e-4 * wanted.abs().max().item<double>() + 1e-6, 1e-3);
  }
}

void check_family(const std::string& name) {
  INFO(name);
  const SafetensorsFile expected = SafetensorsFile::open(golden("families/" + name + "/expected.safetensors"));
  Decoder model = load_all_trainable("families/" + name);
  check_logits(model, expected);
  check_gradients(model, expected);
}

}  // namespace

TEST_CASE("families: Llama with biases and a tied head has transformers' logits and gradients", "[model]") {
  check_family("llama_bias");
}
TEST_CASE("families: so has Llama with linear positions", "[model]") { check_family("llama_linear"); }
TEST_CASE("families: so has Llama 3 with its stretched positions", "[model]") { check_family("llama_llama3"); }
TEST_CASE("families: so has Llama with yarn", "[model]") { check_family("llama_yarn"); }
TEST_CASE("families: so has Mistral, sequences longer than its window included", "[model]") { check_family("mistral"); }
TEST_CASE("families: so has Qwen2", "[model]") { check_family("qwen2"); }
TEST_CASE("families: so has Qwen2 with a window in some layers", "[model]") { check_family("qwen2_window"); }
TEST_CASE("families: so has Qwen3", "[model]") { check_family("qwen3"); }
TEST_CASE("families: so has Mixtral", "[model]") { check_family("mixtral"); }
TEST_CASE("families: so has OLMoE, clipped and not renormalised", "[model]") { check_family("olmoe"); }
TEST_CASE("families: so has OLMoE, renormalised", "[model]") { check_family("olmoe_norm"); }
TEST_CASE("families: so has Qwen2-MoE with a dense layer by list", "[model]") { check_family("qwen2_moe"); }
TEST_CASE("families: so has Qwen2-MoE with dense layers by step", "[model]") { check_family("qwen2_moe_step"); }
TEST_CASE("families: so has Qwen3-MoE", "[model]") { check_family("qwen3_moe"); }
TEST_CASE("families: so has Qwen3-MoE without renormalising, one layer dense", "[model]") {
  check_family("qwen3_moe_raw");
}
TEST_CASE("families: so has DeepSeek-V2-Lite", "[model]") { check_family("deepseek_v2"); }
TEST_CASE("families: so has DeepSeek-V2 with groups, a latent for q, and yarn", "[model]") {
  check_family("deepseek_v2_group");
}

TEST_CASE("families: fused experts load to the same bits as experts one by one", "[model]") {
  for (const std::string name : {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2"}) {
    INFO(name);
    Decoder one_by_one = load_all_trainable("families/" + name),
            fused = load_all_trainable("families/" + name + "_fused");
    const auto expected = one_by_one.parameters(), found = fused.parameters();
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      INFO(expected[i].name);
      REQUIRE(at::equal(*found[i].tensor, *expected[i].tensor));
    }
  }
}

TEST_CASE("families: the other convention of renormalising gives other logits", "[model]") {
  for (const std::string name : {"mixtral", "olmoe", "olmoe_norm", "qwen2_moe", "qwen3_moe", "qwen3_moe_raw"}) {
    INFO(name);
    Decoder model = load_all_trainable("families/" + name);
    const SafetensorsFile expected = SafetensorsFile::open(golden("families/" + name + "/expected.safetensors"));
    model.config.moe->norm_topk_prob = !model.config.moe->norm_topk_prob;
    const at::Tensor logits = model.logits(model.forward(alone(golden_tensor(expected, "ids_0"))).hidden_TD);
    REQUIRE((logits - golden_tensor(expected, "logits_0")).abs().max().item<double>() > 1e-2);
  }
}

TEST_CASE("families: an aggregator added to any family with experts changes no logit at step 0", "[model]") {
  for (const std::string name : {"mixtral", "olmoe", "olmoe_norm", "qwen2_moe", "qwen2_moe_step", "qwen3_moe",
                                 "qwen3_moe_raw", "deepseek_v2", "deepseek_v2_group"}) {
    for (const NodeResidual residual : {NodeResidual::kHiddenState, NodeResidual::kNone}) {
      INFO(name);
      const Checkpoint checkpoint = Checkpoint::open(golden("families/" + name));
      const SafetensorsFile expected = SafetensorsFile::open(golden("families/" + name + "/expected.safetensors"));
      const DagConfig dag = {.num_iterations = 2, .node_size = 4, .node_residual = residual};
      const Decoder plain = load_decoder(checkpoint, {}),
                    with_dag = load_decoder(checkpoint, {.add_dag = dag, .seed = 3});
      const ModelInput input = alone(golden_tensor(expected, "ids_0"));
      const at::Tensor a = plain.logits(plain.forward(input).hidden_TD),
                       b = with_dag.logits(with_dag.forward(input).hidden_TD);
      REQUIRE((a - b).abs().max().item<double>() == 0.0);
    }
  }
}

TEST_CASE("families: every family's list of parameters has the decoder's names in its order", "[model]") {
  for (const auto& entry : std::filesystem::directory_iterator(golden("families"))) {
    INFO(entry.path());
    Decoder model(read_model_config(entry.path()));
    const auto parameters = model.parameters();
    const auto shapes = parameter_shapes(model.config);
    REQUIRE(parameters.size() == shapes.size());
    for (std::size_t i = 0; i < shapes.size(); ++i) REQUIRE(parameters[i].name == shapes[i].first);
  }
}

TEST_CASE("families: the number of tensors is that of the list, which is not made for it", "[model]") {
  for (const auto& entry : std::filesystem::directory_iterator(golden("families"))) {
    INFO(entry.path());
    ModelConfig config = read_model_config(entry.path());
    config.num_hidden_layers = 7;
    if (config.moe) config.dag = DagConfig{.num_iterations = 3, .node_size = 6};
    CHECK(num_parameter_tensors(config) == static_cast<std::int64_t>(parameter_shapes(config).size()));
  }
}
