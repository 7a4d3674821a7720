#include "finetune/trainer.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cmath>
#include <cstring>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/safetensors.h"
#include "kernels/ops.h"

namespace dagmoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kStateFile = "trainer_state.json";
constexpr const char* kTensorFile = "trainer_state.safetensors";

at::Tensor int64_view(const std::vector<std::int64_t>& values) {
  return at::from_blob(const_cast<std::int64_t*>(values.data()), {static_cast<std::int64_t>(values.size())}, at::kLong);
}

std::vector<TrainedParameter> trained_parameters(Decoder& model, const OptimizerConfig& config) {
  std::vector<TrainedParameter> trained;
  for (const auto& [name, tensor] : model.parameters()) {
    if (tensor->requires_grad()) trained.push_back({name, *tensor, 1.0, config.weight_decay});
  }
  return trained;
}

std::vector<std::string> trained_names(Decoder& model) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : model.parameters()) {
    if (tensor->requires_grad()) names.push_back(name);
  }
  return names;
}

void add_counts(std::vector<std::vector<std::int64_t>>& counts_LE, const std::vector<Routing>& routing,
                std::int64_t num_experts) {
  counts_LE.resize(routing.size(), std::vector<std::int64_t>(static_cast<std::size_t>(num_experts), 0));
  for (std::size_t layer = 0; layer < routing.size(); ++layer) {
    const at::Tensor counts = at::bincount(routing[layer].expert_ids_TK.flatten(), {}, num_experts);
    for (std::int64_t e = 0; e < num_experts; ++e)
      counts_LE[layer][static_cast<std::size_t>(e)] += counts[e].item<std::int64_t>();
  }
}

TensorSource tensor_source(const std::string& name, const at::Tensor& tensor) {
  return {name, tensor.scalar_type() == at::kByte ? DType::kU8 : DType::kF32, tensor.sizes().vec(),
          [tensor] { return std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()); }};
}

}  // namespace

ModelInput model_input(const PackedBatch& batch) {
  return {int64_view(batch.input_ids), int64_view(batch.position_ids), batch.segment_offsets};
}

at::Tensor label_tensor(const PackedBatch& batch) { return int64_view(batch.labels); }

ValidLoss validation_loss(const Decoder& model, ExampleStream& stream, std::int64_t micro_batch_tokens) {
  const at::NoGradGuard no_grad;
  ValidLoss result;
  double sum = 0.0;
  const StepBatchConfig config{
      .step_tokens = micro_batch_tokens, .step_sequences = 0, .micro_batch_tokens = micro_batch_tokens};
  stream.seek({});
  while (auto step = next_step_batch(stream, config)) {
    for (const PackedBatch& batch : step->micro_batches) {
      const ModelOutput output = model.forward(model_input(batch));
      sum += masked_cross_entropy(output.hidden_TD, model.output_weight(), label_tensor(batch), 1.0).item<double>();
    }
    result.supervised_tokens += step->num_targets;
    result.sequences += step->num_examples;
  }
  result.loss = result.supervised_tokens == 0 ? 0.0 : sum / static_cast<double>(result.supervised_tokens);
  return result;
}

Trainer::Trainer(Decoder& model, ExampleStream& train_data, const TrainConfig& config)
    : model_(model),
      train_data_(train_data),
      config_(config),
      names_(trained_names(model)),
      optimizer_(Optimizer::create(trained_parameters(model, config.optimizer), config.optimizer)) {}

StepBatch Trainer::next_batch() {
  auto batch = next_step_batch(train_data_, config_.batch);
  if (!batch) batch = next_step_batch(train_data_, config_.batch);  // the next epoch has begun
  if (!batch) throw InputError("training data: no example is left after truncation and filtering; nothing to train on");
  return std::move(*batch);
}

StepMetrics Trainer::step() {
  const auto started = Clock::now();
  StepMetrics metrics;
  metrics.step = num_steps_done_ + 1;
  const StepBatch batch = next_batch();
  metrics.epoch = train_data_.position().epoch;
  metrics.supervised_tokens = batch.num_targets;
  metrics.tokens = batch.num_tokens;
  metrics.sequences = batch.num_examples;
  metrics.lr = config_.optimizer.lr * lr_factor(config_.schedule, num_steps_done_, config_.num_steps);

  for (const TrainedParameter& parameter : optimizer_->parameters()) parameter.tensor.mutable_grad() = at::Tensor();
  std::vector<std::vector<std::int64_t>> counts_LE;
  for (std::size_t m = 0; m < batch.micro_batches.size(); ++m) {
    const PackedBatch& micro = batch.micro_batches[m];
    const ModelOutput output = model_.forward(model_input(micro));
    at::Tensor loss = masked_cross_entropy(output.hidden_TD, model_.output_weight(), label_tensor(micro),
                                           1.0 / static_cast<double>(batch.num_targets));
    const double cross_entropy = loss.item<double>();
    if (!std::isfinite(cross_entropy)) {
      throw NumericsError(str("step ", metrics.step, ", micro batch ", m + 1, " of ", batch.micro_batches.size(),
                              ": loss is ", cross_entropy, "; no weight was changed; a lower learning rate may help"));
    }
    metrics.loss += cross_entropy;
    if (!output.routing.empty()) {
      // A mean over tokens: each micro batch weighs by its share of the step's tokens.
      const double share = static_cast<double>(micro.num_tokens()) / static_cast<double>(batch.num_tokens);
      const at::Tensor balance = load_balancing_loss(output.routing, *model_.config.moe),
                       z = router_z_loss(output.routing);
      metrics.aux_loss += share * balance.item<double>();
      metrics.z_loss += share * z.item<double>();
      if (config_.aux_loss_coef > 0) loss = loss + balance * (config_.aux_loss_coef * share);
      if (config_.z_loss_coef > 0) loss = loss + z * (config_.z_loss_coef * share);
      add_counts(counts_LE, output.routing, model_.config.moe->num_experts);
    }
    loss.backward();
  }
  metrics.experts = expert_use(counts_LE);
  metrics.grad_norm = global_grad_norm(optimizer_->parameters());
  if (!std::isfinite(metrics.grad_norm)) {
    std::string first = "a parameter";
    for (std::size_t i = 0; i < names_.size(); ++i) {
      const at::Tensor& gradient = optimizer_->parameters()[i].tensor.grad();
      if (!gradient.defined() || at::isfinite(gradient).all().item<bool>()) continue;
      first = "'" + names_[i] + "'";
      break;
    }
    throw NumericsError(
        str("step ", metrics.step, ": the gradient of ", first, " is not finite; no weight was changed"));
  }
  const bool clips = config_.max_grad_norm > 0 && metrics.grad_norm > config_.max_grad_norm;
  optimizer_->step(metrics.lr, clips ? config_.max_grad_norm / metrics.grad_norm : 1.0);
  ++num_steps_done_;
  metrics.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  return metrics;
}

void Trainer::save_state(const std::filesystem::path& folder) const {
  std::vector<TensorSource> tensors;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    tensors.push_back(tensor_source("master." + names_[i], optimizer_->parameters()[i].tensor.detach()));
  }
  for (const StateTensor& part : optimizer_->state()) tensors.push_back(tensor_source(part.name, part.tensor));
  write_safetensors(folder / kTensorFile, std::move(tensors));
  const StreamPosition position = train_data_.position();
  const Json state = {{"step", num_steps_done_}, {"epoch", position.epoch}, {"next_index", position.next_index}};
  write_file_atomically(folder / kStateFile, state.dump(2) + "\n");
}

void Trainer::load_state(const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  const std::string where = (folder / kStateFile).string();
  const Json state = read_json_file(folder / kStateFile);
  const SafetensorsFile file = SafetensorsFile::open(folder / kTensorFile);
  const std::vector<StateTensor> optimizer_state = optimizer_->state();
  const std::size_t num_tensors = names_.size() + optimizer_state.size();
  if (file.tensors().size() != num_tensors) {
    throw InputError(str(where, ": the run trained other parameters or with another optimizer: found ",
                         file.tensors().size(), " tensors, expected ", num_tensors));
  }
  const auto restore = [&](const std::string& name, const at::Tensor& target) {
    const TensorInfo* info = file.find(name);
    if (info == nullptr || info->shape != target.sizes().vec()) {
      throw InputError(str((folder / kTensorFile).string(), ": tensor '", name,
                           "' is missing or of another shape; expected ", shape_text(target.sizes().vec())));
    }
    std::memcpy(target.mutable_data_ptr(), file.bytes(*info).data(), target.nbytes());
  };
  for (std::size_t i = 0; i < names_.size(); ++i) {
    restore("master." + names_[i], optimizer_->parameters()[i].tensor);
  }
  for (const StateTensor& part : optimizer_state) restore(part.name, part.tensor);
  num_steps_done_ = json_int(state, "step", where);
  optimizer_->set_num_steps(num_steps_done_);
  train_data_.seek({json_int(state, "epoch", where), json_int(state, "next_index", where)});
}

}  // namespace dagmoe
