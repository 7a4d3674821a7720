// Time from the start of the program to the first logits of a model folder, and peak resident memory.
// usage: load_bench MODEL [float32|bfloat16]; prints one JSON line. load.py runs it beside transformers.
#include <ATen/ATen.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"

using namespace dagmoe;

namespace {

constexpr std::int64_t kNumTokens = 16;

// Not getrusage: its maximum outlives exec, so it may be that of the program which started this one.
std::int64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kibibytes = 0;
    if (word == "VmHWM:" && status >> kibibytes) return kibibytes * 1024;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  if (argc < 2) {
    std::cerr << "usage: load_bench MODEL [float32|bfloat16]\n";
    return 2;
  }
  try {
    const at::NoGradGuard no_grad;
    const Checkpoint checkpoint = Checkpoint::open(argv[1]);
    const bool is_bf16 = argc > 2 && std::string(argv[2]) == "bfloat16";
    const Decoder model = load_decoder(checkpoint, {.compute_dtype = is_bf16 ? at::kBFloat16 : at::kFloat});
    const double load_seconds = seconds();
    const at::Tensor ids = (at::arange(kNumTokens) * 37 + 11) % checkpoint.config().vocab_size;
    const ModelInput input{ids, at::arange(kNumTokens), {0, kNumTokens}};
    const at::Tensor logits = model.logits(model.forward(input).hidden_TD);
    const Json result = {{"load_seconds", load_seconds},
                         {"first_forward_seconds", seconds()},
                         {"peak_rss_bytes", peak_rss_bytes()},
                         {"argmax", logits[kNumTokens - 1].argmax().item<std::int64_t>()}};
    std::cout << result.dump() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
