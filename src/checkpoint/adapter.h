#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "peft/adapter_spec.h"

namespace dagmoe {

/// The base that an adapter was trained on, as hexadecimal SHA-256 of what matters of its config.json and of a sample
/// of its weights (weights_fingerprint). Empty where the adapter does not say, as peft's do not.
struct AdapterBase {
  std::string path, config_sha256, weights_sha256;
};

/// An adapter folder in memory: peft's adapter_config.json and adapter_model.safetensors (contracts.md 5), linear
/// layers and target_parameters experts, with what ours add under the key "dagmoe".
struct Adapter {
  std::filesystem::path folder;
  AdapterSpec spec;
  std::map<std::string, at::Tensor> factors;  ///< float, by the names of spec.parameters() and spec.buffers()
  /// Parameters that were trained in full, float, by our names (peft's modules_to_save): those of the DAG among them.
  std::map<std::string, at::Tensor> full;
  std::optional<DagConfig> dag;  ///< of the model it was trained in, when it has the DAG's weights
  AdapterBase base;
};

/// Whether a folder is an adapter's: it has adapter_config.json.
bool is_adapter_folder(const std::filesystem::path& folder);
/// The DAG that an adapter brings to a base; nullopt when it has no DAG weights.
std::optional<DagConfig> adapter_dag(const std::filesystem::path& folder);
/// Reads an adapter for a model of this config (the base's, with the adapter's DAG). Throws InputError with every
/// problem: tensors missing, unexpected, of a wrong shape, ambiguous; targets that match nothing; kinds that are not
/// supported.
Adapter read_adapter(const std::filesystem::path& folder, const ModelConfig& config);

/// SHA-256 over the names, types and shapes of all tensors of a model folder and up to 64 KiB from the beginning of
/// each one's bytes: any training that reached a tensor shows, and a large model is not read to be named.
std::string weights_fingerprint(const Checkpoint& checkpoint);
AdapterBase describe_base(const Checkpoint& base);
/// The base that an adapter folder names, without reading its tensors.
AdapterBase adapter_base(const std::filesystem::path& folder);
/// Throws InputError when an adapter names another base than this one.
void check_base(const std::filesystem::path& adapter, const AdapterBase& named, const Checkpoint& base);
inline void check_base(const Adapter& adapter, const Checkpoint& base) {
  check_base(adapter.folder, adapter.base, base);
}

/// Adds what the adapter holds to the model, frozen: its layers then compute with it. Several may be attached; of
/// parameters in full the last one's count. PiSSA's start is taken from the base weights.
void attach_adapter(Decoder& model, const Adapter& adapter);
/// Adds a new adapter, which changes nothing yet and requires grad. Every factor is a function of `seed` and its
/// layer's name alone.
void attach_new_adapter(Decoder& model, const AdapterSpec& spec, std::uint64_t seed);

/// Writes the model's one attached adapter, and in full every other parameter that requires grad, into `folder`, which
/// must exist. Factors are float. PiSSA is written as LoRA of twice the rank on the unchanged base, as peft's
/// conversion does.
void save_adapter(const std::filesystem::path& folder, Decoder& model, const AdapterSpec& spec, const Checkpoint& base);

/// Replaces every weight that attached adapters change by its changed form and removes the adapters. Returns the names
/// of the changed parameters; they require grad afterwards, which is what save_model writes anew. Throws InputError for
/// S'MoRE and SMoRA, which no weights are equal to.
std::vector<std::string> fold_adapters(Decoder& model);

}  // namespace dagmoe
