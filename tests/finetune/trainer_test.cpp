#include "finetune/trainer.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "base/text.h"
#include "finetune/run_data.h"
#include "finetune/run_setup.h"
#include "peft/trainable.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// 32 records whose prompts and answers have very different lengths.
void write_uneven_records(const std::filesystem::path& file) {
  std::string text;
  for (int i = 0; i < 32; ++i) {
    text += Json{{"instruction", "Say it " + std::string(static_cast<std::size_t>(3 + (7 * i) % 40), 'x')},
                 {"input", ""},
                 {"output", std::string(static_cast<std::size_t>(1 + (i * i) % 60), static_cast<char>('a' + i % 26))}}
                .dump() +
            "\n";
  }
  write_text(file, text);
}

// A new DAG's other weights have no gradient while its W_up is zero.
void wake_dag(Decoder& model) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : model.parameters()) {
    if (parameter_group(name) == "dag" && name.ends_with("up_proj.weight"))
      tensor->copy_(at::linspace(-0.3, 0.4, tensor->numel()).sin().view(tensor->sizes()));
  }
}

struct FirstStep {
  StepMetrics metrics;
  std::vector<std::string> names;
  std::vector<at::Tensor> gradients;
};

// The gradients of one step over all records, whose micro batches hold at most so many tokens.
FirstStep first_step(const TinyRun& run, std::int64_t micro_batch_tokens, const std::vector<std::string>& more = {},
                     const std::optional<LayersToRecompute>& recompute = {}) {
  std::vector<std::string> overrides{"trainable=[full]",         "optimizer.name=sgd",
                                     "optimizer.momentum=0",     "max_grad_norm=0",
                                     "router_aux_loss_coef=0.5", "router_z_loss_coef=0.1",
                                     "label_smoothing=0.1",      "batch.sequences=32",
                                     "data.shuffle=false",       "steps=1"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  const Recipe recipe = run.recipe(overrides);
  const RunSetup setup = prepare_run(recipe);
  RunData data = open_data(recipe);
  TrainConfig config = train_config(recipe, setup);
  config.num_steps = 1;
  config.batch.micro_batch_tokens = micro_batch_tokens;
  if (recompute) config.recompute = *recompute;
  Decoder model = load_decoder(setup.source, load_options(recipe, setup));
  wake_dag(model);
  Trainer trainer(model, data.train, config);
  FirstStep step{.metrics = trainer.step()};
  for (const auto& [name, tensor] : model.parameters()) {
    if (!tensor->grad().defined()) continue;
    step.names.push_back(name);
    step.gradients.push_back(tensor->grad());
  }
  return step;
}

double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).norm().item<double>() / b.norm().item<double>();
}

}  // namespace

TEST_CASE("trainer: 1 x 32, about 4 x 8 and 32 x 1 micro batches give the same gradients, auxiliary terms included",
          "[finetune]") {
  const TinyRun run;
  write_uneven_records(run.folder / "train.jsonl");
  const FirstStep whole = first_step(run, 100000);
  REQUIRE(whole.metrics.sequences == 32);
  for (const std::int64_t micro_batch_tokens : {whole.metrics.tokens / 4 + 40, std::int64_t{1}}) {
    const FirstStep parts = first_step(run, micro_batch_tokens);
    REQUIRE(parts.names == whole.names);
    REQUIRE(parts.metrics.loss == Approx(whole.metrics.loss).epsilon(1e-5));
    REQUIRE(parts.metrics.aux_loss == Approx(whole.metrics.aux_loss).epsilon(1e-5));
    REQUIRE(parts.metrics.z_loss == Approx(whole.metrics.z_loss).epsilon(1e-5));
    REQUIRE(parts.metrics.label_smoothing_loss == Approx(whole.metrics.label_smoothing_loss).epsilon(1e-5));
    REQUIRE(parts.metrics.expert_counts == whole.metrics.expert_counts);
    for (std::size_t i = 0; i < whole.names.size(); ++i) {
      INFO(whole.names[i] << " with micro batches of " << micro_batch_tokens << " tokens");
      REQUIRE(relative_difference(parts.gradients[i], whole.gradients[i]) < 1e-5);
    }
  }
}

TEST_CASE("trainer: the balance loss of micro batches alone is another objective, so the scope is a setting",
          "[finetune]") {
  const TinyRun run;
  write_uneven_records(run.folder / "train.jsonl");
  const std::vector<std::string> alone{"router_aux_loss_scope=batch"};
  const FirstStep whole = first_step(run, 100000, alone), parts = first_step(run, 1, alone);
  REQUIRE(std::abs(parts.metrics.aux_loss - whole.metrics.aux_loss) > 1e-3);
  double largest = 0.0;
  for (std::size_t i = 0; i < whole.names.size(); ++i)
    largest = std::max(largest, relative_difference(parts.gradients[i], whole.gradients[i]));
  REQUIRE(largest > 1e-3);
}

TEST_CASE("trainer: recomputed layers give the same step", "[finetune]") {
  const TinyRun run;
  write_uneven_records(run.folder / "train.jsonl");
  const FirstStep kept = first_step(run, 1000);
  for (const FirstStep& again : {first_step(run, 1000, {"recompute=true"}),
                                 first_step(run, 1000, {}, LayersToRecompute(std::vector<bool>{true, false})),
                                 first_step(run, 1000, {}, LayersToRecompute(std::vector<bool>{false, true}))}) {
    REQUIRE(again.metrics.loss == kept.metrics.loss);
    REQUIRE(again.metrics.expert_counts == kept.metrics.expert_counts);
    for (std::size_t i = 0; i < kept.names.size(); ++i) {
      INFO(kept.names[i]);
      REQUIRE(at::equal(again.gradients[i], kept.gradients[i]));
    }
  }
}

TEST_CASE("trainer: a beginning that samples share is computed once, and the step stays the same", "[finetune]") {
  const TinyRun run;
  write_uneven_records(run.folder / "train.jsonl");
  for (const char* trainable : {"full", "dag"}) {
    for (const bool recomputes : {false, true}) {
      INFO(trainable << ", recomputed layers: " << recomputes);
      const std::vector<std::string> what{str("trainable=[", trainable, "]")};
      std::vector<std::string> apart = what;
      apart.emplace_back("batch.share_prefixes=false");
      const FirstStep shared = first_step(run, 1500, what, recomputes), alone = first_step(run, 1500, apart);
      REQUIRE(alone.metrics.computed_tokens == alone.metrics.tokens);
      REQUIRE(shared.metrics.tokens == alone.metrics.tokens);
      REQUIRE(shared.metrics.computed_tokens < alone.metrics.tokens * 3 / 4);
      REQUIRE(shared.metrics.loss == Approx(alone.metrics.loss).epsilon(1e-5));
      REQUIRE(shared.metrics.aux_loss == Approx(alone.metrics.aux_loss).epsilon(1e-5));
      REQUIRE(shared.metrics.z_loss == Approx(alone.metrics.z_loss).epsilon(1e-5));
      REQUIRE(shared.metrics.expert_counts == alone.metrics.expert_counts);
      REQUIRE(shared.names == alone.names);
      for (std::size_t i = 0; i < alone.names.size(); ++i) {
        INFO(alone.names[i]);
        REQUIRE(relative_difference(shared.gradients[i], alone.gradients[i]) < 1e-5);
      }
    }
  }
}

TEST_CASE("trainer: what is drawn for a sample alone keeps its beginning apart", "[finetune]") {
  const TinyRun run;
  const auto shares = [&](const std::vector<std::string>& overrides) {
    const Recipe recipe = run.recipe(overrides);
    REQUIRE(why_prefixes_stay_apart(recipe).empty() == shares_prefixes(recipe));
    return train_config(recipe, prepare_run(recipe)).share_prefixes;
  };
  REQUIRE(shares({}));
  REQUIRE(shares({"lora.targets=[attention]"}));
  REQUIRE_FALSE(shares({"data.packing=false"}));
  REQUIRE_FALSE(shares({"neftune_alpha=5"}));
  REQUIRE_FALSE(shares({"lora.targets=[attention]", "lora.dropout=0.1"}));
  REQUIRE_FALSE(shares({"lora.targets=[attention]", "lora.kind=smore"}));
  REQUIRE_FALSE(shares({"lora.targets=[attention]", "lora.kind=smora"}));
  // A trainer that is told to share all the same would draw one sample's noise for all.
  const Recipe recipe = run.recipe(std::vector<std::string>{"neftune_alpha=5"});
  const RunSetup setup = prepare_run(recipe);
  RunData data = open_data(recipe);
  TrainConfig config = train_config(recipe, setup);
  config.share_prefixes = true;
  Decoder model = load_decoder(setup.source, load_options(recipe, setup));
  REQUIRE_THROWS_AS(Trainer(model, data.train, config), InternalError);
}

TEST_CASE("trainer: noise on the embeddings does not depend on how a step is cut", "[finetune]") {
  const TinyRun run("steps: 1\n");
  const std::vector<std::string> noisy{"neftune_alpha=5"};
  // Whole sequences in their order, so that each has the same number in the step.
  const FirstStep whole = first_step(run, 100000, noisy), parts = first_step(run, 1, noisy),
                  quiet = first_step(run, 100000);
  REQUIRE(parts.metrics.loss == Approx(whole.metrics.loss).epsilon(1e-5));
  REQUIRE(std::abs(quiet.metrics.loss - whole.metrics.loss) > 1e-4);
}
