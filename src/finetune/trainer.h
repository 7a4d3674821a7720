#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/packed_batch.h"
#include "data/shared_prefixes.h"
#include "finetune/optimizer.h"
#include "finetune/ranks.h"
#include "finetune/train_config.h"
#include "model/decoder.h"
#include "model/losses.h"
#include "model/router.h"

namespace dagmoe {

/// What a step took from one source of the training data.
struct StepSource {
  std::string path;
  SourceCounts counts;
};

/// One line of metrics.jsonl.
struct StepMetrics {
  std::int64_t step = 0;                  ///< 1-based
  std::int64_t epoch = 0;                 ///< 0-based
  double loss = 0.0;                      ///< nats per supervised token of the step: cross entropy alone
  double label_smoothing_loss = 0.0;      ///< mean over tokens and vocabulary of -log p; 0 without smoothing
  double aux_loss = 0.0, z_loss = 0.0;    ///< before their coefficients; 0 for dense models
  std::vector<double> aux_loss_by_layer;  ///< the balance loss of each MoE layer alone
  /// Mean over S'MoRE adapters of their balance loss, before its coefficient; without such adapters absent.
  std::optional<double> adapter_balance_loss;
  RankCounts rank_counts;  ///< of SMoRA adapters
  double grad_norm = 0.0;  ///< before clipping
  std::map<std::string, double> grad_norm_by_group;
  double lr = 0.0;
  std::int64_t supervised_tokens = 0, tokens = 0, sequences = 0;
  std::int64_t computed_tokens = 0;  ///< less than `tokens` where samples share their beginning
  std::vector<StepSource> sources;
  double seconds = 0.0;
  std::int64_t peak_rss_bytes = 0;  ///< of the process so far; of several, the sum
  ExpertUse experts;
  std::vector<std::int64_t> moe_layers;  ///< those that expert_counts and aux_loss_by_layer are of
  ExpertCounts expert_counts;
  std::string fault;  ///< why the step was skipped; empty: it was not
};

/// Packed examples as tensors over the batch's own memory, which must outlive them.
ModelInput model_input(const PackedBatch& batch);
ModelInput model_input(const SharedBatch& batch);
at::Tensor label_tensor(const PackedBatch& batch);

/// Nats per supervised token over all examples of a stream's epoch, without gradients; ranks share the work, and
/// samples their beginnings.
struct ValidLoss {
  double loss = 0.0;
  std::int64_t supervised_tokens = 0, sequences = 0;
};
ValidLoss validation_loss(const Decoder& model, ExampleStream& stream, std::int64_t micro_batch_tokens,
                          Ranks& ranks = Ranks::alone());

/// Runs optimizer steps, alone or as one of several ranks: each reads the same steps, takes its turn at their micro
/// batches, and changes its copy of the weights by the same sums, so that all copies stay equal. Reporting, validation
/// and saving on a schedule belong to the caller.
class Trainer {
 public:
  /// Trains the parameters of `model` that require grad. The trainer keeps references: all must outlive it.
  Trainer(Decoder& model, ExampleStream& train_data, const TrainConfig& config, Ranks& ranks = Ranks::alone());

  /// One optimizer step. All its micro batches are gathered first, so that every supervised token weighs the same
  /// however they are split. If a loss or a gradient is not finite, no weight changes: the step is skipped while
  /// max_skipped_steps allows it, else NumericsError names the step, the micro batch and the first module or parameter
  /// at fault, and the trainer stands where it stood before the step, so that its state can be saved.
  StepMetrics step();
  /// Throws InternalError unless all ranks hold the same state to the bit: weights, buffers, optimizer.
  void check_equal_ranks() const;
  /// The number of steps that the run of a saved state was planned with.
  static std::int64_t planned_steps(const std::filesystem::path& folder);
  std::int64_t num_steps_done() const noexcept { return num_steps_done_; }

  /// Everything besides the model's source that the next step depends on: fp32 masters, buffers, optimizer state, data
  /// position.
  void save_state(const std::filesystem::path& folder) const;
  /// The next step equals that of an uninterrupted run, bit for bit. Throws InputError when the state is of another
  /// model, optimizer or data.
  void load_state(const std::filesystem::path& folder);

 private:
  /// A value that is not finite: where it came from first.
  struct Fault {
    std::size_t micro_batch;  ///< 0-based
    std::string place;
  };

  StepBatch next_batch();
  ForwardOptions forward_options(const StepBatch& batch, std::size_t micro_batch) const;
  bool takes(std::size_t micro_batch) const;
  SharedBatch rows_of(const PackedBatch& micro_batch) const;
  ExpertCounts count_experts(const StepBatch& batch) const;
  /// Adds the gradients of one micro batch; false when its objective is not finite.
  bool accumulate(const StepBatch& batch, std::size_t micro_batch, const ExpertCounts* step_counts,
                  StepMetrics& metrics, RouterSums& router);
  std::optional<Fault> accumulate_own(const StepBatch& batch, const ExpertCounts* step_counts, StepMetrics& metrics,
                                      RouterSums& router);
  /// The fault of the earliest micro batch, on every rank.
  std::optional<Fault> agree(const std::optional<Fault>& own) const;
  void sum_over_ranks(ExpertCounts& counts) const;
  void sum_over_ranks(StepMetrics& metrics, RouterSums& router) const;
  void sum_gradients();
  std::optional<Fault> accumulate_all(const StepBatch& batch, StepMetrics& metrics);
  void clear_gradients();
  std::string find_bad_activation(const StepBatch& batch, std::size_t micro_batch) const;
  Fault find_forward_fault(const StepBatch& batch, std::size_t micro_batch) const;
  std::optional<Fault> find_own_gradient_fault(const StepBatch& batch);
  Fault find_gradient_fault(const StepBatch& batch);
  std::vector<StateTensor> saved_tensors() const;

  Decoder& model_;
  ExampleStream& train_data_;
  TrainConfig config_;
  Ranks& ranks_;
  std::unique_ptr<Optimizer> optimizer_;
  std::int64_t num_steps_done_ = 0, num_skipped_ = 0;
  double num_smores_ = 0.0;  ///< adapted layers, among which the balance loss is a mean
};

}  // namespace dagmoe
