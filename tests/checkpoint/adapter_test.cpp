// Adapter folders that peft wrote (make_adapters.py), read, attached, folded and written again; and broken ones.
// Letters: E experts, R rank, I inputs, O outputs, T tokens, V vocabulary.
#include "checkpoint/adapter.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

using namespace dagmoe;
using namespace dagmoe::testing;
using Catch::Matchers::Contains;

namespace {

// Logits are sums of terms up to 8 behind two layers of float: small ones keep the error of their terms.
constexpr double kLogitTolerance = 3 * kFloatTolerance;

using Tensors = std::map<std::string, at::Tensor>;

std::filesystem::path adapter_folder(const std::string& name) { return golden("adapters/" + name); }

// "mixtral-router" changes families/mixtral.
Checkpoint base_of(const std::string& adapter) {
  return Checkpoint::open(golden("families/" + adapter.substr(0, adapter.find('-'))));
}

std::vector<std::string> golden_adapters() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden("adapters"))) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

const SafetensorsFile& expected_file() {
  static const SafetensorsFile file = SafetensorsFile::open(golden("adapters/expected.safetensors"));
  return file;
}
at::Tensor golden_ids() { return golden_tensor(expected_file(), "ids").to(at::kLong); }
at::Tensor golden_logits(const std::string& name) { return golden_tensor(expected_file(), "logits." + name); }

at::Tensor logits_of(const Decoder& model) {
  const at::Tensor ids = golden_ids();
  return model.logits(model.forward(packed_input(ids, {ids.size(0)})).hidden_TD);
}

Decoder adapted(const Checkpoint& base, const std::filesystem::path& folder, at::ScalarType dtype = at::kFloat) {
  Decoder model = load_decoder(base, {.compute_dtype = dtype});
  attach_adapter(model, read_adapter(folder, base.config()));
  return model;
}
Decoder adapted(const std::string& name, at::ScalarType dtype = at::kFloat) {
  return adapted(base_of(name), adapter_folder(name), dtype);
}

/// An adapter that gets broken: change `config` and `tensors`, then save.
struct EditableAdapter {
  explicit EditableAdapter(const std::string& name) : EditableAdapter(adapter_folder(name), base_of(name).config()) {}
  EditableAdapter(const std::filesystem::path& from, ModelConfig of_model) : model_config(std::move(of_model)) {
    config = Json::parse(read_text(from / "adapter_config.json"));
    const SafetensorsFile file = SafetensorsFile::open(from / "adapter_model.safetensors");
    for (const TensorInfo& info : file.tensors()) tensors[info.name] = golden_tensor(file, info.name);
  }
  const std::filesystem::path& save() const {
    write_text(folder.path() / "adapter_config.json", config.dump());
    std::vector<TensorSource> sources;
    for (const auto& [name, tensor] : tensors) {
      const DType dtype = tensor.scalar_type() == at::kLong ? DType::kI64 : DType::kF32;
      sources.push_back({name, dtype, tensor.sizes().vec(), [value = tensor.contiguous()] {
                           return std::span(static_cast<const std::byte*>(value.const_data_ptr()), value.nbytes());
                         }});
    }
    write_safetensors(folder.path() / "adapter_model.safetensors", std::move(sources));
    return folder.path();
  }
  /// What reading says, without the folder's name; "" when it is content.
  std::string error() const {
    try {
      read_adapter(save(), model_config);
    } catch (const InputError& error) {
      REQUIRE(error.exit_code() == ExitCode::kInput);
      return error.what();
    }
    return "";
  }

  ModelConfig model_config;
  Json config;
  Tensors tensors;
  TemporaryFolder folder;
};

void require_error(const EditableAdapter& adapter, const std::string& text, int num_lines = 1) {
  const std::string error = adapter.error();
  INFO(error);
  REQUIRE_THAT(error, Contains(text));
  REQUIRE_THAT(error, Contains(adapter.folder.path().string()));
  REQUIRE(std::ranges::count(error, '\n') + 1 == num_lines);
}

const std::string kLayer0 = "base_model.model.model.layers.0.";

}  // namespace

TEST_CASE("adapter: folders of peft give peft's logits", "[checkpoint]") {
  const auto names = golden_adapters();
  REQUIRE(names.size() == 40);
  for (const std::string& name : names) {
    INFO(name);
    const Decoder model = adapted(name);
    require_close(logits_of(model), golden_logits(name), kLogitTolerance, kFloatTolerance);
  }
}

TEST_CASE("adapter: generation computes with it as well", "[checkpoint]") {
  for (const std::string name : {"llama_bias-dora", "mixtral-everything", "olmoe-v4", "llama_linear-lm_head"}) {
    INFO(name);
    const Decoder model = adapted(name);
    const at::Tensor ids = golden_ids();
    KvCache cache = model.make_cache(ids.size(0));
    const at::Tensor head = model.forward_cached(ids.narrow(0, 0, 4), cache),
                     tail = model.forward_cached(ids.narrow(0, 4, ids.size(0) - 4), cache);
    require_close(model.logits(at::cat({head, tail})), golden_logits(name), kLogitTolerance, kFloatTolerance);
  }
}

TEST_CASE("adapter: folded into the weights it computes the same", "[checkpoint]") {
  for (const std::string& name : golden_adapters()) {
    INFO(name);
    Decoder model = adapted(name);
    const std::vector<std::string> changed = fold_adapters(model);
    REQUIRE(model.adapter_parameters().empty());
    std::set<std::string> trained;
    for (const auto& [parameter, tensor] : model.parameters()) {
      if (tensor->requires_grad()) trained.insert(parameter);
    }
    REQUIRE(trained == std::set<std::string>(changed.begin(), changed.end()));
    require_close(logits_of(model), golden_logits(name), kLogitTolerance, kFloatTolerance);
  }
}

TEST_CASE("adapter: the experts' factors in another order of rank and expert give other logits", "[checkpoint]") {
  for (const std::string name : {"mixtral-gate_up", "mixtral-down", "olmoe-experts", "qwen3_moe-experts"}) {
    for (const std::string factor : {"A", "B"}) {
      INFO(name << ", " << factor);
      EditableAdapter adapter(name);
      for (auto& [key, tensor] : adapter.tensors) {
        if (!key.ends_with(".lora_" + factor + ".weight")) continue;
        const std::int64_t E = 4, R = 3;
        tensor = factor == "A" ? tensor.view({E, R, -1}).transpose(0, 1).reshape(tensor.sizes())
                               : tensor.view({-1, R, E}).transpose(1, 2).reshape(tensor.sizes());
      }
      const at::Tensor logits = logits_of(adapted(base_of(name), adapter.save()));
      REQUIRE((logits - golden_logits(name)).abs().max().item<double>() > 0.1);
    }
  }
}

TEST_CASE("adapter: written and read again it computes the same bits", "[checkpoint]") {
  for (const std::string& name : golden_adapters()) {
    INFO(name);
    const Checkpoint base = base_of(name);
    const Adapter adapter = read_adapter(adapter_folder(name), base.config());
    Decoder model = load_decoder(base, {});
    attach_adapter(model, adapter);
    for (const auto& [parameter, tensor] : model.parameters()) {
      if (adapter.full.contains(parameter)) tensor->set_requires_grad(true);
    }
    const TemporaryFolder folder;
    save_adapter(folder.path(), model, adapter.spec, base);
    const Adapter again = read_adapter(folder.path(), base.config());
    check_base(again, base);
    Decoder reread = load_decoder(base, {});
    attach_adapter(reread, again);
    if (adapter.spec.init == LoraInit::kPissa) {
      // Written as LoRA of twice the rank: the same sums in another order.
      REQUIRE(again.spec.init == LoraInit::kDefault);
      require_close(logits_of(reread), logits_of(model), kLogitTolerance, kFloatTolerance);
    } else {
      require_equal(logits_of(reread), logits_of(model));
    }
  }
}

TEST_CASE("adapter: several change the base each on its own, and the changes add up", "[checkpoint]") {
  const std::vector<std::pair<std::string, std::string>> pairs = {{"llama_bias-attention", "llama_bias-rslora"},
                                                                  {"mixtral-everything", "mixtral-experts_rslora"}};
  for (const auto& [first, second] : pairs) {
    INFO(first << " and " << second);
    const Checkpoint base = base_of(first);
    Decoder model = load_decoder(base, {}), dense = load_decoder(base, {});
    std::map<std::string, at::Tensor*> weights;
    for (const auto& [name, tensor] : dense.parameters()) weights[name] = tensor;
    const auto add = [&weights](const std::string& name, const at::Tensor& delta) {
      *weights.at(name + ".weight") = *weights.at(name + ".weight") + delta.to(at::kFloat);
    };
    for (const std::string& name : {first, second}) {
      const Adapter adapter = read_adapter(adapter_folder(name), base.config());
      attach_adapter(model, adapter);
      for (const AdapterPart& part : adapter.spec.parts) {
        const std::string& module = part.target.module;
        const at::Tensor delta = at::matmul(adapter.factors.at(module + ".lora_B.weight").to(at::kDouble),
                                            adapter.factors.at(module + ".lora_A.weight").to(at::kDouble)) *
                                 adapter.spec.scale_of(part);
        if (part.target.num_experts == 0) {
          add(module, delta);
          continue;
        }
        const std::string experts = module.substr(0, module.rfind('.') + 1);
        for (std::int64_t e = 0; e < part.target.num_experts; ++e) {
          const std::string prefix = experts + std::to_string(e);
          if (module.ends_with(".down_proj")) {
            add(prefix + ".down_proj", delta[e]);
          } else {
            const auto halves = delta[e].chunk(2);
            add(prefix + ".gate_proj", halves[0]), add(prefix + ".up_proj", halves[1]);
          }
        }
      }
    }
    const at::Tensor expected = logits_of(dense);
    require_close(logits_of(model), expected, kLogitTolerance, kFloatTolerance);
    fold_adapters(model);
    require_close(logits_of(model), expected, kLogitTolerance, kFloatTolerance);
  }
}

TEST_CASE("adapter: two of peft's that are active at once give peft's logits", "[checkpoint]") {
  const Checkpoint base = base_of("llama_bias-attention");
  Decoder model = load_decoder(base, {});
  for (const std::string name : {"llama_bias-attention", "llama_bias-rslora"})
    attach_adapter(model, read_adapter(adapter_folder(name), base.config()));
  require_close(logits_of(model), golden_logits("llama_bias-attention+llama_bias-rslora"), kLogitTolerance,
                kFloatTolerance);
}

TEST_CASE("adapter: a new one changes no bit of the logits before it trains, and PiSSA only their rounding",
          "[checkpoint]") {
  for (const std::string base_name : {"llama_bias", "mixtral", "qwen2_moe", "deepseek_v2"}) {
    INFO(base_name);
    const Checkpoint base = Checkpoint::open(golden("families/" + base_name));
    const at::Tensor expected = logits_of(load_decoder(base, {}));
    for (const bool is_dora : {false, true}) {
      AdapterSpec spec{.kind = is_dora ? AdapterKind::kDora : AdapterKind::kLora};
      for (const AdapterTarget& target : adapter_targets(parameter_shapes(base.config()))) {
        const bool is_whole = target.num_experts > 0 || target.group == "router" || target.group == "lm_head";
        if (!is_dora || !is_whole) spec.parts.push_back({target, 3, 6.0});
      }
      Decoder model = load_decoder(base, {});
      attach_new_adapter(model, spec, 1);
      if (is_dora) {  // m / n is 1 but for rounding
        require_close(logits_of(model), expected, kLogitTolerance, kFloatTolerance);
        continue;
      }
      require_equal(logits_of(model), expected);
      spec.init = LoraInit::kPissa;
      std::erase_if(spec.parts, [](const AdapterPart& part) { return part.target.num_experts > 0; });
      Decoder with_pissa = load_decoder(base, {});
      attach_new_adapter(with_pissa, spec, 1);
      require_close(logits_of(with_pissa), expected, kLogitTolerance, kFloatTolerance);
    }
  }
}

TEST_CASE("adapter: experts of old files may have adapters in part", "[checkpoint]") {
  const Checkpoint base = base_of("mixtral-v4_some");
  const Adapter adapter = read_adapter(adapter_folder("mixtral-v4_some"), base.config());
  const at::Tensor b = adapter.factors.at("model.layers.0.mlp.experts.gate_up_proj.lora_B.weight");
  REQUIRE(b.sizes() == at::IntArrayRef({4, 40, 3}));
  require_equal(b[0], at::zeros({40, 3}));
  require_equal(b[1].narrow(0, 20, 20), at::zeros({20, 3}));  // up_proj has none
  REQUIRE(b[1].narrow(0, 0, 20).abs().min().item<double>() > 0.0);
}

TEST_CASE("adapter: the kinds of entries of adapter_config.json that peft needs suffice", "[checkpoint]") {
  EditableAdapter adapter("mixtral-everything");
  Json config;
  for (const char* key : {"peft_type", "r", "lora_alpha", "target_modules", "target_parameters"})
    config[key] = adapter.config[key];
  adapter.config = config;
  require_close(logits_of(adapted(base_of("mixtral-everything"), adapter.save())), golden_logits("mixtral-everything"),
                kLogitTolerance, kFloatTolerance);
}

TEST_CASE("adapter: a single matrix of experts is known by its shape where target_parameters does not tell",
          "[checkpoint]") {
  for (const std::string name : {"mixtral-gate_up", "mixtral-down"}) {
    INFO(name);
    EditableAdapter adapter(name);
    adapter.config["target_parameters"] = nullptr;
    require_close(logits_of(adapted(base_of(name), adapter.save())), golden_logits(name), kLogitTolerance,
                  kFloatTolerance);
  }
}

TEST_CASE("adapter: what is wrong in the weights is said in one line each", "[checkpoint]") {
  SECTION("B is missing") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.tensors.erase(kLayer0 + "self_attn.q_proj.lora_B.weight");
    require_error(adapter, "module 'model.layers.0.self_attn.q_proj': tensor lora_B.weight is missing");
  }
  SECTION("A of experts is missing") {
    EditableAdapter adapter("mixtral-experts");
    adapter.tensors.erase(kLayer0 + "mlp.experts.base_layer.lora_A.weight");
    require_error(adapter, "tensor lora_A.weight is missing");
  }
  SECTION("the outer adapter of experts is missing") {
    EditableAdapter adapter("mixtral-experts");
    adapter.tensors.erase(kLayer0 + "mlp.experts.lora_A.weight");
    adapter.tensors.erase(kLayer0 + "mlp.experts.lora_B.weight");
    require_error(adapter,
                  "module 'model.layers.0.mlp.experts.base_layer': the outer adapter, of down_proj, is missing");
  }
  SECTION("the magnitude of DoRA is missing") {
    EditableAdapter adapter("llama_bias-dora");
    adapter.tensors.erase(kLayer0 + "mlp.up_proj.lora_magnitude_vector");
    require_error(adapter, "module 'model.layers.0.mlp.up_proj': lora_magnitude_vector is missing");
  }
  SECTION("a wrong shape") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.tensors[kLayer0 + "self_attn.q_proj.lora_A.weight"] = at::zeros({3, 15});
    require_error(adapter,
                  "tensor '" + kLayer0 + "self_attn.q_proj.lora_A.weight': found shape [3, 15], expected [3, 16]");
  }
  SECTION("a rank that is not the config's") {
    EditableAdapter adapter("mixtral-router");
    adapter.config["r"] = 2;
    require_error(adapter, "mlp.gate.lora_A.weight': found shape [3, 16], expected [2, 16]", 4);
  }
  SECTION("a part that the model has not, with the nearest name") {
    EditableAdapter adapter("llama_bias-attention");
    for (const char* factor : {"A", "B"})
      adapter.tensors[kLayer0 + "self_attn.q_prj.lora_" + factor + ".weight"] = at::zeros({3, 16});
    require_error(adapter,
                  "module 'model.layers.0.self_attn.q_prj' is no linear layer of this model; did you mean "
                  "'model.layers.0.self_attn.q_proj'");
  }
  SECTION("an unexpected tensor") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.tensors[kLayer0 + "self_attn.rotary"] = at::zeros({3});
    require_error(adapter, "tensor '" + kLayer0 + "self_attn.rotary' is not expected: the model has no such part");
  }
  SECTION("an embedding") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = at::zeros({3, 41});
    require_error(adapter, "adapters of embeddings are not supported");
  }
  SECTION("a name without peft's beginning") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.tensors["lm_head.weight"] = at::zeros({3});
    require_error(adapter, "tensor 'lm_head.weight': expected a name that starts with base_model.model.");
  }
  SECTION("whole numbers") {
    EditableAdapter adapter("llama_linear-saved_lm_head");
    adapter.tensors["base_model.model.lm_head.weight"] = at::zeros({41, 16}, at::kLong);
    require_error(adapter, "tensor 'base_model.model.lm_head.weight': found I64, expected floats");
  }
  SECTION("a parameter in full of another shape") {
    EditableAdapter adapter("llama_linear-saved_lm_head");
    adapter.tensors["base_model.model.lm_head.weight"] = at::zeros({40, 16});
    require_error(adapter, "tensor 'base_model.model.lm_head.weight': found shape [40, 16], expected [41, 16]");
  }
  SECTION("experts in a model without") {
    EditableAdapter adapter("llama_linear-one_layer");
    for (const char* factor : {"A", "B"})
      adapter.tensors[kLayer0 + "mlp.experts.lora_" + factor + ".weight"] = at::zeros({12, 12});
    require_error(adapter, "module 'model.layers.0.mlp.experts': the model has no experts there");
  }
  SECTION("all at once") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.tensors.erase(kLayer0 + "self_attn.q_proj.lora_B.weight");
    adapter.tensors[kLayer0 + "self_attn.k_proj.lora_A.weight"] = at::zeros({3, 15});
    adapter.tensors[kLayer0 + "self_attn.rotary"] = at::zeros({3});
    require_error(adapter, "q_proj': tensor lora_B.weight is missing", 3);
    require_error(adapter, "k_proj.lora_A.weight': found shape [3, 15]", 3);
    require_error(adapter, "rotary' is not expected", 3);
  }
}

TEST_CASE("adapter: a single adapter of experts must be of one of their matrices", "[checkpoint]") {
  SECTION("both are named") {
    EditableAdapter adapter("mixtral-down");
    adapter.config["target_parameters"] = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
    require_error(adapter, "target_parameters names gate_up_proj and down_proj, but there is one adapter", 2);
  }
  SECTION("the other one is named") {
    EditableAdapter adapter("mixtral-down");
    adapter.config["target_parameters"] = {"mlp.experts.gate_up_proj"};
    require_error(adapter, "mlp.experts.lora_A.weight': found shape [12, 20], expected [12, 16]", 4);
  }
  SECTION("it fits neither") {
    EditableAdapter adapter("mixtral-down");
    adapter.config["target_parameters"] = nullptr;
    for (const char* layer : {"0", "1"})
      adapter.tensors[std::string("base_model.model.model.layers.") + layer + ".mlp.experts.lora_A.weight"] =
          at::zeros({12, 19});
    require_error(
        adapter,
        "module 'model.layers.0.mlp.experts': A [12, 19] and B [16, 12] fit neither gate_up_proj (A [12, 16], "
        "B [40, 12]) nor down_proj (A [12, 20], B [16, 12])",
        2);
  }
}

TEST_CASE("adapter: what is wrong in experts of old files is said in one line each", "[checkpoint]") {
  const std::string prefix = kLayer0 + "block_sparse_moe.experts.";
  SECTION("an expert that the model has not") {
    for (const std::string expert : {"7", "-1"}) {
      EditableAdapter adapter("mixtral-v4");
      for (const char* factor : {"A", "B"})
        adapter.tensors[prefix + expert + ".w1.lora_" + factor + ".weight"] = at::zeros({3, 3});
      require_error(adapter, "model.layers.0.mlp.experts." + expert + "': the model has experts 0 to 3");
    }
  }
  SECTION("no part of an expert") {
    EditableAdapter adapter("mixtral-v4");
    for (const char* factor : {"A", "B"})
      adapter.tensors[prefix + "0.w4.lora_" + factor + ".weight"] = at::zeros({3, 3});
    require_error(adapter, "experts.0.w4' is no part of an expert");
  }
  SECTION("a wrong shape") {
    EditableAdapter adapter("mixtral-v4");
    adapter.tensors[prefix + "2.w2.lora_B.weight"] = at::zeros({15, 3});
    require_error(adapter, "experts.2.w2.lora_B.weight': found shape [15, 3], expected [16, 3]");
  }
  SECTION("A is missing") {
    EditableAdapter adapter("mixtral-v4");
    adapter.tensors.erase(prefix + "2.w3.lora_A.weight");
    require_error(adapter, "model.layers.0.mlp.experts.2': tensor lora_A.weight is missing");
  }
  SECTION("beside the experts in one tensor") {
    EditableAdapter adapter("mixtral-v4");
    const EditableAdapter fused("mixtral-experts");
    adapter.tensors.insert(fused.tensors.begin(), fused.tensors.end());
    require_error(adapter, "has more than one adapter in this file", 4);
  }
}

TEST_CASE("adapter: a target that nothing in the file answers to is an error", "[checkpoint]") {
  SECTION("a module") {
    EditableAdapter adapter("llama_bias-attention");
    adapter.config["target_modules"].push_back("up_proj");
    require_error(adapter, "target_modules: 'up_proj' matches no tensor of the file");
  }
  SECTION("a parameter") {
    EditableAdapter adapter("mixtral-everything");
    adapter.config["target_parameters"].push_back("mlp.experts.bias");
    require_error(adapter, "target_parameters: 'mlp.experts.bias' matches no tensor of the file");
  }
  SECTION("the end of a name counts only after a dot") {
    EditableAdapter adapter("mixtral-down");
    adapter.config["target_parameters"].push_back("wn_proj");
    require_error(adapter, "target_parameters: 'wn_proj' matches no tensor of the file");
  }
  SECTION("an expression") {
    EditableAdapter adapter("llama_linear-regex");
    adapter.config["target_modules"] = ".*\\.q_prj";
    require_error(adapter, "target_modules: '.*\\.q_prj' matches no tensor of the file");
  }
  SECTION("a malformed expression") {
    EditableAdapter adapter("llama_linear-regex");
    adapter.config["target_modules"] = "(";
    require_error(adapter, "regular expression '('");
  }
  SECTION("an empty adapter") {
    EditableAdapter adapter("llama_linear-regex");
    adapter.tensors.clear();
    adapter.config["target_modules"] = nullptr;
    require_error(adapter, "holds no adapter of a linear layer or of experts");
  }
}

TEST_CASE("adapter: kinds and settings that are not supported are refused", "[checkpoint]") {
  const auto refused = [](const std::string& key, const Json& value, const std::string& text) {
    INFO(key);
    EditableAdapter adapter("llama_bias-attention");
    adapter.config[key] = value;
    require_error(adapter, text);
  };
  refused("peft_type", "LOHA", "peft_type: found 'LOHA', expected LORA");
  refused("init_lora_weights", "olora", "init_lora_weights 'olora' changes the base weights and is not supported");
  refused("init_lora_weights", "pissa_niter_4", "init_lora_weights 'pissa_niter_4'");
  refused("bias", "all", "'bias': found \"all\", expected \"none\"");
  refused("r", 0, "'r': found 0, expected 1 to");
  refused("r", "three", "'r'");
  refused("lora_alpha", "six", "'lora_alpha'");
  refused("rank_pattern", Json{{"q_proj", 2.5}}, "'rank_pattern': 'q_proj': found 2.5, expected a whole number");
  refused("rank_pattern", Json{{"q_proj", 1e300}}, "'rank_pattern': 'q_proj'");
  refused("alpha_pattern", Json{{"q_proj", -1}}, "'alpha_pattern': 'q_proj': found -1, expected a number above 0");
  refused("rank_pattern", Json::array({1}), "'rank_pattern': expected an object");
  refused("rank_pattern", Json{{"(", 2}}, "regular expression");
  refused("target_modules", 3, "'target_modules': expected a list of names");
  for (const char* key : {"fan_in_fan_out", "lora_bias", "use_qalora"}) refused(key, true, "is not supported");
  for (const char* key : {"layer_replication", "trainable_token_indices", "alora_invocation_tokens"})
    refused(key, Json::array({0, 1}), "is not supported");
  for (const char* key :
       {"megatron_config", "arrow_config", "use_bdlora", "velora_config", "monteclora_config", "kasa_config"})
    refused(key, Json{{"a", 1}}, "is not supported");
}

TEST_CASE("adapter: what dagmoe adds to the config is checked as well", "[checkpoint]") {
  for (const Json& base : {Json(3), Json::array(), Json::object(), Json{{"path", 3}}, Json{{"path", "a"}}}) {
    INFO(base.dump());
    EditableAdapter adapter("llama_bias-attention");
    adapter.config["dagmoe"]["base"] = base;
    require_error(adapter, "adapter_config.json");
  }
  for (const Json& dag : {Json(3), Json::array(), Json{{"num_iterations", "two"}}}) {
    INFO(dag.dump());
    EditableAdapter adapter("llama_bias-attention");
    adapter.config["dagmoe"]["dag"] = dag;
    REQUIRE_THROWS_AS(adapter_dag(adapter.save()), InputError);
  }
  EditableAdapter adapter("llama_bias-attention");
  for (const Json& own : {Json(3), Json("text"), Json::array(), Json(nullptr)}) {
    adapter.config["dagmoe"] = own;
    REQUIRE(adapter.error().empty());
  }
}

TEST_CASE("adapter: DoRA goes neither on experts nor with PiSSA", "[checkpoint]") {
  EditableAdapter experts("mixtral-gate_up");
  experts.config["use_dora"] = true;
  require_error(experts, "use_dora is not possible for experts", 2);
  EditableAdapter pissa("llama_bias-dora");
  pissa.config["init_lora_weights"] = "pissa";
  require_error(pissa, "use_dora with init_lora_weights \"pissa\" is not supported");
}

TEST_CASE("adapter: every problem of the config is named", "[checkpoint]") {
  EditableAdapter adapter("llama_bias-attention");
  adapter.config["lora_bias"] = true;
  adapter.config["bias"] = "all";
  adapter.config["init_lora_weights"] = "olora";
  require_error(adapter, "'lora_bias' is not supported", 3);
  require_error(adapter, "init_lora_weights 'olora'", 3);
}

TEST_CASE("adapter: a folder without a config, or one that is none, is an input error", "[checkpoint]") {
  const TemporaryFolder folder;
  const ModelConfig config = base_of("mixtral-down").config();
  REQUIRE_FALSE(is_adapter_folder(folder.path()));
  REQUIRE_THROWS_WITH(read_adapter(folder.path(), config), Contains("has no adapter_config.json"));
  for (const std::string text : {"{", "[]", "3", "{}", "{\"peft_type\": 3}", "{\"peft_type\": \"LORA\"}"}) {
    INFO(text);
    write_text(folder.path() / "adapter_config.json", text);
    REQUIRE(is_adapter_folder(folder.path()));
    REQUIRE_THROWS_AS(read_adapter(folder.path(), config), InputError);
  }
}

TEST_CASE("adapter: one of ours knows the base that it was trained on", "[checkpoint]") {
  const Checkpoint base = base_of("mixtral-attention");
  Decoder model = load_decoder(base, {});
  const Adapter adapter = read_adapter(adapter_folder("mixtral-attention"), base.config());
  REQUIRE_NOTHROW(check_base(adapter, base));  // peft's says nothing
  attach_adapter(model, adapter);
  const TemporaryFolder folder;
  save_adapter(folder.path(), model, adapter.spec, base);
  const Adapter ours = read_adapter(folder.path(), base.config());
  REQUIRE(ours.base.path == base.folder().string());
  REQUIRE_NOTHROW(check_base(ours, base));

  const auto changed_base = [&](const std::function<void(const std::filesystem::path&)>& change) {
    const TemporaryFolder copy;
    std::filesystem::copy(base.folder(), copy.path(), std::filesystem::copy_options::recursive);
    std::filesystem::remove(copy.path() / "expected.safetensors");
    change(copy.path());
    try {
      check_base(ours, Checkpoint::open(copy.path()));
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  REQUIRE(changed_base([](const auto&) {}) == "");
  const std::string other_config = changed_base([](const std::filesystem::path& copy) {
    Json config = Json::parse(read_text(copy / "config.json"));
    config["rms_norm_eps"] = 1e-3;
    write_text(copy / "config.json", config.dump());
  });
  REQUIRE_THAT(other_config, Contains("was trained on another base: the config.json of"));
  const std::string other_weights = changed_base([](const std::filesystem::path& copy) {
    std::string bytes = read_text(copy / "model.safetensors");
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_text(copy / "model.safetensors", bytes);
  });
  REQUIRE_THAT(other_weights, Contains("was trained on another base: the weights of"));
  REQUIRE_THAT(other_weights, Contains("give the model that it was trained on"));
}

TEST_CASE("adapter: what is written has peft's names, and targets no more than what changes", "[checkpoint]") {
  const Checkpoint base = base_of("mixtral-everything");
  const auto written_config = [&](const std::function<bool(const AdapterTarget&)>& is_chosen) {
    AdapterSpec spec;
    for (const AdapterTarget& target : adapter_targets(parameter_shapes(base.config()))) {
      if (is_chosen(target)) spec.parts.push_back({target, 3, 6.0});
    }
    Decoder model = load_decoder(base, {});
    attach_new_adapter(model, spec, 1);
    const TemporaryFolder folder;
    save_adapter(folder.path(), model, spec, base);
    return Json::parse(read_text(folder.path() / "adapter_config.json"));
  };
  const Json all = written_config([](const AdapterTarget&) { return true; });
  REQUIRE(all["target_modules"] == Json({"k_proj", "lm_head", "o_proj", "q_proj", "v_proj"}));
  REQUIRE(all["target_parameters"] == Json({"mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.gate.weight"}));
  const Json second = written_config([](const AdapterTarget& target) {
    return target.module.starts_with("model.layers.1.") && !target.module.ends_with("k_proj");
  });
  REQUIRE(second["target_modules"] == Json({"model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.q_proj",
                                            "model.layers.1.self_attn.v_proj"}));
  REQUIRE(second["target_parameters"] ==
          Json({"model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.gate_up_proj",
                "model.layers.1.mlp.gate.weight"}));
}

TEST_CASE("adapter: a DAG alone is a small folder that gives its base the trained logits bit for bit", "[checkpoint]") {
  const Checkpoint base = base_of("mixtral-attention");
  const DagConfig dag{.num_iterations = 2, .node_size = 4};
  const auto is_dag = [](const std::string& name) { return name.find(".mlp.dag.") != std::string::npos; };
  Decoder model = load_decoder(base, {.is_trainable = is_dag, .add_dag = dag, .seed = 3});
  std::int64_t num_numbers = 0;
  at::Generator generator = at::detail::createCPUGenerator(4);
  for (const auto& [name, tensor] : model.parameters()) {
    if (!is_dag(name)) continue;
    const at::NoGradGuard no_grad;
    tensor->normal_(0.0, 0.5, generator);
    num_numbers += tensor->numel();
  }
  const at::Tensor logits = logits_of(model);
  REQUIRE((logits - logits_of(load_decoder(base, {}))).abs().max().item<double>() > 0.1);
  const TemporaryFolder folder;
  save_adapter(folder.path(), model, {}, base);
  const auto header =
      std::filesystem::file_size(folder / "adapter_model.safetensors") - static_cast<std::uintmax_t>(4 * num_numbers);
  REQUIRE(header < 8192);
  REQUIRE(adapter_dag(folder.path()) == dag);
  REQUIRE_FALSE(adapter_dag(adapter_folder("mixtral-attention")).has_value());

  Decoder again = load_decoder(base, {.add_dag = *adapter_dag(folder.path()), .seed = 9});
  const Adapter adapter = read_adapter(folder.path(), again.config);
  REQUIRE(adapter.spec.parts.empty());
  REQUIRE_NOTHROW(check_base(adapter, base));
  attach_adapter(again, adapter);
  require_equal(logits_of(again), logits);

  EditableAdapter incomplete(folder.path(), again.config);
  incomplete.tensors.erase(incomplete.tensors.begin());
  require_error(incomplete, "tensors of the DAG it brings");
}
