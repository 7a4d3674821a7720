#include "checkpoint/import.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "cli/commands.h"

namespace dagmoe {
namespace {

struct ImportFlags {
  std::string source, output, dtype = "float32";
  bool force = false;
};

DType storage_type(const std::string& name) {
  if (name == "float32") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  throw ConfigError(str("--dtype: found '", name, "', expected float32, bfloat16 or float16",
                        did_you_mean(name, {"float32", "bfloat16", "float16"})));
}

int import_command(const ImportFlags& flags) {
  ImportOptions options;
  options.dtype = storage_type(flags.dtype);
  options.force = flags.force;
  Progress progress("importing", 0);
  options.on_tensor = [&progress](std::int64_t done, std::int64_t total) {
    progress.update(done, str(done, " of ", total, " tensors"));
  };
  const ImportReport report = import_model(flags.source, flags.output, options);
  progress.finish(str(report.num_tensors, " tensors"));
  std::cout << "source      " << report.source_kind << "\ntensors     " << with_commas(report.num_tensors)
            << "\nparameters  " << with_commas(report.num_parameters) << "\ntokenizer   " << report.tokenizer
            << "\nwritten     " << flags.output << " (" << human_bytes(report.bytes_written) << ")" << std::endl;
  return 0;
}

}  // namespace

void register_import(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<ImportFlags>();
  CLI::App* command = app.add_subcommand("import", "GGUF file or Hugging Face folder -> model folder");
  command->add_option("source", flags->source, "a .gguf file, or a folder with config.json")->required();
  command->add_option("--output", flags->output, "folder to write")->required();
  command->add_option("--dtype", flags->dtype, "how weights are stored: float32 (exact), bfloat16, float16")
      ->capture_default_str();
  command->add_flag("--force", flags->force, "replace an existing output folder");
  command->callback([flags, &run] { run = [flags] { return import_command(*flags); }; });
}

}  // namespace dagmoe
