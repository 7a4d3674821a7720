#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "checkpoint/import_gguf_metadata.h"

namespace dagmoe {

/// What one value of general.architecture means; all that differs between architectures is here.
struct GgufArchitecture {
  const char* name;
  /// The rows of each head of q and k are stored for the rotation of adjacent pairs (contracts.md 2.3).
  bool interleaves_heads;
  /// Fills in the keys of config.json that not every architecture has: model_type, biases, experts.
  void (*add_settings)(const GgufMetadata& metadata, Json& config);
};

/// Throws InputError that lists the known ones when the file is of another architecture or of none.
const GgufArchitecture& find_gguf_architecture(const GgufMetadata& metadata);

/// The name in GGUF files of a part of a layer, both without ".weight" or ".bias": "self_attn.q_proj" (as it is after
/// "model.layers.N.") -> "attn_q" (as it is after "blk.N."). Of an expert it is the part after "mlp.experts.E.".
std::string gguf_layer_name(std::string_view ours);

}  // namespace dagmoe
