// A GGUF file of architecture llama as a source (contracts.md 2.3, 2.4).
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/problems.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/import_source.h"
#include "checkpoint/safetensors_convert.h"
#include "checkpoint/safetensors_folder.h"
#include "data/tokenizer.h"
#include "model/families.h"
#include "model/parameter_count.h"

namespace dagmoe {
namespace {

/// The metadata of a file by type; a key of another type is an InputError.
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : file_(file) {}

  [[noreturn]] void fail(std::string_view key, const std::string& message) const {
    throw InputError(str(file_.path().string(), ": metadata key '", key, "': ", message));
  }

  std::optional<std::int64_t> integer(std::string_view key) const {
    if (const auto* value = get<std::int64_t>(key, "one integer")) return *value;
    return std::nullopt;
  }

  std::optional<double> real(std::string_view key) const {
    if (const auto* value = get<double>(key, "one real number")) return *value;
    return std::nullopt;
  }

  std::string text(std::string_view key) const {
    const auto* value = get<std::string>(key, "text");
    return value == nullptr ? "" : *value;
  }

  bool boolean(std::string_view key, bool absent) const {
    const auto* value = get<bool>(key, "a truth value");
    return value == nullptr ? absent : *value;
  }

  template <class T>
  const std::vector<T>* array(std::string_view key) const {
    const auto* value = get<GgufArray>(key, "a list");
    if (value == nullptr) return nullptr;
    if (const auto* items = std::get_if<std::vector<T>>(value)) return items;
    fail(key, "found a list of another type than expected");
  }

  template <class T>
  const T& needed(const std::optional<T>& value, std::string_view key) const {
    if (!value) fail(key, "is missing");
    return *value;
  }

  const GgufFile& file() const { return file_; }

 private:
  template <class T>
  const T* get(std::string_view key, std::string_view expected) const {
    const GgufValue* value = file_.find(key);
    if (value == nullptr) return nullptr;
    if (const T* typed = std::get_if<T>(value)) return typed;
    fail(key, str("found another type, expected ", expected));
  }

  const GgufFile& file_;
};

/// The shortest decimal that is the same float: the file's float 9.99999975e-06 was 1e-05 where it came from.
double shortest_decimal(double value) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), static_cast<float>(value)).ptr;
  double result = value;
  std::from_chars(text.data(), end, result);
  return result;
}

void check_architecture(const Metadata& metadata) {
  const std::string architecture = metadata.text("general.architecture");
  if (architecture.empty()) metadata.fail("general.architecture", "is missing");
  if (architecture != "llama")
    metadata.fail("general.architecture", "found " + quoted_for_message(architecture) + ", supported: llama");
  const std::int64_t num_parts = metadata.integer("split.count").value_or(1);
  if (num_parts > 1)
    metadata.fail("split.count", str("a model in ", num_parts, " files is not supported; join them first"));
}

// Other positions than plain rotary ones would be silently wrong.
void check_rope(const Metadata& metadata) {
  const std::string kind = metadata.text("llama.rope.scaling.type");
  if (!kind.empty() && kind != "none")
    metadata.fail("llama.rope.scaling.type", "found " + quoted_for_message(kind) + ", supported: none");
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    const double factor = metadata.real(key).value_or(1.0);
    if (factor != 1.0 && factor != 0.0)
      metadata.fail(key, str("found ", factor, "; scaled positions are not supported"));
  }
}

constexpr std::array<std::string_view, 20> kKnownLlamaKeys = {"block_count",
                                                              "context_length",
                                                              "embedding_length",
                                                              "feed_forward_length",
                                                              "attention.head_count",
                                                              "attention.head_count_kv",
                                                              "attention.key_length",
                                                              "attention.value_length",
                                                              "attention.layer_norm_rms_epsilon",
                                                              "rope.dimension_count",
                                                              "rope.freq_base",
                                                              "rope.scaling.type",
                                                              "rope.scaling.factor",
                                                              "rope.scale_linear",
                                                              "rope.scaling.original_context_length",
                                                              "rope.scaling.finetuned",
                                                              "vocab_size",
                                                              "expert_count",
                                                              "expert_used_count",
                                                              "tensor_data_layout"};

void warn_of_unknown_keys(const Metadata& metadata) {
  constexpr std::string_view kPrefix = "llama.";
  for (const auto& [key, value] : metadata.file().metadata()) {
    if (!key.starts_with(kPrefix)) continue;
    const std::string_view name = std::string_view(key).substr(kPrefix.size());
    if (std::find(kKnownLlamaKeys.begin(), kKnownLlamaKeys.end(), name) != kKnownLlamaKeys.end()) continue;
    log_warning(str(metadata.file().path().string(), ": metadata key ", quoted_for_message(key),
                    " is not known and has no effect"));
  }
}

std::int64_t head_dim(const Metadata& metadata, std::int64_t hidden_size, std::int64_t num_heads) {
  const auto rotary = metadata.integer("llama.rope.dimension_count");
  const std::int64_t d = rotary ? *rotary : num_heads > 0 ? hidden_size / num_heads : 0;
  for (const char* key : {"llama.attention.key_length", "llama.attention.value_length"}) {
    const std::int64_t length = metadata.integer(key).value_or(d);
    if (length != d) metadata.fail(key, str("found ", length, ", expected the rotary dimensions of a head, ", d));
  }
  return d;
}

Json null_or(const std::optional<std::int64_t>& value) { return value ? Json(*value) : Json(nullptr); }

/// The model as a config.json, so that sizes are checked where every other model's are.
ModelConfig read_config(const Metadata& metadata) {
  const auto integer = [&](std::string_view key) { return metadata.needed(metadata.integer(key), key); };
  const auto* tokens = metadata.array<std::string>("tokenizer.ggml.tokens");
  Json json = Json::object();
  json["model_type"] = "llama";
  json["num_hidden_layers"] = integer("llama.block_count");
  json["max_position_embeddings"] = integer("llama.context_length");
  json["hidden_size"] = integer("llama.embedding_length");
  json["intermediate_size"] = integer("llama.feed_forward_length");
  json["num_attention_heads"] = integer("llama.attention.head_count");
  json["num_key_value_heads"] = null_or(metadata.integer("llama.attention.head_count_kv"));
  json["head_dim"] = head_dim(metadata, json["hidden_size"], json["num_attention_heads"]);
  const std::string_view eps = "llama.attention.layer_norm_rms_epsilon";
  json["rms_norm_eps"] = shortest_decimal(metadata.needed(metadata.real(eps), eps));
  json["rope_theta"] = shortest_decimal(metadata.real("llama.rope.freq_base").value_or(10000.0));
  const std::int64_t num_tokens = tokens == nullptr ? 0 : static_cast<std::int64_t>(tokens->size());
  json["vocab_size"] = metadata.integer("llama.vocab_size").value_or(num_tokens);
  json["tie_word_embeddings"] = metadata.file().tensor("output.weight") == nullptr;
  json["bos_token_id"] = null_or(metadata.integer("tokenizer.ggml.bos_token_id"));
  json["eos_token_id"] = null_or(metadata.integer("tokenizer.ggml.eos_token_id"));
  json["pad_token_id"] = null_or(metadata.integer("tokenizer.ggml.padding_token_id"));
  const std::int64_t num_experts = metadata.integer("llama.expert_count").value_or(0);
  if (num_experts > 0) {
    json["model_type"] = "mixtral";
    json["num_local_experts"] = num_experts;
    json["num_experts_per_tok"] = integer("llama.expert_used_count");
  }
  return parse_model_config(json, metadata.file().path().string());
}

struct LayerName {
  std::string_view ours;  ///< after "model.layers.N.", of an expert after "mlp.experts.E."
  const char* theirs;     ///< after "blk.N."
};
constexpr std::array<LayerName, 13> kLayerNames = {{{"input_layernorm", "attn_norm"},
                                                    {"post_attention_layernorm", "ffn_norm"},
                                                    {"self_attn.q_proj", "attn_q"},
                                                    {"self_attn.k_proj", "attn_k"},
                                                    {"self_attn.v_proj", "attn_v"},
                                                    {"self_attn.o_proj", "attn_output"},
                                                    {"mlp.gate", "ffn_gate_inp"},
                                                    {"mlp.gate_proj", "ffn_gate"},
                                                    {"mlp.up_proj", "ffn_up"},
                                                    {"mlp.down_proj", "ffn_down"},
                                                    {"gate_proj", "ffn_gate"},
                                                    {"up_proj", "ffn_up"},
                                                    {"down_proj", "ffn_down"}}};

std::string layer_name(std::string_view ours) {
  for (const LayerName& name : kLayerNames) {
    if (name.ours == ours) return name.theirs;
  }
  throw InternalError(str("parameter '", ours, "' has no name in GGUF files"));
}

/// Where a parameter's values are in the file and how its rows are ordered there.
struct Piece {
  const GgufTensor* tensor = nullptr;
  std::string name;                        ///< of the tensor, also when it is missing
  std::vector<std::int64_t> needed_shape;  ///< of the tensor
  std::int64_t index = 0, num_slices = 1;  ///< the parameter is slice `index` of equal ones
  std::int64_t num_heads = 0;              ///< above 0: the rows of each head are stored for adjacent-pair rotation
};

Piece find_expert(const GgufFile& file, const std::string& layer, std::string_view rest,
                  const std::vector<std::int64_t>& shape, std::int64_t num_experts) {
  const std::size_t dot = rest.find('.');
  const std::string expert(rest.substr(0, dot));
  const std::string name = layer + layer_name(rest.substr(dot + 1));
  const std::string stacked = name + "_exps.weight", single = str(name, ".", expert, ".weight");
  if (const GgufTensor* tensor = file.tensor(single)) return {tensor, single, shape};
  return {file.tensor(stacked), stacked, {num_experts, shape[0], shape[1]}, std::stoll(expert), num_experts};
}

Piece find_piece(const GgufFile& file, const std::string& parameter, const std::vector<std::int64_t>& shape,
                 const ModelConfig& config) {
  constexpr std::string_view kLayers = "model.layers.", kExperts = "mlp.experts.", kWeight = ".weight";
  std::string name = "token_embd.weight";
  if (parameter == "model.norm.weight") name = "output_norm.weight";
  if (parameter == "lm_head.weight") name = "output.weight";
  if (!parameter.starts_with(kLayers)) return {file.tensor(name), name, shape};
  const std::size_t dot = parameter.find('.', kLayers.size());
  const std::string layer = "blk." + parameter.substr(kLayers.size(), dot + 1 - kLayers.size());
  const std::string rest = parameter.substr(dot + 1, parameter.size() - kWeight.size() - dot - 1);
  if (rest.starts_with(kExperts)) {
    return find_expert(file, layer, std::string_view(rest).substr(kExperts.size()), shape, config.moe->num_experts);
  }
  name = layer + layer_name(rest) + ".weight";
  Piece piece = {file.tensor(name), name, shape};
  if (rest == "self_attn.q_proj") piece.num_heads = config.num_attention_heads;
  if (rest == "self_attn.k_proj") piece.num_heads = config.num_key_value_heads;
  return piece;
}

/// The row of the file that becomes row `row`. The file interleaves the two halves of each head:
///   file   0 1 2 3 4 5      head of 6 rows
///   ours   0 2 4 1 3 5
std::int64_t source_row(std::int64_t row, std::int64_t head_rows) {
  const std::int64_t head = row / head_rows, i = row % head_rows, half = head_rows / 2;
  return head * head_rows + (i < half ? 2 * i : 2 * (i - half) + 1);
}

std::vector<float> read_values(const GgufFile& file, const Piece& piece) {
  const std::int64_t columns = piece.needed_shape.back();
  const GgufBlock block = gguf_block(piece.tensor->type);
  const auto row_bytes = static_cast<std::size_t>(columns / block.num_values * block.num_bytes);
  const std::span<const std::byte> whole = file.bytes(*piece.tensor);
  const std::size_t size = whole.size() / static_cast<std::size_t>(piece.num_slices);
  const std::span<const std::byte> bytes = whole.subspan(size * static_cast<std::size_t>(piece.index), size);
  const auto rows = static_cast<std::int64_t>(size / row_bytes);
  const auto width = static_cast<std::size_t>(columns);
  std::vector<float> values(static_cast<std::size_t>(rows) * width);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t from = piece.num_heads > 0 ? source_row(row, rows / piece.num_heads) : row;
    dequantize_blocks(piece.tensor->type, bytes.subspan(static_cast<std::size_t>(from) * row_bytes, row_bytes),
                      std::span(values).subspan(static_cast<std::size_t>(row) * width, width));
  }
  return values;
}

/// Memory that the tensors of one source take turns in.
struct Buffers {
  std::vector<float> values;
  std::vector<std::byte> converted;
};

TensorSource make_tensor(const std::shared_ptr<const GgufFile>& file, std::string name, std::vector<std::int64_t> shape,
                         const Piece& piece, DType dtype, const std::shared_ptr<Buffers>& buffers) {
  return {std::move(name), dtype, std::move(shape), [file, piece, dtype, buffers]() -> std::span<const std::byte> {
            *buffers = {};  // the tensor before need not lie beside this one
            buffers->values = read_values(*file, piece);
            const std::span<const std::byte> bytes = std::as_bytes(std::span(buffers->values));
            if (dtype == DType::kF32) return bytes;
            const std::string where = str(file->path().string(), ": tensor '", piece.name, "'");
            buffers->converted = convert_floats(bytes, DType::kF32, dtype, where);
            return buffers->converted;
          }};
}

// Divisors of the rotation's frequencies; all ones say nothing.
void check_rope_freqs(const GgufFile& file, std::vector<std::string>& problems) {
  const GgufTensor* tensor = file.tensor("rope_freqs.weight");
  if (tensor == nullptr) return;
  const std::vector<float> values = dequantize(file, *tensor);
  const bool all_ones = std::all_of(values.begin(), values.end(), [](float value) { return value == 1.0f; });
  if (!all_ones) problems.push_back("tensor 'rope_freqs.weight': scaled rotary frequencies (llama3) are not supported");
}

// As for folders: before the names of far more parameters than there are values are written out.
void check_parameter_count(const GgufFile& file, const ModelConfig& config) {
  constexpr std::int64_t kSlack = 10000;
  std::int64_t found = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    const GgufBlock block = gguf_block(tensor.type);
    found += static_cast<std::int64_t>(tensor.size) / block.num_bytes * block.num_values;
  }
  const std::int64_t needed = num_parameter_tensors(config);
  if (needed <= found + kSlack) return;
  throw InputError(str(file.path().string(), ": the metadata ask for ", with_commas(needed),
                       " weight matrices and vectors, but the tensors have ", with_commas(found), " values"));
}

void plan_tensors(const std::shared_ptr<const GgufFile>& file, DType dtype, ImportSource& source) {
  check_parameter_count(*file, source.config);
  const auto buffers = std::make_shared<Buffers>();
  std::vector<std::string> problems;
  std::set<std::string> used = {"rope_freqs.weight"}, reported;
  for (const auto& [parameter, shape] : parameter_shapes(source.config)) {
    const Piece piece = find_piece(*file, parameter, shape, source.config);
    // Experts that lie in one tensor share its problems.
    const bool is_new = reported.insert(piece.name).second;
    used.insert(piece.name);
    if (piece.tensor == nullptr) {
      if (is_new) problems.push_back("tensor '" + piece.name + "' is missing");
    } else if (piece.tensor->shape != piece.needed_shape) {
      if (is_new) {
        problems.push_back(str("tensor '", piece.name, "': found shape ", shape_text(piece.tensor->shape),
                               ", expected ", shape_text(piece.needed_shape)));
      }
    } else {
      source.tensors.push_back(make_tensor(file, disk_name(source.config, parameter), shape, piece, dtype, buffers));
    }
  }
  for (const GgufTensor& tensor : file->tensors()) {
    if (!used.contains(tensor.name))
      problems.push_back("tensor " + quoted_for_message(tensor.name) + " belongs to no part of the model");
  }
  check_rope_freqs(*file, problems);
  throw_problems(file->path().string(), problems);
}

// The kinds of tokens in tokenizer.ggml.token_type.
constexpr std::int64_t kNormalToken = 1, kControlToken = 3, kUserDefinedToken = 4, kUnusedToken = 5;

std::vector<TokenId> control_ids(const Metadata& metadata, std::size_t num_tokens) {
  constexpr std::string_view kKey = "tokenizer.ggml.token_type";
  const auto* types = metadata.array<std::int64_t>(kKey);
  if (types == nullptr) return {};
  if (types->size() != num_tokens)
    metadata.fail(kKey, str("has ", types->size(), " entries for ", num_tokens, " tokens"));
  std::vector<TokenId> ids;
  for (std::size_t id = 0; id < num_tokens; ++id) {
    const std::int64_t type = (*types)[id];
    if (type == kControlToken) ids.push_back(static_cast<TokenId>(id));
    // Neither ordinary text nor a control token; the files we write have no third kind.
    if (type == kUserDefinedToken) metadata.fail(kKey, str("token ", id, " is user-defined, which is not supported"));
    if (type < kNormalToken || type > kUnusedToken)
      metadata.fail(kKey, str("token ", id, " has the unknown type ", type));
  }
  return ids;
}

std::optional<TokenId> token_id(const Metadata& metadata, std::string_view key, std::size_t num_tokens) {
  const std::optional<std::int64_t> id = metadata.integer(key);
  if (!id) return std::nullopt;
  if (*id < 0 || static_cast<std::uint64_t>(*id) >= num_tokens) {
    metadata.fail(key, str("found ", *id, ", expected one of the ", num_tokens, " tokens"));
  }
  return static_cast<TokenId>(*id);
}

BpeVocabulary read_vocabulary(const Metadata& metadata, const ModelConfig& config) {
  const std::string model = metadata.text("tokenizer.ggml.model");
  if (model != "gpt2")
    metadata.fail("tokenizer.ggml.model", "found " + quoted_for_message(model) + ", supported: gpt2 (byte-level BPE)");
  const auto* tokens = metadata.array<std::string>("tokenizer.ggml.tokens");
  const auto* merges = metadata.array<std::string>("tokenizer.ggml.merges");
  if (tokens == nullptr) metadata.fail("tokenizer.ggml.tokens", "is missing");
  if (merges == nullptr) metadata.fail("tokenizer.ggml.merges", "is missing");
  if (static_cast<std::int64_t>(tokens->size()) > config.vocab_size) {
    metadata.fail("tokenizer.ggml.tokens",
                  str("has ", tokens->size(), " tokens, more than the vocabulary's ", config.vocab_size));
  }
  if (metadata.boolean("tokenizer.ggml.add_eos_token", false)) {
    metadata.fail("tokenizer.ggml.add_eos_token", "an end token after every text is not supported");
  }
  const std::size_t num_tokens = tokens->size();
  BpeVocabulary vocabulary;
  vocabulary.where = metadata.file().path().string();
  vocabulary.tokens = *tokens;
  vocabulary.merges = *merges;
  vocabulary.special_ids = control_ids(metadata, num_tokens);
  vocabulary.pre_tokenizer = metadata.text("tokenizer.ggml.pre");
  vocabulary.bos = token_id(metadata, "tokenizer.ggml.bos_token_id", num_tokens);
  vocabulary.eos = token_id(metadata, "tokenizer.ggml.eos_token_id", num_tokens);
  vocabulary.unk = token_id(metadata, "tokenizer.ggml.unknown_token_id", num_tokens);
  vocabulary.pad = token_id(metadata, "tokenizer.ggml.padding_token_id", num_tokens);
  vocabulary.add_bos = metadata.boolean("tokenizer.ggml.add_bos_token", false);
  vocabulary.chat_template = metadata.text("tokenizer.chat_template");
  vocabulary.max_length = config.max_position_embeddings;
  return vocabulary;
}

std::string describe(const GgufFile& file) {
  std::map<GgufType, int> counts;
  for (const GgufTensor& tensor : file.tensors()) ++counts[tensor.type];
  std::vector<std::pair<GgufType, int>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::vector<std::string> parts;
  for (const auto& [type, count] : sorted) parts.push_back(str(count, " ", gguf_type_name(type)));
  return str("GGUF v", file.version(), ", architecture llama, ", join(parts, " + "));
}

}  // namespace

ImportSource open_gguf_source(const std::filesystem::path& path, DType dtype) {
  const auto file = std::make_shared<const GgufFile>(GgufFile::open(path));
  const Metadata metadata(*file);
  check_architecture(metadata);
  check_rope(metadata);
  warn_of_unknown_keys(metadata);
  ImportSource source;
  source.kind = describe(*file);
  source.config = read_config(metadata);
  plan_tensors(file, dtype, source);
  source.write_side_files = [vocabulary = read_vocabulary(metadata, source.config)](
                                const std::filesystem::path& folder) { write_tokenizer_files(folder, vocabulary); };
  return source;
}

}  // namespace dagmoe
