#include "checkpoint/import.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/import_source.h"
#include "checkpoint/safetensors_folder.h"
#include "data/tokenizer.h"
#include "model/config.h"
#include "tests/base/helpers.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace fs = std::filesystem;

namespace {

const fs::path kGolden = fs::path(DAGMOE_SOURCE_DIR) / "tests/golden";

/// `rows` rows of `columns` equal values: row r holds start + r, so that a value tells its row.
std::vector<float> rows_of(std::int64_t rows, std::int64_t columns, float start = 0.0f) {
  std::vector<float> values;
  for (std::int64_t r = 0; r < rows; ++r)
    values.insert(values.end(), static_cast<std::size_t>(columns), start + static_cast<float>(r));
  return values;
}

void add_tokenizer(GgufBuilder& builder) {
  builder.add_text("tokenizer.ggml.model", "gpt2");
  builder.add_text("tokenizer.ggml.pre", "gpt-2");
  builder.add_texts("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "c", "ab", "abc"});
  builder.add_i32s("tokenizer.ggml.token_type", {3, 1, 1, 1, 1, 1});
  builder.add_texts("tokenizer.ggml.merges", {"a b", "ab c"});
  builder.add_u32("tokenizer.ggml.bos_token_id", 0);
  builder.add_u32("tokenizer.ggml.eos_token_id", 0);
  builder.add_text("tokenizer.chat_template", "{{ messages }}");
}

void add_config(GgufBuilder& builder) {
  builder.add_text("general.architecture", "llama");
  builder.add_u32("llama.block_count", 1);
  builder.add_u32("llama.context_length", 16);
  builder.add_u32("llama.embedding_length", 8);
  builder.add_u32("llama.feed_forward_length", 6);
  builder.add_u32("llama.attention.head_count", 2);
  builder.add_u32("llama.attention.head_count_kv", 1);
  builder.add_f32("llama.rope.freq_base", 5000.0f);
  builder.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

void add_attention(GgufBuilder& builder) {
  builder.add_floats("token_embd.weight", {8, 6}, rows_of(6, 8));
  builder.add_floats("output_norm.weight", {8}, rows_of(8, 1));
  builder.add_floats("blk.0.attn_norm.weight", {8}, rows_of(8, 1, 1));
  builder.add_floats("blk.0.ffn_norm.weight", {8}, rows_of(8, 1, 2));
  builder.add_floats("blk.0.attn_q.weight", {8, 8}, rows_of(8, 8));
  builder.add_floats("blk.0.attn_k.weight", {8, 4}, rows_of(4, 8, 100));
  builder.add_floats("blk.0.attn_v.weight", {8, 4}, rows_of(4, 8, 200));
  builder.add_floats("blk.0.attn_output.weight", {8, 8}, rows_of(8, 8, 300));
}

void add_dense(GgufBuilder& builder) {
  builder.add_floats("blk.0.ffn_gate.weight", {8, 6}, rows_of(6, 8, 10));
  builder.add_floats("blk.0.ffn_up.weight", {8, 6}, rows_of(6, 8, 20));
  builder.add_floats("blk.0.ffn_down.weight", {6, 8}, rows_of(8, 6, 30));
}

/// One layer, hidden 8, 2 heads of 4 rows, 1 key-value head, 6 tokens, tied.
GgufBuilder tiny_llama() {
  GgufBuilder builder;
  add_config(builder);
  add_tokenizer(builder);
  add_attention(builder);
  add_dense(builder);
  return builder;
}

/// Gate rows 10 to 15 and up rows 40 to 45 of expert 0, then those of expert 1.
std::vector<float> gate_and_up() {
  std::vector<float> values;
  for (const float start : {10.0f, 40.0f, 16.0f, 46.0f}) {
    const std::vector<float> rows = rows_of(6, 8, start);
    values.insert(values.end(), rows.begin(), rows.end());
  }
  return values;
}

/// How a file holds the experts of a layer: a tensor each, one for each projection, one for gate and up together.
enum class GgufExperts { kSingle, kStacked, kFused };

/// The same with 2 experts.
GgufBuilder tiny_mixtral(GgufExperts layout) {
  GgufBuilder builder;
  add_config(builder);
  builder.add_u32("llama.expert_count", 2);
  builder.add_u32("llama.expert_used_count", 1);
  add_tokenizer(builder);
  add_attention(builder);
  builder.add_floats("blk.0.ffn_gate_inp.weight", {8, 2}, rows_of(2, 8, 500));
  for (const auto& [name, columns, rows, start] :
       {std::tuple("ffn_gate", 8, 6, 10), std::tuple("ffn_up", 8, 6, 40), std::tuple("ffn_down", 6, 8, 70)}) {
    const auto width = static_cast<std::uint64_t>(columns), height = static_cast<std::uint64_t>(rows);
    const std::string prefix = std::string("blk.0.") + name;
    const auto first = static_cast<float>(start);
    if (layout == GgufExperts::kFused && columns == 8) {
      if (start == 10) builder.add_floats("blk.0.ffn_gate_up_exps.weight", {8, 12, 2}, gate_and_up());
    } else if (layout != GgufExperts::kSingle) {
      builder.add_floats(prefix + "_exps.weight", {width, height, 2}, rows_of(2 * rows, columns, first));
    } else {
      builder.add_floats(prefix + ".0.weight", {width, height}, rows_of(rows, columns, first));
      builder.add_floats(prefix + ".1.weight", {width, height},
                         rows_of(rows, columns, first + static_cast<float>(rows)));
    }
  }
  return builder;
}

struct Imported {
  TemporaryFolder folder;
  ImportReport report;
  fs::path output() const { return folder / "out"; }
  SafetensorsFile weights() const { return SafetensorsFile::open(output() / "model.safetensors"); }
};

std::unique_ptr<Imported> import_gguf(const GgufBuilder& builder, DType dtype = DType::kF32) {
  auto imported = std::make_unique<Imported>();
  write_text(imported->folder / "m.gguf", builder.build());
  imported->report =
      import_model(imported->folder / "m.gguf", imported->output(), {.dtype = dtype, .force = false, .on_tensor = {}});
  return imported;
}

std::unique_ptr<Imported> import_folder(const fs::path& source, DType dtype = DType::kF32) {
  auto imported = std::make_unique<Imported>();
  imported->report = import_model(source, imported->output(), {.dtype = dtype, .force = false, .on_tensor = {}});
  return imported;
}

std::string import_error(const fs::path& source) {
  const TemporaryFolder folder;
  const std::string message = message_of<InputError>([&] { import_model(source, folder / "out", {}); });
  CHECK(names_in(folder.path()).empty());
  return message;
}

/// What importing the file says, with "m.gguf" for its path.
std::string gguf_error(const GgufBuilder& builder) {
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", builder.build());
  std::string message = import_error(folder / "m.gguf");
  const std::string path = (folder / "m.gguf").string();
  for (std::size_t at = message.find(path); at != std::string::npos; at = message.find(path))
    message.replace(at, path.size(), "m.gguf");
  return message;
}

std::string gguf_error_with(const std::function<void(GgufBuilder&)>& change) {
  GgufBuilder builder = tiny_llama();
  change(builder);
  return gguf_error(builder);
}

std::vector<float> values_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.find(name);
  REQUIRE(info != nullptr);
  std::vector<float> values(file.bytes(*info).size() / sizeof(float));
  std::memcpy(values.data(), file.bytes(*info).data(), values.size() * sizeof(float));
  return values;
}

/// The first value of each row.
std::vector<float> first_column(const SafetensorsFile& file, const std::string& name) {
  const std::vector<float> values = values_of(file, name);
  const auto columns = static_cast<std::size_t>(file.find(name)->shape.back());
  std::vector<float> column;
  for (std::size_t i = 0; i < values.size(); i += columns) column.push_back(values[i]);
  return column;
}

/// A folder's tensors as they can be written again, renamed, dropped or added to.
struct EditableModel {
  SafetensorsFile file;
  std::vector<TensorSource> tensors;

  explicit EditableModel(const fs::path& folder) : file(SafetensorsFile::open(folder / "model.safetensors")) {
    for (const TensorInfo& info : file.tensors()) {
      const std::span<const std::byte> bytes = file.bytes(info);
      tensors.push_back({info.name, info.dtype, info.shape, [bytes] { return bytes; }});
    }
  }
  TensorSource take(const std::string& name) {
    const auto found =
        std::find_if(tensors.begin(), tensors.end(), [&](const TensorSource& tensor) { return tensor.name == name; });
    if (found == tensors.end()) throw std::runtime_error("no tensor " + name);
    TensorSource tensor = *found;
    tensors.erase(found);
    return tensor;
  }
};

/// A folder with a golden model's config and other tensors.
void write_folder(const fs::path& folder, const fs::path& like, std::vector<TensorSource> tensors) {
  fs::create_directories(folder);
  fs::copy(like / "config.json", folder / "config.json");
  write_safetensors(folder / "model.safetensors", std::move(tensors));
}

/// tiny_llama in two shards: names up to and including `last` in the first.
Json write_shards(const fs::path& folder) {
  fs::create_directories(folder);
  fs::copy(kGolden / "tiny_llama/config.json", folder / "config.json");
  EditableModel model(kGolden / "tiny_llama");
  Json weight_map = Json::object();
  std::array<std::vector<TensorSource>, 2> shards;
  for (const TensorSource& tensor : model.tensors) {
    const bool is_second = tensor.name > "model.layers.0.self_attn";
    shards[is_second ? 1 : 0].push_back(tensor);
    weight_map[tensor.name] = is_second ? "model-00002-of-00002.safetensors" : "model-00001-of-00002.safetensors";
  }
  write_safetensors(folder / "model-00001-of-00002.safetensors", shards[0]);
  write_safetensors(folder / "model-00002-of-00002.safetensors", shards[1]);
  return Json{{"metadata", {{"total_size", 0}}}, {"weight_map", weight_map}};
}

std::string shards_error(const std::function<void(const fs::path&, Json&)>& change) {
  const TemporaryFolder folder;
  Json index = write_shards(folder / "in");
  change(folder / "in", index);
  write_text(folder / "in/model.safetensors.index.json", index.dump());
  std::string message = import_error(folder / "in");
  const std::string prefix = (folder / "in").string() + ": ";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

}  // namespace

TEST_CASE("import: rows of q and k are un-permuted head by head, all others stay", "[import]") {
  const auto imported = import_gguf(tiny_llama());
  const SafetensorsFile weights = imported->weights();
  const std::string layer = "model.layers.0.self_attn.";
  // Head size 4: row i of the first half is file row 2i, of the second half 2i + 1.
  CHECK(first_column(weights, layer + "q_proj.weight") == std::vector<float>{0, 2, 1, 3, 4, 6, 5, 7});
  CHECK(first_column(weights, layer + "k_proj.weight") == std::vector<float>{100, 102, 101, 103});
  CHECK(first_column(weights, layer + "v_proj.weight") == std::vector<float>{200, 201, 202, 203});
  CHECK(first_column(weights, layer + "o_proj.weight") == std::vector<float>{300, 301, 302, 303, 304, 305, 306, 307});
}

TEST_CASE("import: biases of q and k are un-permuted like their rows", "[import]") {
  GgufBuilder builder = tiny_llama();
  for (const auto& [name, size] : {std::pair("q", 8), std::pair("k", 4), std::pair("v", 4), std::pair("output", 8)}) {
    builder.add_floats(str("blk.0.attn_", name, ".bias"), {static_cast<std::uint64_t>(size)}, rows_of(size, 1));
  }
  const auto imported = import_gguf(builder);
  const SafetensorsFile weights = imported->weights();
  const std::string layer = "model.layers.0.self_attn.";
  CHECK(values_of(weights, layer + "q_proj.bias") == std::vector<float>{0, 2, 1, 3, 4, 6, 5, 7});
  CHECK(values_of(weights, layer + "k_proj.bias") == std::vector<float>{0, 2, 1, 3});
  CHECK(values_of(weights, layer + "v_proj.bias") == std::vector<float>{0, 1, 2, 3});
  CHECK(values_of(weights, layer + "o_proj.bias") == std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7});
}

TEST_CASE("import: scaled positions of a GGUF file are those of the model folder", "[import]") {
  GgufBuilder builder = tiny_llama();
  builder.add_text("llama.rope.scaling.type", "yarn");
  builder.add_f32("llama.rope.scaling.factor", 4.0f);
  builder.add_u32("llama.rope.scaling.original_context_length", 4);
  const RopeConfig expected = {
      .kind = RopeKind::kYarn, .theta = 5000.0, .factor = 4.0, .original_max_position_embeddings = 4};
  CHECK(read_model_config(import_gguf(builder)->output()).rope == expected);
}

TEST_CASE("import: GGUF tensors get their Hugging Face names and shapes", "[import]") {
  const auto imported = import_gguf(tiny_llama());
  const SafetensorsFile weights = imported->weights();
  CHECK(weights.tensors().size() == 11);
  CHECK(first_column(weights, "model.embed_tokens.weight") == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK(values_of(weights, "model.norm.weight")[0] == 0.0f);
  CHECK(values_of(weights, "model.layers.0.input_layernorm.weight")[0] == 1.0f);
  CHECK(values_of(weights, "model.layers.0.post_attention_layernorm.weight")[0] == 2.0f);
  CHECK(first_column(weights, "model.layers.0.mlp.gate_proj.weight")[0] == 10.0f);
  CHECK(first_column(weights, "model.layers.0.mlp.up_proj.weight")[0] == 20.0f);
  CHECK(first_column(weights, "model.layers.0.mlp.down_proj.weight")[7] == 37.0f);
  CHECK(weights.find("model.layers.0.mlp.down_proj.weight")->shape == std::vector<std::int64_t>{8, 6});
}

TEST_CASE("import: GGUF metadata becomes config.json and generation_config.json", "[import]") {
  const auto imported = import_gguf(tiny_llama());
  const ModelConfig config = read_model_config(imported->output());
  CHECK(config.model_type == "llama");
  CHECK(config.num_hidden_layers == 1);
  CHECK(config.hidden_size == 8);
  CHECK(config.intermediate_size == 6);
  CHECK(config.num_attention_heads == 2);
  CHECK(config.num_key_value_heads == 1);
  CHECK(config.head_dim == 4);
  CHECK(config.vocab_size == 6);
  CHECK(config.max_position_embeddings == 16);
  CHECK(config.rope.theta == 5000.0);
  CHECK(config.rms_norm_eps == 1e-5);
  CHECK(config.tie_word_embeddings);
  CHECK(config.bos_token_id == 0);
  CHECK(config.eos_token_ids == std::vector<std::int64_t>{0});
  CHECK_FALSE(config.pad_token_id);
  CHECK(config.dtype == "float32");
  const Json generation = read_json_file(imported->output() / "generation_config.json");
  CHECK(generation.dump() == R"({"bos_token_id":0,"eos_token_id":0})");
}

TEST_CASE("import: the tokenizer of a GGUF file encodes as its merges say", "[import]") {
  const auto imported = import_gguf(tiny_llama());
  const auto tokenizer = load_tokenizer(imported->output());
  CHECK(tokenizer->encode("abcab<|end|>") == std::vector<TokenId>{5, 4, 0});
  CHECK(tokenizer->eos_id() == 0);
  CHECK(read_text(imported->output() / "chat_template.jinja") == "{{ messages }}");
}

TEST_CASE("import: the report says what was read and written", "[import]") {
  GgufBuilder builder;
  add_config(builder);
  add_tokenizer(builder);
  add_attention(builder);
  builder.add_tensor("blk.0.ffn_gate.weight", {8, 6}, 1, std::string(96, '\0'));
  builder.add_tensor("blk.0.ffn_up.weight", {8, 6}, 1, std::string(96, '\0'));
  builder.add_floats("blk.0.ffn_down.weight", {6, 8}, rows_of(8, 6));
  const auto imported = import_gguf(builder);
  CHECK(imported->report.source_kind == "GGUF v3, architecture llama, 9 F32 + 2 F16");
  CHECK(imported->report.num_tensors == 11);
  CHECK(imported->report.num_parameters == num_parameters(read_model_config(imported->output())));
  std::int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(imported->output()))
    bytes += static_cast<std::int64_t>(entry.file_size());
  CHECK(imported->report.bytes_written == bytes);
  CHECK_THAT(imported->report.tokenizer, Catch::StartsWith("byte-level BPE"));
}

TEST_CASE("import: progress counts every tensor once", "[import]") {
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", tiny_llama().build());
  std::vector<std::int64_t> seen;
  ImportOptions options;
  options.on_tensor = [&](std::int64_t done, std::int64_t total) { seen.push_back(total * 100 + done); };
  import_model(folder / "m.gguf", folder / "out", options);
  REQUIRE(seen.size() == 11);
  CHECK(seen.front() == 1101);
  CHECK(seen.back() == 1111);
}

TEST_CASE("import: output.weight unties the embedding", "[import]") {
  GgufBuilder builder = tiny_llama();
  builder.add_floats("output.weight", {8, 6}, rows_of(6, 8, 900));
  const auto imported = import_gguf(builder);
  CHECK_FALSE(read_model_config(imported->output()).tie_word_embeddings);
  CHECK(first_column(imported->weights(), "lm_head.weight")[0] == 900.0f);
}

TEST_CASE("import: rotary divisors are accepted when they are all ones", "[import]") {
  GgufBuilder ones = tiny_llama();
  ones.add_floats("rope_freqs.weight", {2}, {1, 1});
  CHECK(import_gguf(ones)->report.num_tensors == 11);
}

TEST_CASE("import: experts stacked, one by one or with gate and up fused give the same Mixtral", "[import]") {
  const auto stacked = import_gguf(tiny_mixtral(GgufExperts::kStacked)),
             single = import_gguf(tiny_mixtral(GgufExperts::kSingle)),
             fused = import_gguf(tiny_mixtral(GgufExperts::kFused));
  CHECK(read_text(stacked->output() / "model.safetensors") == read_text(fused->output() / "model.safetensors"));
  CHECK(read_text(stacked->output() / "model.safetensors") == read_text(single->output() / "model.safetensors"));
  const ModelConfig config = read_model_config(stacked->output());
  CHECK(config.model_type == "mixtral");
  CHECK(config.moe->num_experts == 2);
  CHECK(config.moe->num_experts_per_tok == 1);
  const SafetensorsFile weights = stacked->weights();
  const std::string block = "model.layers.0.block_sparse_moe.";
  CHECK(first_column(weights, block + "gate.weight") == std::vector<float>{500, 501});
  CHECK(first_column(weights, block + "experts.1.w1.weight") == std::vector<float>{16, 17, 18, 19, 20, 21});
  CHECK(first_column(weights, block + "experts.0.w3.weight") == std::vector<float>{40, 41, 42, 43, 44, 45});
  CHECK(first_column(weights, block + "experts.1.w2.weight") == std::vector<float>{78, 79, 80, 81, 82, 83, 84, 85});
}

TEST_CASE("import: missing, left-over and misshaped GGUF tensors are reported together", "[import]") {
  GgufBuilder builder;
  add_config(builder);
  add_tokenizer(builder);
  add_attention(builder);
  builder.add_floats("blk.0.ffn_gate.weight", {6, 8}, rows_of(8, 6));
  builder.add_floats("blk.0.ffn_up.weight", {8, 6}, rows_of(6, 8));
  builder.add_floats("blk.0.attn_rot_embd.weight", {4}, rows_of(4, 1));
  CHECK(gguf_error(builder) ==
        "m.gguf: tensor 'blk.0.ffn_gate.weight': found shape [8, 6], expected [6, 8]\n"
        "m.gguf: tensor 'blk.0.ffn_down.weight' is missing\n"
        "m.gguf: tensor 'blk.0.attn_rot_embd.weight' belongs to no part of the model");
}

TEST_CASE("import: GGUF models that are not supported are refused with the key that says so", "[import]") {
  GgufBuilder other;
  other.add_text("general.architecture", "qwen4");
  CHECK(gguf_error(other) ==
        "m.gguf: metadata key 'general.architecture': found 'qwen4', supported: llama, qwen2, qwen3, olmoe, qwen2moe, "
        "qwen3moe; did you mean 'qwen2'?");
  CHECK(gguf_error_with([](GgufBuilder& b) { b.add("split.count", 2, raw<std::uint16_t>(3)); }) ==
        "m.gguf: metadata key 'split.count': a model in 3 files is not supported; join them first");
}

TEST_CASE("import: a GGUF key that is missing or of another type is named", "[import]") {
  GgufBuilder builder;
  builder.add_text("general.architecture", "llama");
  CHECK(gguf_error(builder) == "m.gguf: metadata key 'llama.block_count': is missing");
  builder.add_text("llama.block_count", "1");
  CHECK(gguf_error(builder) == "m.gguf: metadata key 'llama.block_count': found another type, expected one integer");
}

TEST_CASE("import: a merge of unknown tokens is refused with the GGUF file's path", "[import]") {
  GgufBuilder builder;
  add_config(builder);
  builder.add_text("tokenizer.ggml.model", "gpt2");
  builder.add_text("tokenizer.ggml.pre", "gpt-2");
  builder.add_texts("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "c", "ab", "abc"});
  builder.add_texts("tokenizer.ggml.merges", {"a c"});
  add_attention(builder);
  add_dense(builder);
  CHECK(gguf_error(builder) == "m.gguf: tokenizer.json: merge 1 ('a' + 'c'): 'ac' is not in the vocabulary");
}

TEST_CASE("import: GGUF metadata that ask for billions of weights are refused before they are listed", "[import]") {
  GgufBuilder builder;
  builder.add_text("general.architecture", "llama");
  for (const char* key : {"block_count", "expert_count"}) builder.add_u32(std::string("llama.") + key, 4096);
  for (const char* key : {"context_length", "embedding_length", "feed_forward_length", "expert_used_count"}) {
    builder.add_u32(std::string("llama.") + key, 64);
  }
  builder.add_u32("llama.attention.head_count", 2);
  builder.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  add_tokenizer(builder);
  CHECK(gguf_error(builder) ==
        "m.gguf: the metadata ask for 50,360,322 weight matrices and vectors, but the tensors have 0 values");
}

TEST_CASE("import: weights are stored in the dtype asked for", "[import]") {
  const auto imported = import_gguf(tiny_llama(), DType::kBF16);
  const SafetensorsFile weights = imported->weights();
  for (const TensorInfo& info : weights.tensors()) CHECK(info.dtype == DType::kBF16);
  CHECK(read_model_config(imported->output()).dtype == "bfloat16");
  // 301 lies between the bfloat16 numbers 300 and 302 and goes to the even one, 300.
  std::uint16_t bits = 0;
  std::memcpy(&bits, weights.bytes(*weights.find("model.layers.0.self_attn.o_proj.weight")).data() + 2 * 8, 2);
  CHECK(bits == 0x4396);
}

TEST_CASE("import: only float dtypes that models use can be asked for", "[import]") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(
      import_model(kGolden / "tiny_llama", folder / "out", {.dtype = DType::kF64, .force = false, .on_tensor = {}}),
      ConfigError);
}

TEST_CASE("import: a value too large for the dtype is refused with its tensor", "[import]") {
  GgufBuilder builder = tiny_llama();
  builder.add_floats("output.weight", {8, 6}, rows_of(6, 8, 70000));
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", builder.build());
  CHECK_THROWS_WITH(
      import_model(folder / "m.gguf", folder / "out", {.dtype = DType::kF16, .force = false, .on_tensor = {}}),
      Catch::Contains("tensor 'output.weight': value 70000 is too large for F16"));
  CHECK(names_in(folder.path()) == std::vector<std::string>{"m.gguf"});
}

TEST_CASE("import: an existing output is replaced only by force, and only when it is a model folder", "[import]") {
  const TemporaryFolder folder;
  const ImportOptions plain, force = {.dtype = DType::kF32, .force = true, .on_tensor = {}};
  import_model(kGolden / "tiny_llama", folder / "out", plain);
  CHECK_THROWS_AS(import_model(kGolden / "tiny_mixtral", folder / "out", plain), InputError);
  CHECK(read_model_config(folder / "out").model_type == "llama");
  import_model(kGolden / "tiny_mixtral", folder / "out", force);
  CHECK(read_model_config(folder / "out").model_type == "mixtral");
  fs::create_directories(folder / "home/photos");
  CHECK_THROWS_WITH(import_model(kGolden / "tiny_llama", folder / "home", force),
                    Catch::Contains("it is no model folder"));
  CHECK(fs::exists(folder / "home/photos"));
}

TEST_CASE("import: a folder written by transformers keeps its tensors byte for byte", "[import]") {
  for (const char* name : {"tiny_llama", "tiny_llama_tied", "tiny_mixtral"}) {
    const auto imported = import_folder(kGolden / name);
    CHECK(read_text(imported->output() / "model.safetensors") == read_text(kGolden / name / "model.safetensors"));
    CHECK(read_text(imported->output() / "generation_config.json") ==
          read_text(kGolden / name / "generation_config.json"));
    CHECK(imported->report.tokenizer == "none");
  }
  CHECK(import_folder(kGolden / "tiny_mixtral")->report.source_kind == "Hugging Face folder, mixtral, 1 file, 41 F32");
}

TEST_CASE("import: tokenizer files of a folder are copied as they are", "[import]") {
  const auto first = import_gguf(tiny_llama());
  const auto second = import_folder(first->output());
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}) {
    CHECK(read_text(second->output() / name) == read_text(first->output() / name));
  }
  CHECK(names_in(second->output()) == names_in(first->output()));
}

TEST_CASE("import: a folder's tensors are converted to the dtype asked for and back", "[import]") {
  const auto narrow = import_folder(kGolden / "tiny_llama", DType::kBF16);
  const auto wide = import_folder(narrow->output());
  const auto again = import_folder(wide->output(), DType::kBF16);
  CHECK(wide->report.source_kind == "Hugging Face folder, llama, 1 file, 21 BF16");
  CHECK(read_text(again->output() / "model.safetensors") == read_text(narrow->output() / "model.safetensors"));
}

TEST_CASE("import: shards give the same folder as one file", "[import]") {
  const TemporaryFolder folder;
  write_text(folder / "index", write_shards(folder / "in").dump());
  fs::rename(folder / "index", folder / "in/model.safetensors.index.json");
  const auto imported = import_folder(folder / "in");
  CHECK(imported->report.source_kind == "Hugging Face folder, llama, 2 files, 21 F32");
  CHECK(read_text(imported->output() / "model.safetensors") == read_text(kGolden / "tiny_llama/model.safetensors"));
}

TEST_CASE("import: an index and its shards must agree in both directions", "[import]") {
  const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";
  CHECK(shards_error([](const fs::path&, Json& index) { index["weight_map"].erase("lm_head.weight"); }) ==
        "tensor 'lm_head.weight' lies in " + first + ", but the index does not list it");
  CHECK(shards_error([&](const fs::path&, Json& index) { index["weight_map"]["lm_head.weight"] = second; }) ==
        "tensor 'lm_head.weight' lies in " + first + ", but the index lists it in " + second);
  CHECK(shards_error([&](const fs::path&, Json& index) { index["weight_map"]["extra"] = first; }) ==
        "tensor 'extra' is listed in " + first + ", but is not there");
  CHECK_THAT(
      shards_error([](const fs::path&, Json& index) { index["weight_map"]["lm_head.weight"] = "../x.safetensors"; }),
      Catch::Contains("found '../x.safetensors', expected a file name without folders"));
  for (const std::string& name :
       {std::string(".."), std::string("m\0x", 3), std::string("m\n"), std::string(256, 'm')}) {
    CHECK_THAT(shards_error([&](const fs::path&, Json& index) { index["weight_map"]["lm_head.weight"] = name; }),
               Catch::EndsWith("expected a file name without folders") && !Catch::Contains("\n"));
  }
  CHECK_THAT(shards_error([&](const fs::path& in, Json&) { fs::remove(in / second); }),
             Catch::Contains(second + ": cannot read"));
  CHECK_THAT(shards_error([](const fs::path&, Json& index) { index.erase("weight_map"); }),
             Catch::Contains("'weight_map' is missing"));
}

TEST_CASE("import: any tensor of a folder that is missing, and any that is too many, is named", "[import]") {
  const fs::path golden = kGolden / "tiny_mixtral";
  const std::string sound = read_text(golden / "model.safetensors");
  const SafetensorsFile file = SafetensorsFile::open(golden / "model.safetensors");
  const TemporaryFolder folder;
  fs::create_directories(folder / "in");
  fs::copy(golden / "config.json", folder / "in/config.json");
  for (const TensorInfo& info : file.tensors()) {
    // The name between its quotes, with another last letter: one tensor too few and one too many.
    const std::string renamed = info.name.substr(0, info.name.size() - 1) + "X";
    std::string text = sound;
    text.replace(text.find("\"" + info.name + "\"") + 1, renamed.size(), renamed);
    write_text(folder / "in/model.safetensors", text);
    const std::string in = (folder / "in").string();
    CHECK(import_error(folder / "in") == str(in, ": tensor '", info.name, "' is missing; expected shape ",
                                             shape_text(info.shape), "\n", in, ": tensor '", renamed,
                                             "' is not expected by model_type 'mixtral'"));
  }
}

TEST_CASE("import: tensors of another shape or of integers are refused", "[import]") {
  const TemporaryFolder folder;
  EditableModel model(kGolden / "tiny_llama");
  TensorSource norm = model.take("model.norm.weight"), head = model.take("lm_head.weight");
  norm.shape = {1, 32};
  head.dtype = DType::kI32;
  model.tensors.push_back(norm);
  model.tensors.push_back(head);
  write_folder(folder / "in", kGolden / "tiny_llama", model.tensors);
  const std::string in = (folder / "in").string();
  CHECK(import_error(folder / "in") ==
        in + ": tensor 'model.norm.weight': found shape [1, 32], expected [32]\n" + in +
            ": tensor 'lm_head.weight': found dtype I32, expected F32, BF16, F16 or F64");
}

TEST_CASE("import: a tied model may hold an equal lm_head but no other", "[import]") {
  const fs::path golden = kGolden / "tiny_llama_tied";
  const TemporaryFolder folder;
  EditableModel model(golden);
  TensorSource head = model.take("model.embed_tokens.weight");
  model.tensors.push_back(head);
  head.name = "lm_head.weight";
  model.tensors.push_back(head);
  write_folder(folder / "equal", golden, model.tensors);
  CHECK(read_text(import_folder(folder / "equal")->output() / "model.safetensors") ==
        read_text(golden / "model.safetensors"));
  const std::vector<float> other(97 * 32, 1.0f);
  model.tensors.back().bytes = [&] { return std::as_bytes(std::span(other)); };
  write_folder(folder / "other", golden, model.tensors);
  CHECK_THAT(import_error(folder / "other"), Catch::Contains("'lm_head.weight' differs from the embedding"));
}

TEST_CASE("import: inverse frequencies that old Llama folders hold are left out", "[import]") {
  const TemporaryFolder folder;
  EditableModel model(kGolden / "tiny_llama");
  TensorSource buffer = model.tensors.front();
  buffer.name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  model.tensors.push_back(buffer);
  write_folder(folder / "in", kGolden / "tiny_llama", model.tensors);
  CHECK(import_folder(folder / "in")->report.num_tensors == 21);
}

TEST_CASE("import: fused experts stay fused and load to the same weights as experts one by one", "[import]") {
  const fs::path golden = kGolden / "tiny_mixtral";
  const TemporaryFolder folder;
  EditableModel model(golden);
  std::map<std::string, std::string> fused;
  const auto append = [&](const std::string& name, const std::string& expert) {
    const std::span<const std::byte> bytes = model.take(expert + ".weight").bytes();
    fused[name].append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (int e = 0; e < 4; ++e) {
      const std::string expert = str(layer, "block_sparse_moe.experts.", e, ".");
      append(layer + "mlp.experts.gate_up_proj", expert + "w1");
      append(layer + "mlp.experts.gate_up_proj", expert + "w3");
      append(layer + "mlp.experts.down_proj", expert + "w2");
    }
    TensorSource router = model.take(layer + "block_sparse_moe.gate.weight");
    router.name = layer + "mlp.gate.weight";
    model.tensors.push_back(router);
  }
  for (const auto& [name, bytes] : fused) {
    const std::vector<std::int64_t> shape =
        name.ends_with("down_proj") ? std::vector<std::int64_t>{4, 32, 40} : std::vector<std::int64_t>{4, 80, 32};
    model.tensors.push_back({name, DType::kF32, shape, [&text = bytes] { return std::as_bytes(std::span(text)); }});
  }
  write_folder(folder / "in", golden, model.tensors);
  const auto imported = import_folder(folder / "in");
  CHECK(read_text(imported->output() / "model.safetensors") == read_text(folder / "in/model.safetensors"));
  Decoder one_by_one = load_decoder(Checkpoint::open(golden), {}),
          together = load_decoder(Checkpoint::open(imported->output()), {});
  const auto expected = one_by_one.parameters(), found = together.parameters();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO(expected[i].name);
    CHECK(at::equal(*found[i].tensor, *expected[i].tensor));
  }
}

TEST_CASE("import: a DAG-MoE folder keeps its aggregator", "[import]") {
  const TemporaryFolder folder;
  ModelConfig config = read_model_config(kGolden / "tiny_mixtral");
  config.model_type = "dagmoe";
  config.dag = DagConfig{.num_iterations = 2, .node_size = 4};
  EditableModel model(kGolden / "tiny_mixtral");
  const std::vector<float> zeros(32 * 4, 0.0f);
  for (const auto& [name, shape] : parameter_shapes(config)) {
    if (name.find(".mlp.dag.") == std::string::npos) continue;
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    model.tensors.push_back(
        {name, DType::kF32, shape, [&zeros, count] { return std::as_bytes(std::span(zeros).first(count)); }});
  }
  fs::create_directories(folder / "in");
  write_text(folder / "in/config.json", model_config_json(config).dump());
  write_safetensors(folder / "in/model.safetensors", model.tensors);
  const auto imported = import_folder(folder / "in");
  CHECK(read_text(imported->output() / "model.safetensors") == read_text(folder / "in/model.safetensors"));
  CHECK(read_model_config(imported->output()).dag->node_size == 4);
  CHECK(imported->report.num_parameters == num_parameters(config));
}

TEST_CASE("import: a source that is not there or holds no weights is an input error", "[import]") {
  const TemporaryFolder folder;
  CHECK_THAT(import_error("/nowhere/m.gguf"), Catch::Contains("/nowhere/m.gguf: cannot read"));
  fs::create_directories(folder / "in");
  fs::copy(kGolden / "tiny_llama/config.json", folder / "in/config.json");
  CHECK_THAT(import_error(folder / "in"),
             Catch::EndsWith("has no weights; expected model.safetensors or model.safetensors.index.json"));
}

TEST_CASE("import: SmolLM2's tensors are bit-equal to those that transformers decodes", "[import]") {
  const char* cache = std::getenv("DAGMOE_CACHE");
  const char* home = std::getenv("HOME");
  const fs::path folder = cache != nullptr ? fs::path(cache) : fs::path(home == nullptr ? "" : home) / ".cache/dagmoe";
  const fs::path path = folder / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!fs::exists(path)) DAGMOE_SKIP(path.string() + " is not there; scripts/setup --model fetches it");
  const ImportSource source = open_gguf_source(path, DType::kF32);
  CHECK(source.kind == "GGUF v3, architecture llama, 210 Q4_1 + 61 F32 + 1 Q8_0");
  CHECK(source.tensors.size() == 272);
  CHECK(num_parameters(source.config) == 134515008);
  CHECK(source.config.rope.theta == 100000.0);
  CHECK(source.config.rms_norm_eps == 1e-5);
  // SHA-256 of the fp32 bytes in the folder that tests/golden/make_smollm2.py writes with transformers 5.23.0.
  const std::map<std::string, std::string> expected = {
      {"model.layers.0.self_attn.q_proj.weight", "54b377bbfa2deab945dfdba7fb59e0ca3eb74329358bd1b53b635b3ff37c1a56"},
      {"model.layers.17.self_attn.q_proj.weight", "b6a105cdaa41c0ba086d94378815b597aaa9602cb71cd0c4a0e1acfdbb2e9017"},
      {"model.layers.17.self_attn.k_proj.weight", "c2c30f32fb4b4c6ff453b52951c4738167425f4a0e963fd3cbf6b322909e76d3"},
      {"model.layers.29.mlp.down_proj.weight", "c19605745425a11e704e305ce3d27b632c406195d39eb3377e9cfb140ac643d1"},
      {"model.norm.weight", "3b87f8e27335e67fc08f159cabfd2d18f205d6c5b225a6f978153552bf01d559"},
      {"model.embed_tokens.weight", "3fd491c8066dd9dc1a2bf6796701526c82817d95c0ecabacdef3013c2b8bbbaa"}};
  std::size_t compared = 0;
  for (const TensorSource& tensor : source.tensors) {
    const auto found = expected.find(tensor.name);
    if (found == expected.end()) continue;
    const std::span<const std::byte> bytes = tensor.bytes();
    INFO(tensor.name);
    CHECK(sha256_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()}) == found->second);
    ++compared;
  }
  CHECK(compared == expected.size());
}
