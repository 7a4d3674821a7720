#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/packed_batch.h"
#include "finetune/optimizer.h"
#include "finetune/schedule.h"
#include "model/decoder.h"
#include "model/losses.h"

namespace dagmoe {

struct TrainConfig {
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  StepBatchConfig batch;
  std::int64_t num_steps = 0;  ///< optimizer steps of the whole run
  double max_grad_norm = 1.0;  ///< 0: no clipping
  double aux_loss_coef = 0.0, z_loss_coef = 0.0;
};

/// One line of metrics.jsonl.
struct StepMetrics {
  std::int64_t step = 0;                ///< 1-based
  std::int64_t epoch = 0;               ///< 0-based
  double loss = 0.0;                    ///< nats per supervised token of the step
  double aux_loss = 0.0, z_loss = 0.0;  ///< before their coefficients; 0 for dense models
  double grad_norm = 0.0;               ///< before clipping
  double lr = 0.0;
  std::int64_t supervised_tokens = 0, tokens = 0, sequences = 0;
  double seconds = 0.0;
  ExpertUse experts;
};

/// Packed examples as tensors over the batch's own memory, which must outlive them.
ModelInput model_input(const PackedBatch& batch);
at::Tensor label_tensor(const PackedBatch& batch);

/// Nats per supervised token over all examples of a stream's epoch, without gradients.
struct ValidLoss {
  double loss = 0.0;
  std::int64_t supervised_tokens = 0, sequences = 0;
};
ValidLoss validation_loss(const Decoder& model, ExampleStream& stream, std::int64_t micro_batch_tokens);

/// Runs optimizer steps. Reporting, validation and saving on a schedule belong to the caller.
class Trainer {
 public:
  /// Trains the parameters of `model` that require grad. The trainer keeps references: both must outlive it.
  Trainer(Decoder& model, ExampleStream& train_data, const TrainConfig& config);

  /// One optimizer step. All its micro batches are gathered first, so that every supervised token weighs the same
  /// however they are split. Throws NumericsError, before touching a weight, if a loss or the gradient norm is not
  /// finite.
  StepMetrics step();
  std::int64_t num_steps_done() const noexcept { return num_steps_done_; }

  /// Everything besides the model that the next step depends on: fp32 masters, moments, data position.
  void save_state(const std::filesystem::path& folder) const;
  /// The next step equals that of an uninterrupted run, bit for bit. Throws InputError when the state is of another
  /// model.
  void load_state(const std::filesystem::path& folder);

 private:
  StepBatch next_batch();

  Decoder& model_;
  ExampleStream& train_data_;
  TrainConfig config_;
  std::vector<std::string> names_;
  std::unique_ptr<Optimizer> optimizer_;
  std::int64_t num_steps_done_ = 0;
};

}  // namespace dagmoe
