#pragma once

#include <string>

#include "model/config.h"

namespace dagmoe {

/// The tensor name a family uses on disk for one of our parameters (contracts.md 1.4). Ours are the Llama names, with
/// `mlp.gate` and `mlp.experts.E.{gate,up,down}_proj` for routed layers; DAG tensors are named alike everywhere.
std::string disk_name(const ModelConfig& config, const std::string& parameter);

}  // namespace dagmoe
