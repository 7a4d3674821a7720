#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/text.h"
#include "cli/commands.h"
#include "eval/task_catalog.h"
#include "finetune/recipe.h"

namespace dagmoe {
namespace {

// A task file says which task, group or suite it is; everything else is a recipe.
void validate_file(const std::string& path) {
  if (is_task_file(path)) {
    check_task_file(path);
  } else {
    load_recipe(path);
  }
}

int validate_command(const std::vector<std::string>& paths) {
  std::vector<std::string> issues;
  ExitCode code = ExitCode::kOk;
  for (const auto& path : paths) {
    try {
      validate_file(path);
      std::cout << path << ": ok" << std::endl;
    } catch (const Error& error) {
      std::cerr << error.what() << std::endl;
      if (code == ExitCode::kOk) code = error.exit_code();
    }
  }
  return static_cast<int>(code);
}

}  // namespace

void register_validate(CLI::App& app, RunCommand& run) {
  auto paths = std::make_shared<std::vector<std::string>>();
  CLI::App* command =
      app.add_subcommand("validate", "check recipes and task files; every problem at once, nothing is loaded");
  command->add_option("files", *paths, "recipes and task files")->required();
  command->callback([paths, &run] { run = [paths] { return validate_command(*paths); }; });
}

}  // namespace dagmoe
