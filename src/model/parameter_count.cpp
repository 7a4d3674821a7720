#include "model/parameter_count.h"

namespace dagmoe {
namespace {

std::int64_t count_of(const ModelConfig& config) { return static_cast<std::int64_t>(parameter_shapes(config).size()); }

}  // namespace

std::int64_t num_parameter_tensors(const ModelConfig& config) {
  constexpr std::int64_t kTensorsPerExpert = 3;
  ModelConfig model = config;
  model.num_hidden_layers = 0;
  const std::int64_t num_outside = count_of(model);
  // A layer of each kind, the experts aside.
  model.num_hidden_layers = 1;
  model.moe.reset(), model.dag.reset();
  const std::int64_t num_dense = count_of(model) - num_outside;
  std::int64_t num_sparse = 0;
  if (config.moe) {
    model.moe = config.moe, model.dag = config.dag;
    model.moe->num_experts = 0;
    model.moe->mlp_only_layers.clear();
    model.moe->decoder_sparse_step = 1, model.moe->first_k_dense_replace = 0;
    num_sparse = count_of(model) - num_outside + kTensorsPerExpert * config.moe->num_experts;
  }
  std::int64_t count = num_outside;
  for (std::int64_t n = 0; n < config.num_hidden_layers; ++n) count += config.is_moe_layer(n) ? num_sparse : num_dense;
  return count;
}

}  // namespace dagmoe
