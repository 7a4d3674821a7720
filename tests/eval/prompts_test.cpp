#include "eval/prompts.h"

#include "base/error.h"
#include "eval/evaluate.h"
#include "tests/eval/table_model.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

const std::string kTask = R"yaml(task: mine
dataset_path: mine.jsonl
description: "Answer.\n\n"
doc_to_text: "Q: {{q}}"
doc_to_choice: ["no", "yes"]
doc_to_target: "{{label}}"
fewshot_sampler: first_n
metrics: [acc]
)yaml";

// What the first document of a run is asked, with two examples before it.
LogLikelihoodRequest first_request(EvalOptions options, const std::string& task = kTask) {
  const TextFile data("mine.jsonl", "{\"q\":\"x\",\"label\":0}\n");
  const TextFile pool("pool.jsonl",
                      "{\"q\":\"p\",\"label\":1}\n{\"q\":\"r\",\"label\":0}\n{\"q\":\"s\",\"label\":0}\n");
  options.data_dir = data.path().parent_path();
  options.num_fewshot = 2;
  options.fewshot_pools["mine"] = {pool.path(), {}};
  TableModel model;
  evaluate(parse_task(task, "t"), model, options);
  return model.requests.front();
}

TEST_CASE("prompts: first_n takes the first examples, for every document the same", "[eval]") {
  CHECK(first_request({}).context == "Answer.\n\nQ: p yes\n\nQ: r no\n\nQ: x");
  CHECK(first_request({}).continuation == " no");
}

TEST_CASE("prompts: a system instruction stands before the description", "[eval]") {
  CHECK(first_request({.system_instruction = "Be brief."}).context ==
        "Be brief.\n\nAnswer.\n\nQ: p yes\n\nQ: r no\n\nQ: x");
  // White space at the seam makes the delimiter unnecessary.
  CHECK(first_request({.system_instruction = "Be brief. "}).context ==
        "Be brief. Answer.\n\nQ: p yes\n\nQ: r no\n\nQ: x");
}

TEST_CASE("prompts: under a chat template examples are one user turn and the delimiter goes", "[eval]") {
  EvalOptions options;
  options.chat_format = chat_format(PromptTemplate::kChatMl);
  const LogLikelihoodRequest request = first_request(options);
  CHECK(request.context ==
        "<|im_start|>system\nAnswer.\n\n<|im_end|>\n<|im_start|>user\nQ: p yes\n\nQ: r no\n\nQ: x<|im_end|>\n"
        "<|im_start|>assistant\n");
  CHECK(request.continuation == "no");
}

TEST_CASE("prompts: examples as turns of their own", "[eval]") {
  EvalOptions options;
  options.chat_format = chat_format(PromptTemplate::kChatMl);
  options.fewshot_as_multiturn = true;
  options.system_instruction = "Hi";
  CHECK(first_request(options).context ==
        "<|im_start|>system\nHi\n\nAnswer.\n\n<|im_end|>\n<|im_start|>user\nQ: p<|im_end|>\n<|im_start|>assistant\nyes"
        "<|im_end|>\n<|im_start|>user\nQ: r<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nQ: "
        "x<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("prompts: a template without a system turn gets the conversation without it, and says so", "[eval]") {
  EvalOptions options;
  options.chat_format = chat_format(PromptTemplate::kMistralV01);
  const TextFile data("mine.jsonl", "{\"q\":\"x\",\"label\":0}\n");
  options.data_dir = data.path().parent_path();
  TableModel model;
  const TaskResult result = evaluate(parse_task(kTask, "t"), model, options);
  CHECK_THAT(model.requests.front().context, Catch::Contains("[INST] Q: x [/INST]") && !Catch::Contains("Answer."));
  REQUIRE(result.notes.size() == 1);
  CHECK_THAT(result.notes[0], Catch::StartsWith("the chat template has no system turn"));
}

TEST_CASE("options: settings that nothing uses are refused", "[eval]") {
  EvalOptions options;
  options.fewshot_as_multiturn = true;
  options.resume = true;
  CHECK_THROWS_WITH(check_options(options, {}),
                    "--fewshot-as-multiturn: means nothing without --apply-chat-template\n"
                    "--resume: needs --output DIR, where the earlier run kept its answers");
}

}  // namespace
}  // namespace dagmoe
