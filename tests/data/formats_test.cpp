// The formats and templates of method.md 7 that are not of a checkpoint, and what of a sample is learnt.
#include "base/error.h"
#include "base/text.h"
#include "data/record_source.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

RawRecord raw_of(const std::string& json) {
  const TextFile file("a.jsonl", json);
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  REQUIRE(RecordReader::open(file.path())->next(record, bad));
  REQUIRE(bad == nullptr);
  return record;
}

// The text of a sample, what is learnt in [], $ for EOS.
std::string shown(const SourceConfig& config, const std::string& json) {
  RawRecord raw = raw_of(json);
  std::string text;
  for (const PromptPiece& piece : sample_pieces(config, raw)) {
    const std::string content = piece.text + (piece.ends_turn ? "$" : "");
    text += piece.is_supervised ? "[" + content + "]" : content;
  }
  return text;
}

SourceConfig source(RecordFormat format, PromptTemplate form) { return {.format = format, .chat = {.form = form}}; }

const std::string kPreamble =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n";
const std::string kPreambleWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n";

TEST_CASE("formats: MathInstruct, Dolly, GSM8K and OpenOrca are read as their authors publish them", "[data]") {
  CHECK(shown(source(RecordFormat::kMathInstruct, PromptTemplate::kAlpaca),
              R"({"source":"data/CoT/gsm_train.json","instruction":"1+1?","output":"2"})") ==
        kPreamble + "### Instruction:\n1+1?\n\n### Response:[2$]");
  CHECK(shown(source(RecordFormat::kDolly, PromptTemplate::kAlpaca),
              R"({"instruction":"Who?","context":"Ann.","response":"Ann","category":"closed_qa"})") ==
        kPreambleWithInput + "### Instruction:\nWho?\n\n### Input:\nAnn.\n\n### Response:[Ann$]");
  CHECK(shown(source(RecordFormat::kDolly, PromptTemplate::kAlpaca),
              R"({"instruction":"Who?","context":"","response":"Ann"})") ==
        kPreamble + "### Instruction:\nWho?\n\n### Response:[Ann$]");
  CHECK(shown(source(RecordFormat::kGsm8k, PromptTemplate::kAlpaca), R"({"question":"1+1?","answer":"#### 2"})") ==
        kPreamble + "### Instruction:\n1+1?\n\n### Response:[#### 2$]");
  const std::string orca = R"({"id":"x","system_prompt":"Be kind.","question":"Hi","response":"Ho"})";
  CHECK(shown(source(RecordFormat::kOpenOrca, PromptTemplate::kChatMl), orca) ==
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Ho]["
        "<|im_end|>]\n");
  CHECK(shown(source(RecordFormat::kOpenOrca, PromptTemplate::kAlpaca),
              R"({"system_prompt":"","question":"Hi","response":"Ho"})") ==
        kPreamble + "### Instruction:\nHi\n\n### Response:[Ho$]");
  CHECK_THROWS_WITH(shown(source(RecordFormat::kOpenOrca, PromptTemplate::kAlpaca), orca),
                    Contains("a conversation of 3 messages with a system turn"));
  CHECK_THROWS_WITH(shown(source(RecordFormat::kGsm8k, PromptTemplate::kAlpaca), R"({"question":"1+1?"})"),
                    Equals("field 'answer' is missing; format 'gsm8k' needs question, answer"));
}

TEST_CASE("formats: the templates orca, llamafactory_alpaca, esft, mammoth and plain have the bytes of method.md 7.2",
          "[data]") {
  const std::string orca = R"({"system_prompt":"Be kind.","question":"Hi","response":"Ho"})";
  CHECK(shown(source(RecordFormat::kOpenOrca, PromptTemplate::kOrca), orca) ==
        "### System:\nBe kind.\n\n### User:\nHi\n\n### Response:\n[Ho$]");
  const std::string alpaca = R"({"instruction":"Add.","input":"1 2","output":"3"})";
  CHECK(shown(source(RecordFormat::kAlpaca, PromptTemplate::kLlamaFactoryAlpaca), alpaca) ==
        kPreamble + "### Instruction:\nAdd.\n1 2\n\n### Response:\n[3$][\n\n]");
  CHECK(shown(source(RecordFormat::kOpenOrca, PromptTemplate::kLlamaFactoryAlpaca), orca) ==
        "Be kind.### Instruction:\nHi\n\n### Response:\n[Ho$][\n\n]");
  CHECK(shown(source(RecordFormat::kMathInstruct, PromptTemplate::kMammoth),
              R"({"instruction":"1+1?","output":"2"})") == kPreamble + "### Instruction:\n1+1?\n\n### Response:[2$]");
  const std::string turns = R"({"messages":[{"role":"user","content":" a "},{"role":"assistant","content":"b\n"},)"
                            R"({"role":"user","content":"c"},{"role":"assistant","content":" d"}]})";
  CHECK(shown(source(RecordFormat::kMessages, PromptTemplate::kEsft), turns) ==
        "User: a\n\nAssistant:[ b$]User: c\n\nAssistant:[ d$]");
  CHECK(shown(source(RecordFormat::kPromptCompletion, PromptTemplate::kPlain),
              R"({"prompt":"Q: hi\nA:","completion":" ho"})") == "Q: hi\nA:[ ho$]");
  CHECK_THROWS_WITH(shown(source(RecordFormat::kMessages, PromptTemplate::kOrca), turns),
                    Contains("has room for one question and one answer"));
}

TEST_CASE("formats: an answer of weight 0 is not learnt, and the weight of other turns says nothing", "[data]") {
  const std::string slimorca =
      R"({"conversations":[{"from":"system","value":"S","weight":null},{"from":"human","value":"a","weight":0},)"
      R"({"from":"gpt","value":"b","weight":0.0},{"from":"human","value":"c","weight":0},)"
      R"({"from":"gpt","value":"d","weight":1.0}]})";
  CHECK(shown(source(RecordFormat::kShareGpt, PromptTemplate::kChatMl), slimorca) ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d][<|im_end|>]\n");
}

// Two answers under every template that has room for them: with loss_turns last only the second is learnt.
TEST_CASE("formats: of a conversation all answers or only the last one are learnt", "[data]") {
  const std::string turns = R"({"messages":[{"role":"user","content":"Q1"},{"role":"assistant","content":"A1"},)"
                            R"({"role":"user","content":"Q2"},{"role":"assistant","content":"A2"}]})";
  int num_checked = 0;
  for (const std::string& name : prompt_template_names()) {
    CAPTURE(name);
    SourceConfig config = {.format = RecordFormat::kMessages, .chat = chat_format(*prompt_template_named(name))};
    const auto learnt = [&] {
      std::string text;
      RawRecord raw = raw_of(turns);
      for (const PromptPiece& piece : sample_pieces(config, raw)) {
        if (piece.is_supervised) text += piece.text;
      }
      return text;
    };
    try {
      const std::string all = learnt();
      CHECK_THAT(all, Contains("A1") && Contains("A2"));
      config.loss.last_turn_only = true;
      CHECK_THAT(learnt(), !Contains("A1") && Contains("A2"));
      CHECK_THAT(all, Catch::EndsWith(learnt()));
      ++num_checked;
    } catch (const InputError& error) {
      CHECK_THAT(error.what(), Contains("room for one question"));
    }
  }
  CHECK(num_checked == 16);
}

TEST_CASE("formats: without a masked prompt every piece is learnt", "[data]") {
  SourceConfig config = source(RecordFormat::kPromptCompletion, PromptTemplate::kChatMl);
  config.loss.mask_prompt = false;
  CHECK(shown(config, R"({"prompt":"Hi","completion":"Ho"})") ==
        "[<|im_start|>user\n][Hi][<|im_end|>\n][<|im_start|>assistant\n][Ho][<|im_end|>][\n]");
}

TEST_CASE("formats: a column map gives fields the names that the format asks for", "[data]") {
  SourceConfig config = source(RecordFormat::kAlpaca, PromptTemplate::kAlpaca);
  config.columns = {{"instruction", "q"}, {"output", "a"}};
  CHECK(shown(config, R"({"q":"Hi","a":"Ho"})") == kPreamble + "### Instruction:\nHi\n\n### Response:[Ho$]");
  // "output" of the file is not what is meant by it.
  CHECK(shown(config, R"({"output":"other","q":"Hi","a":"Ho","instruction":7})") ==
        kPreamble + "### Instruction:\nHi\n\n### Response:[Ho$]");
  config.columns = {{"instruction", "output"}, {"output", "instruction"}};
  CHECK(shown(config, R"({"output":"Hi","instruction":"Ho"})") ==
        kPreamble + "### Instruction:\nHi\n\n### Response:[Ho$]");
  CHECK_THROWS_WITH(shown(config, R"({"output":"Hi"})"), Contains("field 'output' is missing"));
}

TEST_CASE("formats: the content hash is of the texts, whatever the other fields are", "[data]") {
  const auto hash = [](const std::string& json) {
    return content_hash(read_record(RecordFormat::kAlpaca, raw_of(json)));
  };
  const ContentHash one = hash(R"({"instruction":"a","input":"b","output":"c"})");
  CHECK(hash(R"({"id":7,"output":"c","input":"b","instruction":"a"})") == one);
  CHECK_FALSE(hash(R"({"instruction":"ab","input":"","output":"c"})") == one);
  CHECK_FALSE(hash(R"({"instruction":"a","input":"b","output":"c "})") == one);
}

}  // namespace
}  // namespace dagmoe
