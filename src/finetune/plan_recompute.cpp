#include "finetune/plan_recompute.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "finetune/flops.h"

namespace dagmoe {
namespace {

// Rounded up, so that a budget of what is printed is enough.
std::string gigabytes(std::int64_t bytes) {
  return fixed(std::ceil(static_cast<double>(bytes) / 1e7) / 100, 2) + " GB";
}

std::int64_t with_margin(const RunSetup& setup, const MemoryPlan& plan) {
  return plan.total() + memory_margin(setup, plan);
}

// The layers that can free something, in the order in which they are given up.
//
// A step is fullest where the backward pass begins, with all that the layers have kept and the loss's own tensors, or
// where it has reached a layer n: there are all tensors of n, formed again or kept, what the layers below n keep, and
// the gradients of those above. So running a layer again helps until the pass has come to it and not any more, and the
// earliest layers, which it reaches last, help longest: of equal layers they go first. (Were it the last ones, the pass
// would form one of them again while everything below is still there.) Of unequal layers, a dense one beside one of
// experts or a frozen one beside one that trains, those go first that free most for each operation.
std::vector<std::size_t> order_of_choice(const MemoryAccount& account, const std::vector<double>& flops) {
  const auto worth = [&](std::size_t n) { return static_cast<double>(account.freed_by(n)) / flops[n]; };
  std::vector<std::size_t> order;
  for (std::size_t n = 0; n < flops.size(); ++n) {
    if (flops[n] > 0 && account.freed_by(n) > 0) order.push_back(n);
  }
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return worth(a) > worth(b); });
  return order;
}

// As few layers as bring the run to `budget`; where none do, those with which it takes least.
std::vector<bool> fewest_layers(const RunSetup& setup, const MemoryAccount& account, const std::vector<double>& flops,
                                std::int64_t budget) {
  const auto bytes_with = [&](const std::vector<bool>& layers) {
    return with_margin(setup, account.plan(LayersToRecompute(layers)));
  };
  std::vector<bool> marked(flops.size()), best = marked;
  std::int64_t least = bytes_with(marked);
  std::vector<std::size_t> chosen;
  for (const std::size_t n : order_of_choice(account, flops)) {
    if (least <= budget) break;
    marked[n] = true, chosen.push_back(n);
    const std::int64_t bytes = bytes_with(marked);
    if (bytes < least) least = bytes, best = marked;
  }
  // Layers that are worth much where memory is not short may have gone first.
  for (const std::size_t n : chosen) {
    if (!best[n]) continue;
    best[n] = false;
    if (bytes_with(best) > std::max(budget, least)) best[n] = true;
  }
  return best;
}

// What a run of the recipe takes when every layer runs again.
std::int64_t least_bytes(const Recipe& recipe, std::int64_t validation_records, std::int64_t program_bytes) {
  const RunSetup setup = prepare_run(recipe);
  const MemoryAccount account(recipe, setup, largest_micro_batches(recipe, validation_records), program_bytes);
  return with_margin(setup, account.plan(true));
}

// Settings that would take less than `bytes`, each with what it comes to.
std::string what_would_help(const Recipe& recipe, std::int64_t validation_records, std::int64_t program_bytes,
                            std::int64_t bytes, std::int64_t budget) {
  std::vector<std::string> settings;
  const auto consider = [&](const std::string& setting, const Recipe& changed) {
    const std::int64_t needed = least_bytes(changed, validation_records, program_bytes);
    if (needed < bytes - bytes / 100) settings.push_back(str(setting, " (", gigabytes(needed), ")"));
  };
  Recipe smaller = recipe;
  // Below the longest sample smaller micro batches are no smaller.
  while (recipe.data.packing && smaller.batch.micro_batch_tokens > recipe.data.max_seq_len) {
    smaller.batch.micro_batch_tokens = std::max(recipe.data.max_seq_len, smaller.batch.micro_batch_tokens / 2);
    if (least_bytes(smaller, validation_records, program_bytes) <= budget) break;
  }
  if (smaller.batch.micro_batch_tokens < recipe.batch.micro_batch_tokens)
    consider(str("batch.micro_batch_tokens=", smaller.batch.micro_batch_tokens), smaller);
  Recipe other = recipe;
  other.optimizer.name = OptimizerKind::kAdamW8bit;
  if (recipe.optimizer.name != OptimizerKind::kAdamW8bit) consider("optimizer.name=adamw_8bit", other);
  other = recipe, other.dtype = ComputeType::kBFloat16;
  if (recipe.dtype != ComputeType::kBFloat16) consider("dtype=bfloat16", other);
  settings.emplace_back("fewer groups or layers in trainable");
  return join(settings, ", ");
}

// "0..11, 14"
std::string ranges_text(const std::vector<std::int64_t>& layers) {
  std::vector<std::string> ranges;
  for (std::size_t i = 0; i < layers.size();) {
    std::size_t last = i;
    while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
    ranges.push_back(last == i ? str(layers[i]) : str(layers[i], "..", layers[last]));
    i = last + 1;
  }
  return join(ranges, ", ");
}

}  // namespace

std::int64_t memory_margin(const RunSetup& setup, const MemoryPlan& plan) {
  // Above plan_memory's own figure, which is of a tiny run.
  constexpr std::int64_t kLargeProducts = 60'000'000;
  // Adapters on experts leave more holes than anything else: sums that are freed lie between tensors that are kept.
  const bool has_expert_adapters =
      std::ranges::any_of(setup.adapter.parts, [](const AdapterPart& part) { return part.target.num_experts > 0; });
  const double hole_share = has_expert_adapters ? 0.25 : 0.06;
  // Pages of files and the program's own have no holes.
  const std::int64_t blocks = plan.total() - plan.mapped - plan.program;
  return kLargeProducts + static_cast<std::int64_t>(hole_share * static_cast<double>(blocks));
}

RecomputeChoice choose_recompute(const Recipe& recipe, const RunSetup& setup, std::int64_t validation_records,
                                 std::int64_t program_bytes) {
  const MemoryAccount account(recipe, setup, largest_micro_batches(recipe, validation_records), program_bytes);
  const std::vector<double> flops = recompute_flops(setup);
  RecomputeChoice choice;
  choice.num_layers = setup.config.num_hidden_layers;
  choice.num_reached = std::ranges::count_if(flops, [](double value) { return value > 0; });
  choice.recompute = recipe.recompute;
  if (recipe.memory) {
    const auto budget = static_cast<std::int64_t>(std::llround(recipe.memory->budget_gb * 1e9));
    choice.recompute = LayersToRecompute(fewest_layers(setup, account, flops, budget));
    const MemoryPlan plan = account.plan(choice.recompute);
    if (const std::int64_t bytes = with_margin(setup, plan); bytes > budget) {
      throw ConfigError(str(recipe.file, ": memory.budget_gb: found ", recipe.memory->budget_gb, ", but the run needs ",
                            gigabytes(bytes), " at its fullest (", plan.moment,
                            ") even when it keeps each layer's input alone; raise it, or try ",
                            what_would_help(recipe, validation_records, program_bytes, bytes, budget)));
    }
  }
  choice.most_bytes = with_margin(setup, account.plan(choice.recompute));
  for (std::int64_t n = 0; n < choice.num_layers; ++n) {
    if (choice.recompute(n) && flops[static_cast<std::size_t>(n)] > 0) choice.layers.push_back(n);
  }
  return choice;
}

std::string recompute_text(const Recipe& recipe, const RecomputeChoice& choice) {
  if (!recipe.memory && choice.layers.empty()) return "";
  const bool reaches_all = choice.num_reached == choice.num_layers;
  const std::string of_layers = reaches_all ? str(" of ", choice.num_layers, " layers")
                                            : str(" of the ", choice.num_reached, " layers that it reaches");
  return str(recipe.memory ? str("memory.budget_gb ", recipe.memory->budget_gb) : "recompute",
             ": the backward pass runs ", choice.layers.size(), of_layers, " again",
             choice.layers.empty() ? "" : str(" (", ranges_text(choice.layers), ")"), "; at most ",
             gigabytes(choice.most_bytes), " of memory");
}

}  // namespace dagmoe
