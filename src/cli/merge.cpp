#include "checkpoint/merge.h"

#include <CLI/CLI.hpp>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>

#include "base/json.h"
#include "base/text.h"
#include "cli/commands.h"

namespace dagmoe {
namespace {

struct MergeFlags {
  std::string model, output;
  std::vector<std::string> adapters;
  bool force = false, dry_run = false, json = false;
};

std::string scientific(double value) {
  std::ostringstream text;
  text << std::setprecision(2) << value;
  return text.str();
}

Json report_json(const MergeReport& report) {
  Json rows = Json::array();
  for (const MergedGroup& group : report.groups) {
    rows.push_back({{"group", group.group},
                    {"tensors", group.num_tensors},
                    {"parameters", group.num_parameters},
                    {"relative_change", group.relative_change}});
  }
  return {{"changed", rows},
          {"max_logit", report.max_logit},
          {"max_logit_difference", report.max_logit_difference},
          {"max_logit_difference_written", report.max_written_difference},
          {"dtype", report.dtype},
          {"written", report.is_written}};
}

int merge_command(const MergeFlags& flags) {
  MergeOptions options;
  options.force = flags.force;
  options.dry_run = flags.dry_run;
  const MergeReport report = merge_adapters(flags.model, flags.adapters, flags.output, options);
  if (flags.json) {
    std::cout << report_json(report).dump(2) << std::endl;
    return 0;
  }
  std::vector<std::vector<std::string>> rows = {{"group", "tensors", "parameters", "relative change"}};
  for (const MergedGroup& group : report.groups) {
    rows.push_back({group.group, with_commas(group.num_tensors), with_commas(group.num_parameters),
                    scientific(group.relative_change)});
  }
  std::cout << table_text(rows) << "\nmerged against unmerged, in float: max |logit difference| "
            << scientific(report.max_logit_difference) << " of max |logit| " << fixed(report.max_logit, 2) << '\n';
  if (report.is_written) {
    std::cout << "as written in " << report.dtype << ":              max |logit difference| "
              << scientific(report.max_written_difference) << "\nwritten  " << flags.output << std::endl;
  } else {
    std::cout << "nothing was written (--dry-run)" << std::endl;
  }
  return 0;
}

}  // namespace

void register_merge(CLI::App& app, RunCommand& run) {
  auto flags = std::make_shared<MergeFlags>();
  CLI::App* command = app.add_subcommand("merge", "fold adapters into a model; checks merged against unmerged logits");
  command->add_option("--model", flags->model, "model folder that the adapter was trained on")->required();
  command->add_option("--adapter", flags->adapters, "adapter folder; may be given more than once")
      ->required()
      ->take_all();
  command->add_option("--output", flags->output, "folder to write");
  command->add_flag("--dry-run", flags->dry_run, "say what would change; write nothing");
  command->add_flag("--force", flags->force, "replace an existing output folder");
  command->add_flag("--json", flags->json, "the result as one JSON document");
  command->callback([flags, &run] { run = [flags] { return merge_command(*flags); }; });
}

}  // namespace dagmoe
