// A GGUF file as a source: its config, tensors under our names, its tokenizer (contracts.md 2.3, 2.4).
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <span>

#include "base/error.h"
#include "base/problems.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/import_gguf_architectures.h"
#include "checkpoint/import_gguf_config.h"
#include "checkpoint/import_gguf_metadata.h"
#include "checkpoint/import_gguf_tokenizer.h"
#include "checkpoint/import_source.h"
#include "checkpoint/safetensors_convert.h"
#include "checkpoint/safetensors_folder.h"
#include "model/families.h"
#include "model/parameter_count.h"

namespace dagmoe {
namespace {

void check_parts(const GgufMetadata& metadata) {
  constexpr std::string_view kKey = "split.count";
  const std::int64_t num_parts = metadata.integer(kKey).value_or(1);
  if (num_parts > 1) metadata.fail(kKey, str("a model in ", num_parts, " files is not supported; join them first"));
}

/// Where a parameter's values are in the file and how its rows are ordered there.
struct Piece {
  const GgufTensor* tensor = nullptr;
  std::string name;                        ///< of the tensor, also when it is missing
  std::vector<std::int64_t> needed_shape;  ///< of the tensor
  std::int64_t index = 0, num_slices = 1;  ///< the parameter is slice `index` of equal ones
  std::int64_t num_heads = 0;              ///< above 0: the rows of each head are stored for adjacent-pair rotation
};

/// An expert's matrix: a tensor of its own, a slice of one with all experts of a layer, or of one where the rows of
/// gate lie before those of up for each expert.
Piece find_expert(const GgufFile& file, const std::string& layer, std::string_view rest,
                  const std::vector<std::int64_t>& shape, std::int64_t E) {
  const std::size_t dot = rest.find('.');
  const std::string_view projection = rest.substr(dot + 1);
  const std::int64_t expert = std::stoll(std::string(rest.substr(0, dot)));
  const std::string name = layer + gguf_layer_name(projection);
  const std::string stacked = name + "_exps.weight", single = str(name, ".", expert, ".weight");
  const std::string fused = layer + "ffn_gate_up_exps.weight";
  if (const GgufTensor* tensor = file.tensor(single)) return {tensor, single, shape};
  const GgufTensor* gate_up = projection == "down_proj" ? nullptr : file.tensor(fused);
  if (file.tensor(stacked) != nullptr || gate_up == nullptr) {
    return {file.tensor(stacked), stacked, {E, shape[0], shape[1]}, expert, E};
  }
  const std::int64_t half = projection == "gate_proj" ? 0 : 1;
  return {gate_up, fused, {E, 2 * shape[0], shape[1]}, 2 * expert + half, 2 * E};
}

Piece find_in_layer(const GgufFile& file, const std::string& parameter, const std::vector<std::int64_t>& shape,
                    const ModelConfig& config, const GgufArchitecture& architecture) {
  constexpr std::string_view kLayers = "model.layers.", kExperts = "mlp.experts.";
  const std::size_t dot = parameter.find('.', kLayers.size());
  const std::string layer = "blk." + parameter.substr(kLayers.size(), dot + 1 - kLayers.size());
  const std::size_t suffix = parameter.rfind('.');  // ".weight" or ".bias"
  const std::string rest = parameter.substr(dot + 1, suffix - dot - 1);
  if (rest.starts_with(kExperts)) {
    return find_expert(file, layer, std::string_view(rest).substr(kExperts.size()), shape, config.moe->num_experts);
  }
  const std::string name = layer + gguf_layer_name(rest) + parameter.substr(suffix);
  Piece piece = {file.tensor(name), name, shape};
  if (!architecture.interleaves_heads) return piece;
  if (rest == "self_attn.q_proj") piece.num_heads = config.num_attention_heads;
  if (rest == "self_attn.k_proj") piece.num_heads = config.num_key_value_heads;
  return piece;
}

Piece find_piece(const GgufFile& file, const std::string& parameter, const std::vector<std::int64_t>& shape,
                 const ModelConfig& config, const GgufArchitecture& architecture) {
  if (parameter.starts_with("model.layers.")) return find_in_layer(file, parameter, shape, config, architecture);
  std::string name = "token_embd.weight";
  if (parameter == "model.norm.weight") name = "output_norm.weight";
  if (parameter == "lm_head.weight") name = "output.weight";
  return {file.tensor(name), name, shape};
}

/// The row of the file that becomes row `row`. The file interleaves the two halves of each head:
///   file   0 1 2 3 4 5      head of 6 rows
///   ours   0 2 4 1 3 5
std::int64_t source_row(std::int64_t row, std::int64_t head_rows) {
  const std::int64_t head = row / head_rows, i = row % head_rows, half = head_rows / 2;
  return head * head_rows + (i < half ? 2 * i : 2 * (i - half) + 1);
}

std::vector<float> in_our_order(const std::vector<float>& values, std::int64_t rows, std::int64_t num_heads) {
  const std::size_t width = values.size() / static_cast<std::size_t>(rows);
  std::vector<float> result(values.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto from = static_cast<std::size_t>(source_row(row, rows / num_heads)) * width;
    std::copy_n(values.data() + from, width, result.data() + static_cast<std::size_t>(row) * width);
  }
  return result;
}

std::vector<float> read_values(const GgufFile& file, const Piece& piece) {
  const GgufBlock block = gguf_block(piece.tensor->type);
  const std::span<const std::byte> whole = file.bytes(*piece.tensor);
  const std::size_t size = whole.size() / static_cast<std::size_t>(piece.num_slices);
  const std::span<const std::byte> bytes = whole.subspan(size * static_cast<std::size_t>(piece.index), size);
  std::vector<float> values(size / static_cast<std::size_t>(block.num_bytes) *
                            static_cast<std::size_t>(block.num_values));
  dequantize_blocks(piece.tensor->type, bytes, values);
  if (piece.num_heads == 0) return values;
  return in_our_order(values, piece.needed_shape[0], piece.num_heads);
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

/// The same values in the same order: the gate of the shared expert is [1, H] for us and [H] in the file.
bool same_shape(std::span<const std::int64_t> a, std::span<const std::int64_t> b) {
  const auto without_ones = [](std::span<const std::int64_t> shape) {
    while (shape.size() > 1 && shape.front() == 1) shape = shape.subspan(1);
    return shape;
  };
  return std::ranges::equal(without_ones(a), without_ones(b));
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

void plan_tensors(const std::shared_ptr<const GgufFile>& file, const GgufArchitecture& architecture, DType dtype,
                  ImportSource& source) {
  check_parameter_count(*file, source.config);
  const auto buffers = std::make_shared<Buffers>();
  std::vector<std::string> problems;
  std::set<std::string> used = {"rope_freqs.weight"}, reported;  // the config is made of its divisors
  for (const auto& [parameter, shape] : parameter_shapes(source.config)) {
    const Piece piece = find_piece(*file, parameter, shape, source.config, architecture);
    // Experts that lie in one tensor share its problems.
    const bool is_new = reported.insert(piece.name).second;
    used.insert(piece.name);
    if (piece.tensor == nullptr) {
      if (is_new) problems.push_back("tensor '" + piece.name + "' is missing");
    } else if (!same_shape(piece.tensor->shape, piece.needed_shape)) {
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
  throw_problems(file->path().string(), problems);
}

std::string describe(const GgufFile& file, const GgufArchitecture& architecture) {
  std::map<GgufType, int> counts;
  for (const GgufTensor& tensor : file.tensors()) ++counts[tensor.type];
  std::vector<std::pair<GgufType, int>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::vector<std::string> parts;
  for (const auto& [type, count] : sorted) parts.push_back(str(count, " ", gguf_type_name(type)));
  return str("GGUF v", file.version(), ", architecture ", architecture.name, ", ", join(parts, " + "));
}

}  // namespace

ImportSource open_gguf_source(const std::filesystem::path& path, DType dtype) {
  const auto file = std::make_shared<const GgufFile>(GgufFile::open(path));
  const GgufMetadata metadata(*file);
  const GgufArchitecture& architecture = find_gguf_architecture(metadata);
  check_parts(metadata);
  ImportSource source;
  source.kind = describe(*file, architecture);
  source.config = parse_model_config(gguf_config(metadata, architecture), path.string());
  metadata.warn_of_keys_not_asked_for();
  plan_tensors(file, architecture, dtype, source);
  source.write_side_files = gguf_tokenizer_writer(metadata, source.config);
  return source;
}

}  // namespace dagmoe
