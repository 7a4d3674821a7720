#include "checkpoint/export.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/text.h"
#include "cli/commands.h"

namespace dagmoe {
namespace {

struct ExportFlags {
  std::string model, output;
  bool force = false;
};

int export_command(const ExportFlags& flags) {
  const auto names = export_model(flags.model, flags.output, flags.force);
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
  command->add_option("--output", flags->output, "folder to write")->required();
  command->add_flag("--force", flags->force, "replace an existing output folder");
  command->callback([flags, &run] { run = [flags] { return export_command(*flags); }; });
}

}  // namespace dagmoe
