#include "cli/model_session.h"

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {

at::ScalarType compute_type(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  throw ConfigError(
      str("--dtype: found '", name, "', expected float32 or bfloat16", did_you_mean(name, {"float32", "bfloat16"})));
}

ModelSession open_model(const std::filesystem::path& folder, at::ScalarType dtype) {
  Checkpoint checkpoint = Checkpoint::open(folder);
  Decoder model = load_decoder(checkpoint, {.compute_dtype = dtype, .is_trainable = {}, .add_dag = {}, .seed = 0});
  return {std::move(checkpoint), std::move(model), load_tokenizer(folder)};
}

}  // namespace dagmoe
