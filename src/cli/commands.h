#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace dagmoe {

/// Each registers one command below `app`; parsing the command line only stores flags in `run`, so that nothing happens
/// before all of them are checked.
using RunCommand = std::function<int()>;
void register_import(CLI::App& app, RunCommand& run);
void register_upcycle(CLI::App& app, RunCommand& run);
void register_merge(CLI::App& app, RunCommand& run);
void register_export(CLI::App& app, RunCommand& run);
void register_finetune(CLI::App& app, RunCommand& run);
void register_plan(CLI::App& app, RunCommand& run);
void register_preview(CLI::App& app, RunCommand& run);
void register_profile_experts(CLI::App& app, RunCommand& run);
void register_eval(CLI::App& app, RunCommand& run);
void register_generate(CLI::App& app, RunCommand& run);
void register_inspect(CLI::App& app, RunCommand& run);
void register_validate(CLI::App& app, RunCommand& run);
void register_report(CLI::App& app, RunCommand& run);

/// `dagmoe plan`, which `finetune --dry-run` is too.
int plan_command(const std::string& recipe, const std::vector<std::string>& overrides, bool measure, bool json);

/// Parses, runs and maps errors: what every error class returns is in base/error.h. The whole program, callable from a
/// test.
int run_program(int argc, const char* const* argv);

}  // namespace dagmoe
