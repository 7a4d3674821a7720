#include "finetune/plan_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/text.h"

namespace dagmoe {
namespace {

// What training touches besides what the program holds when it plans: code of LibTorch, MKL and oneDNN, the programs
// that oneDNN builds, memory of the threads. Measured as the peak of a run of a model of 20,000 parameters less the
// resident memory of its plan (plan_test.cpp, "tiny run").
constexpr std::int64_t kTrainingProgramBytes = 60'000'000;

/// What differs from moment to moment of a step.
struct Moment {
  std::string name;
  std::int64_t copies = 0, gradients = 0, optimizer = 0, activations = 0, logits = 0;
  std::int64_t total() const { return copies + gradients + optimizer + activations + logits; }
};

/// Goes through a step and remembers its fullest moment.
class StepAccount {
 public:
  StepAccount(const RunSetup& setup, const StepActivations& step, bool several, const LayersToRecompute& recompute,
              std::int64_t input_bytes)
      : setup_(setup), step_(step), several_(several), recompute_(recompute), input_bytes_(input_bytes) {
    for (const RunParameter& parameter : setup.parameters) all_gradients_ += parameter.memory.gradients;
  }

  void training(std::int64_t update_bytes) {
    // Of layers that have run: what they saved.
    std::int64_t saved = step_.ends.saved, copies = 0;
    for (std::size_t n = 0; n < step_.layers.size(); ++n) {
      const LayerMemory& layer = step_.layers[n];
      const std::int64_t most = runs_again(n) ? layer.forward : std::max(layer.saved, layer.forward);
      consider({str("the forward pass, layer ", n), copies + layer.copies, earlier_gradients(), 0,
                saved + most + layer.routing, 0});
      saved += kept(n) + layer.routing;
      copies += runs_again(n) ? 0 : layer.copies;
    }
    consider({"the loss", copies + step_.ends.head_copy, earlier_gradients(), 0, saved, step_.ends.logits});
    backward(saved, copies);
    consider({"the embedding's gradient", 0, embedding_moment_gradients(), 0, step_.ends.embedding_gradient, 0});
    consider({"the optimizer's update", 0, all_gradients_, update_bytes, 0, 0});
  }

  /// A forward pass that records nothing.
  void validation(const StepActivations& step) {
    std::int64_t widest = 0;
    for (const LayerMemory& layer : step.layers) widest = std::max(widest, layer.forward + layer.routing);
    consider({"the validation", step.ends.head_copy, 0, 0, widest, 0});
  }

  const Moment& fullest() const { return fullest_; }

 private:
  void consider(const Moment& moment) {
    if (moment.total() > fullest_.total()) fullest_ = moment;
  }

  std::int64_t earlier_gradients() const { return several_ ? all_gradients_ : 0; }

  // A layer that the backward pass does not reach keeps nothing, so there is nothing to form again.
  bool runs_again(std::size_t n) const {
    return step_.layers[n].is_recorded && recompute_(static_cast<std::int64_t>(n));
  }
  std::int64_t kept(std::size_t n) const { return runs_again(n) ? input_bytes_ : step_.layers[n].saved; }

  // From the last layer down; gradients grow as saved tensors go.
  void backward(std::int64_t saved, std::int64_t copies) {
    const bool is_tied = setup_.config.tie_word_embeddings;
    // That of a tied matrix waits beside the sum until the embedding's is there.
    std::int64_t gradients =
        several_ ? all_gradients_ + (is_tied ? step_.ends.head_gradient : 0) : step_.ends.head_gradient;
    for (std::size_t n = step_.layers.size(); n-- > 0;) {
      const LayerMemory& layer = step_.layers[n];
      if (!layer.is_recorded) return;
      Moment moment{str("the backward pass, layer ", n), copies, gradients, 0, saved, 0};
      if (runs_again(n)) {
        // Its tensors beside its input, which is the first of them where its norm keeps one, and its outputs. Its
        // gradients are handed over all together.
        moment.copies += layer.copies;
        moment.gradients += layer.gradients;
        const std::int64_t others = saved + input_bytes_ + layer.routing;
        moment.activations = others + layer.saved - (layer.input_gradient ? input_bytes_ : 0);
        consider({moment.name, moment.copies, gradients, 0, others + layer.forward, 0});
      }
      Moment ffn = moment;
      ffn.activations += layer.backward_ffn - layer.saved_combine;
      moment.activations += layer.backward_combine;
      consider(moment);
      consider(ffn);
      saved -= kept(n);
      if (!runs_again(n)) copies -= layer.copies;
      if (!several_) gradients += layer.gradients;
    }
  }

  // The embedding's own gradient is counted with what makes it, unless that of another micro batch is there.
  std::int64_t embedding_moment_gradients() const {
    const std::int64_t own = several_ ? 0 : setup_.parameters.front().memory.gradients;
    return all_gradients_ - own + (setup_.config.tie_word_embeddings ? step_.ends.head_gradient : 0);
  }

  const RunSetup& setup_;
  const StepActivations& step_;
  bool several_;
  const LayersToRecompute& recompute_;
  std::int64_t input_bytes_, all_gradients_ = 0;
  Moment fullest_;
};

// Muon makes its update of a matrix in three of the matrix's size and three squares of its shorter side; the others
// update in place.
std::int64_t bytes_of_update(const RunSetup& setup, OptimizerKind optimizer) {
  std::int64_t most = 0;
  for (const RunParameter& parameter : setup.parameters) {
    if (!parameter.is_trainable || rule_of(optimizer, parameter.name, parameter.shape) != UpdateRuleKind::kMuon)
      continue;
    const std::int64_t side = std::min(parameter.shape[0], parameter.shape[1]);
    most = std::max(most, 3 * (parameter.num_elements() + side * side) * static_cast<std::int64_t>(sizeof(float)));
  }
  return most;
}

}  // namespace

MicroBatches largest_micro_batches(const Recipe& recipe, std::int64_t validation_records) {
  const Recipe::Batch& batch = recipe.batch;
  const std::int64_t longest = recipe.data.max_seq_len;  // longer samples are cut, left out or learnt in parts
  const std::int64_t step = batch.sequences ? *batch.sequences * longest : std::max(*batch.tokens, longest);
  const std::int64_t capacity = recipe.data.packing ? batch.micro_batch_tokens : 1;
  MicroBatches batches;
  batches.largest.tokens = batches.largest.supervised_tokens = std::min(step, std::max(capacity, longest));
  batches.largest.longest_sequence = longest;
  batches.several_a_step = step > capacity && batch.sequences != 1;
  if (validation_records > 0) {
    const bool has_texts = std::ranges::any_of(
        recipe.data.valid, [](const DataRecipe& from) { return from.format == RecordFormat::kText; });
    const std::int64_t most = validation_records * longest;  // a text is not bounded by it
    batches.validation_tokens = has_texts ? batch.micro_batch_tokens : std::min(batch.micro_batch_tokens, most);
  }
  return batches;
}

std::int64_t program_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE) + kTrainingProgramBytes;
}

MemoryAccount::MemoryAccount(const Recipe& recipe, const RunSetup& setup, const MicroBatches& batches,
                             std::int64_t program_bytes)
    : setup_(setup), batches_(batches) {
  const bool is_bfloat16 = recipe.dtype == ComputeType::kBFloat16;
  resident_.program = program_bytes;
  for (const RunParameter& parameter : setup.parameters) {
    resident_.mapped += parameter.memory.mapped;
    if (!parameter.is_trainable) resident_.weights += parameter.memory.weights;
    resident_.master += parameter.memory.master;
    resident_.optimizer += parameter.memory.optimizer;
  }
  step_ = step_activations(setup, batches.largest, is_bfloat16);
  if (batches.validation_tokens > 0) {
    const BatchShape shape{batches.validation_tokens, batches.validation_tokens, recipe.data.max_seq_len};
    validation_ = step_activations(setup, shape, is_bfloat16);
  }
  input_bytes_ = batches.largest.tokens * setup.config.hidden_size * (is_bfloat16 ? 2 : 4);
  update_bytes_ = bytes_of_update(setup, recipe.optimizer.name);
}

std::int64_t MemoryAccount::freed_by(std::size_t layer) const {
  const LayerMemory& memory = step_.layers.at(layer);
  return memory.is_recorded ? memory.saved + memory.copies - input_bytes_ : 0;
}

MemoryPlan MemoryAccount::plan(const LayersToRecompute& recompute) const {
  StepAccount account(setup_, step_, batches_.several_a_step, recompute, input_bytes_);
  if (batches_.validation_tokens > 0) account.validation(validation_);
  account.training(update_bytes_);
  const Moment& moment = account.fullest();
  MemoryPlan plan = resident_;
  plan.moment = moment.name;
  plan.weights += moment.copies;
  plan.gradients = moment.gradients;
  plan.optimizer += moment.optimizer;
  plan.activations = moment.activations;
  plan.logits = moment.logits;
  return plan;
}

MemoryPlan plan_memory(const Recipe& recipe, const RunSetup& setup, const MicroBatches& batches,
                       std::int64_t program_bytes) {
  return MemoryAccount(recipe, setup, batches, program_bytes).plan(setup.recompute);
}

}  // namespace dagmoe
