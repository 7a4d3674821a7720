#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "finetune/data_preview.h"

namespace dagmoe {
namespace {

struct PreviewFlags {
  std::string recipe;
  std::vector<std::string> overrides;
  PreviewOptions options;
  bool json = false;
};

int preview(const PreviewFlags& flags) {
  const DataPreview found = preview_data(load_recipe(flags.recipe, flags.overrides), flags.options);
  if (flags.json) {
    std::cout << preview_json(found).dump(2) << std::endl;
  } else {
    std::cout << preview_text(found, /*color=*/::isatty(STDOUT_FILENO) == 1) << std::flush;
  }
  return 0;
}

}  // namespace

void register_preview(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<PreviewFlags>();
  CLI::App* command =
      app.add_subcommand("preview", "the training data as it is learnt: samples, lengths, packing, what looks wrong");
  command->add_option("recipe", flags->recipe, "a .yaml file, as for finetune")->required();
  command->add_option("overrides", flags->overrides, "key=value pairs, as for finetune");
  command->add_option("-n,--samples", flags->options.num_samples, "samples to show")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 20));
  command->add_flag("--all", flags->options.all, "count over every sample, not only the first 10,000");
  command->add_flag("--json", flags->json, "one JSON document on stdout");
  command->callback([flags, &run] { run = [flags] { return preview(*flags); }; });
}

}  // namespace dagmoe
