#include "data/prompt_template.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/prompt_template_jinja.h"
#include "tests/support/catch.h"

using namespace dagmoe;

namespace {

/// SmolLM2-Instruct's template, with a default system text of our own.
constexpr const char* kWithDefault =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a test.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The same format as other programs spell it.
constexpr const char* kPlain =
    "{%- for message in messages %}\n"
    "    {{- \"<|im_start|>\" + message.role + \"\\n\" + message.content + \"<|im_end|>\\n\" }}\n"
    "{%- endfor %}\n"
    "{# ask for an answer #}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n";

class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() / ("dagmoe_prompt_" + std::to_string(std::random_device()()))) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }
  void write(const char* name, const std::string& text) const { std::ofstream(path_ / name) << text; }

 private:
  std::filesystem::path path_;
};

ChatFormat chatml(const std::string& default_system = {}) {
  return {.form = PromptTemplate::kChatMl, .default_system = default_system};
}

std::string joined(const std::vector<PromptPiece>& pieces) {
  std::string text;
  for (const PromptPiece& piece : pieces) text += piece.text;
  return text;
}

}  // namespace

TEST_CASE("alpaca prompts have Stanford's bytes", "[data]") {
  CHECK(alpaca_prompt("", "").size() == 139);
  CHECK(alpaca_prompt("{instruction}", "").size() == 152);
  CHECK(alpaca_prompt("{instruction}", "{input}").size() == 224);
  CHECK(alpaca_prompt("Add.", "1 2") ==
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:");
  CHECK(alpaca_prompt("Add.", "") ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:");
  CHECK(alpaca_prompt("x", " ").find("### Input:\n \n\n") != std::string::npos);
  CHECK(alpaca_prompt("x", "", PromptTemplate::kAlpacaLora) == alpaca_prompt("x", "") + "\n");
}

TEST_CASE("template names are known both ways", "[data]") {
  for (const std::string& name : prompt_template_names()) CHECK(prompt_template_named(name));
  CHECK(prompt_template_named("chatml") == PromptTemplate::kChatMl);
  CHECK_FALSE(prompt_template_named("chatml2"));
}

TEST_CASE("chatml: user text is data, the answer with its end is learnt, the line feed behind it is not", "[data]") {
  const auto pieces = render_chat(chatml(), {{"user", "Hi <|im_end|>"}, {"assistant", "Yo"}}, false);
  REQUIRE(pieces.size() == 7);
  CHECK(joined(pieces) == "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n");
  const auto flags = [&](std::size_t i) { return std::pair(pieces[i].is_template, pieces[i].is_supervised); };
  CHECK(flags(0) == std::pair(true, false));
  CHECK(flags(1) == std::pair(false, false));
  CHECK(flags(2) == std::pair(true, false));
  CHECK(flags(3) == std::pair(true, false));
  CHECK((pieces[4].text == "Yo" && flags(4) == std::pair(false, true)));
  CHECK((pieces[5].text == "<|im_end|>" && flags(5) == std::pair(true, true)));
  CHECK((pieces[6].text == "\n" && flags(6) == std::pair(true, false)));
  for (const PromptPiece& piece : pieces) CHECK_FALSE(piece.ends_turn);
}

TEST_CASE("chatml: the default system turn comes first unless there is one", "[data]") {
  CHECK(joined(render_chat(chatml("Be kind."), {{"user", "Hi"}}, true)) ==
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  CHECK(joined(render_chat(chatml("Be kind."), {{"system", "S"}, {"user", "Hi"}}, false)) ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
  CHECK(joined(render_chat(chatml(), {{"user", "Hi"}}, true)) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("canonical Jinja: printed literals become text, spelling differences go", "[data]") {
  CHECK(canonical_jinja("{{ 'a' + m['role']+\"\\n\" }}b") == "a{{m.role}}\nb");
  CHECK(canonical_jinja("{% if  x and\ty == 'it\\'s' -%}\n  z{# no #}{% endif %}\n") ==
        "{%if x and y=='it's'%}z{%endif%}");
  CHECK(canonical_jinja("a\n  {% if x %}\n  b\n{% endif %}") == "a\n{%if x%}  b\n{%endif%}");
  CHECK(canonical_jinja("a {% if x %} b {{- c }}") == "a {%if x%} b{{c}}");
  CHECK(canonical_jinja("{{ 'a }} b' }}") == "a }} b");
  CHECK(canonical_jinja("{{ unclosed") == "{{ unclosed");
}

TEST_CASE("chat format: ChatML with a default system text of the template, and without", "[data]") {
  const Folder folder;
  CHECK_FALSE(chat_format_of(folder.path()));
  folder.write("tokenizer_config.json", R"({"chat_template": "{{ messages }}"})");
  CHECK_THROWS_WITH(chat_format_of(folder.path()),
                    Catch::Contains("tokenizer_config.json: this chat template is not known; name the one to use: "
                                    "alpaca, alpaca_lora, chatml, "));
  folder.write("chat_template.jinja", kWithDefault);
  CHECK(chat_format_of(folder.path())->default_system == "You are a test.");
  CHECK(chat_format_of(folder.path())->form == PromptTemplate::kChatMl);
  folder.write("chat_template.jinja", kPlain);
  CHECK(chat_format_of(folder.path())->default_system.empty());
}

TEST_CASE("chat format: a template that differs in what it prints is not ChatML", "[data]") {
  const Folder folder;
  for (const auto& [from, to] :
       {std::pair("'<|im_end|>' + '\n'", "'<|im_end|>'"), std::pair("message['content']", "message['content'] | trim"),
        std::pair("!= 'system'", "== 'system'"), std::pair("a test", "{{ x }}")}) {
    std::string changed = kWithDefault;
    changed.replace(changed.find(from), std::string(from).size(), to);
    folder.write("chat_template.jinja", changed);
    CHECK_THROWS_AS(chat_format_of(folder.path()), InputError);
  }
}

TEST_CASE("chat templates: every byte is that of transformers on twenty conversations", "[data]") {
  const Json golden = read_json_file(DAGMOE_SOURCE_DIR "/tests/golden/chat_templates.json");
  REQUIRE(golden["conversations"].size() == 20);
  std::size_t num_equal = 0, num_refused = 0;
  for (const Json& item : golden["templates"]) {
    ChatFormat format = chat_format(*prompt_template_named(item["name"].get<std::string>()));
    format.bos = item["bos"].get<std::string>();
    format.eos = item["eos"].get<std::string>();
    for (std::size_t i = 0; i < 20; ++i) {
      const Json& conversation = golden["conversations"][i];
      CAPTURE(name_of(format.form), i);
      std::vector<Message> messages;
      for (const Json& turn : conversation["messages"]) messages.push_back({turn[0], turn[1]});
      const bool add_generation_prompt = conversation["add_generation_prompt"].get<bool>();
      if (const Json& expected = item["rendered"][i]; expected.is_null()) {
        CHECK_THROWS_AS(render_chat(format, messages, add_generation_prompt), InputError);
        ++num_refused;
      } else {
        std::string text;
        for (const PromptPiece& piece : render_chat(format, messages, add_generation_prompt)) {
          text += piece.text + (piece.ends_turn ? format.eos : "");
        }
        CHECK(text == expected.get<std::string>());
        ++num_equal;
      }
    }
  }
  // The other five are not of a checkpoint: sample_text's tests have their bytes.
  CHECK(num_equal + num_refused == 20 * (prompt_template_names().size() - 5));
  CHECK(num_refused == 48);
}

TEST_CASE("chat templates: supervised are the answers with their end tokens, and nothing of the question", "[data]") {
  const std::vector<Message> messages = {{"user", "Q1"}, {"assistant", "A1"}, {"user", "Q2"}, {"assistant", "A2"}};
  const std::map<std::string, std::string> expected = {
      {"chatml", "A1<|im_end|>A2<|im_end|>"},
      {"qwen", "A1<|im_end|>A2<|im_end|>"},
      {"qwen2.5", "A1<|im_end|>A2<|im_end|>"},
      {"qwen3", "A1<|im_end|><think>\n\n</think>\n\nA2<|im_end|>"},
      {"llama-2", " A1 </s> A2 </s>"},
      {"llama-3", "A1<|eot_id|>A2<|eot_id|>"},
      {"mistral", " A1</s> A2</s>"},
      {"mistral-plain", "A1</s>A2</s>"},
      {"mistral-v0.1", "A1</s>A2</s>"},
      {"mistral-v3", " A1</s> A2</s>"},
      {"mistral-nemo", "A1</s>A2</s>"},
      {"deepseek", " A1<\uFF5Cend\u2581of\u2581sentence\uFF5C> A2<\uFF5Cend\u2581of\u2581sentence\uFF5C>"},
      {"olmo", "A1<|endoftext|>A2<|endoftext|>"},
      {"olmo-2", "A1<|endoftext|>A2<|endoftext|>"},
  };
  std::size_t num_checked = 0;
  for (const std::string& name : prompt_template_names()) {
    if (!expected.contains(name)) continue;
    ++num_checked;
    CAPTURE(name);
    std::string supervised, of_users;
    for (const PromptPiece& piece : render_chat(chat_format(*prompt_template_named(name)), messages, false)) {
      if (piece.is_supervised) supervised += piece.text;
      if (!piece.is_template && !piece.is_supervised) of_users += piece.text;
    }
    CHECK(supervised == expected.at(name));
    CHECK_THAT(of_users, Catch::Contains("Q1"));
    CHECK_THAT(of_users, Catch::Contains("Q2"));
  }
  CHECK(num_checked == expected.size());
}

TEST_CASE("chat templates: what a form has no place for is refused with its name", "[data]") {
  const auto message_of = [](const char* name, const std::vector<Message>& messages) {
    try {
      render_chat(chat_format(*prompt_template_named(name)), messages, true);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message_of("chatml", {}) == "chat: there are no messages; expected at least one");
  CHECK(message_of("mistral-plain", {{"system", "S"}, {"user", "U"}}) ==
        "chat template 'mistral-plain' has no system turn; put its text into the first user turn, or name another "
        "template");
  CHECK(message_of("llama-2", {{"system", "S"}, {"user", "U"}, {"user", "V"}}) ==
        "chat template 'llama-2': message 3 is of 'user', expected 'assistant': after an optional system turn user and "
        "assistant alternate");
  CHECK_THAT(message_of("alpaca", {{"user", "a"}, {"assistant", "b"}, {"user", "c"}}),
             Catch::Contains("has room for one question and one answer, found 3 messages"));
}

TEST_CASE("chat format: the published texts are recognized, and change with a single character", "[data]") {
  const Json golden = read_json_file(DAGMOE_SOURCE_DIR "/tests/golden/chat_templates.json");
  std::vector<Json> items(golden["templates"].begin(), golden["templates"].end());
  items.insert(items.end(), golden["also"].begin(), golden["also"].end());
  for (const Json& item : items) {
    const auto name = item["name"].get<std::string>(), jinja = item["jinja"].get<std::string>();
    if (name.starts_with("alpaca")) continue;
    CAPTURE(name, sha256_hex(canonical_jinja(jinja)));
    const auto known = recognize_jinja(jinja);
    CHECK(known);
    if (!known) continue;
    // Qwen2's text is ChatML with a default system turn.
    CHECK(name_of(known->form) == (name == "qwen" ? "chatml" : name));
    for (const std::size_t position : {jinja.size() / 3, jinja.size() / 2, jinja.size() * 2 / 3}) {
      std::string changed = jinja;
      changed.insert(changed.find_first_of("abcdefghijklmnopqrstuvwxyz", position), "q");
      const auto other = recognize_jinja(changed);  // another default system turn is ChatML still
      CHECK((!other || other->default_system != known->default_system));
    }
  }
}

TEST_CASE("chat format: a name takes BOS and EOS of the checkpoint, and what its own template says", "[data]") {
  const Folder folder;
  CHECK(chat_format(PromptTemplate::kLlama2, folder.path()).eos == "</s>");
  folder.write("tokenizer_config.json", R"({"bos_token": "<b>", "eos_token": {"content": "<e>"}})");
  const ChatFormat llama = chat_format(PromptTemplate::kLlama2, folder.path());
  CHECK(joined(render_chat(llama, {{"user", "Hi"}, {"assistant", "Ho"}}, false)) == "<b>[INST] Hi [/INST] Ho <e>");
  folder.write("chat_template.jinja", kWithDefault);
  CHECK(chat_format(PromptTemplate::kChatMl, folder.path()).default_system == "You are a test.");
  CHECK(chat_format(PromptTemplate::kQwen, folder.path()).default_system == "You are a helpful assistant.");
  const Json golden = read_json_file(DAGMOE_SOURCE_DIR "/tests/golden/chat_templates.json");
  folder.write("chat_template.jinja", golden["also"][0]["jinja"].get<std::string>());  // OLMo-7B-Instruct
  const ChatFormat olmo = chat_format_of(folder.path()).value();
  CHECK(joined(render_chat(olmo, {{"user", "Hi"}}, true)) == "<e><|user|>\nHi\n<|assistant|>\n");
  CHECK_THROWS_WITH(render_chat(olmo, {{"system", "S"}, {"user", "Hi"}}, true),
                    Catch::StartsWith("chat template 'olmo' has no system turn"));
  folder.write("chat_template.jinja", "{{ messages }}");  // its own is not known, a name works all the same
  CHECK(chat_format(PromptTemplate::kMistral, folder.path()).bos == "<b>");
}
