// What training data means for a run: packing changes nothing, sources are counted, what is bad is kept.
#include <ATen/ATen.h>

#include <map>
#include <set>

#include "base/error.h"
#include "finetune/data_preview.h"
#include "finetune/run.h"
#include "finetune/run_data.h"
#include "finetune/run_setup.h"
#include "finetune/trainer.h"
#include "kernels/ops.h"
#include "tests/support/catch.h"
#include "tests/support/compare.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

Example example_of(const std::string& text) {
  Example example;
  for (std::size_t i = 0; i < text.size(); ++i) {
    example.tokens.push_back(static_cast<TokenId>(3 + static_cast<unsigned char>(text[i])));
    example.loss_mask.push_back(i >= text.size() / 3);
  }
  return example;
}

struct Learnt {
  double loss = 0.0;
  std::map<std::string, at::Tensor> gradients;
};

// Sums over the batches of one step: the loss and the gradient of every parameter.
Learnt learn(Decoder& model, const std::vector<PackedBatch>& batches) {
  Learnt learnt;
  for (const auto& [name, tensor] : model.parameters()) tensor->set_requires_grad(true), tensor->mutable_grad().reset();
  for (const PackedBatch& batch : batches) {
    const ModelOutput output = model.forward(model_input(batch));
    const at::Tensor loss = masked_cross_entropy(output.hidden_TD, model.output_weight(), label_tensor(batch), 1.0);
    learnt.loss += loss.item<double>();
    loss.backward();
  }
  for (const auto& [name, tensor] : model.parameters()) {
    if (tensor->grad().defined()) learnt.gradients[name] = tensor->grad().clone();
  }
  return learnt;
}

const std::vector<std::string> kTexts = {"a short one", "another text, which is longer than the first", "x",
                                         "numbers 1 2 3 4 5 6 7 8 9", "the last one ends here"};

// Source i has records of its own.
std::string write_sources(const TinyRun& run, Recipe& recipe) {
  recipe.data.train.clear();
  for (int s = 0; s < 3; ++s) {
    std::string text;
    for (int i = 0; i < 25 + 10 * s; ++i) {
      const std::string letters(static_cast<std::size_t>(1 + (i * i + s) % 50), static_cast<char>('a' + s));
      text += Json{{"instruction", "Say " + std::to_string(i)}, {"input", ""}, {"output", letters}}.dump() + "\n";
    }
    const std::filesystem::path file = run.folder / ("source" + std::to_string(s) + ".jsonl");
    write_text(file, text);
    DataRecipe& source = recipe.data.train.emplace_back();
    source.path = file.string();
    source.prompt_template = "chatml";
    source.weight = 1.0 + s;
  }
  return recipe.data.train[0].path;
}

}  // namespace

TEST_CASE("packing: loss and gradients of a packed batch are those of the samples alone", "[finetune]") {
  const TinyRun run;
  Decoder model = load_decoder(Checkpoint::open(run.folder / "model"), {.compute_dtype = at::kFloat});
  PackedBatch packed;
  std::vector<PackedBatch> alone;
  for (const std::string& text : kTexts) {
    append_example(packed, example_of(text));
    append_example(alone.emplace_back(), example_of(text));
  }
  const Learnt together = learn(model, {packed}), each = learn(model, alone);
  REQUIRE(together.loss == Approx(each.loss).epsilon(1e-5));
  REQUIRE(together.gradients.size() == each.gradients.size());
  REQUIRE(together.gradients.size() > 10);
  for (const auto& [name, gradient] : each.gradients) {
    INFO(name);
    const double scale = gradient.abs().max().item<double>();
    REQUIRE((together.gradients.at(name) - gradient).abs().max().item<double>() <= 1e-5 * scale + 1e-9);
  }
}

TEST_CASE("packing: another sample in its place changes nothing of the others, to the bit", "[finetune]") {
  const TinyRun run;
  const Decoder model = load_decoder(Checkpoint::open(run.folder / "model"), {.compute_dtype = at::kFloat});
  for (std::size_t changed = 0; changed < kTexts.size(); ++changed) {
    PackedBatch before, after;
    for (std::size_t i = 0; i < kTexts.size(); ++i) {
      append_example(before, example_of(kTexts[i]));
      append_example(after, example_of(i == changed ? std::string(kTexts[i].size(), '#') : kTexts[i]));
    }
    const at::Tensor x = model.forward(model_input(before)).hidden_TD, y = model.forward(model_input(after)).hidden_TD;
    for (std::size_t i = 0; i < kTexts.size(); ++i) {
      const std::int64_t begin = before.segment_offsets[i], length = before.segment_offsets[i + 1] - begin;
      const double difference = (x.narrow(0, begin, length) - y.narrow(0, begin, length)).abs().max().item<double>();
      INFO("sample " << i << ", changed " << changed);
      // Experts multiply the tokens of all samples at once, and a matrix product of other rows may round otherwise.
      if (i == changed) {
        REQUIRE(difference > 1e-3);
      } else {
        REQUIRE(difference < 1e-6);
      }
    }
  }
}

TEST_CASE("data: the lines of a mixture count what came from each source", "[finetune]") {
  const TinyRun run("steps: 8\n");
  Recipe recipe = run.recipe();
  write_sources(run, recipe);
  run_finetune(recipe, {});
  std::int64_t num_lines = 0;
  std::vector<std::int64_t> samples(3);
  for (const std::string& text : metrics_of(run.folder / "run")) {
    const Json line = Json::parse(text);
    if (!line.contains("loss")) continue;
    ++num_lines;
    REQUIRE(line.at("sources").size() == 3);
    std::int64_t tokens = 0, supervised = 0, sequences = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      const Json& source = line["sources"][s];
      REQUIRE(source["path"] == recipe.data.train[s].path);
      tokens += source["tokens"].get<std::int64_t>();
      supervised += source["supervised_tokens"].get<std::int64_t>();
      sequences += source["samples"].get<std::int64_t>();
      samples[s] += source["samples"].get<std::int64_t>();
    }
    REQUIRE(tokens == line["tokens"]);
    REQUIRE(supervised == line["supervised_tokens"]);
    REQUIRE(sequences == line["sequences"]);
  }
  REQUIRE(num_lines == 8);
  REQUIRE(samples[2] > samples[0]);  // the weights are 1, 2, 3
}

TEST_CASE("data: valid_fraction validates on records that training never sees", "[finetune]") {
  const TinyRun run("steps: 2\neval: {every_steps: 1}\n");
  Recipe recipe = run.recipe();
  recipe.data.valid.clear();
  recipe.data.valid_fraction = 0.25;
  RunData data = open_data(recipe);
  REQUIRE(data.valid);
  std::set<std::string> train, valid;
  for (std::int64_t i = 0; i < data.train.size(); ++i) train.insert(data.train.place_of(*data.train.next()));
  for (std::int64_t i = 0; i < data.valid->size(); ++i) valid.insert(data.valid->place_of(*data.valid->next()));
  REQUIRE(train.size() + valid.size() == 40);
  for (const auto& place : valid) REQUIRE_FALSE(train.contains(place));
  REQUIRE(run_finetune(recipe, {}).valid_loss_after > 0);
}

TEST_CASE("data: bad records of a run are in its folder, and too many of them stop it", "[finetune]") {
  const TinyRun run("steps: 1\n");
  const std::filesystem::path file = run.folder / "train.jsonl";
  write_text(file, read_text(file) + "{\"instruction\": 1}\n");
  Recipe recipe = run.recipe();
  REQUIRE_THROWS_WITH(run_finetune(recipe, {}),
                      Catch::Contains("train.jsonl:41: field 'instruction'") && Catch::Contains("all of them are in "));
  const Json entry = Json::parse(read_text(run.folder / "run" / "bad_records.jsonl"));
  REQUIRE(entry["line"] == 41);
  REQUIRE(entry["text"] == "{\"instruction\": 1}");
  recipe.data.max_bad_records = 1;
  REQUIRE(run_finetune(recipe, {}).steps == 1);
  REQUIRE(Json::parse(read_text(run.folder / "run" / "bad_records.jsonl")) == entry);
}

TEST_CASE("preview: samples, counts and what looks wrong", "[finetune]") {
  const TinyRun run("steps: 1\n");
  std::string text;
  const auto add = [&text](const std::string& instruction, const std::string& output) {
    text += Json{{"instruction", instruction}, {"input", ""}, {"output", output}}.dump() + "\n";
  };
  add("Say a", "aaa");
  add("Say a", "aaa");
  add("Say b", " \n");
  add("Say c", "c\n\n### Instruction:\nmore");
  add("Say d", std::string(600, 'd'));
  add("Say e", "eee");
  write_text(run.folder / "train.jsonl", text + "{broken\n");
  Recipe recipe = run.recipe();
  recipe.data.max_bad_records = 1;
  recipe.data.shuffle = false;
  const DataPreview preview = preview_data(recipe, {.num_samples = 2});
  REQUIRE(preview.samples.size() == 2);
  REQUIRE(preview.samples[0].pieces.size() == 3);
  REQUIRE(preview.samples[0].pieces[0].text == "<|im_start|>user\nSay a<|im_end|>\n<|im_start|>assistant\n");
  REQUIRE(preview.samples[0].pieces[1].text == "aaa<|im_end|>");
  REQUIRE(preview.samples[0].pieces[1].is_supervised);
  REQUIRE(preview.samples_seen == 6);
  REQUIRE(preview.duplicates == 1);
  REQUIRE(preview.counters.truncated == 1);
  REQUIRE(preview.counters.bad_records == 1);
  REQUIRE(preview.findings.size() == 2);
  REQUIRE(preview.findings[0].what == "samples have an empty answer");
  REQUIRE(preview.findings[0].places == std::vector<std::string>{(run.folder / "train.jsonl").string() + ":3"});
  REQUIRE(preview.findings[1].what == "answers hold a turn marker of a template");
  REQUIRE(preview.findings[1].places == std::vector<std::string>{(run.folder / "train.jsonl").string() + ":4"});

  const std::string shown = preview_text(preview, /*color=*/false);
  REQUIRE_THAT(shown, Catch::Contains("assistant\n[[aaa<|im_end|>]]"));
  REQUIRE_THAT(shown, Catch::Contains("duplicates: 1 of the samples seen"));
  REQUIRE_THAT(shown, Catch::Contains("1 lost their end"));
  REQUIRE_THAT(shown, Catch::Contains("warning: 1 samples have an empty answer"));
  REQUIRE_THAT(preview_text(preview, /*color=*/true), Catch::Contains("\x1b[32maaa<|im_end|>\x1b[0m"));
  const Json json = preview_json(preview);
  REQUIRE(json["samples_seen"] == 6);
  std::int64_t in_histogram = 0;
  for (const Json& range : json["length"]["histogram"]) in_histogram += range["samples"].get<std::int64_t>();
  REQUIRE(in_histogram == 6);
}

// "plain" has no template that ends a turn, so that its BOS and its end are the data's.
TEST_CASE("preview: a doubled BOS is found, and an answer without an end", "[finetune]") {
  const TinyRun run("steps: 1\n");
  write_text(run.folder / "train.jsonl", Json{{"text", "<|im_start|>begins like a turn"}}.dump() + "\n");
  Recipe recipe = run.recipe();
  recipe.data.train[0].format = RecordFormat::kText;
  recipe.data.train[0].prompt_template = "auto";
  const std::filesystem::path config = run.folder / "model" / "tokenizer_config.json";
  Json settings = Json::parse(read_text(config));
  settings["add_bos_token"] = true;
  write_text(config, settings.dump());
  const std::filesystem::path tokenizer = run.folder / "model" / "tokenizer.json";
  Json document = Json::parse(read_text(tokenizer));
  document["post_processor"] =
      Json::parse(R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_start|>","type_id":0}},)"
                  R"({"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<|im_start|>":)"
                  R"({"id":"<|im_start|>","ids":[1],"tokens":["<|im_start|>"]}}})");
  write_text(tokenizer, document.dump());
  const DataPreview preview = preview_data(recipe, {});
  REQUIRE(preview.findings.size() >= 1);
  REQUIRE(preview.findings[0].what == "samples begin with BOS twice");
}
