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

AdaptedModel open_adapted(const std::filesystem::path& folder, at::ScalarType dtype,
                          const std::vector<std::string>& adapters) {
  Checkpoint checkpoint = Checkpoint::open(folder);
  LoadOptions options{.compute_dtype = dtype};
  for (const std::string& adapter : adapters) {
    if (!is_adapter_folder(adapter)) {
      throw InputError(str("--adapter: ", adapter, ": no adapter_config.json there; expected an adapter folder"));
    }
    const auto dag = adapter_dag(adapter);
    if (!dag) continue;
    const auto known = options.add_dag ? options.add_dag : checkpoint.config().dag;
    if (known && *known != *dag) {
      throw InputError(
          str(adapter, ": brings another DAG than the model or an adapter before it has; give one of them"));
    }
    if (!checkpoint.config().dag) options.add_dag = dag;
  }
  Decoder model = load_decoder(checkpoint, options);
  AdaptedModel result{std::move(checkpoint), std::move(model), {}};
  for (const std::string& folder_of_adapter : adapters) {
    Adapter adapter = read_adapter(folder_of_adapter, result.model.config);
    check_base(adapter, result.checkpoint);
    attach_adapter(result.model, adapter);
    result.adapters.push_back(std::move(adapter));
  }
  return result;
}

ModelSession open_model(const std::filesystem::path& folder, at::ScalarType dtype,
                        const std::vector<std::string>& adapters) {
  AdaptedModel opened = open_adapted(folder, dtype, adapters);
  return {std::move(opened.checkpoint), std::move(opened.model), load_tokenizer(folder)};
}

}  // namespace dagmoe
