// What happens when a value stops being finite: nothing to the weights, and the message names the place.
#include <ATen/ATen.h>

#include <limits>

#include "base/error.h"
#include "finetune/checkpoints.h"
#include "finetune/run.h"
#include "tests/support/catch.h"
#include "tests/support/run_fixture.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

// Token 40 of the first sample is one that the loss counts: samples have 48 tokens, and the answer is their end.
constexpr std::int64_t kAnswerToken = 40, kPromptToken = 0;

// Changes the output of one module in all forward passes from the n-th on, without autograd noticing.
class Injection {
 public:
  Injection(std::string module, int first_pass, int last_pass = std::numeric_limits<int>::max())
      : module_(std::move(module)), first_pass_(first_pass), last_pass_(last_pass) {}
  /// Whether this call is one to change.
  bool hits(const std::string& module) {
    if (module == "model.embed_tokens") ++pass_;
    return module == module_ && pass_ >= first_pass_ && pass_ <= last_pass_;
  }

 private:
  std::string module_;
  int first_pass_, last_pass_, pass_ = 0;
};

RunOptions with_nan_activation(const std::string& module, int first_pass,
                               int last_pass = std::numeric_limits<int>::max(), std::int64_t token = kAnswerToken) {
  RunOptions options;
  options.on_module = [token, injection = std::make_shared<Injection>(module, first_pass, last_pass)](
                          const std::string& name, const at::Tensor& output_TD) {
    if (injection->hits(name))
      output_TD.mutable_data_ptr<float>()[token * output_TD.size(1)] = std::numeric_limits<float>::quiet_NaN();
  };
  return options;
}

RunOptions with_nan_gradient(const std::string& module, int first_pass) {
  RunOptions options;
  options.on_module = [injection = std::make_shared<Injection>(module, first_pass)](const std::string& name,
                                                                                    const at::Tensor& output_TD) {
    if (!injection->hits(name) || !output_TD.requires_grad()) return;
    output_TD.register_hook([](const at::Tensor& gradient) {
      at::Tensor changed = gradient.clone();
      changed[0][0] = std::numeric_limits<float>::quiet_NaN();
      return changed;
    });
  };
  return options;
}

std::string failure_of(const Recipe& recipe, const RunOptions& options) {
  try {
    run_finetune(recipe, options);
  } catch (const NumericsError& error) {
    REQUIRE(error.exit_code() == ExitCode::kNumerics);
    return error.what();
  }
  FAIL("expected NumericsError");
  return "";
}

}  // namespace

TEST_CASE("numerics: a NaN in an activation names its module and leaves every weight as it was", "[finetune]") {
  // One micro batch a step and no validation: pass n is step n.
  const TinyRun run("steps: 6\n");
  const std::vector<std::string> one_batch{"batch.micro_batch_tokens=4096", "data.valid=[]"};
  std::vector<std::string> two_steps = one_batch;
  two_steps.emplace_back("steps=2");
  run_finetune(run.into("two", two_steps), {});
  const std::string message = failure_of(run.into("bad", one_batch), with_nan_activation("model.layers.1.mlp", 3));
  REQUIRE_THAT(message, Catch::Contains("step 3, micro batch 1 of 1: the output of model.layers.1.mlp is not finite") &&
                            Catch::Contains("no weight was changed"));
  const auto saved = newest_checkpoint(run.folder / "bad");
  REQUIRE(saved->step == 2);
  REQUIRE(changed_tensors(run.folder / "two" / "final", saved->path).empty());
  // A token outside the loss spoils gradients all the same.
  REQUIRE_THAT(failure_of(run.into("prompt", one_batch),
                          with_nan_activation("model.layers.1.mlp", 3, std::numeric_limits<int>::max(), kPromptToken)),
               Catch::Contains("step 3, micro batch 1 of 1: the output of model.layers.1.mlp is not finite"));
  // What comes first is named, though the NaN runs through everything behind it.
  REQUIRE_THAT(failure_of(run.into("early", one_batch), with_nan_activation("model.layers.0.self_attn", 2)),
               Catch::Contains("the output of model.layers.0.self_attn"));
}

TEST_CASE("numerics: a NaN in a gradient names the parameter next to it and leaves every weight as it was",
          "[finetune]") {
  const TinyRun run("steps: 6\n");
  const std::vector<std::string> one_batch{"trainable=[full]", "batch.micro_batch_tokens=4096", "data.valid=[]"};
  std::vector<std::string> two_steps = one_batch;
  two_steps.emplace_back("steps=2");
  run_finetune(run.into("two", two_steps), {});
  const std::string message = failure_of(run.into("bad", one_batch), with_nan_gradient("model.layers.0.mlp", 3));
  REQUIRE_THAT(message, Catch::Contains("step 3, micro batch 1 of 1: the gradient of "
                                        "model.layers.0.mlp.dag.1.up_proj.weight is not finite") &&
                            Catch::Contains("no weight was changed"));
  const auto saved = newest_checkpoint(run.folder / "bad");
  REQUIRE(saved->step == 2);
  REQUIRE(changed_tensors(run.folder / "two" / "final", saved->path).empty());
}

TEST_CASE("numerics: the run goes on from the saved state as if the fault had never been", "[finetune]") {
  const TinyRun run("steps: 6\n");
  const std::vector<std::string> one_batch{"batch.micro_batch_tokens=4096", "data.valid=[]"};
  run_finetune(run.into("whole", one_batch), {});
  failure_of(run.into("bad", one_batch), with_nan_activation("model.norm", 4));
  run_finetune(run.into("bad", one_batch), {.resume = true});
  REQUIRE(metrics_of(run.folder / "bad") == metrics_of(run.folder / "whole"));
  REQUIRE(changed_tensors(run.folder / "whole" / "final", run.folder / "bad" / "final").empty());
}

TEST_CASE("numerics: steps can be skipped up to a budget, each named in the metrics", "[finetune]") {
  const TinyRun run("steps: 6\nmax_skipped_steps: 1\n");
  const std::vector<std::string> one_batch{"batch.micro_batch_tokens=4096", "data.valid=[]"};
  // The third step, and the pass that looks for the cause.
  const RunResult result =
      run_finetune(run.into("skipped", one_batch), with_nan_activation("model.layers.1.mlp", 3, 4));
  REQUIRE(result.steps == 6);
  const auto lines = metrics_of(run.folder / "skipped");
  REQUIRE(lines.size() == 6);
  REQUIRE(Json::parse(lines[2])["skipped"] == true);
  REQUIRE(Json::parse(lines[2])["fault"].get<std::string>().find("model.layers.1.mlp") != std::string::npos);
  REQUIRE_FALSE(Json::parse(lines[3]).contains("skipped"));
  REQUIRE_THAT(failure_of(run.into("spent", one_batch), with_nan_activation("model.layers.1.mlp", 3)),
               Catch::Contains("step 4") && Catch::Contains("1 steps were skipped before"));
}

TEST_CASE("numerics: a run that diverges stops with the step at fault", "[finetune]") {
  const TinyRun run("steps: 50\n");
  REQUIRE_THAT(failure_of(run.recipe({"optimizer.lr=1000", "max_grad_norm=0"}), {}),
               Catch::Contains("no weight was changed") && Catch::Contains("a lower learning rate may help"));
}
