#include <CLI/CLI.hpp>
#include <atomic>
#include <cmath>
#include <csignal>
#include <iostream>
#include <memory>

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

Json number_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

int finetune_command(const FinetuneFlags& flags) {
  if (flags.dry_run) return plan_command(flags.recipe, flags.overrides, /*measure=*/false, /*json=*/false);
  const Recipe recipe = load_recipe(flags.recipe, flags.overrides);
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  RunOptions options;
  options.resume = flags.resume;
  options.evaluate = task_evaluator(recipe);
  options.measure_gemm_peak = measure_gemm_peak;
  options.should_stop = [] { return received_signal.load() != 0; };
  const RunResult result = run_finetune(recipe, options);
  if (result.interrupted) {
    log_info(str("interrupted after step ", result.steps, "; saved ", result.output.string(), "; go on with --resume"));
    return 128 + received_signal.load();
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
