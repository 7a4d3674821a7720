// A whole model folder with a tokenizer, and a data file, small enough to train in a second.
#pragma once
#include <string>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "data/tokenizer.h"
#include "tests/support/tiny_model.h"

namespace dagmoe::testing {

/// A tiny DAG-MoE over the byte alphabet and three control tokens.
inline ModelConfig tiny_folder_config() {
  ModelConfig config = tiny_config();
  config.vocab_size = 259;
  config.max_position_embeddings = 512;
  config.eos_token_ids = {2};
  return config;
}

inline void write_byte_tokenizer(const std::filesystem::path& folder) {
  BpeVocabulary vocabulary;
  vocabulary.tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  vocabulary.special_ids = {0, 1, 2};
  // The byte alphabet of byte-level BPE: printable bytes stand for themselves, the others for U+0100 and up.
  int next = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : 256 + next++;
    vocabulary.tokens.push_back(
        code < 128 ? std::string(1, static_cast<char>(code))
                   : std::string{static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))});
  }
  vocabulary.pre_tokenizer = "smollm";
  vocabulary.bos = 1, vocabulary.eos = 2, vocabulary.unk = 0, vocabulary.pad = 2;
  vocabulary.chat_template =
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
      "'\n'}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  write_tokenizer_files(folder, vocabulary);
}

/// A model folder of random weights, experts one by one, with the byte tokenizer.
inline void write_tiny_folder(const std::filesystem::path& folder, const ModelConfig& config, std::uint64_t seed = 5) {
  std::filesystem::create_directories(folder);
  write_byte_tokenizer(folder);
  Decoder model(config);
  initialize_parameters(model, seed);
  write_text(folder / "config.json", model_config_json(config).dump(2));
  const auto parameters = model.parameters();
  std::vector<TensorSource> tensors;
  for (const DiskTensor& disk : disk_tensors(config, ExpertLayout::kPerExpert)) {
    const at::Tensor tensor = *parameters.at(disk.parameters.front()).tensor;
    tensors.push_back({disk.name, DType::kF32, tensor.sizes().vec(), [tensor] {
                         return std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
                       }});
  }
  write_safetensors(folder / "model.safetensors", std::move(tensors));
}

/// The tiny DAG-MoE, or a dense Llama of the same width.
inline void write_tiny_folder(const std::filesystem::path& folder, bool dense = false) {
  ModelConfig config = tiny_folder_config();
  if (dense) {
    config.moe.reset(), config.dag.reset();
    config.model_type = config.base_model_type = "llama";
    config.intermediate_size = 24;
  }
  write_tiny_folder(folder, config);
}

/// `count` Alpaca records whose answers are easy to learn.
inline void write_records(const std::filesystem::path& file, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += Json{{"instruction", "Say the letter " + std::string(1, static_cast<char>('a' + i % 26))},
                 {"input", ""},
                 {"output", "aaaa bbbb " + std::to_string(i % 7)}}
                .dump() +
            "\n";
  }
  write_text(file, text);
}

inline std::string recipe_text(const std::filesystem::path& root, const std::string& more = "") {
  return "version: 1\nseed: 3\noutput_dir: " + (root / "run").string() +
         "\ndtype: float32\nmodel: {path: " + (root / "model").string() +
         "}\ntrainable: [dag]\ndata:\n  train:\n    - {path: " + (root / "train.jsonl").string() +
         ", format: alpaca, template: chatml}\n  valid:\n    - {path: " + (root / "valid.jsonl").string() +
         ", format: alpaca, template: chatml}\nbatch: {tokens: 600, micro_batch_tokens: 300}\noptimizer: {lr: 0.02}\n" +
         more;
}

}  // namespace dagmoe::testing
