#pragma once

#include <functional>

#include "base/json.h"
#include "finetune/recipe.h"
#include "model/decoder.h"

namespace dagmoe {

/// Scores the tasks of a recipe's eval.tasks for a run: {"arc_easy": {"acc": 0.46, "acc_stderr": 0.02}}; empty without
/// tasks. Throws ConfigError or InputError at once for tasks or data files that are not there, so that no run fails
/// hours later.
std::function<Json(const Decoder& model)> task_evaluator(const Recipe& recipe);

}  // namespace dagmoe
