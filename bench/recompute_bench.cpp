// Time and peak resident memory of forward and backward over one micro batch, all weights trained, with and without
// running layers again in the backward pass. One process a setting, because the peak is the process's.
// usage: recompute_bench MODEL float32|bfloat16 keep|recompute [TOKENS [REPEATS]]; prints one JSON line.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "kernels/ops.h"

using namespace dagmoe;

namespace {

constexpr std::int64_t kSequence = 512;

// A line of /proc/self/status in bytes.
std::int64_t memory(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kibibytes = 0;
    if (word == key + ":" && status >> kibibytes) return kibibytes * 1024;
  }
  return 0;
}

ModelInput packed_ids(std::int64_t num_tokens, std::int64_t vocab_size) {
  ModelInput input{(at::arange(num_tokens) * 7919 + 11) % vocab_size, at::arange(num_tokens) % kSequence, {0}};
  while (input.segment_offsets.back() < num_tokens)
    input.segment_offsets.push_back(std::min(num_tokens, input.segment_offsets.back() + kSequence));
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: recompute_bench MODEL float32|bfloat16 keep|recompute [TOKENS [REPEATS]]\n";
    return 2;
  }
  try {
    const bool recompute = std::string(argv[3]) == "recompute";
    const std::int64_t num_tokens = argc > 4 ? std::stoll(argv[4]) : 4096, repeats = argc > 5 ? std::stoll(argv[5]) : 3;
    const Checkpoint checkpoint = Checkpoint::open(argv[1]);
    Decoder model =
        load_decoder(checkpoint, {.compute_dtype = std::string(argv[2]) == "bfloat16" ? at::kBFloat16 : at::kFloat,
                                  .is_trainable = [](const std::string&) { return true; }});
    const ModelInput input = packed_ids(num_tokens, model.config.vocab_size);
    // The gradients, so that what is left of the peak is activations.
    for (const auto& [name, tensor] : model.parameters()) {
      if (tensor->requires_grad()) tensor->mutable_grad() = at::zeros_like(tensor->detach());
    }
    const std::int64_t before = memory("VmRSS");
    std::vector<double> seconds;
    double loss_value = 0.0;
    for (std::int64_t i = 0; i < repeats; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      const ModelOutput output = model.forward(input, {.recompute = recompute});
      const at::Tensor loss = masked_cross_entropy(output.hidden_TD, model.output_weight(), input.input_ids_T,
                                                   1.0 / static_cast<double>(num_tokens));
      loss.backward();
      loss_value = loss.item<double>();
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    std::sort(seconds.begin(), seconds.end());
    const Json result = {{"seconds_median", seconds[seconds.size() / 2]},
                         {"seconds_min", seconds.front()},
                         {"seconds_max", seconds.back()},
                         {"weights_and_gradients_bytes", before},
                         {"peak_rss_bytes", memory("VmHWM")},
                         {"loss", loss_value}};
    std::cout << result.dump() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
