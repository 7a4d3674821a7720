#include "finetune/trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

#include "base/atomic_file.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "kernels/ops.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kStateFile = "trainer_state.json";
constexpr const char* kTensorFile = "trainer_state.safetensors";

at::Tensor int64_view(const std::vector<std::int64_t>& values) {
  return at::from_blob(const_cast<std::int64_t*>(values.data()), {static_cast<std::int64_t>(values.size())}, at::kLong);
}

std::vector<TrainedParameter> trained_parameters(Decoder& model, const TrainConfig& config) {
  std::vector<TrainedParameter> parameters;
  for (const auto& [name, tensor] : model.all_parameters()) {
    if (!tensor->requires_grad()) continue;
    const ParameterRate rate =
        config.rate_of ? config.rate_of(name) : ParameterRate{1.0, config.optimizer.weight_decay};
    parameters.push_back({name, *tensor, rate.lr_scale, rate.weight_decay});
  }
  return parameters;
}

TensorSource tensor_source(const std::string& name, const at::Tensor& tensor) {
  return {name, dtype_of(tensor.scalar_type()), tensor.sizes().vec(),
          [tensor] { return std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()); }};
}

bool is_finite(const at::Tensor& tensor) { return at::isfinite(tensor).all().item<bool>(); }

// A seed of its own for every step of a run.
std::uint64_t noise_seed(std::uint64_t seed, std::int64_t step) {
  std::uint64_t x = seed ^ (static_cast<std::uint64_t>(step) << 20);
  for (const std::uint64_t factor : {0xbf58476d1ce4e5b9ULL, 0x94d049bb133111ebULL}) x = (x ^ (x >> 30)) * factor;
  return x ^ (x >> 31);
}

void check_sharing(Decoder& model, const TrainConfig& config) {
  if (!config.share_prefixes) return;
  bool draws = config.neftune_alpha > 0;
  for (const auto& [name, linear] : model.linears()) {
    draws = draws || !linear->mixtures.empty() ||
            std::ranges::any_of(linear->adapters, [](const LoraAdapter& adapter) { return adapter.dropout > 0; });
  }
  if (draws) throw InternalError("share_prefixes with noise, dropout or adapters that are mixtures");
}

double count_smores(Decoder& model) {
  double count = 0;
  for (const auto& [name, linear] : model.linears()) {
    for (const MixtureAdapter& adapter : linear->mixtures) count += std::holds_alternative<Smore>(adapter.tensors);
  }
  return count;
}

// A mean over the tokens of a step: each micro batch weighs by its share of them.
double token_share(const StepBatch& batch, std::size_t micro_batch) {
  return static_cast<double>(batch.micro_batches[micro_batch].num_tokens()) / static_cast<double>(batch.num_tokens);
}

std::map<std::string, double> norms_by_group(const std::vector<TrainedParameter>& parameters,
                                             const std::vector<double>& norms) {
  std::map<std::string, std::vector<double>> parts;
  for (std::size_t i = 0; i < parameters.size(); ++i) parts[parameter_group(parameters[i].name)].push_back(norms[i]);
  std::map<std::string, double> result;
  for (const auto& [group, values] : parts) result[group] = combined_norm(values);
  return result;
}

}  // namespace

ModelInput model_input(const PackedBatch& batch) {
  return {int64_view(batch.input_ids), int64_view(batch.position_ids), batch.segment_offsets};
}

ModelInput model_input(const SharedBatch& batch) {
  ModelInput input = model_input(batch.rows);
  if (batch.prefixes.empty()) return input;
  input.segment_prefixes = batch.prefixes;
  input.row_of_token_N = int64_view(batch.row_of_token);
  return input;
}

at::Tensor label_tensor(const PackedBatch& batch) { return int64_view(batch.labels); }

ValidLoss validation_loss(const Decoder& model, ExampleStream& stream, std::int64_t micro_batch_tokens, Ranks& ranks) {
  const at::NoGradGuard no_grad;
  ValidLoss result;
  double sum = 0.0;
  std::int64_t turn = 0;
  const StepBatchConfig config{
      .step_tokens = micro_batch_tokens, .step_sequences = 0, .micro_batch_tokens = micro_batch_tokens};
  stream.seek({});
  while (auto step = next_step_batch(stream, config)) {
    for (const PackedBatch& batch : step->micro_batches) {
      if (turn++ % ranks.count() != ranks.number()) continue;
      const SharedBatch shared = share_prefixes(batch);
      const ModelOutput output = model.forward(model_input(shared));
      sum +=
          masked_cross_entropy(output.hidden_TD, model.output_weight(), label_tensor(shared.rows), 1.0).item<double>();
    }
    result.supervised_tokens += step->num_targets;
    result.sequences += step->num_examples;
  }
  ranks.sum(std::span(&sum, 1));
  result.loss = result.supervised_tokens == 0 ? 0.0 : sum / static_cast<double>(result.supervised_tokens);
  return result;
}

Trainer::Trainer(Decoder& model, ExampleStream& train_data, const TrainConfig& config, Ranks& ranks)
    : model_(model),
      train_data_(train_data),
      config_(config),
      ranks_(ranks),
      optimizer_(Optimizer::create(trained_parameters(model, config), config.optimizer)),
      num_smores_(count_smores(model)) {
  config_.batch.num_takers = ranks.count();
  check_sharing(model, config);
}

SharedBatch Trainer::rows_of(const PackedBatch& micro_batch) const {
  return config_.share_prefixes ? share_prefixes(micro_batch) : SharedBatch{micro_batch, {}, {}};
}

bool Trainer::takes(std::size_t micro_batch) const {
  return static_cast<std::int64_t>(micro_batch) % ranks_.count() == ranks_.number();
}

StepBatch Trainer::next_batch() {
  auto batch = next_step_batch(train_data_, config_.batch);
  if (!batch) batch = next_step_batch(train_data_, config_.batch);  // the next epoch has begun
  if (!batch) throw InputError("training data: no example is left after truncation and filtering; nothing to train on");
  return std::move(*batch);
}

void Trainer::clear_gradients() {
  for (const TrainedParameter& parameter : optimizer_->parameters()) parameter.tensor.mutable_grad() = at::Tensor();
}

ForwardOptions Trainer::forward_options(const StepBatch& batch, std::size_t micro_batch) const {
  ForwardOptions options;
  options.recompute = config_.recompute;
  options.neftune_alpha = config_.neftune_alpha;
  options.noise_seed = noise_seed(config_.seed, num_steps_done_);
  for (std::size_t m = 0; m < micro_batch; ++m) options.first_sequence += batch.micro_batches[m].num_segments();
  options.adapter_dropout = !config_.share_prefixes;
  if (num_smores_ > 0)
    options.adapter_balance_weight = config_.adapter_balance_coef * token_share(batch, micro_batch) / num_smores_;
  options.on_module = config_.on_module;
  return options;
}

ExpertCounts Trainer::count_experts(const StepBatch& batch) const {
  const at::NoGradGuard no_grad;
  ExpertCounts counts;
  for (std::size_t m = 0; m < batch.micro_batches.size(); ++m) {
    if (!takes(m)) continue;
    const SharedBatch shared = rows_of(batch.micro_batches[m]);
    const ModelOutput output = model_.forward(model_input(shared), forward_options(batch, m));
    counts += expert_counts(output.routing, model_.config.moe->num_experts);
  }
  sum_over_ranks(counts);
  return counts;
}

// A rank without a micro batch of the step has no rows yet.
void Trainer::sum_over_ranks(ExpertCounts& counts) const {
  if (ranks_.count() == 1 || !model_.config.moe) return;
  std::size_t num_layers = 0;
  for (std::int64_t n = 0; n < model_.config.num_hidden_layers; ++n) num_layers += model_.config.is_moe_layer(n);
  counts.counts_LE.resize(num_layers);
  for (auto& counts_E : counts.counts_LE) {
    counts_E.resize(static_cast<std::size_t>(model_.config.moe->num_experts));
    ranks_.sum(counts_E);
  }
  ranks_.sum(std::span(&counts.num_tokens, 1));
}

void Trainer::sum_over_ranks(StepMetrics& metrics, RouterSums& router) const {
  if (ranks_.count() == 1) return;
  ranks_.sum(std::span(&metrics.computed_tokens, 1));
  for (double* sum : {&metrics.loss, &metrics.label_smoothing_loss, &metrics.aux_loss, &metrics.z_loss})
    ranks_.sum(std::span(sum, 1));
  if (num_smores_ > 0) {
    double balance = metrics.adapter_balance_loss.value_or(0.0);
    ranks_.sum(std::span(&balance, 1));
    metrics.adapter_balance_loss = balance;
  }
  // A rank without a micro batch of the step has counted nothing.
  for (const auto& [module, linear] : model_.linears()) {
    for (const MixtureAdapter& adapter : linear->mixtures) {
      const auto* smora = std::get_if<Smora>(&adapter.tensors);
      if (smora == nullptr) continue;
      std::vector<std::int64_t>& counts_R = metrics.rank_counts[adapter.id];
      counts_R.resize(static_cast<std::size_t>(smora->bias_R.size(0)));
      ranks_.sum(counts_R);
    }
  }
  sum_over_ranks(metrics.expert_counts);
  router.probability_sums_LE.resize(metrics.expert_counts.counts_LE.size());
  for (auto& sums_E : router.probability_sums_LE) {
    sums_E.resize(static_cast<std::size_t>(model_.config.moe->num_experts));
    ranks_.sum(sums_E);
  }
}

// A parameter that no rank has a gradient of stays without one, as in a single process.
void Trainer::sum_gradients() {
  if (ranks_.count() == 1) return;
  const std::vector<TrainedParameter>& parameters = optimizer_->parameters();
  std::vector<std::int64_t> num_defined;
  for (const TrainedParameter& parameter : parameters) num_defined.push_back(parameter.tensor.grad().defined());
  ranks_.sum(num_defined);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (num_defined[i] == 0) continue;
    at::Tensor& gradient = parameters[i].tensor.mutable_grad();
    gradient = gradient.defined() ? gradient.contiguous()
                                  : at::zeros(parameters[i].tensor.sizes(), parameters[i].tensor.options());
    sum_over(ranks_, gradient);
  }
}

std::optional<Trainer::Fault> Trainer::agree(const std::optional<Fault>& own) const {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  const std::int64_t first = ranks_.min(own ? static_cast<std::int64_t>(own->micro_batch) : kNone);
  if (first == kNone) return std::nullopt;
  return Fault{static_cast<std::size_t>(first), ranks_.from(first % ranks_.count(), own ? own->place : "")};
}

bool Trainer::accumulate(const StepBatch& batch, std::size_t micro_batch, const ExpertCounts* step_counts,
                         StepMetrics& metrics, RouterSums& router) {
  const SharedBatch micro = rows_of(batch.micro_batches[micro_batch]);
  metrics.computed_tokens += micro.rows.num_tokens();
  AdapterUse adapter_use;
  ForwardOptions options = forward_options(batch, micro_batch);
  options.adapter_use = &adapter_use;
  const ModelOutput output = model_.forward(model_input(micro), options);
  const double share = token_share(batch, micro_batch);
  if (num_smores_ > 0)
    metrics.adapter_balance_loss =
        metrics.adapter_balance_loss.value_or(0.0) + share * adapter_use.balance_sum / num_smores_;
  add_counts(metrics.rank_counts, adapter_use.rank_counts);
  const SmoothedCrossEntropy cross_entropy =
      smoothed_cross_entropy(output.hidden_TD, model_.output_weight(), label_tensor(micro.rows),
                             1.0 / static_cast<double>(batch.num_targets), config_.label_smoothing);
  at::Tensor objective = cross_entropy.objective;
  metrics.loss += cross_entropy.nll;
  metrics.label_smoothing_loss += cross_entropy.uniform;
  if (!output.routing.empty()) {
    const MoeConfig& moe = *model_.config.moe;
    const ExpertCounts counts = expert_counts(output.routing, moe.num_experts);
    if (config_.aux_loss_coef > 0) {
      const at::Tensor balance = load_balancing_loss(output.routing, moe, step_counts ? *step_counts : counts);
      objective = objective + balance * (config_.aux_loss_coef * share);
      if (config_.balance_scope == BalanceScope::kBatch) metrics.aux_loss += share * balance.item<double>();
    }
    const at::Tensor z = router_z_loss(output.routing);
    if (config_.z_loss_coef > 0) objective = objective + z * (config_.z_loss_coef * share);
    metrics.z_loss += share * z.item<double>();
    metrics.expert_counts += counts;
    router += router_sums(output.routing, moe);
  }
  if (!std::isfinite(objective.item<double>())) return false;
  objective.backward();
  return true;
}

std::optional<Trainer::Fault> Trainer::accumulate_own(const StepBatch& batch, const ExpertCounts* step_counts,
                                                      StepMetrics& metrics, RouterSums& router) {
  for (std::size_t m = 0; m < batch.micro_batches.size(); ++m) {
    if (takes(m) && !accumulate(batch, m, step_counts, metrics, router)) return find_forward_fault(batch, m);
  }
  return std::nullopt;
}

std::optional<Trainer::Fault> Trainer::accumulate_all(const StepBatch& batch, StepMetrics& metrics) {
  // One micro batch is the step; several have to be counted before the first of them can be weighed.
  const bool counts_first = config_.balance_scope == BalanceScope::kGlobal && config_.aux_loss_coef > 0 &&
                            model_.config.moe && batch.micro_batches.size() > 1;
  const ExpertCounts step_counts = counts_first ? count_experts(batch) : ExpertCounts{};
  RouterSums router;
  const auto fault = agree(accumulate_own(batch, counts_first ? &step_counts : nullptr, metrics, router));
  if (fault) return fault;
  sum_over_ranks(metrics, router);
  sum_gradients();
  if (!metrics.expert_counts.counts_LE.empty()) {
    const bool pooled = config_.balance_scope == BalanceScope::kGlobal || config_.aux_loss_coef == 0;
    if (pooled) metrics.aux_loss = balance_of(router, metrics.expert_counts);
    metrics.aux_loss_by_layer = layer_balance(router, metrics.expert_counts);
    for (std::int64_t n = 0; n < model_.config.num_hidden_layers; ++n) {
      if (model_.config.is_moe_layer(n)) metrics.moe_layers.push_back(n);
    }
    metrics.experts = expert_use(metrics.expert_counts.counts_LE);
  }
  const std::vector<double> norms = grad_norms(optimizer_->parameters());
  metrics.grad_norm = combined_norm(norms);
  metrics.grad_norm_by_group = norms_by_group(optimizer_->parameters(), norms);
  if (!std::isfinite(metrics.grad_norm)) return find_gradient_fault(batch);
  return std::nullopt;
}

StepMetrics Trainer::step() {
  const auto started = Clock::now();
  const StreamPosition position = train_data_.position();
  StepMetrics metrics;
  metrics.step = num_steps_done_ + 1;
  const StepBatch batch = next_batch();
  metrics.epoch = train_data_.position().epoch;
  metrics.supervised_tokens = batch.num_targets;
  metrics.tokens = batch.num_tokens;
  metrics.sequences = batch.num_examples;
  for (std::size_t i = 0; i < batch.sources.size(); ++i)
    metrics.sources.push_back({train_data_.source_name(i), batch.sources[i]});
  metrics.lr = config_.optimizer.lr * lr_factor(config_.schedule, num_steps_done_, config_.num_steps);

  clear_gradients();
  const std::optional<Fault> fault = accumulate_all(batch, metrics);
  if (fault) {
    clear_gradients();
    metrics.fault = str("step ", metrics.step, ", micro batch ", fault->micro_batch + 1, " of ",
                        batch.micro_batches.size(), ": ", fault->place, " is not finite");
    if (num_skipped_ >= config_.max_skipped_steps) {
      train_data_.seek(position);
      throw NumericsError(str(metrics.fault, "; no weight was changed; a lower learning rate may help",
                              num_skipped_ > 0 ? str("; ", num_skipped_, " steps were skipped before") : ""));
    }
    ++num_skipped_;
  } else {
    const bool clips = config_.max_grad_norm > 0 && metrics.grad_norm > config_.max_grad_norm;
    optimizer_->step(metrics.lr, clips ? config_.max_grad_norm / metrics.grad_norm : 1.0);
    if (config_.router_bias_update_rate > 0)
      update_router_bias(model_, metrics.expert_counts, config_.router_bias_update_rate);
    if (config_.adapter_bias_update_rate > 0)
      update_adapter_bias(model_, metrics.rank_counts, config_.adapter_bias_update_rate);
  }
  ++num_steps_done_;
  metrics.peak_rss_bytes = peak_rss_bytes();
  ranks_.sum(std::span(&metrics.peak_rss_bytes, 1));
  metrics.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  return metrics;
}

// Runs a micro batch again without gradients: the first value that is not finite, in the order of the forward pass;
// empty when all are.
std::string Trainer::find_bad_activation(const StepBatch& batch, std::size_t micro_batch) const {
  const at::NoGradGuard no_grad;
  std::string place;
  const auto check = [&place](const std::string& name, const at::Tensor& tensor) {
    if (place.empty() && !is_finite(tensor)) place = str("the output of ", name);
  };
  ForwardOptions options = forward_options(batch, micro_batch);
  options.recompute = false;
  options.on_module = [&](const std::string& module, const at::Tensor& output_TD) {
    if (config_.on_module) config_.on_module(module, output_TD);
    check(module, output_TD);
  };
  options.on_combine = [&](std::int64_t layer, const CombineInput& input, const Routing& routing) {
    check(str("model.layers.", layer, ".mlp.gate"), routing.logits_TE);
    check(str("model.layers.", layer, ".mlp.experts"), input.expert_out_TKD);
  };
  const SharedBatch micro = rows_of(batch.micro_batches[micro_batch]);
  model_.forward(model_input(micro), options);
  return place;
}

Trainer::Fault Trainer::find_forward_fault(const StepBatch& batch, std::size_t micro_batch) const {
  const std::string place = find_bad_activation(batch, micro_batch);
  return {micro_batch, place.empty() ? "the loss" : place};
}

// The micro batches run again one by one. An activation of a token outside the loss can be at fault, too: it shows
// first in a gradient. Backward goes from the last module to the first, so the last parameter whose gradient is not
// finite is the one next to the cause.
std::optional<Trainer::Fault> Trainer::find_own_gradient_fault(const StepBatch& batch) {
  for (std::size_t m = 0; m < batch.micro_batches.size(); ++m) {
    if (!takes(m)) continue;
    clear_gradients();
    StepMetrics unused;
    RouterSums unused_sums;
    accumulate(batch, m, nullptr, unused, unused_sums);
    const auto& parameters = optimizer_->parameters();
    for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
      const at::Tensor& gradient = parameter->tensor.grad();
      if (!gradient.defined() || is_finite(gradient)) continue;
      const std::string activation = find_bad_activation(batch, m);
      return Fault{m, activation.empty() ? str("the gradient of ", parameter->name) : activation};
    }
  }
  return std::nullopt;
}

Trainer::Fault Trainer::find_gradient_fault(const StepBatch& batch) {
  if (const auto fault = agree(find_own_gradient_fault(batch))) return *fault;
  return {batch.micro_batches.size() - 1, "the norm of all gradients together"};
}

std::vector<StateTensor> Trainer::saved_tensors() const {
  std::vector<StateTensor> tensors = optimizer_->state();
  for (const TrainedParameter& parameter : optimizer_->parameters())
    tensors.push_back({"master." + parameter.name, parameter.tensor.detach()});
  for (const auto& [name, tensor] : model_.parameters()) {
    if (parameter_group(name) == "router_bias") tensors.push_back({"buffer." + name, *tensor});
  }
  for (const auto& [name, tensor] : model_.adapter_buffers()) tensors.push_back({"buffer." + name, *tensor});
  return tensors;
}

void Trainer::check_equal_ranks() const {
  if (ranks_.count() == 1) return;
  for (const auto& [name, tensor] : saved_tensors()) {
    const auto hash = static_cast<std::int64_t>(
        std::hash<std::string_view>()({static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()}));
    if (ranks_.min(hash == ranks_.from(0, hash)) == 0) {
      throw InternalError(str("step ", num_steps_done_, ": the processes no longer agree on ", name,
                              "; are their machines of one kind?"));
    }
  }
}

void Trainer::save_state(const std::filesystem::path& folder) const {
  std::vector<TensorSource> tensors;
  for (const auto& [name, tensor] : saved_tensors()) tensors.push_back(tensor_source(name, tensor));
  write_safetensors(folder / kTensorFile, std::move(tensors));
  const StreamPosition position = train_data_.position();
  const Json state = {{"step", num_steps_done_},           {"optimizer_steps", optimizer_->num_steps()},
                      {"skipped_steps", num_skipped_},     {"epoch", position.epoch},
                      {"next_index", position.next_index}, {"next_token", position.next_token},
                      {"taken", position.taken},           {"planned_steps", config_.num_steps}};
  write_file_atomically(folder / kStateFile, state.dump(2) + "\n");
}

void Trainer::load_state(const std::filesystem::path& folder) {
  const std::string where = (folder / kStateFile).string(), tensors_where = (folder / kTensorFile).string();
  const Json state = read_json_file(folder / kStateFile);
  const SafetensorsFile file = SafetensorsFile::open(folder / kTensorFile);
  const std::vector<StateTensor> targets = saved_tensors();
  std::vector<std::string> problems;
  for (const auto& [name, target] : targets) {
    const TensorInfo* info = file.find(name);
    const bool fits =
        info != nullptr && info->shape == target.sizes().vec() && info->dtype == dtype_of(target.scalar_type());
    if (!fits) problems.push_back(str(tensors_where, ": tensor '", name, "' is missing, or of another shape or type"));
  }
  if (file.tensors().size() != targets.size()) {
    problems.push_back(str(tensors_where, ": found ", file.tensors().size(), " tensors, expected ", targets.size()));
  }
  if (!problems.empty()) {
    throw InputError(str(problems.front(), problems.size() > 1 ? str(" (and ", problems.size() - 1, " more)") : "",
                         "; the checkpoint is of a run that trained other parameters or used another optimizer"));
  }
  for (const auto& [name, target] : targets)
    std::memcpy(target.mutable_data_ptr(), file.bytes(*file.find(name)).data(), target.nbytes());
  num_steps_done_ = json_int(state, "step", where);
  num_skipped_ = json_int(state, "skipped_steps", where);
  optimizer_->set_num_steps(json_int(state, "optimizer_steps", where));
  StreamPosition position{json_int(state, "epoch", where), json_int(state, "next_index", where),
                          json_int(state, "next_token", where)};
  if (state.contains("taken")) position.taken = state["taken"].get<std::vector<std::int64_t>>();
  train_data_.seek(std::move(position));
}

std::int64_t Trainer::planned_steps(const std::filesystem::path& folder) {
  return json_int(read_json_file(folder / kStateFile), "planned_steps", (folder / kStateFile).string());
}

}  // namespace dagmoe
