#include "finetune/plan.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/gemm_peak.h"
#include "cli/run_tasks.h"

namespace dagmoe {
namespace {

struct PlanFlags {
  std::string recipe;
  std::vector<std::string> overrides;
  bool measure = false, json = false;
};

}  // namespace

int plan_command(const std::string& path, const std::vector<std::string>& overrides, bool measure, bool json) {
  const Recipe recipe = load_recipe(path, overrides);
  task_evaluator(recipe);  // throws for tasks or data that are not there
  const RunPlan plan = make_plan(recipe, {.measure = measure, .measure_gemm_peak = measure_gemm_peak});
  if (json) {
    std::cout << plan_json(plan).dump(2) << std::endl;
  } else {
    std::cout << plan_text(plan, /*color=*/::isatty(STDOUT_FILENO) == 1) << std::flush;
  }
  return 0;
}

void register_plan(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command =
      app.add_subcommand("plan", "what a recipe would train, need and overwrite; loads no weights, writes nothing");
  command->add_option("recipe", flags->recipe, "a .yaml file, as for finetune")->required();
  command->add_option("overrides", flags->overrides, "key=value pairs, as for finetune");
  command->add_flag("--measure", flags->measure, "load the model and time a micro batch of the run's own data");
  command->add_flag("--json", flags->json, "one JSON document on stdout");
  command->callback([flags, &run] {
    run = [flags] { return plan_command(flags->recipe, flags->overrides, flags->measure, flags->json); };
  });
}

}  // namespace dagmoe
