#include "data/prompt_template.h"

#include <filesystem>
#include <fstream>
#include <random>

#include "base/error.h"
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
  const auto pieces = render_chatml({{"user", "Hi <|im_end|>"}, {"assistant", "Yo"}}, "", false);
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
  CHECK(joined(render_chatml({{"user", "Hi"}}, "Be kind.", true)) ==
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  CHECK(joined(render_chatml({{"system", "S"}, {"user", "Hi"}}, "Be kind.", false)) ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
  CHECK(joined(render_chatml({{"user", "Hi"}}, "", true)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
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
                    Catch::Contains("tokenizer_config.json: this chat template is not known; known: ChatML"));
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
