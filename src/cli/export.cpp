#include "checkpoint/export.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/text.h"
#include "checkpoint/merge.h"
#include "cli/commands.h"

namespace dagmoe {
namespace {

struct ExportFlags {
  std::string model, output;
  std::vector<std::string> adapters;
  bool force = false;
};

int export_command(const ExportFlags& flags) {
  std::vector<std::string> names;
  if (flags.adapters.empty()) {
    names = export_model(flags.model, flags.output, flags.force);
  } else {
    // The merged model is a step on the way, beside the output.
    const std::string merged = flags.output + ".merged";
    merge_adapters(flags.model, flags.adapters, merged, {});
    try {
      names = export_model(merged, flags.output, flags.force);
    } catch (...) {
      std::filesystem::remove_all(merged);
      throw;
    }
    std::filesystem::remove_all(merged);
  }
  const bool has_code = std::find(names.begin(), names.end(), "modeling_dagmoe.py") != names.end();
  std::cout << "written  " << flags.output << ": " << join(names, ", ")
            << "\nload     AutoModelForCausalLM.from_pretrained(\"" << flags.output << "\""
            << (has_code ? ", trust_remote_code=True" : "") << ")" << std::endl;
  return 0;
}

}  // namespace

void register_export(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<ExportFlags>();
  CLI::App* command = app.add_subcommand("export", "model folder -> a folder that Hugging Face transformers loads");
  command->add_option("--model", flags->model, "model folder")->required();
  command->add_option("--adapter", flags->adapters, "adapter folder to merge first; may be given more than once")
      ->take_all();
  command->add_option("--output", flags->output, "folder to write")->required();
  command->add_flag("--force", flags->force, "replace an existing output folder");
  command->callback([flags, &run] { run = [flags] { return export_command(*flags); }; });
}

}  // namespace dagmoe
