#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "model/config.h"

namespace dagmoe {

template <class Enum>
using EnumNames = std::initializer_list<std::pair<const char*, Enum>>;

/// The name of an enumerator in a table that holds them all.
template <class Enum>
const char* name_of(Enum value, EnumNames<Enum> names);

/// The keys of one JSON object, asked for one by one; problems are collected, not thrown.
class ConfigKeys {
 public:
  ConfigKeys(const Json& object, std::string prefix, std::vector<std::string>& problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  void problem(std::string_view key, const std::string& message);
  /// The value of a key, null when it is absent or null; counts as asked for.
  const Json* ask(std::string_view key);
  /// The same for a key that is checked but stays among the extra ones.
  const Json* peek(std::string_view key) const;
  bool is_absent(std::string_view key) const { return object_.find(key) == object_.end(); }
  bool was_asked(std::string_view key) const;

  /// Each sets `value` and returns true when the key is there and fits; one that does not fit is a problem.
  bool integer(std::string_view key, std::int64_t& value, std::int64_t min, std::int64_t max);
  void required(std::string_view key, std::int64_t& value, std::int64_t max);
  bool number(std::string_view key, double& value, double min);
  void boolean(std::string_view key, bool& value);
  void layers(std::string_view key, std::vector<std::int64_t>& value, std::int64_t num_layers);
  template <class Enum>
  void choice(std::string_view key, Enum& value, EnumNames<Enum> names);

  /// A value that is no key of this object, for instance one of a list.
  bool as_integer(std::string_view key, const Json& json, std::int64_t& value, std::int64_t min, std::int64_t max);
  bool as_number(std::string_view key, const Json& json, double& value, double min);

  /// A problem unless the key is absent or has this harmless value. It stays among the extra keys.
  void refuse_unless(std::string_view key, const Json& harmless, std::string_view reason);

  /// Keys nobody asked for, as they are in the file.
  Json rest() const;
  const std::vector<std::string>& asked() const { return asked_; }
  std::vector<std::string>& problems() { return problems_; }

 private:
  const Json& object_;
  std::string prefix_;
  std::vector<std::string>& problems_;
  std::vector<std::string> asked_;
};

/// 'text', or the JSON of a number; the kind of an object or list.
std::string found_text(const Json& value);

// Far above every published model, and low enough that no product of them overflows 64 bits.
inline constexpr std::int64_t kMaxHiddenSize = 1 << 17, kMaxIntermediateSize = 1 << 18, kMaxLayers = 1 << 12;
inline constexpr std::int64_t kMaxHeads = 1 << 12, kMaxHeadDim = 1 << 14, kMaxExperts = 1 << 14;
inline constexpr std::int64_t kMaxIterations = 64, kMaxNodeSize = 1 << 16;

/// What transformers 5.23.0 takes for an absent key, where families differ.
struct FamilyDefaults {
  double rms_norm_eps = 1e-6, rope_theta = 10000.0;
  std::int64_t max_position_embeddings = 2048;
  std::optional<std::int64_t> bos_token_id = 1, eos_token_id = 2, pad_token_id = std::nullopt;
  std::int64_t head_dim = 0;  ///< 0: hidden_size / num_attention_heads
};

/// The keys that every family has: sizes, norm, positions, tokens, dtype, activation.
void read_common(ConfigKeys& keys, ModelConfig& config, const FamilyDefaults& defaults);
/// The keys that every mixture of experts has: number of experts (under any of its three names), experts per token,
/// router_aux_loss_coef. The rest of `moe` holds the family's defaults.
void read_experts(ConfigKeys& keys, ModelConfig& config, MoeConfig moe, double router_aux_loss_coef);
/// Qwen's keys for experts in some layers: `norm_topk_prob` (false when absent), `moe_intermediate_size`,
/// `decoder_sparse_step`, `mlp_only_layers`, then read_experts. The rest of `moe` holds the family's defaults.
void read_qwen_experts(ConfigKeys& keys, ModelConfig& config, MoeConfig moe);
void write_qwen_experts(const ModelConfig& config, Json& json);
/// `sliding_window` for every layer; `absent` is its value when the key is not there.
void read_sliding_window(ConfigKeys& keys, ModelConfig& config, std::int64_t absent = 0);
/// `use_sliding_window`, `max_window_layers` and `layer_types`, as Qwen's families have them.
void read_layered_window(ConfigKeys& keys, ModelConfig& config);
/// `attention_bias`: of q, k, v and o.
void read_attention_bias(ConfigKeys& keys, ModelConfig& config);

/// The counterpart of read_common; architectures, model_type and a family's own keys are added by the caller.
void write_common(const ModelConfig& config, Json& json);

}  // namespace dagmoe
