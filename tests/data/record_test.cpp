#include "data/record.h"

#include "base/error.h"
#include "tests/support/catch.h"
#include "tests/support/text_file.h"

namespace dagmoe {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;
using Catch::Matchers::StartsWith;

RawRecord raw_of(const std::string& json) {
  const TextFile file("a.json", "[" + json + "]");
  RawRecord record;
  std::unique_ptr<BadRecord> bad;
  RecordReader::open(file.path())->next(record, bad);
  if (bad) throw std::runtime_error(bad->reason);
  return record;
}
Record read(RecordFormat format, const std::string& json) { return read_record(format, raw_of(json)); }

std::string conversation_text(const Record& record) {
  std::string text;
  for (const Message& message : record.messages) text += message.role + "=" + message.content + ";";
  return text;
}

// The bytes of a sample: what is supervised stands in [], the end of a turn is $.
std::string shown(const std::vector<PromptPiece>& pieces) {
  std::string text;
  for (const PromptPiece& piece : pieces) {
    const std::string marked = piece.text + (piece.ends_turn ? "$" : "");
    text += piece.is_supervised ? "[" + marked + "]" : marked;
  }
  return text;
}

constexpr auto kAlpaca = RecordFormat::kAlpaca;
constexpr auto kMetaMath = RecordFormat::kMetaMath;
constexpr auto kMessages = RecordFormat::kMessages;
constexpr auto kShareGpt = RecordFormat::kShareGpt;
constexpr auto kPromptCompletion = RecordFormat::kPromptCompletion;
constexpr auto kText = RecordFormat::kText;

TEST_CASE("record: every format has a name that finds it again", "[data]") {
  CHECK(record_format_names() == std::vector<std::string>{"alpaca", "metamath", "mathinstruct", "openorca", "dolly",
                                                          "gsm8k", "messages", "sharegpt", "prompt_completion",
                                                          "text"});
  CHECK(record_format_named("alpaca") == kAlpaca);
  CHECK(record_format_named("metamath") == kMetaMath);
  CHECK(record_format_named("messages") == kMessages);
  CHECK(record_format_named("sharegpt") == kShareGpt);
  CHECK(record_format_named("prompt_completion") == kPromptCompletion);
  CHECK(record_format_named("text") == kText);
  CHECK(record_format_named("Alpaca") == std::nullopt);
}

TEST_CASE("record: alpaca reads its three fields and leaves others alone", "[data]") {
  const Record record = read(kAlpaca, R"({"id":7,"instruction":"i","input":"n","output":"o","meta":{"x":[1]}})");
  CHECK(record.instruction == "i");
  CHECK(record.input == "n");
  CHECK(record.output == "o");
  CHECK(record.messages.empty());
  CHECK(read(kAlpaca, R"({"instruction":"i","output":"o"})").input.empty());
  CHECK(read(kAlpaca, R"({"instruction":"i","input":null,"output":"o"})").input.empty());
}

TEST_CASE("record: metamath splits the query at its first line break", "[data]") {
  const Record plain = read(kMetaMath, R"({"type":"GSM","query":"q","response":"r"})");
  CHECK(plain.instruction == "q");
  CHECK(plain.input.empty());
  CHECK(plain.output == "r");
  const Record split = read(kMetaMath, R"({"query":"q\nx\n\ny","response":"r"})");
  CHECK(split.instruction == "q");
  CHECK(split.input == "x\n\ny");
  CHECK(read(kMetaMath, R"({"query":"q\n","response":"r"})").input.empty());
}

TEST_CASE("record: prompt and completion become instruction and output", "[data]") {
  const Record record = read(kPromptCompletion, R"({"prompt":"p","completion":"c"})");
  CHECK(record.instruction == "p");
  CHECK(record.input.empty());
  CHECK(record.output == "c");
}

TEST_CASE("record: a document is one supervised text that EOS ends, under every template", "[data]") {
  const Record record = read(kText, R"({"id":3,"text":" a\nb <|im_end|> ","meta":null})");
  CHECK(record.text == " a\nb <|im_end|> ");
  for (const PromptTemplate form : {PromptTemplate::kAlpaca, PromptTemplate::kChatMl}) {
    const auto pieces = sample_text(record, chat_format(form));
    CHECK(shown(pieces) == "[ a\nb <|im_end|> $]");
    CHECK_FALSE(pieces.front().is_template);
  }
  CHECK_THROWS_WITH(read(kText, R"({"content":"a"})"), Equals("field 'text' is missing; format 'text' needs text"));
  CHECK_THROWS_WITH(read(kText, R"({"text":""})"), Equals("field 'text' of format 'text': found an empty text"));
  CHECK_THROWS_WITH(read(kText, R"({"text":["a"]})"),
                    Equals("field 'text' of format 'text': found an array, expected a string"));
}

TEST_CASE("record: conversations are read in both spellings, extra keys and a system turn included", "[data]") {
  CHECK(conversation_text(read(kMessages, R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},
      {"role":"assistant","content":"a\n","weight":1}]})")) == "system=s;user=u;assistant=a\n;");
  CHECK(conversation_text(read(kShareGpt, R"({"id":"x","conversations":[{"from":"human","value":"u","weight":null},
      {"from":"gpt","value":"a"},{"from":"human","value":"v"},{"from":"gpt","value":"b"}]})")) ==
        "user=u;assistant=a;user=v;assistant=b;");
}

TEST_CASE("record: a missing, mistyped or empty field is named with its format", "[data]") {
  CHECK_THROWS_AS(read(kAlpaca, "{}"), InputError);
  CHECK_THROWS_WITH(read(kAlpaca, R"({"instruction":"i"})"),
                    Equals("field 'output' is missing; format 'alpaca' needs instruction, output"));
  CHECK_THROWS_WITH(read(kAlpaca, R"({"output":"o"})"),
                    Equals("field 'instruction' is missing; format 'alpaca' needs instruction, output"));
  CHECK_THROWS_WITH(read(kAlpaca, R"({"instruction":"i","output":42})"),
                    Equals("field 'output' of format 'alpaca': found a number, expected a string"));
  CHECK_THROWS_WITH(read(kAlpaca, R"({"instruction":"i","input":["x"],"output":"o"})"),
                    Equals("field 'input' of format 'alpaca': found an array, expected a string"));
  CHECK_THROWS_WITH(read(kAlpaca, R"({"instruction":null,"output":"o"})"),
                    Equals("field 'instruction' of format 'alpaca': found null, expected a string"));
  CHECK_THROWS_WITH(read(kAlpaca, R"({"instruction":"i","output":""})"),
                    Equals("field 'output' of format 'alpaca': found an empty text"));
  CHECK_THROWS_WITH(read(kMetaMath, R"({"question":"q","response":"r"})"),
                    Equals("field 'query' is missing; format 'metamath' needs query, response"));
  CHECK_THROWS_WITH(read(kPromptCompletion, R"({"prompt":"q"})"),
                    Equals("field 'completion' is missing; format 'prompt_completion' needs prompt, completion"));
  CHECK_THROWS_WITH(read(kMessages, R"({"conversations":[]})"),
                    Equals("field 'messages' is missing; format 'messages' needs messages"));
  CHECK_THROWS_WITH(read(kMessages, R"({"messages":"hello"})"),
                    Equals("field 'messages' of format 'messages': found a string, expected an array"));
  CHECK_THROWS_WITH(read(kShareGpt, R"({"conversations":{}})"),
                    Equals("field 'conversations' of format 'sharegpt': found an object, expected an array"));
}

TEST_CASE("record: a bad message is named by its number", "[data]") {
  CHECK_THROWS_WITH(read(kMessages, R"({"messages":[{"role":"user","content":"u"},7]})"),
                    Equals("field 'messages': message 2: found a number, expected an object"));
  CHECK_THROWS_WITH(
      read(kMessages, R"({"messages":[{"role":"user"}]})"),
      Equals("field 'messages': message 1: field 'content' is missing; format 'messages' needs role, content"));
  CHECK_THROWS_WITH(
      read(kShareGpt, R"({"conversations":[{"role":"user","content":"u"}]})"),
      Equals("field 'conversations': message 1: field 'from' is missing; format 'sharegpt' needs from, value"));
  CHECK_THROWS_WITH(read(kMessages, R"({"messages":[{"role":"user","content":["u"]}]})"),
                    Equals("field 'messages': message 1: field 'content': found an array, expected a string"));
  CHECK_THROWS_WITH(read(kMessages, R"({"messages":[{"role":"user","content":null}]})"),
                    Equals("field 'messages': message 1: field 'content': found null, expected a string"));
  CHECK_THROWS_WITH(
      read(kMessages, R"({"messages":[{"role":"tool","content":"u"}]})"),
      Equals("field 'messages': message 1: field 'role': found 'tool', expected system, user or assistant"));
  CHECK_THROWS_WITH(read(kMessages, R"({"messages":[{"role":"a\nb","content":"u"}]})"),
                    Contains("found 'a\\nb', expected"));
  CHECK_THROWS_WITH(
      read(kShareGpt, R"({"conversations":[{"from":"user","value":"u"}]})"),
      Equals("field 'conversations': message 1: field 'from': found 'user', expected system, human or gpt"));
  CHECK_THROWS_WITH(read(kMessages, R"({"messages":[{"role":"user","role":"user","content":"u"}]})"),
                    StartsWith("field 'messages':1:"));
  CHECK_THROWS_WITH(
      read(kMessages, R"({"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a","weight":0}]})"),
      Equals("field 'messages': every answer has the weight 0, so that there is nothing to learn"));
  CHECK_THROWS_WITH(
      read(kMessages,
           R"({"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a","weight":0.5}]})"),
      Equals("field 'messages': message 2: field 'weight': found 0.5, expected 0 or 1"));
}

TEST_CASE("record: turns out of order are refused", "[data]") {
  const auto turns = [](const std::string& roles) {
    std::string list;
    for (const char role : roles) {
      const std::string name = role == 's' ? "system" : role == 'h' ? "human" : "gpt";
      list += (list.empty() ? "" : ",") + ("{\"from\":\"" + name + "\",\"value\":\"x\"}");
    }
    return read(kShareGpt, "{\"conversations\":[" + list + "]}");
  };
  CHECK(turns("hg").messages.size() == 2);
  CHECK(turns("shghg").messages.size() == 5);
  CHECK_THROWS_WITH(turns(""), Equals("field 'conversations': there is no exchange in it"));
  CHECK_THROWS_WITH(turns("s"), Equals("field 'conversations': there is no exchange in it"));
  CHECK_THROWS_WITH(turns("h"), Equals("field 'conversations': the last message is of 'human', expected 'gpt'"));
  CHECK_THROWS_WITH(turns("hgh"), Equals("field 'conversations': the last message is of 'human', expected 'gpt'"));
  CHECK_THROWS_WITH(turns("g"),
                    Equals("field 'conversations': message 1 is of 'gpt', expected 'human'; after an optional "
                           "system turn human and gpt alternate"));
  CHECK_THROWS_WITH(turns("hgg"), StartsWith("field 'conversations': message 3 is of 'gpt', expected 'human'"));
  CHECK_THROWS_WITH(turns("hsg"), StartsWith("field 'conversations': message 2 is of 'system', expected 'gpt'"));
  CHECK_THROWS_WITH(turns("ss"), StartsWith("field 'conversations': message 2 is of 'system', expected 'human'"));
  CHECK_THROWS_WITH(
      read(kMessages, R"({"messages":[{"role":"user","content":"u"},{"role":"assistant","content":""}]})"),
      Equals("field 'messages': message 2: field 'content': found an empty text"));
}

TEST_CASE("sample text: both Alpaca forms byte for byte, the answer directly behind the colon", "[data]") {
  CHECK(shown(sample_text({.instruction = "Add.", .input = "1 2", .output = "3"}, {})) ==
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:[3$]");
  CHECK(shown(sample_text({.instruction = "Hi", .output = "Ho"}, {})) ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHi\n\n### Response:[Ho$]");
}

TEST_CASE("sample text: alpaca_lora has a line break before the answer", "[data]") {
  CHECK(shown(sample_text({.instruction = "Hi", .output = "Ho"}, {.form = PromptTemplate::kAlpacaLora})) ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHi\n\n### Response:\n[Ho$]");
}

TEST_CASE("sample text: an Alpaca prompt is one piece whose control tokens are plain text", "[data]") {
  const auto pieces = sample_text({.instruction = "<|im_end|>", .output = "</s>"}, {});
  REQUIRE(pieces.size() == 2);
  CHECK_FALSE(pieces[0].is_template);
  CHECK_FALSE(pieces[1].is_template);
}

TEST_CASE("sample text: a single-turn record under chatml is one question and one answer", "[data]") {
  const ChatFormat chatml = {.form = PromptTemplate::kChatMl};
  const auto text = [](const std::vector<PromptPiece>& pieces) {
    std::string all;
    for (const PromptPiece& piece : pieces) all += piece.text;
    return all;
  };
  CHECK(text(sample_text({.instruction = "Hi", .output = "Ho"}, chatml)) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n");
  CHECK(text(sample_text({.instruction = "Add.", .input = "1 2", .output = "3"}, chatml)) ==
        "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n");
  CHECK(
      text(sample_text({.instruction = "Hi", .output = "Ho"},
                       {.form = PromptTemplate::kChatMl, .default_system = "Be kind."})) ==
      "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n");
}

TEST_CASE("sample text: a conversation of one exchange fits an Alpaca form, a longer one does not", "[data]") {
  const Message system{"system", "s"}, user{"user", "u"}, assistant{"assistant", "a"};
  const auto conversation = [](std::vector<Message> messages) { return Record{.messages = std::move(messages)}; };
  CHECK(shown(sample_text(conversation({user, assistant}), {})) ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nu\n\n### Response:[a$]");
  CHECK_THROWS_WITH(
      sample_text(conversation({user, assistant, user, assistant}), {}),
      Equals("a conversation of 4 messages; the Alpaca templates have room for one question and one answer: use "
             "template 'chatml', or 'orca' for one with a system turn"));
  CHECK_THROWS_WITH(sample_text(conversation({system, user, assistant}), {}),
                    StartsWith("a conversation of 3 messages with a system turn; the Alpaca templates"));
}

}  // namespace
}  // namespace dagmoe
