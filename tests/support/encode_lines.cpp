// encode_lines TOKENIZER [--raw] < texts.jsonl > ids
// One JSON string per input line (or a list of byte values, for text that is no UTF-8), its token ids per output line,
// without BOS; counts and speed on stderr. TOKENIZER is
// a model folder, a tokenizer.json or a sentencepiece .model. With --raw control tokens in the text stay text. For
// comparing every line of a corpus with another program.
#include <ctime>
#include <iostream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "data/tokenizer.h"

namespace {

std::unique_ptr<dagmoe::Tokenizer> load(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) return dagmoe::load_tokenizer(path);
  return path.extension() == ".json" ? dagmoe::load_tokenizer_json(path) : dagmoe::load_sentencepiece(path);
}

std::string text_of(const dagmoe::Json& line) {
  if (line.is_string()) return line.get<std::string>();
  std::string text;
  for (const auto& byte : line) text += static_cast<char>(byte.get<unsigned char>());
  return text;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) throw dagmoe::ConfigError("usage: encode_lines TOKENIZER [--raw] < texts.jsonl");
  const auto tokenizer = load(argv[1]);
  const bool parse_special = argc < 3 || std::string(argv[2]) != "--raw";
  std::vector<std::string> texts;
  for (std::string line; std::getline(std::cin, line);) {
    texts.push_back(text_of(dagmoe::parse_json(line, "stdin")));
  }
  std::vector<std::vector<dagmoe::TokenId>> encoded;
  encoded.reserve(texts.size());
  const std::clock_t start = std::clock();  // processor time: the machine may be busy
  for (const std::string& text : texts) encoded.push_back(tokenizer->encode(text, {.parse_special = parse_special}));
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  std::size_t num_tokens = 0, num_bytes = 0, num_broken = 0;
  std::string out;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    for (std::size_t j = 0; j < encoded[i].size(); ++j) out += (j > 0 ? " " : "") + std::to_string(encoded[i][j]);
    out += '\n';
    num_tokens += encoded[i].size();
    num_bytes += texts[i].size();
    if (tokenizer->decode(encoded[i], true) != texts[i]) ++num_broken;
  }
  std::cout << out;
  const auto per_second = static_cast<double>(num_tokens) / seconds / 1e6;
  std::cerr << tokenizer->description() << "\n"
            << texts.size() << " texts, " << num_bytes << " bytes, " << num_tokens << " tokens, " << seconds << " s, "
            << per_second << " M tokens/s; " << num_broken << " texts are not their decoded ids\n";
  return 0;
} catch (const dagmoe::Error& error) {
  std::cerr << error.what() << "\n";
  return static_cast<int>(error.exit_code());
}
