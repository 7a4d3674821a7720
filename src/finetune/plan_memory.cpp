#include "finetune/plan_memory.h"

#include <algorithm>

#include "base/text.h"

namespace dagmoe {
namespace {

/// What differs from moment to moment of a step.
struct Moment {
  std::string name;
  std::int64_t copies = 0, gradients = 0, optimizer = 0, activations = 0, logits = 0;
  std::int64_t total() const { return copies + gradients + optimizer + activations + logits; }
};

/// Goes through a step and remembers its fullest moment.
class StepAccount {
 public:
  StepAccount(const RunSetup& setup, const StepActivations& step, const MicroBatches& batches, bool recompute,
              std::int64_t element)
      : setup_(setup), step_(step), several_(batches.several_a_step), recompute_(recompute) {
    input_bytes_ = batches.largest.tokens * setup.config.hidden_size * element;
    for (const RunParameter& parameter : setup.parameters) all_gradients_ += parameter.memory.gradients;
  }

  Moment fullest() {
    // Of layers that have run: what they saved.
    std::int64_t saved = step_.ends.saved, copies = 0;
    for (std::size_t n = 0; n < step_.layers.size(); ++n) {
      const LayerMemory& layer = step_.layers[n];
      consider({str("the forward pass, layer ", n), copies + layer.copies, earlier_gradients(), 0,
                saved + std::max(layer.saved, layer.forward) + layer.routing, 0});
      saved += kept(layer);
      copies += recompute_ ? 0 : layer.copies;
    }
    consider({"the loss", copies + step_.ends.head_copy, earlier_gradients(), 0, saved, step_.ends.logits});
    backward(saved, copies);
    consider({"the embedding's gradient", 0, embedding_moment_gradients(), 0, step_.ends.embedding_gradient, 0});
    consider({"the optimizer's update", 0, all_gradients_, update_bytes(), 0, 0});
    return fullest_;
  }

  /// A forward pass that records nothing.
  void validation(const StepActivations& step) {
    std::int64_t widest = 0;
    for (const LayerMemory& layer : step.layers) widest = std::max(widest, layer.forward + layer.routing);
    consider({"the validation", step.ends.head_copy, 0, 0, widest, 0});
  }

  void set_rule_of(OptimizerKind kind) { optimizer_ = kind; }

 private:
  void consider(const Moment& moment) {
    if (moment.total() > fullest_.total()) fullest_ = moment;
  }

  std::int64_t earlier_gradients() const { return several_ ? all_gradients_ : 0; }

  // With recompute a layer keeps its input alone.
  std::int64_t kept(const LayerMemory& layer) const {
    if (!recompute_) return layer.saved + layer.routing;
    return (layer.is_recorded ? input_bytes_ : 0) + layer.routing;
  }

  // From the last layer down; gradients grow as saved tensors go.
  void backward(std::int64_t saved, std::int64_t copies) {
    const bool is_tied = setup_.config.tie_word_embeddings;
    // That of a tied matrix waits beside the sum until the embedding's is there.
    std::int64_t gradients =
        several_ ? all_gradients_ + (is_tied ? step_.ends.head_gradient : 0) : step_.ends.head_gradient;
    for (std::size_t n = step_.layers.size(); n-- > 0;) {
      const LayerMemory& layer = step_.layers[n];
      if (!layer.is_recorded) return;
      const std::int64_t again = recompute_ ? layer.saved : 0, layer_copies = recompute_ ? layer.copies : 0;
      const std::string name = str("the backward pass, layer ", n);
      consider({name, copies + layer_copies, gradients, 0, saved + again + layer.backward_combine, 0});
      consider(
          {name, copies + layer_copies, gradients, 0, saved + again - layer.saved_combine + layer.backward_ffn, 0});
      saved -= recompute_ ? (layer.is_recorded ? input_bytes_ : 0) : layer.saved;
      copies -= recompute_ ? 0 : layer.copies;
      if (!several_) gradients += layer.gradients;
    }
  }

  // The embedding's own gradient is counted with what makes it, unless that of another micro batch is there.
  std::int64_t embedding_moment_gradients() const {
    const std::int64_t own = several_ ? 0 : setup_.parameters.front().memory.gradients;
    return all_gradients_ - own + (setup_.config.tie_word_embeddings ? step_.ends.head_gradient : 0);
  }

  // Muon makes its update of a matrix in three of the matrix's size and three squares of its shorter side; the others
  // update in place.
  std::int64_t update_bytes() const {
    std::int64_t most = 0;
    for (const RunParameter& parameter : setup_.parameters) {
      if (!parameter.is_trainable || rule_of(optimizer_, parameter.name, parameter.shape) != UpdateRuleKind::kMuon)
        continue;
      const std::int64_t side = std::min(parameter.shape[0], parameter.shape[1]);
      most = std::max(most, 3 * (parameter.num_elements() + side * side) * static_cast<std::int64_t>(sizeof(float)));
    }
    return most;
  }

  const RunSetup& setup_;
  const StepActivations& step_;
  bool several_, recompute_;
  OptimizerKind optimizer_ = OptimizerKind::kAdamW;
  std::int64_t input_bytes_ = 0, all_gradients_ = 0;
  Moment fullest_;
};

}  // namespace

MemoryPlan plan_memory(const Recipe& recipe, const RunSetup& setup, const MicroBatches& batches,
                       std::int64_t program_bytes) {
  const bool is_bfloat16 = recipe.dtype == ComputeType::kBFloat16;
  MemoryPlan plan;
  plan.program = program_bytes;
  for (const RunParameter& parameter : setup.parameters) {
    plan.mapped += parameter.memory.mapped;
    if (!parameter.is_trainable) plan.weights += parameter.memory.weights;
    plan.master += parameter.memory.master;
    plan.optimizer += parameter.memory.optimizer;
  }
  const StepActivations step = step_activations(setup, batches.largest, is_bfloat16);
  StepAccount account(setup, step, batches, recipe.recompute, is_bfloat16 ? 2 : 4);
  account.set_rule_of(recipe.optimizer.name);
  if (batches.validation_tokens > 0) {
    const BatchShape shape{batches.validation_tokens, batches.validation_tokens, recipe.data.max_seq_len};
    account.validation(step_activations(setup, shape, is_bfloat16));
  }
  const Moment moment = account.fullest();
  plan.moment = moment.name;
  plan.weights += moment.copies;
  plan.gradients = moment.gradients;
  plan.optimizer += moment.optimizer;
  plan.activations = moment.activations;
  plan.logits = moment.logits;
  return plan;
}

}  // namespace dagmoe
