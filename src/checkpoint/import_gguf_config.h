#pragma once

#include "base/json.h"
#include "checkpoint/import_gguf_architectures.h"
#include "checkpoint/import_gguf_metadata.h"

namespace dagmoe {

/// The model as a Hugging Face config.json (contracts.md 1.3, 2.3), so that sizes are checked where every other model's
/// are. Throws InputError for keys that are missing or that say what no config.json can.
Json gguf_config(const GgufMetadata& metadata, const GgufArchitecture& architecture);

}  // namespace dagmoe
