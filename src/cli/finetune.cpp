#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <iostream>
#include <memory>
#include <thread>

#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/gemm_peak.h"
#include "cli/run_tasks.h"
#include "finetune/run.h"

namespace dagmoe {
namespace {

struct FinetuneFlags {
  std::string recipe;
  std::vector<std::string> overrides;
  bool resume = false, dry_run = false;
};

// A signal handler can reach nothing else.
std::atomic<int> received_signal{0};

void on_signal(int signal) {
  // A second one means that the user will not wait for the step to finish.
  if (received_signal.exchange(signal) != 0) std::_Exit(128 + signal);
}

// Another rank may be the one that was told; it does not say by which signal.
int interrupting_signal() { return received_signal.load() != 0 ? received_signal.load() : SIGTERM; }

Json number_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

RunOptions run_options(const FinetuneFlags& flags, Ranks& ranks) {
  RunOptions options;
  options.resume = flags.resume;
  options.ranks = &ranks;
  options.should_stop = [] { return received_signal.load() != 0; };
  return options;
}

// What fails on one rank mostly fails on all, and the first one to end has mpirun end the others: it should be the one
// that everybody reads. Status 0 whatever comes of the run: the first rank's is the run's.
int follow_first_rank(const FinetuneFlags& flags, Ranks& ranks) {
  constexpr std::chrono::seconds kPatience{3};
  silence_log();
  try {
    run_finetune(load_recipe(flags.recipe, flags.overrides), run_options(flags, ranks));
  } catch (const std::exception&) {
    std::this_thread::sleep_for(kPatience);
    throw;
  }
  ranks.leave();
  return 0;
}

int finetune_command(const FinetuneFlags& flags) {
  if (flags.dry_run) return plan_command(flags.recipe, flags.overrides, /*measure=*/false, /*json=*/false);
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  // mpirun passes this one on; at SIGINT and SIGTERM it kills its processes a second later.
  std::signal(SIGUSR1, on_signal);
  const std::unique_ptr<Ranks> ranks = Ranks::join();
  if (!ranks->is_first()) return follow_first_rank(flags, *ranks);
  const Recipe recipe = load_recipe(flags.recipe, flags.overrides);
  RunOptions options = run_options(flags, *ranks);
  options.evaluate = task_evaluator(recipe);
  options.measure_gemm_peak = measure_gemm_peak;
  const RunResult result = run_finetune(recipe, options);
  ranks->leave();
  if (result.interrupted) {
    log_info(str("interrupted after step ", result.steps, "; saved ", result.output.string(), "; go on with --resume"));
    return 128 + interrupting_signal();
  }
  std::cout << Json{{"output", result.output.string()},
                    {"steps", result.steps},
                    {"train_loss", number_or_null(result.train_loss)},
                    {"valid_loss_before", number_or_null(result.valid_loss_before)},
                    {"valid_loss_after", number_or_null(result.valid_loss_after)},
                    {"best_step", result.best_step ? Json(*result.best_step) : Json(nullptr)},
                    {"stopped_early", result.stopped_early},
                    {"tokens_per_second", result.tokens_per_second},
                    {"seconds", result.seconds}}
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace

void register_finetune(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<FinetuneFlags>();
  CLI::App* command = app.add_subcommand("finetune", "tune a checkpoint as a recipe says");
  command->add_option("recipe", flags->recipe, "a .yaml file; recipes/README.md lists the shipped ones")->required();
  command->add_option("overrides", flags->overrides,
                      "key=value pairs that replace settings of the recipe, by dotted path");
  command->add_flag("--resume", flags->resume, "go on from the newest checkpoint of output_dir");
  command->add_flag("--dry-run", flags->dry_run,
                    "the same as dagmoe plan: what would train, be needed and overwritten; write nothing");
  command->callback([flags, &run] { run = [flags] { return finetune_command(*flags); }; });
}

}  // namespace dagmoe
