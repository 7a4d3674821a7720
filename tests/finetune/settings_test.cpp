// No setting is silent: each key of a recipe, set to another value than its default, changes what a run leaves behind,
// is refused, or is named in a warning. A key without a row here fails the test.
#include <map>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "finetune/run.h"
#include "finetune/run_setup.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// How a setting shows.
enum class Effect {
  kMetrics,  // other numbers in metrics.jsonl
  kFiles,    // the same numbers, other files in the run folder
  kMemory,   // the same numbers and files to rounding; only cost changes
  kRefused,  // an error
  kWarned,   // a line of RunSetup::warnings
};

struct Case {
  Effect effect;
  std::vector<std::string> overrides;  // the setting first, then what it needs to matter
};

// By key as it is written, list indices left out.
std::multimap<std::string, Case> cases(const TinyRun& run) {
  const auto file = [&run](const char* name) { return (run.folder / name).string(); };
  const auto smore = [](const std::string& setting) -> std::vector<std::string> {
    return {"lora.smore." + setting, "lora.kind=smore", "lora.targets=[attention]"};
  };
  const auto two_sources = [&file](const std::string& more) {
    const std::string shape = ", format: alpaca, template: chatml";
    return str("[{path: ", file("train.jsonl"), shape, ", ", more, "}, {path: ", file("valid.jsonl"), shape, "}]");
  };
  const std::string cut = "data.max_seq_len=60", uneven = "data.train.0.path=" + file("uneven.jsonl");
  using enum Effect;
  return {
      {"version", {kRefused, {"version=2"}}},
      {"seed", {kMetrics, {"seed=4"}}},
      {"seed", {kWarned, {"seed=4", "data.shuffle=false"}}},
      {"output_dir", {kFiles, {"output_dir=" + file("elsewhere")}}},
      {"device", {kRefused, {"device=cuda"}}},
      {"dtype", {kMetrics, {"dtype=bfloat16"}}},
      {"model.path", {kMetrics, {"model.path=" + file("other_model")}}},
      {"model.dag.num_iterations", {kRefused, {"model.dag.num_iterations=3"}}},
      {"model.dag.node_size", {kRefused, {"model.dag.node_size=8"}}},
      {"model.dag.node_residual", {kRefused, {"model.dag.node_residual=none"}}},
      {"model.dag.norm", {kRefused, {"model.dag.norm=rms_norm"}}},
      {"model.dag.num_iterations", {kMetrics, {"model.dag.num_iterations=3", "model.path=" + file("plain")}}},
      {"model.dag.node_size", {kMetrics, {"model.dag.node_size=8", "model.path=" + file("plain")}}},
      {"model.dag.node_residual", {kMetrics, {"model.dag.node_residual=none", "model.path=" + file("plain")}}},
      {"model.dag.norm", {kMetrics, {"model.dag.norm=rms_norm", "model.path=" + file("plain")}}},
      {"trainable.group", {kMetrics, {"trainable=[router]"}}},
      {"trainable.group", {kWarned, {"trainable=[router, full]"}}},
      {"trainable.layers", {kMetrics, {"trainable=[{group: dag, layers: [1]}]"}}},
      {"trainable.lr", {kMetrics, {"trainable=[{group: dag, lr: 0.01}]"}}},
      {"trainable.weight_decay", {kMetrics, {"trainable=[{group: dag, weight_decay: 0.5}]"}}},
      {"esft.experts", {kMetrics, {"esft.experts=" + file("other_selection.json"), "trainable=[esft]"}}},
      {"esft.experts", {kWarned, {"esft.experts=" + file("other_selection.json")}}},
      {"lora.kind", {kMetrics, {"lora.kind=dora", "lora.targets=[attention]"}}},
      {"lora.kind", {kMetrics, {"lora.kind=smore", "lora.targets=[attention]"}}},
      {"lora.kind", {kMetrics, {"lora.kind=smora", "lora.targets=[attention]"}}},
      {"lora.kind", {kRefused, {"lora.kind=smore", "lora.targets=[experts]"}}},
      {"lora.init", {kMetrics, {"lora.init=pissa", "lora.targets=[attention]"}}},
      {"lora.init", {kRefused, {"lora.init=pissa", "lora.targets=[attention]", "lora.kind=dora"}}},
      {"lora.rank", {kMetrics, {"lora.rank=3", "lora.targets=[attention]"}}},
      {"lora.rank", {kMetrics, {"lora.rank=9", "lora.targets=[attention]", "lora.kind=smora"}}},
      {"lora.rank", {kRefused, {"lora.rank=3", "lora.targets=[attention]", "lora.kind=smore"}}},
      {"lora.alpha", {kMetrics, {"lora.alpha=3", "lora.targets=[attention]"}}},
      {"lora.alpha", {kMetrics, {"lora.alpha=3", "lora.targets=[attention]", "lora.kind=smore"}}},
      {"lora.alpha", {kMetrics, {"lora.alpha=3", "lora.targets=[attention]", "lora.kind=smora"}}},
      {"lora.dropout", {kMetrics, {"lora.dropout=0.5", "lora.targets=[attention]"}}},
      {"lora.dropout", {kRefused, {"lora.dropout=0.5", "lora.targets=[experts]"}}},
      {"lora.dropout", {kRefused, {"lora.dropout=0.5", "lora.targets=[attention]", "lora.kind=smora"}}},
      {"lora.rslora", {kMetrics, {"lora.rslora=true", "lora.targets=[attention]"}}},
      {"lora.rslora", {kRefused, {"lora.rslora=true", "lora.targets=[attention]", "lora.kind=smore"}}},
      {"lora.lr_ratio", {kMetrics, {"lora.lr_ratio=4", "lora.targets=[attention]"}}},
      {"lora.lr_ratio", {kMetrics, {"lora.lr_ratio=4", "lora.targets=[attention]", "lora.kind=smora"}}},
      {"lora.targets", {kMetrics, {"lora.targets=[v_proj]"}}},
      {"lora.targets", {kRefused, {"lora.targets=[w_proj]"}}},
      {"lora.patterns.target", {kMetrics, {"lora.patterns=[{target: v_proj, rank: 2}]", "lora.targets=[attention]"}}},
      {"lora.patterns.target", {kRefused, {"lora.patterns=[{target: gate, rank: 2}]", "lora.targets=[attention]"}}},
      {"lora.patterns.rank", {kMetrics, {"lora.patterns=[{target: q_proj, rank: 2}]", "lora.targets=[attention]"}}},
      {"lora.patterns.alpha", {kMetrics, {"lora.patterns=[{target: q_proj, alpha: 2}]", "lora.targets=[attention]"}}},
      {"lora.smore.num_experts", {kMetrics, smore("num_experts=[3, 5]")}},
      {"lora.smore.num_active", {kMetrics, smore("num_active=[1, 3]")}},
      {"lora.smore.ranks", {kMetrics, smore("ranks=[2, 5]")}},
      {"lora.smore.router_dim", {kMetrics, smore("router_dim=7")}},
      {"lora.smore.key_dim", {kMetrics, smore("key_dim=7")}},
      {"lora.smore.balance_coef", {kMetrics, smore("balance_coef=3")}},
      {"lora.smore.balance_coef", {kRefused, {"lora.smore.balance_coef=3", "lora.targets=[attention]"}}},
      {"lora.smora.num_active", {kMetrics, {"lora.smora.num_active=2", "lora.kind=smora", "lora.targets=[attention]"}}},
      {"lora.smora.num_active", {kWarned, {"lora.smora.num_active=8", "lora.kind=smora", "lora.targets=[attention]"}}},
      {"lora.smora.num_active", {kRefused, {"lora.smora.num_active=2", "lora.targets=[attention]"}}},
      {"lora.smora.bias_update_rate",
       {kMetrics, {"lora.smora.bias_update_rate=0.5", "lora.kind=smora", "lora.targets=[attention]", "lora.rank=16"}}},
      {"save_as", {kFiles, {"save_as=adapter"}}},
      {"save_as", {kRefused, {"save_as=model", "lora.targets=[attention]"}}},
      {"data.train.path", {kMetrics, {"data.train.0.path=" + file("valid.jsonl")}}},
      {"data.train.format", {kRefused, {"data.train.0.format=messages"}}},
      {"data.train.format", {kMetrics, {"data.train.0={path: " + file("texts.jsonl") + ", format: text}"}}},
      {"data.train.template", {kRefused, {"data.train.0.template=chatml", "data.train.0.format=text"}}},
      {"data.train.template", {kMetrics, {"data.train.0.template=alpaca"}}},
      {"data.train.weight", {kWarned, {"data.train.0.weight=0.5"}}},
      {"data.train.weight", {kRefused, {"data.train.0.weight=0.5", "data.train.0.epochs=2"}}},
      {"data.train.weight", {kMetrics, {"data.train=" + two_sources("weight: 0.1")}}},
      {"data.train.epochs", {kMetrics, {"data.train.0.epochs=0.2"}}},
      {"data.train.mask_prompt", {kMetrics, {"data.train.0.mask_prompt=false"}}},
      {"data.train.mask_prompt",
       {kWarned, {"data.train.0={path: " + file("texts.jsonl") + ", format: text, mask_prompt: false}"}}},
      {"data.train.loss_turns", {kWarned, {"data.train.0.loss_turns=last"}}},
      {"data.train.loss_turns",
       {kMetrics,
        {"data.train.0.loss_turns=last", "data.train.0.format=messages", "data.train.0.path=" + file("turns.jsonl")}}},
      {"data.train.columns.instruction", {kMetrics, {"data.train.0.columns={instruction: output}"}}},
      {"data.train.columns.instruction", {kRefused, {"data.train.0.columns={query: output}"}}},
      {"data.valid.path", {kMetrics, {"data.valid.0.path=" + file("train.jsonl")}}},
      {"data.valid.format", {kRefused, {"data.valid.0.format=messages"}}},
      {"data.valid.template", {kMetrics, {"data.valid.0.template=alpaca"}}},
      {"data.valid.weight", {kRefused, {"data.valid.0.weight=0.5"}}},
      {"data.valid.epochs", {kRefused, {"data.valid.0.epochs=2"}}},
      {"data.valid.mask_prompt", {kMetrics, {"data.valid.0.mask_prompt=false"}}},
      {"data.valid.loss_turns", {kWarned, {"data.valid.0.loss_turns=last"}}},
      {"data.valid.columns.instruction", {kMetrics, {"data.valid.0.columns={instruction: output}"}}},
      {"data.max_seq_len", {kMetrics, {"data.max_seq_len=40"}}},
      {"data.max_seq_len", {kWarned, {"data.max_seq_len=100000"}}},
      {"data.max_bad_records", {kMetrics, {"data.max_bad_records=1", "data.train.0.path=" + file("bad.jsonl")}}},
      {"data.limit", {kMetrics, {"data.limit=5"}}},
      {"data.valid_fraction", {kMetrics, {"data.valid_fraction=0.3", "data.valid=[]"}}},
      {"data.valid_fraction", {kRefused, {"data.valid_fraction=0.3"}}},
      {"data.deduplicate", {kMetrics, {"data.deduplicate=true", "data.train.0.path=" + file("twice.jsonl")}}},
      {"data.packing_lookahead", {kMetrics, {"data.packing_lookahead=1", "batch.tokens=110", uneven}}},
      {"data.packing_lookahead",
       {kWarned, {"data.packing_lookahead=1", "data.packing=false", "batch.micro_batch_tokens=4096"}}},
      // No token of this tokenizer spans two pieces; tests/data/masks_test.cpp has those where some do.
      {"data.tokenization", {kMemory, {"data.tokenization=joined"}}},
      {"data.long_samples", {kMetrics, {"data.long_samples=drop", cut, uneven}}},
      {"data.long_samples", {kMetrics, {"data.long_samples=truncate_prompt", cut, uneven}}},
      {"data.long_samples", {kRefused, {"data.long_samples=error", cut, uneven}}},
      {"data.ends_cut_with_eos", {kMetrics, {"data.ends_cut_with_eos=true", cut, uneven}}},
      {"data.ends_cut_with_eos", {kWarned, {"data.ends_cut_with_eos=true", "data.long_samples=drop"}}},
      {"data.shuffle_buffer", {kWarned, {"data.shuffle_buffer=5"}}},
      {"data.tokenizer_threads", {kMemory, {"data.tokenizer_threads=3"}}},
      {"data.packing", {kMemory, {"data.packing=false", "batch.micro_batch_tokens=4096"}}},
      {"data.packing", {kWarned, {"data.packing=false", "batch.micro_batch_tokens=64"}}},
      {"data.shuffle", {kMetrics, {"data.shuffle=false"}}},
      {"batch.tokens", {kMetrics, {"batch.tokens=200"}}},
      {"batch.sequences", {kMetrics, {"batch.sequences=3"}}},
      {"batch.micro_batch_tokens", {kMemory, {"batch.micro_batch_tokens=4096"}}},
      {"batch.share_prefixes", {kMemory, {"batch.share_prefixes=false"}}},
      {"batch.share_prefixes", {kWarned, {"batch.share_prefixes=false", "neftune_alpha=5"}}},
      {"batch.share_prefixes", {kWarned, {"batch.share_prefixes=false", "data.packing=false"}}},
      {"epochs", {kMetrics, {"epochs=2"}}},
      {"steps", {kMetrics, {"steps=3"}}},
      {"optimizer.name", {kMetrics, {"optimizer.name=sgd"}}},
      {"optimizer.name", {kMetrics, {"optimizer.name=muon"}}},
      {"optimizer.name", {kMetrics, {"optimizer.name=adamw_8bit", "trainable=[full]", "model.path=" + file("wide")}}},
      {"optimizer.lr", {kMetrics, {"optimizer.lr=0.01"}}},
      {"optimizer.betas", {kMetrics, {"optimizer.betas=[0.5, 0.9]"}}},
      {"optimizer.betas", {kWarned, {"optimizer.betas=[0.5, 0.9]", "optimizer.name=sgd"}}},
      {"optimizer.eps", {kMetrics, {"optimizer.eps=0.1"}}},
      {"optimizer.eps", {kWarned, {"optimizer.eps=0.1", "optimizer.name=sgd"}}},
      {"optimizer.weight_decay", {kMetrics, {"optimizer.weight_decay=0.5"}}},
      {"optimizer.momentum", {kMetrics, {"optimizer.momentum=0.5", "optimizer.name=sgd"}}},
      {"optimizer.momentum", {kWarned, {"optimizer.momentum=0.5"}}},
      {"optimizer.nesterov", {kMetrics, {"optimizer.nesterov=false", "optimizer.name=muon"}}},
      {"optimizer.nesterov", {kWarned, {"optimizer.nesterov=false"}}},
      {"schedule.kind", {kMetrics, {"schedule.kind=cosine"}}},
      {"schedule.warmup_steps", {kMetrics, {"schedule.warmup_steps=3"}}},
      {"schedule.min_lr_ratio", {kMetrics, {"schedule.min_lr_ratio=0.5", "schedule.kind=linear"}}},
      {"schedule.min_lr_ratio", {kWarned, {"schedule.min_lr_ratio=0.5"}}},
      {"schedule.decay_fraction", {kMetrics, {"schedule.decay_fraction=0.6", "schedule.kind=wsd"}}},
      {"schedule.decay_fraction", {kWarned, {"schedule.decay_fraction=0.6"}}},
      {"schedule.decay", {kMetrics, {"schedule.decay=sqrt", "schedule.kind=wsd", "schedule.decay_fraction=0.6"}}},
      {"schedule.decay", {kWarned, {"schedule.decay=sqrt"}}},
      {"max_grad_norm", {kMetrics, {"max_grad_norm=0.01", "optimizer.name=sgd"}}},
      {"label_smoothing", {kMetrics, {"label_smoothing=0.2"}}},
      {"neftune_alpha", {kMetrics, {"neftune_alpha=5"}}},
      {"router_aux_loss_coef", {kMetrics, {"router_aux_loss_coef=0.5"}}},
      {"router_aux_loss_coef", {kWarned, {"router_aux_loss_coef=0.5", "trainable=[model.norm.weight]"}}},
      {"router_z_loss_coef", {kMetrics, {"router_z_loss_coef=0.5"}}},
      {"router_z_loss_coef", {kWarned, {"router_z_loss_coef=0.5", "trainable=[model.norm.weight]"}}},
      {"router_aux_loss_scope", {kMetrics, {"router_aux_loss_scope=batch", "router_aux_loss_coef=0.5"}}},
      {"router_aux_loss_scope", {kWarned, {"router_aux_loss_scope=batch"}}},
      {"router_bias_update_rate", {kMetrics, {"router_bias_update_rate=0.2"}}},
      {"router_bias_update_rate", {kRefused, {"router_bias_update_rate=0.2", "model.path=" + file("plain")}}},
      {"recompute", {kMemory, {"recompute=true"}}},
      {"memory.budget_gb", {kMemory, {"memory.budget_gb=100"}}},  // plan_recompute_test.cpp has those that are short
      {"memory.budget_gb", {kRefused, {"memory.budget_gb=0.001"}}},
      {"memory.budget_gb", {kRefused, {"memory.budget_gb=100", "recompute=true"}}},
      {"max_skipped_steps", {kMetrics, {"max_skipped_steps=100", "optimizer.lr=1000", "max_grad_norm=0", "steps=20"}}},
      {"eval.every_steps", {kMetrics, {"eval.every_steps=2"}}},
      {"eval.every_steps", {kWarned, {"eval.every_steps=2", "data.valid=[]"}}},
      {"eval.tasks", {kMetrics, {"eval.tasks=[tiny]"}}},
      {"eval.limit", {kMetrics, {"eval.limit=2", "eval.tasks=[tiny]"}}},
      {"eval.limit", {kWarned, {"eval.limit=2"}}},
      {"eval.data_dir", {kMetrics, {"eval.data_dir=x", "eval.tasks=[tiny]"}}},
      {"eval.data_dir", {kWarned, {"eval.data_dir=x"}}},
      {"eval.datasets", {kMetrics, {"eval.datasets=[tiny=x]", "eval.tasks=[tiny]"}}},
      {"eval.datasets", {kWarned, {"eval.datasets=[tiny=x]"}}},
      {"eval.early_stopping_patience",
       {kMetrics, {"eval.early_stopping_patience=1", "eval.every_steps=1", "optimizer.lr=3", "steps=20"}}},
      {"eval.early_stopping_patience", {kWarned, {"eval.early_stopping_patience=1"}}},
      {"eval.early_stopping_min_delta",
       {kMetrics, {"eval.early_stopping_min_delta=100", "eval.early_stopping_patience=1", "eval.every_steps=1"}}},
      {"eval.early_stopping_min_delta", {kWarned, {"eval.early_stopping_min_delta=1"}}},
      {"checkpoint.every_steps", {kFiles, {"checkpoint.every_steps=2"}}},
      {"checkpoint.keep_last", {kFiles, {"checkpoint.keep_last=1", "checkpoint.every_steps=1"}}},
      {"checkpoint.keep_last", {kWarned, {"checkpoint.keep_last=1"}}},
      {"checkpoint.keep_best", {kFiles, {"checkpoint.keep_best=true", "eval.every_steps=1"}}},
      {"checkpoint.keep_best", {kWarned, {"checkpoint.keep_best=true"}}},
  };
}

// "data.train.0.path" -> "data.train.path"
std::string without_indices(const std::string& key) {
  std::vector<std::string> parts;
  for (const auto& part : split(key, '.')) {
    if (part.find_first_not_of("0123456789") != std::string::npos) parts.push_back(part);
  }
  return join(parts, ".");
}

// Every key that to_yaml writes, of a recipe that has all its optional parts.
std::set<std::string> all_keys(const TinyRun& run) {
  std::set<std::string> keys;
  for (const char* length : {"steps=2", "epochs=1"}) {
    for (const char* size : {"batch.tokens=600", "batch.sequences=3"}) {
      const Recipe recipe = run.recipe(
          {length, size, "model.dag.num_iterations=3", "trainable=[{group: dag, layers: [1], lr: 1, weight_decay: 1}]",
           "eval.tasks=[x]", "eval.datasets=[x=y]", "data.train.0.columns={instruction: x}", "data.train.0.weight=1",
           "data.valid.0.columns={instruction: x}", "data.valid.0.epochs=1", "memory.budget_gb=1"});
      for (const auto& [key, value] : recipe_settings(to_yaml(recipe))) keys.insert(without_indices(key));
    }
  }
  for (const char* kind : {"lora.kind=smore", "lora.kind=smora"}) {
    const Recipe recipe = run.recipe({kind, "lora.targets=[q_proj]", "lora.patterns=[{target: q_proj, alpha: 1}]"});
    for (const auto& [key, value] : recipe_settings(to_yaml(recipe))) keys.insert(without_indices(key));
  }
  keys.insert("lora.patterns.rank");                        // not with kind smore
  keys.insert({"data.train.epochs", "data.valid.weight"});  // one of the two
  return keys;
}

std::vector<std::string> files_of(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = std::filesystem::relative(entry.path(), folder).string();
    if (name.find("tfevents") == std::string::npos) files.push_back(name);
  }
  std::ranges::sort(files);
  return files;
}

struct Outcome {
  bool refused = false;
  std::vector<std::string> warnings, metrics, files;
  std::string folder;
};

// Scores depend on what the evaluation is told.
RunOptions with_evaluation(const Recipe& recipe) {
  RunOptions options;
  if (recipe.eval.tasks.empty()) return options;
  const std::string told = str(recipe.eval.limit, recipe.eval.data_dir, join(recipe.eval.datasets, ","));
  options.evaluate = [told](const Decoder&) { return Json{{"tiny", {{"acc", told}}}}; };
  return options;
}

Outcome outcome_of(const TinyRun& run, const std::vector<std::string>& overrides, const std::string& name) {
  Outcome outcome;
  std::vector<std::string> all{"output_dir=" + (run.folder / name).string()};
  all.insert(all.end(), overrides.begin(), overrides.end());
  try {
    const Recipe recipe = run.recipe(all);
    outcome.warnings = prepare_run(recipe).warnings;
    outcome.folder = recipe.output_dir;
    run_finetune(recipe, with_evaluation(recipe));
    outcome.metrics = metrics_of(recipe.output_dir);
    outcome.files = files_of(recipe.output_dir);
  } catch (const Error&) {
    outcome.refused = true;
  }
  return outcome;
}

// Whether a warning is about a key; those about rules name the list.
bool names(const std::vector<std::string>& warnings, const std::string& key) {
  const std::string word = key.starts_with("trainable.") ? "trainable" : key;
  return std::ranges::any_of(warnings,
                             [&](const auto& line) { return without_indices(line).find(word) != std::string::npos; });
}

// The fixture's folder and what some settings need: another model, one without a DAG, a wide one, a broken record.
struct SettingsRun : TinyRun {
  SettingsRun() : TinyRun("steps: 4\n") {
    write_tiny_folder(folder / "other_model", tiny_folder_config(), 6);
    ModelConfig plain = tiny_folder_config();
    plain.dag.reset();
    plain.model_type = "mixtral";
    write_tiny_folder(folder / "plain", plain);
    ModelConfig wide = tiny_folder_config();
    wide.moe->moe_intermediate_size = wide.intermediate_size = 260;  // matrices of more than 4,096 elements
    write_tiny_folder(folder / "wide", wide);
    // What a rule needs beside it is there for every case.
    write_text(folder / "selection.json", R"({"experts": {"0": [0], "1": [1, 2]}})");
    write_text(folder / "other_selection.json", R"({"experts": {"0": [3], "1": []}})");
    write_text(folder / "a.yaml",
               recipe_text(folder.path(), "steps: 4\nesft: {experts: " + (folder / "selection.json").string() + "}\n"));
    write_text(folder / "texts.jsonl", "{\"text\": \"" + std::string(900, 'a') + "\"}\n{\"text\": \"abc\"}\n");
    write_text(folder / "twice.jsonl", read_text(folder / "valid.jsonl") + read_text(folder / "train.jsonl"));
    std::string turns;
    for (int i = 0; i < 20; ++i) {
      Json messages = Json::array();
      for (const char* role : {"user", "assistant", "user", "assistant"})
        messages.push_back({{"role", role}, {"content", role + std::to_string(i)}});
      turns += Json{{"messages", messages}}.dump() + "\n";
    }
    write_text(folder / "turns.jsonl", turns);
    std::string uneven;
    for (int i = 0; i < 20; ++i) {
      const std::string output(i % 2 == 0 ? 5 : 45, static_cast<char>('a' + i));
      uneven += Json{{"instruction", "Say it"}, {"input", ""}, {"output", output}}.dump() + "\n";
    }
    write_text(folder / "uneven.jsonl", uneven);
    write_text(folder / "bad.jsonl", "{broken\n" + read_text(folder / "train.jsonl"));
  }
};

}  // namespace

TEST_CASE("settings: every key changes the run, is refused, or is warned about", "[finetune]") {
  const SettingsRun run;
  const auto table = cases(run);
  for (const auto& key : all_keys(run)) {
    INFO("a key without a row in this test: " << key);
    REQUIRE(table.contains(key));
  }
  int count = 0;
  for (const auto& [key, entry] : table) {
    INFO(key << " with " << join(entry.overrides, " "));
    const std::string base_name = "base" + std::to_string(count), name = "set" + std::to_string(count++);
    const std::vector<std::string> others(entry.overrides.begin() + 1, entry.overrides.end());
    const Outcome set = outcome_of(run, entry.overrides, name);
    REQUIRE(set.refused == (entry.effect == Effect::kRefused));
    if (set.refused) continue;
    const Outcome base = outcome_of(run, others, base_name);
    switch (entry.effect) {
      case Effect::kMetrics:
        REQUIRE(set.metrics != base.metrics);
        break;
      case Effect::kFiles:
        REQUIRE((set.files != base.files || set.folder.ends_with("elsewhere")));
        break;
      case Effect::kMemory:
        REQUIRE(set.metrics.size() == base.metrics.size());
        break;
      case Effect::kWarned:
        REQUIRE(names(set.warnings, key));
        break;
      case Effect::kRefused:
        break;
    }
  }
}
