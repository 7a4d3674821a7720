// Documents, prompts and targets against lm-evaluation-harness 0.4.13 itself, through its task hashes: one SHA-256 over
// every document, prompt (few-shot examples included) and target of a task. Written by make_prompt_hashes.py.
#include "eval/results.h"
#include "eval/task_catalog.h"
#include "tests/eval/table_model.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

struct TaskHash {
  const char* task;
  std::int64_t num_fewshot;
  const char* hash;
};

TEST_CASE("prompts: documents, few-shot prompts and targets hash as in lm-evaluation-harness", "[eval]") {
  const TaskHash golden = GENERATE(values<TaskHash>({
      {"arc_easy", 0, "d57926f0a8727ccaa08e93fcffab125299b887bb0a4fac482f2692a1664cfe0d"},
      {"piqa", 0, "01b7aba0a61f4077bbb884dc86fd34c7d742cc3daf0d289dc2c441a9bd926876"},
      {"hellaswag", 0, "8f832aa8f99af5fb4fce15d3b5e9943538858090b7016f34037f1627dfa5b9a6"},
      {"arc_easy", 3, "eecf577816735aa24b505d32746868860b469f74af73ac7679e8b1196239d2bd"},
      {"piqa", 3, "bf04c78ee886206745f6393bba10ca8514ee8ad1f9f02bb72a389a042f305bdc"},
      {"hellaswag", 3, "c8f6a46fddb4f9623137acbcc9462b50457f2a06823cfe6613234dbf63578141"},
      {"arc_easy", 10, "e9de54bbdeeace7e9cb0fba28a22ee6aeeca5b0ef4ca43f0094ba520ee2996ab"},
      {"piqa", 10, "4bf0d50bf846cd6358103d34ad37348026bbabe8474d9c0522fbae36926f31a1"},
      {"hellaswag", 10, "30fb3e7fa2d99fbdcbdcea677d74f6f1ea129481ac5305f248468c3fc84256bf"},
  }));
  const auto root = std::filesystem::path(DAGMOE_SOURCE_DIR);
  const TaskConfig task = read_task(root / "eval" / "tasks" / (std::string(golden.task) + ".yaml"));
  EvalOptions options{.data_dir = root / "datasets", .num_fewshot = golden.num_fewshot};
  const auto pool = options.data_dir / task.dataset_path;
  options.fewshot_pools[task.task] = {pool, task.labels_path.empty() ? "" : options.data_dir / task.labels_path};
  TableModel model;
  const TaskResult result = evaluate(task, model, options);
  INFO(golden.task << ", " << golden.num_fewshot << " shots");
  CHECK(results_json({&result, 1}, {}, {.log_samples = true}, options)["task_hashes"][task.task] == golden.hash);
}

}  // namespace
}  // namespace dagmoe
