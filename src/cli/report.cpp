#include "finetune/report.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <vector>

#include "cli/commands.h"

namespace dagmoe {
namespace {

struct ReportFlags {
  std::vector<std::string> runs;
  std::string output;
};

int report_command(const ReportFlags& flags) {
  const std::vector<std::filesystem::path> folders(flags.runs.begin(), flags.runs.end());
  std::filesystem::path output = flags.output;
  if (output.empty()) output = folders.size() == 1 ? folders.front() / "report.html" : "report.html";
  write_report(output, folders);
  std::cout << output.string() << std::endl;
  return 0;
}

}  // namespace

void register_report(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* command =
      app.add_subcommand("report", "one self-contained HTML page about a run, or comparing several with the first");
  command->add_option("runs", flags->runs, "run folders")->required();
  command->add_option("--output", flags->output, "the page; RUN/report.html for one run, ./report.html for several");
  command->callback([flags, &run] { run = [flags] { return report_command(*flags); }; });
}

}  // namespace dagmoe
