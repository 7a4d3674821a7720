// Thousands of broken files, each made from a sound one by a seed. Whatever a file holds, it is read or refused with
// one line a problem and exit code 3, in bounded time and memory. DAGMOE_HOSTILE=KIND:SEED repeats one of them and
// leaves it in the current folder.
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/import.h"
#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "tests/checkpoint/hostile_case.h"
#include "tests/checkpoint/hostile_mutations.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"

#ifdef __SANITIZE_ADDRESS__
// Of sanitizer/allocator_interface.h, which g++ 12 lacks.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, std::size_t),
                                                         void (*on_free)(const volatile void*));
extern "C" std::size_t __sanitizer_get_allocated_size(const volatile void* memory);
namespace {
// The sanitizer's own operators tell when memory is given back in another way than it was taken, so they stay.
const int kAreHooksInstalled = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t size) {
      dagmoe::testing::allocation_meter.add(static_cast<std::int64_t>(size));
    },
    [](const volatile void* memory) {
      const std::size_t size = __sanitizer_get_allocated_size(memory);
      dagmoe::testing::allocation_meter.remove(static_cast<std::int64_t>(size));
    });
}  // namespace
#else
// Counts what this program takes from operator new; the other forms of new come here or need no counting.
void* operator new(std::size_t size) {
  void* const memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  dagmoe::testing::allocation_meter.add(static_cast<std::int64_t>(malloc_usable_size(memory)));
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory == nullptr) return;
  dagmoe::testing::allocation_meter.remove(static_cast<std::int64_t>(malloc_usable_size(memory)));
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
#endif

using namespace dagmoe;
using namespace dagmoe::testing;

namespace fs = std::filesystem;

namespace {

constexpr std::array kFamilies = {
    "deepseek_v2",     "deepseek_v2_fused", "deepseek_v2_group", "llama_bias", "llama_linear",
    "llama_llama3",    "llama_yarn",        "mistral",           "mixtral",    "mixtral_fused",
    "olmoe",           "olmoe_fused",       "olmoe_norm",        "qwen2",      "qwen2_moe",
    "qwen2_moe_fused", "qwen2_moe_step",    "qwen2_window",      "qwen3",      "qwen3_moe",
    "qwen3_moe_fused", "qwen3_moe_raw"};

std::int64_t bytes_of(const fs::path& folder) {
  std::int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) bytes += static_cast<std::int64_t>(entry.file_size());
  return bytes;
}

/// Two shards and the index that names them.
void write_sharded(const fs::path& source, const fs::path& folder) {
  fs::create_directories(folder);
  const SafetensorsFile file = SafetensorsFile::open(source / "model.safetensors");
  std::array<std::vector<TensorSource>, 2> shards;
  Json index = {{"metadata", {{"total_size", fs::file_size(file.path())}}}, {"weight_map", Json::object()}};
  for (std::size_t i = 0; i < file.tensors().size(); ++i) {
    const TensorInfo& info = file.tensors()[i];
    shards[i % 2].push_back({info.name, info.dtype, info.shape, [&file, &info] { return file.bytes(info); }});
    index["weight_map"][info.name] = str("model-0000", i % 2 + 1, "-of-00002.safetensors");
  }
  write_safetensors(folder / "model-00001-of-00002.safetensors", shards[0]);
  write_safetensors(folder / "model-00002-of-00002.safetensors", shards[1]);
  fs::copy_file(source / "config.json", folder / "config.json");
  write_text(folder / "model.safetensors.index.json", index.dump(1));
}

/// One layer, hidden 32, 2 heads of 16, one key-value head, 6 tokens, tied; every kind of metadata value.
std::string gguf_text(bool has_experts) {
  GgufBuilder builder;
  builder.add_text("general.architecture", "llama");
  builder.add_u32("general.alignment", 32);
  for (const auto& [key, value] : {std::pair<const char*, std::uint32_t>{"block_count", 1},
                                   {"context_length", 16},
                                   {"embedding_length", 32},
                                   {"feed_forward_length", 32},
                                   {"attention.head_count", 2},
                                   {"attention.head_count_kv", 1}}) {
    builder.add_u32(str("llama.", key), value);
  }
  builder.add_f32("llama.rope.freq_base", 5000.0f);
  builder.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  if (has_experts) builder.add_u32("llama.expert_count", 2), builder.add_u32("llama.expert_used_count", 1);
  builder.add_text("tokenizer.ggml.model", "gpt2");
  builder.add_text("tokenizer.ggml.pre", "gpt-2");
  builder.add_texts("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "c", "ab", "abc"});
  builder.add_i32s("tokenizer.ggml.token_type", {3, 1, 1, 1, 1, 1});
  builder.add_texts("tokenizer.ggml.merges", {"a b", "ab c"});
  builder.add_u32("tokenizer.ggml.bos_token_id", 0);
  builder.add_u32("tokenizer.ggml.eos_token_id", 0);
  builder.add_bool("tokenizer.ggml.add_bos_token", true);
  builder.add_text("tokenizer.chat_template", "{{ messages }}");
  const auto add_f32 = [&](const char* name, const std::vector<std::uint64_t>& dims) {
    std::uint64_t count = 1;
    for (const std::uint64_t size : dims) count *= size;
    builder.add_floats(name, dims, std::vector<float>(count, 1.0f));
  };
  const auto add_q8_0 = [&](const char* name, std::uint64_t rows, std::uint64_t num_slices = 1) {
    std::vector<std::uint64_t> dims = {32, rows};
    if (num_slices > 1) dims.push_back(num_slices);
    builder.add_tensor(name, dims, 8, std::string(34 * rows * num_slices, '\x01'));
  };
  add_f32("token_embd.weight", {32, 6});
  add_f32("output_norm.weight", {32});
  add_f32("rope_freqs.weight", {8});
  add_f32("blk.0.attn_norm.weight", {32});
  add_f32("blk.0.ffn_norm.weight", {32});
  add_q8_0("blk.0.attn_q.weight", 32);
  add_q8_0("blk.0.attn_k.weight", 16);
  add_q8_0("blk.0.attn_v.weight", 16);
  add_q8_0("blk.0.attn_output.weight", 32);
  if (has_experts) add_f32("blk.0.ffn_gate_inp.weight", {32, 2});
  for (const char* name : {"ffn_gate", "ffn_up", "ffn_down"}) {
    add_q8_0(str("blk.0.", name, has_experts ? "_exps" : "", ".weight").c_str(), 32, has_experts ? 2 : 1);
  }
  return builder.build();
}

/// The tokenizer of `text` with the parts that the tiny one lacks.
std::string richer_tokenizer(const std::string& text) {
  Json json = Json::parse(text);
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  json["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", "(?i:'s|'t)|\\p{L}+|\\p{N}{1,2}|\\s+(?!\\S)|."}}},
                              {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<|im_start|>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  json["model"]["merges"] = Json::array();
  std::int64_t id = static_cast<std::int64_t>(json["model"]["vocab"].size());
  for (const auto& [left, right] :
       {std::pair<std::string, std::string>{"a", "b"}, {"ab", "c"}, {"t", "h"}, {"th", "e"}}) {
    json["model"]["vocab"][left + right] = id++;
    json["model"]["merges"].push_back({left, right});
  }
  return json.dump(1);
}

/// The sound files that all cases start from.
class Seeds {
 public:
  Seeds() {
    write_tiny_folder(folder_ / "tiny");
    write_sharded(golden("families/qwen2"), folder_ / "sharded");
    for (const char* name : kFamilies) models_.push_back(golden("families") / name);
    models_.push_back(tiny());
    for (const bool has_experts : {false, true}) ggufs_.push_back(gguf_text(has_experts));
    tokenizers_ = {read_text(tiny() / "tokenizer.json")};
    tokenizers_.push_back(richer_tokenizer(tokenizers_.front()));
  }

  fs::path tiny() const { return folder_ / "tiny"; }
  fs::path sharded() const { return folder_ / "sharded"; }
  const std::vector<fs::path>& models() const { return models_; }
  const std::vector<std::string>& ggufs() const { return ggufs_; }
  const std::vector<std::string>& tokenizers() const { return tokenizers_; }

 private:
  TemporaryFolder folder_;
  std::vector<fs::path> models_;
  std::vector<std::string> ggufs_, tokenizers_;
};

void link_files(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.path().filename() != "expected.safetensors")
      fs::create_symlink(entry.path(), to / entry.path().filename());
  }
}

/// The folder as a model, with `name` replaced by `text`.
void replace_file(const fs::path& path, const std::string& text) {
  fs::remove(path);
  write_text(path, text);
}

/// Opens and loads the folder; an accepted model runs.
HostileSubject model_subject(const fs::path& folder) {
  HostileSubject subject{.path = folder, .bytes = bytes_of(folder)};
  const auto model = std::make_shared<std::optional<Decoder>>();
  subject.call = [folder, model] { model->emplace(load_decoder(Checkpoint::open(folder), {})); };
  subject.use = [model] {
    const at::NoGradGuard no_grad;
    at::set_num_threads(1);  // threads that wait for work would cost more than the work
    const at::Tensor ids = at::arange(3);
    (*model)->logits((*model)->forward(packed_input(ids, {3})).hidden_TD);
  };
  return subject;
}

HostileSubject safetensors_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  const fs::path& model = chance.pick(seeds.models());
  const bool is_alone = chance.one_in(4);
  if (!is_alone) link_files(model, folder);
  const fs::path source = is_alone ? golden("mixed_dtypes.safetensors") : model / "model.safetensors";
  const fs::path path = folder / "model.safetensors";
  replace_file(path, mutate_safetensors(read_text(source), chance));
  HostileSubject subject = model_subject(folder);
  const auto load = subject.call;
  subject.call = [path, load, is_alone] {
    const SafetensorsFile file = SafetensorsFile::open(path);
    if (!is_alone) load();
  };
  if (is_alone) subject.use = [] {};
  return subject;
}

/// Another file for one tensor of an index.
void mutate_weight_map(Json& index, Chance& chance) {
  static const std::array<std::string, 9> kNames = {"",
                                                    "..",
                                                    ".",
                                                    "../model.safetensors",
                                                    std::string(5000, 'm'),
                                                    "model\n\x1b[2J",
                                                    std::string("model\0x", 7),
                                                    "config.json",
                                                    "model-00001-of-00002.safetensors"};
  if (!index.contains("weight_map") || !index["weight_map"].is_object() || index["weight_map"].empty()) return;
  Json& map = index["weight_map"];
  const std::string tensor = std::next(map.begin(), static_cast<std::ptrdiff_t>(chance.below(map.size()))).key();
  map[tensor] = chance.pick(kNames);
}

HostileSubject index_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  link_files(seeds.sharded(), folder);
  const fs::path path = folder / "model.safetensors.index.json";
  std::string text = read_text(path);
  if (chance.one_in(3)) {
    Json index = Json::parse(text);
    mutate_weight_map(index, chance);
    text = index.dump();
  } else {
    text = mutate_json_text(text, chance);
  }
  replace_file(path, text);
  return model_subject(folder);
}

/// One size of a config made huge or negative, also such as the limits of single keys allow.
void mutate_size(Json& config, Chance& chance) {
  static constexpr std::array<std::int64_t, 9> kLarge = {1, 3, 64, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, -5};
  for (int attempt = 0; attempt < 20; ++attempt) {
    Json& size = random_value(config, chance);
    if (!size.is_number_integer()) continue;
    size = chance.one_in(5) ? Json(chance.pick(kBoundaries)) : Json(chance.pick(kLarge));
    return;
  }
}

HostileSubject config_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  link_files(chance.pick(seeds.models()), folder);
  const fs::path path = folder / "config.json";
  std::string text = read_text(path);
  if (chance.one_in(2)) {
    Json config = Json::parse(text);
    for (std::size_t i = 1 + chance.below(2); i > 0; --i) mutate_size(config, chance);
    text = config.dump(1);
  } else {
    text = mutate_json_text(text, chance);
  }
  replace_file(path, text);
  HostileSubject subject = model_subject(folder);
  const auto load = subject.call;
  subject.call = [folder, load] {
    read_model_config(folder);
    load();
  };
  return subject;
}

constexpr std::array kGgufTexts = {"general.architecture",
                                   "general.alignment",
                                   "llama",
                                   "llama.block_count",
                                   "llama.context_length",
                                   "llama.embedding_length",
                                   "llama.feed_forward_length",
                                   "llama.attention.head_count",
                                   "llama.attention.head_count_kv",
                                   "llama.expert_count",
                                   "llama.expert_used_count",
                                   "tokenizer.ggml.model",
                                   "tokenizer.ggml.pre",
                                   "gpt-2",
                                   "tokenizer.ggml.tokens",
                                   "<|end|>",
                                   "abc",
                                   "ab c",
                                   "tokenizer.ggml.bos_token_id",
                                   "tokenizer.ggml.eos_token_id",
                                   "tokenizer.chat_template",
                                   "token_embd.weight",
                                   "rope_freqs.weight",
                                   "blk.0.attn_q.weight",
                                   "blk.0.ffn_gate_exps.weight"};

HostileSubject gguf_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  std::string text = chance.pick(seeds.ggufs());
  const std::size_t way = chance.below(3);
  if (way == 0) {
    const std::size_t header = std::min<std::size_t>(text.size(), 2000);  // keys and tensors; data break little
    std::string head = text.substr(0, header);
    mutate_bytes(head, chance);
    text = head + text.substr(header);
  } else {
    for (std::size_t i = 1 + chance.below(2); i > 0; --i) {
      way == 1 ? mutate_gguf_number(text, chance.pick(kGgufTexts), chance)
               : mutate_gguf_text(text, chance.pick(kGgufTexts), chance);
    }
  }
  const fs::path path = folder / "m.gguf", output = folder / "out";
  write_text(path, text);
  HostileSubject subject{.path = path, .bytes = bytes_of(folder)};
  subject.call = [path, output] {
    GgufFile::open(path);
    import_model(path, output, {.dtype = DType::kBF16, .force = false, .on_tensor = {}});
  };
  subject.use = [output] { load_decoder(Checkpoint::open(output), {}); };
  return subject;
}

const std::vector<std::string>& sample_texts() {
  static const std::vector<std::string> texts = {
      "", "the abc", "<|im_start|>user\nI'll pay 1234 for\t\t it<|im_end|>\n  ",
      "caf\u00e9 e\u0301 \u4e2d\u6587 \xFF\xC0 x", std::string(300, 'a') + std::string(70, ' ')};
  return texts;
}

HostileSubject tokenizer_subject(const fs::path& folder) {
  HostileSubject subject{.path = folder, .bytes = bytes_of(folder)};
  subject.call = [folder] {
    const auto tokenizer = load_tokenizer(folder);
    tokenizer->description();
    for (const std::string& text : sample_texts()) {
      for (const bool parse_special : {false, true}) {
        const auto ids = tokenizer->encode(text, {.add_bos = true, .add_eos = true, .parse_special = parse_special});
        tokenizer->decode(ids);
        tokenizer->decode(ids, /*keep_special=*/true);
        for (const TokenId id : ids) tokenizer->token_bytes(id);
      }
      tokenizer->count_lost_bytes(text);
    }
    tokenizer->decode(std::vector<TokenId>{-1, 0, 1 << 30});
  };
  return subject;
}

HostileSubject tokenizer_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  write_text(folder / "tokenizer.json", mutate_json_text(chance.pick(seeds.tokenizers()), chance));
  if (chance.one_in(2)) fs::copy_file(seeds.tiny() / "tokenizer_config.json", folder / "tokenizer_config.json");
  return tokenizer_subject(folder);
}

HostileSubject tokenizer_config_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  static const std::array<const char*, 2> kNames = {"tokenizer_config.json", "special_tokens_map.json"};
  write_text(folder / "tokenizer.json", seeds.tokenizers().front());
  Json config = Json::parse(read_text(seeds.tiny() / "tokenizer_config.json"));
  config["added_tokens_decoder"] = {{"0", {{"content", "<|endoftext|>"}, {"special", true}, {"lstrip", true}}},
                                    {"300", {{"content", "<new>"}, {"single_word", true}, {"normalized", true}}}};
  write_text(folder / chance.pick(kNames), mutate_json_text(config.dump(), chance));
  HostileSubject subject = tokenizer_subject(folder);
  const auto load = subject.call;
  subject.call = [folder, load] {
    load();
    chat_format_of(folder);
  };
  return subject;
}

HostileSubject chat_template_case(const Seeds& seeds, Chance& chance, const fs::path& folder) {
  std::string text = str(
      "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}",
      "{{ '<|im_start|>system\nYou are a helpful assistant who answers every question.<|im_end|>\n' }}{% endif %}",
      read_text(seeds.tiny() / "chat_template.jinja").substr(std::string_view("{% for message in messages %}").size()));
  mutate_bytes(text, chance);
  write_text(folder / "chat_template.jinja", text);
  HostileSubject subject{.path = folder, .bytes = bytes_of(folder)};
  subject.call = [folder] { chat_format_of(folder); };
  return subject;
}

struct Kind {
  const char* name;
  std::uint64_t num_files;
  HostileSubject (*make)(const Seeds&, Chance&, const fs::path&);
};
constexpr std::array<Kind, 7> kKinds = {{{"safetensors", 2000, safetensors_case},
                                         {"index", 1000, index_case},
                                         {"config", 2500, config_case},
                                         {"gguf", 2000, gguf_case},
                                         {"tokenizer", 2000, tokenizer_case},
                                         {"tokenizer_config", 1000, tokenizer_config_case},
                                         {"chat_template", 500, chat_template_case}}};

HostileOutcome run_case(const Seeds& seeds, const Kind& kind, std::uint64_t seed, const fs::path& folder) {
  watch_case(str(kind.name, ":", seed));
  Chance chance(seed);
  const HostileOutcome outcome = run_hostile(kind.make(seeds, chance, folder));
  ::alarm(0);
  return outcome;
}

struct Tally {
  std::int64_t num_accepted = 0, num_refused = 0, peak = 0, largest = 0;
  double seconds = 0.0, longest = 0.0;

  void add(const HostileOutcome& outcome) {
    outcome.is_accepted ? ++num_accepted : ++num_refused;
    peak = std::max(peak, outcome.peak), largest = std::max(largest, outcome.largest);
    seconds += outcome.seconds, longest = std::max(longest, outcome.seconds);
  }
  std::string text() const {
    return str(num_accepted + num_refused, " files, ", num_accepted, " accepted, ", num_refused, " refused, peak ",
               human_bytes(peak), ", largest block ", human_bytes(largest), ", ", fixed(seconds, 1), " s, longest ",
               fixed(longest, 2), " s");
  }
};

void run_kind(const Kind& kind) {
  const Seeds seeds;
  Tally tally;
  for (std::uint64_t seed = 0; seed < kind.num_files; ++seed) {
    const TemporaryFolder folder;
    const HostileOutcome outcome = run_case(seeds, kind, seed, folder.path());
    tally.add(outcome);
    if (outcome.fault.empty()) continue;
    FAIL_CHECK("DAGMOE_HOSTILE=" << kind.name << ":" << seed << ": " << outcome.fault << ": "
                                 << one_line(outcome.message.substr(0, 600)));
  }
  std::cout << "hostile " << kind.name << ": " << tally.text() << std::endl;
  // A generator that only makes files which fail at the first byte, or none that fail, proves nothing.
  CHECK(tally.num_refused * 4 > static_cast<std::int64_t>(kind.num_files));
  CHECK(tally.num_accepted > 0);
}

}  // namespace

TEST_CASE("hostile files: every broken one is read or refused by one line with file and reason", "[hostile]") {
#ifdef __SANITIZE_ADDRESS__
  REQUIRE(kAreHooksInstalled > 0);
#endif
  if (const char* replay = std::getenv("DAGMOE_HOSTILE")) {
    const std::vector<std::string> parts = split(replay, ':');
    const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return k.name == parts[0]; });
    REQUIRE((kind != kKinds.end() && parts.size() == 2));
    const fs::path folder = fs::absolute(str("hostile-", parts[0], "-", parts[1]));
    fs::remove_all(folder);
    fs::create_directories(folder);
    const HostileOutcome outcome = run_case(Seeds(), *kind, std::stoull(parts[1]), folder);
    std::cout << folder.string() << ": " << (outcome.is_accepted ? "accepted" : "refused: " + outcome.message)
              << "\npeak " << human_bytes(outcome.peak) << ", " << fixed(outcome.seconds, 2) << " s" << std::endl;
    CHECK(outcome.fault == "");
    return;
  }
  for (const Kind& kind : kKinds) {
    DYNAMIC_SECTION(kind.name) { run_kind(kind); }
  }
}
