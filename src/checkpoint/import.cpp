#include "checkpoint/import.h"

#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/import_source.h"
#include "data/tokenizer.h"

namespace dagmoe {
namespace {

namespace fs = std::filesystem;

/// A dtype as config.json spells it.
std::string config_dtype(DType dtype) {
  if (dtype == DType::kF32) return "float32";
  if (dtype == DType::kBF16) return "bfloat16";
  if (dtype == DType::kF16) return "float16";
  throw ConfigError(str("dtype: found ", dtype_name(dtype), ", expected one of F32, BF16, F16"));
}

// `force` is for an earlier model, never for a home folder given by mistake.
void check_output(const fs::path& output, bool force) {
  if (!force || !fs::is_directory(output) || fs::is_empty(output) || fs::exists(output / "config.json")) return;
  throw InputError(output.string() +
                   ": is not replaced, as it is no model folder (it has no config.json); remove it first");
}

Json generation_config(const ModelConfig& config) {
  const Json model = model_config_json(config);
  Json json = Json::object();
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (!model[key].is_null()) json[key] = model[key];
  }
  return json;
}

std::vector<TensorSource> with_progress(std::vector<TensorSource> tensors, const ImportOptions& options) {
  if (!options.on_tensor) return tensors;
  const auto total = static_cast<std::int64_t>(tensors.size());
  const auto done = std::make_shared<std::int64_t>(0);
  for (TensorSource& tensor : tensors) {
    tensor.bytes = [read = std::move(tensor.bytes), done, total, report = options.on_tensor] {
      const std::span<const std::byte> bytes = read();
      report(++*done, total);
      return bytes;
    };
  }
  return tensors;
}

/// Of the folder that is being written; a message speaks of the source, because the folder goes away.
std::string describe_tokenizer(const fs::path& folder, const fs::path& source) {
  if (!has_tokenizer(folder)) return "none";
  try {
    return load_tokenizer(folder)->description();
  } catch (const InputError& error) {
    const std::string message = error.what(), prefix = folder.string() + "/";
    if (!message.starts_with(prefix)) throw;
    throw InputError(str(source.string(), fs::is_directory(source) ? "/" : ": ", message.substr(prefix.size())));
  }
}

std::int64_t bytes_in(const fs::path& folder) {
  std::int64_t total = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) total += static_cast<std::int64_t>(entry.file_size());
  }
  return total;
}

}  // namespace

ImportReport import_model(const fs::path& source, const fs::path& output, const ImportOptions& options) {
  const std::string dtype = config_dtype(options.dtype);
  check_output(output, options.force);
  ImportSource model =
      fs::is_directory(source) ? open_folder_source(source, options.dtype) : open_gguf_source(source, options.dtype);
  model.config.dtype = dtype;
  ImportReport report;
  report.source_kind = model.kind;
  report.num_tensors = static_cast<std::int64_t>(model.tensors.size());
  report.num_parameters = num_parameters(model.config);
  write_folder_atomically(output, {.replace = options.force}, [&](const fs::path& folder) {
    model.write_side_files(folder);
    report.tokenizer = describe_tokenizer(folder, source);
    write_file_atomically(folder / "config.json", model_config_json(model.config).dump(2) + "\n");
    if (!fs::exists(folder / "generation_config.json")) {
      write_file_atomically(folder / "generation_config.json", generation_config(model.config).dump(2) + "\n");
    }
    write_safetensors(folder / "model.safetensors", with_progress(std::move(model.tensors), options));
    report.bytes_written = bytes_in(folder);
  });
  if (report.tokenizer == "none") log_warning(source.string() + ": has no tokenizer; the model folder has none either");
  return report;
}

}  // namespace dagmoe
