#include "checkpoint/merge.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/random.h"
#include "base/text.h"
#include "peft/trainable.h"

namespace dagmoe {
namespace {

constexpr double kFoldTolerance = 1e-4;     // of the largest logit: both sides are float, summed in another order
constexpr double kWrittenTolerance = 1e-6;  // the same weights, so at most another order of the same sums

// Logits of a few sequences of token ids, which need not be text: every weight takes part.
at::Tensor probe_logits(const Decoder& model) {
  constexpr std::int64_t kSequences = 4, kLength = 48;
  const at::Tensor ids_T = at::empty({kSequences * kLength}, at::kLong);
  const RandomStream stream(1, 0);
  for (std::int64_t t = 0; t < ids_T.size(0); ++t) {
    ids_T.mutable_data_ptr<std::int64_t>()[t] = static_cast<std::int64_t>(
        stream.bits(static_cast<std::uint64_t>(t)) % static_cast<std::uint64_t>(model.config.vocab_size));
  }
  ModelInput input{ids_T, at::arange(kLength).repeat({kSequences}), {}};
  for (std::int64_t s = 0; s <= kSequences; ++s) input.segment_offsets.push_back(s * kLength);
  return model.logits(model.forward(input).hidden_TD);
}

double largest(const at::Tensor& tensor) { return tensor.abs().max().item<double>(); }

/// Sums of squares of a group's weights and of their changes.
struct GroupSums {
  MergedGroup group;
  double base = 0.0, change = 0.0;
};

std::vector<MergedGroup> changed_groups(const Checkpoint& checkpoint, Decoder& merged,
                                        const std::set<std::string>& changed) {
  Decoder base = load_decoder(checkpoint, {});
  std::map<std::string, at::Tensor> before;
  for (const auto& [name, tensor] : base.parameters()) before[name] = *tensor;
  std::map<std::string, GroupSums> sums;
  for (const auto& [name, tensor] : merged.parameters()) {
    if (!changed.contains(name)) continue;
    GroupSums& sum = sums[parameter_group(name)];
    ++sum.group.num_tensors;
    sum.group.num_parameters += tensor->numel();
    const auto known = before.find(name);
    const at::Tensor change = known == before.end() ? tensor->detach() : tensor->detach() - known->second;
    sum.change += change.square().sum(at::kDouble).item<double>();
    sum.base += (known == before.end() ? change : known->second).square().sum(at::kDouble).item<double>();
  }
  std::vector<MergedGroup> groups;
  for (const std::string& name : parameter_groups()) {
    const auto found = sums.find(name);
    if (found == sums.end()) continue;
    groups.push_back(found->second.group);
    groups.back().group = name;
    groups.back().relative_change = found->second.base > 0 ? std::sqrt(found->second.change / found->second.base) : 0.0;
  }
  return groups;
}

// What the file will hold of a changed weight: save_model's choice of dtype.
void round_as_written(Decoder& model, at::ScalarType dtype, const std::set<std::string>& changed) {
  for (const auto& [name, tensor] : model.parameters()) {
    const bool is_dag = parameter_group(name) == "dag";
    if (!changed.contains(name) || is_dag) continue;
    *tensor = tensor->detach().to(dtype).to(at::kFloat).set_requires_grad(true);
  }
}

}  // namespace

AdaptedModel open_adapted(const std::filesystem::path& base, at::ScalarType dtype,
                          const std::vector<std::string>& adapters) {
  Checkpoint checkpoint = Checkpoint::open(base);
  LoadOptions options{.compute_dtype = dtype};
  for (const std::string& folder : adapters) {
    if (!is_adapter_folder(folder)) {
      throw InputError(str(folder, ": no adapter_config.json there; expected an adapter folder"));
    }
    // Before its tensors are read: those of another base would be so many problems with one cause.
    check_base(folder, adapter_base(folder), checkpoint);
    const auto dag = adapter_dag(folder);
    if (!dag) continue;
    const auto known = options.add_dag ? options.add_dag : checkpoint.config().dag;
    if (known && *known != *dag) {
      throw InputError(
          str(folder, ": brings another DAG than the model, or an adapter before it, has; give one of them"));
    }
    if (!checkpoint.config().dag) options.add_dag = dag;
  }
  Decoder model = load_decoder(checkpoint, options);
  AdaptedModel result{std::move(checkpoint), std::move(model), {}};
  for (const std::string& folder : adapters) {
    Adapter adapter = read_adapter(folder, result.model.config);
    attach_adapter(result.model, adapter);
    result.adapters.push_back(std::move(adapter));
  }
  return result;
}

MergeReport merge_adapters(const std::filesystem::path& base, const std::vector<std::string>& adapters,
                           const std::filesystem::path& output, const MergeOptions& options) {
  const at::NoGradGuard no_grad;
  if (output.empty() && !options.dry_run) throw ConfigError("--output: is required without --dry-run");
  AdaptedModel opened = open_adapted(base, at::kFloat, adapters);
  Decoder& model = opened.model;
  const DType dtype = opened.checkpoint.find("model.embed_tokens.weight")->dtype;
  MergeReport report;
  report.dtype = dtype_name(dtype);

  const at::Tensor expected = probe_logits(model);
  std::set<std::string> changed;
  for (const std::string& name : fold_adapters(model)) changed.insert(name);
  for (const Adapter& adapter : opened.adapters) {
    for (const auto& [name, value] : adapter.full) changed.insert(name);
  }
  for (const auto& [name, tensor] : model.parameters()) {
    if (changed.contains(name)) *tensor = tensor->clone().set_requires_grad(true);  // what save_model writes anew
  }
  report.max_logit = largest(expected);
  report.max_logit_difference = largest(probe_logits(model) - expected);
  // A comparison that NaN fails too.
  if (!(report.max_logit_difference <= kFoldTolerance * report.max_logit)) {
    throw NumericsError(str(base.string(), ": merged and unmerged logits differ by ", report.max_logit_difference,
                            ", expected at most ", kFoldTolerance * report.max_logit, "; nothing was written"));
  }
  report.groups = changed_groups(opened.checkpoint, model, changed);
  if (options.dry_run) return report;

  round_as_written(model, scalar_type(dtype), changed);
  const at::Tensor rounded = probe_logits(model);
  write_folder_atomically(output, {.replace = options.force}, [&](const std::filesystem::path& folder) {
    save_model(folder, model, opened.checkpoint);
    const Checkpoint written = Checkpoint::open(folder);
    const at::Tensor logits = probe_logits(load_decoder(written, {}));
    if (!(largest(logits - rounded) <= kWrittenTolerance * report.max_logit)) {
      throw NumericsError(str(output.string(), ": the written model does not give the merged logits; it was removed"));
    }
    report.max_written_difference = largest(logits - expected);
  });
  report.is_written = true;
  return report;
}

}  // namespace dagmoe
