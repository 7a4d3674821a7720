// Every file of recipes/ is valid, and runs for two steps with a tiny model and stand-in data in its place: a new
// recipe is found by itself.
#include "base/text.h"
#include "finetune/run.h"
#include "finetune/run_setup.h"
#include "peft/esft.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr int kRecords = 8;

std::vector<std::filesystem::path> shipped_recipes() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(DAGMOE_SOURCE_DIR) / "recipes")) {
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

// A record as the published files of a format have them, fields that nobody reads included.
Json stand_in_record(RecordFormat format, int index) {
  const std::string question = "Say the letter " + std::string(1, static_cast<char>('a' + index)), answer = "aaaa bbbb";
  switch (format) {
    case RecordFormat::kAlpaca:
      return {{"instruction", question}, {"input", index % 2 == 0 ? "" : "twice"}, {"output", answer}};
    case RecordFormat::kMetaMath:
      return {{"type", "GSM_Rephrased"}, {"query", question + "\nonce"}, {"response", answer}};
    case RecordFormat::kMathInstruct:
      return {{"source", "data/CoT/gsm_train.json"}, {"instruction", question}, {"output", answer}};
    case RecordFormat::kOpenOrca:
      return {{"id", "flan.1"}, {"system_prompt", "Be brief."}, {"question", question}, {"response", answer}};
    case RecordFormat::kDolly:
      return {{"instruction", question}, {"context", ""}, {"response", answer}, {"category", "open_qa"}};
    case RecordFormat::kGsm8k:
      return {{"question", question}, {"answer", answer}};
    case RecordFormat::kMessages: {
      const Json user = {{"role", "user"}, {"content", question}}, reply = {{"role", "assistant"}, {"content", answer}};
      return {{"messages", Json::array({user, reply})}};
    }
    case RecordFormat::kShareGpt: {
      const Json system = {{"from", "system"}, {"value", "Be brief."}}, user = {{"from", "human"}, {"value", question}},
                 reply = {{"from", "gpt"}, {"value", answer}};
      return {{"id", index}, {"conversations", Json::array({system, user, reply})}};
    }
    case RecordFormat::kPromptCompletion:
      return {{"prompt", question}, {"completion", answer}};
    case RecordFormat::kText: {
      std::string text = question;
      for (int i = 0; i < 40 * index; ++i) text += "\n" + answer;  // the longer ones come in parts
      return {{"text", text}, {"source", "made up"}};
    }
  }
  throw std::runtime_error("no stand-in records of this format");
}

// One array for .json, a line each for .jsonl: as the file is named, so it is read.
void write_stand_in(const std::filesystem::path& file, RecordFormat format) {
  std::vector<std::string> records;
  for (int i = 0; i < kRecords; ++i) records.push_back(stand_in_record(format, i).dump());
  const bool is_array = file.extension() == ".json";
  write_text(file, is_array ? "[" + join(records, ",\n") + "]\n" : join(records, "\n") + "\n");
}

void replace_data(std::vector<DataRecipe>& data, const std::filesystem::path& folder) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::filesystem::path file = folder / std::to_string(i) / std::filesystem::path(data[i].path).filename();
    write_stand_in(file, data[i].format);
    data[i].path = file.string();
  }
}

// A selection of two experts in every layer.
void write_selection(const std::filesystem::path& file, const ModelConfig& config) {
  EsftConfig selection;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) selection.experts[layer] = {2, 0};
  write_text(file, esft_config_text(selection));
}

// As many layers as the rules name, and experts wide enough (4,096 elements) for optimizer state of 8 bits.
ModelConfig stand_in_config(const Recipe& recipe) {
  ModelConfig config = tiny_folder_config();
  for (const TrainableEntry& entry : recipe.trainable) {
    for (const auto& layers : entry.layers)
      config.num_hidden_layers = std::max(config.num_hidden_layers, parse_layer_range(layers)->last + 1);
  }
  config.intermediate_size = config.moe->moe_intermediate_size = 260;
  if (!recipe.model.path.ends_with("-dagmoe")) {
    config.moe.reset(), config.dag.reset();
    config.model_type = config.base_model_type = "llama";
  }
  return config;
}

// The recipe with nothing changed but its model, its data and its length.
Recipe with_stand_ins(Recipe recipe, const TemporaryFolder& folder) {
  write_tiny_folder(folder / "model", stand_in_config(recipe));
  if (recipe.esft) {
    write_selection(folder / "selection.json", stand_in_config(recipe));
    recipe.esft->experts = (folder / "selection.json").string();
  }
  recipe.model.path = (folder / "model").string();
  recipe.output_dir = (folder / "run").string();
  replace_data(recipe.data.train, folder / "train");
  replace_data(recipe.data.valid, folder / "valid");
  recipe.epochs.reset();
  recipe.steps = 2;
  recipe.schedule.warmup_steps = std::min<std::int64_t>(recipe.schedule.warmup_steps, 1);
  return recipe;
}

int num_step_lines(const std::filesystem::path& run_folder) {
  int count = 0;
  for (const auto& line : metrics_of(run_folder)) {
    if (Json::parse(line).contains("loss")) ++count;
  }
  return count;
}

}  // namespace

TEST_CASE("recipes: every shipped one is valid", "[finetune]") {
  const auto files = shipped_recipes();
  REQUIRE(files.size() >= 8);
  for (const auto& file : files) {
    INFO(file);
    REQUIRE_NOTHROW(load_recipe(file));
  }
}

TEST_CASE("recipes: every shipped one trains what it names, without a setting that has no effect", "[finetune]") {
  for (const auto& file : shipped_recipes()) {
    INFO(file);
    const TemporaryFolder folder;
    const Recipe recipe = with_stand_ins(load_recipe(file), folder);
    // The stand-in alone knows fewer positions than the model that the recipe is for.
    for (const auto& warning : prepare_run(recipe).warnings) REQUIRE_THAT(warning, Catch::Contains("data.max_seq_len"));
    RunResult result;
    REQUIRE_NOTHROW(result = run_finetune(recipe, {}));
    REQUIRE(result.steps == 2);
    REQUIRE(num_step_lines(folder / "run") == 2);
    REQUIRE(result.output == folder / "run" / "final");
    REQUIRE(std::filesystem::exists(folder / "run" / "report.html"));
    if (saves_adapter(recipe)) {
      REQUIRE_NOTHROW(read_adapter(result.output, prepare_run(recipe).config));
      continue;
    }
    REQUIRE_NOTHROW(load_decoder(Checkpoint::open(result.output), {}));
    REQUIRE_FALSE(changed_tensors(folder / "model", result.output).empty());
  }
}

TEST_CASE("recipes: stand-ins exist for every record format", "[finetune]") {
  for (const auto& name : record_format_names()) {
    INFO(name);
    const TemporaryFolder folder;
    write_tiny_folder(folder / "model");
    const RecordFormat format = *record_format_named(name);
    write_stand_in(folder / "train.jsonl", format);
    write_text(folder / "a.yaml", recipe_text(folder.path(), "steps: 1\n"));
    Recipe recipe = load_recipe(folder / "a.yaml");
    recipe.data.valid.clear();
    recipe.data.train[0].format = format;
    REQUIRE(run_finetune(recipe, {}).steps == 1);
  }
}
