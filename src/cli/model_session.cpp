#include "cli/model_session.h"

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/merge.h"

namespace dagmoe {

at::ScalarType compute_type(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  throw ConfigError(
      str("--dtype: found '", name, "', expected float32 or bfloat16", did_you_mean(name, {"float32", "bfloat16"})));
}

ModelSession open_model(const std::filesystem::path& folder, at::ScalarType dtype,
                        const std::vector<std::string>& adapters) {
  AdaptedModel opened = open_adapted(folder, dtype, adapters);
  return {std::move(opened.checkpoint), std::move(opened.model), load_tokenizer(folder)};
}

}  // namespace dagmoe
