#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "data/packed_batch.h"
#include "finetune/optimizer.h"
#include "finetune/schedule.h"
#include "model/recompute.h"

namespace dagmoe {

/// Which tokens the expert counts of the balance loss are of: those of the whole optimizer step (exact under
/// accumulation; the micro batches then run once more, beforehand, to count), or those of each micro batch alone.
enum class BalanceScope { kGlobal, kBatch };

struct ParameterRate {
  double lr_scale = 1.0, weight_decay = 0.0;
};

struct TrainConfig {
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  StepBatchConfig batch;
  /// Learning rate relative to the optimizer's, and weight decay, of a parameter; empty: 1 and the optimizer's.
  std::function<ParameterRate(const std::string& name)> rate_of = {};
  std::int64_t num_steps = 0;  ///< optimizer steps of the whole run
  double max_grad_norm = 1.0;  ///< 0: no clipping
  double label_smoothing = 0.0, neftune_alpha = 0.0;
  double aux_loss_coef = 0.0, z_loss_coef = 0.0;
  BalanceScope balance_scope = BalanceScope::kGlobal;
  double router_bias_update_rate = 0.0;   ///< 0: the selection bias stays as it is
  double adapter_balance_coef = 0.0;      ///< of the mean over S'MoRE adapters of their balance loss
  double adapter_bias_update_rate = 0.0;  ///< of SMoRA adapters
  /// Beginnings that samples of a micro batch share are computed once (SharedBatch): the same losses and gradients, but
  /// for rounding. Not with neftune_alpha, dropout in adapters, or adapters that are mixtures.
  bool share_prefixes = false;
  LayersToRecompute recompute = false;  ///< ForwardOptions::recompute
  std::int64_t max_skipped_steps = 0;   ///< steps without a finite loss or gradient that leave the weights and go on
  std::uint64_t seed = 0;               ///< of noise
  /// Sees, and may change, the activations of every forward pass: for tests that inject faults.
  std::function<void(const std::string& module, const at::Tensor& output_TD)> on_module = {};
};

}  // namespace dagmoe
