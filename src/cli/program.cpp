#include <malloc.h>
#include <torch/headeronly/version.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "base/environment.h"
#include "base/error.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/cpu_allocator.h"
#include "kernels/dispatch.h"

namespace dagmoe {
namespace {

std::string version_lines() {
#ifdef DAGMOE_WITH_CUDA
  const char* cuda = "compiled in";
#else
  const char* cuda = "none";
#endif
  return str("dagmoe ", version_text(), " (", commit_text(), ")\nLibTorch ", TORCH_VERSION, "\nCPU ",
             isa_name(best_isa()), "\nCUDA ", cuda);
}

// CLI11 reports an unknown command as an unexpected argument; the nearest command helps more.
std::string unknown_command(const CLI::App& app, int argc, const char* const* argv) {
  if (argc < 2 || argv[1][0] == '-') return "";
  std::vector<std::string> known;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    known.push_back(command->get_name());
  for (const auto& name : known) {
    if (name == argv[1]) return "";
  }
  return str("dagmoe: '", argv[1], "' is no command", did_you_mean(argv[1], known));
}

// Activations of a step are freed and allocated again in the same sizes. glibc would hand large blocks back to the
// kernel each time, and every first touch of a page would cost a fault.
void keep_freed_memory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
}

int print_error(const std::string& message, ExitCode code) {
  std::cerr << message << std::endl;
  return static_cast<int>(code);
}

}  // namespace

int run_program(int argc, const char* const* argv) {
  keep_freed_memory();
  use_compact_cpu_allocator();
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond a file-size limit is an error with a message
  try {
    CLI::App app{"Fine-tuning toolkit for DAG-MoE language models"};
    app.name("dagmoe");
    app.require_subcommand(1);
    app.set_version_flag("--version", [] { return version_lines(); });
    RunCommand run;
    register_import(app, run);
    register_upcycle(app, run);
    register_merge(app, run);
    register_export(app, run);
    register_finetune(app, run);
    register_plan(app, run);
    register_preview(app, run);
    register_profile_experts(app, run);
    register_eval(app, run);
    register_generate(app, run);
    register_inspect(app, run);
    register_validate(app, run);
    register_report(app, run);
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& success) {
      return app.exit(success);  // --help and --version
    } catch (const CLI::ParseError& error) {
      const std::string unknown = unknown_command(app, argc, argv);
      return print_error(unknown.empty() ? str("dagmoe: ", error.what(), "; see dagmoe --help") : unknown,
                         ExitCode::kConfig);
    }
    return run();
  } catch (const Error& error) {
    return print_error(error.what(), error.exit_code());
  } catch (const std::exception& error) {
    // The first line is enough for a report; LibTorch appends a stack of its own.
    const std::string text = error.what();
    return print_error(
        str("internal error: ", text.substr(0, text.find('\n')), "; this is a bug of dagmoe, please report it"),
        ExitCode::kInternal);
  }
}

}  // namespace dagmoe
