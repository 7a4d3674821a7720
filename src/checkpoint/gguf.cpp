#include "checkpoint/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <type_traits>

#include "base/error.h"
#include "base/text.h"

namespace dagmoe {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are used as they lie in the file");

constexpr std::string_view kMagic = "GGUF";
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint32_t kMaxDims = 4;  // ggml's
// The smallest of each: an empty key, its type and one byte; an empty name, one dimension, type and offset.
constexpr std::uint64_t kMinKeyValueBytes = 8 + 4 + 1, kMinTensorInfoBytes = 8 + 4 + 8 + 4 + 8;

struct TypeInfo {
  GgufType type;
  const char* name;
  GgufBlock block;
};
constexpr std::array<TypeInfo, 11> kTypes = {{{GgufType::kF32, "F32", {1, 4}},
                                              {GgufType::kF16, "F16", {1, 2}},
                                              {GgufType::kBF16, "BF16", {1, 2}},
                                              {GgufType::kQ8_0, "Q8_0", {32, 34}},
                                              {GgufType::kQ4_0, "Q4_0", {32, 18}},
                                              {GgufType::kQ4_1, "Q4_1", {32, 20}},
                                              {GgufType::kQ5_0, "Q5_0", {32, 22}},
                                              {GgufType::kQ5_1, "Q5_1", {32, 24}},
                                              {GgufType::kQ4_K, "Q4_K", {256, 144}},
                                              {GgufType::kQ5_K, "Q5_K", {256, 176}},
                                              {GgufType::kQ6_K, "Q6_K", {256, 210}}}};

struct OtherType {
  std::uint32_t id;
  const char* name;
};
// ggml's other types, as the gguf package 0.19.0 lists them.
constexpr std::array<OtherType, 23> kOtherTypes = {
    {{9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
     {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
     {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
     {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},  {40, "NVFP4"}, {41, "Q1_0"}}};

const TypeInfo& type_info(GgufType type) {
  const auto found =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeInfo& info) { return info.type == type; });
  if (found == kTypes.end()) throw InternalError("a GGUF type without a name");
  return *found;
}

GgufType parse_type(std::uint32_t id, const std::string& where) {
  std::vector<std::string> supported;
  for (const TypeInfo& info : kTypes) {
    if (static_cast<std::uint32_t>(info.type) == id) return info.type;
    supported.emplace_back(info.name);
  }
  const auto other =
      std::find_if(kOtherTypes.begin(), kOtherTypes.end(), [&](const OtherType& o) { return o.id == id; });
  const std::string name = other == kOtherTypes.end() ? "unknown" : other->name;
  throw InputError(str(where, ": type ", name, " (id ", id, ") is not supported; supported: ", join(supported, ", ")));
}

std::string count_text(std::uint64_t count) {
  return count > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())
             ? std::to_string(count)
             : with_commas(static_cast<std::int64_t>(count));
}

/// Reads a file from front to back; every length is compared with the bytes that are left before it is believed.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string path) : bytes_(bytes), path_(std::move(path)) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return bytes_.size() - position_; }
  /// What is being read, for messages: "metadata key 'llama.block_count'".
  void enter(std::string subject) { subject_ = std::move(subject); }
  std::string where() const { return path_ + ": " + subject_; }
  [[noreturn]] void fail(const std::string& message) const { throw InputError(str(where(), ": ", message)); }

  template <class T>
  T number() {
    if (left() < sizeof(T)) fail("the file ends in the middle; is the download complete?");
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string string() {
    const auto length = number<std::uint64_t>();
    check_count(length, 1, "a text of", "bytes");
    std::string text(reinterpret_cast<const char*>(bytes_.data()) + position_, length);
    position_ += length;
    if (!is_valid_utf8(text)) fail("a text is not valid UTF-8");
    return text;
  }

  void check_count(std::uint64_t count, std::uint64_t bytes_each, std::string_view what, std::string_view unit) const {
    if (count <= left() / bytes_each) return;
    fail(
        str(what, " ", count_text(count), " ", unit, ", but only ", count_text(left()), " bytes are left in the file"));
  }

 private:
  std::span<const std::byte> bytes_;
  std::string path_, subject_;
  std::uint64_t position_ = 0;
};

// The types of metadata values, by their ids in the file.
enum class ValueType : std::uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};
constexpr std::uint32_t kNumValueTypes = 13;

ValueType read_value_type(Cursor& cursor) {
  const auto id = cursor.number<std::uint32_t>();
  if (id >= kNumValueTypes) cursor.fail(str("value type ", id, " is unknown"));
  return static_cast<ValueType>(id);
}

std::uint64_t min_bytes(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    default:
      return 8;
  }
}

template <class T>
std::int64_t read_integer(Cursor& cursor) {
  const T value = cursor.number<T>();
  if constexpr (std::is_same_v<T, std::uint64_t>) {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      cursor.fail(str("number ", value, " does not fit 63 bits"));
    }
  }
  return static_cast<std::int64_t>(value);
}

std::int64_t read_integer(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::kU8:
      return read_integer<std::uint8_t>(cursor);
    case ValueType::kI8:
      return read_integer<std::int8_t>(cursor);
    case ValueType::kU16:
      return read_integer<std::uint16_t>(cursor);
    case ValueType::kI16:
      return read_integer<std::int16_t>(cursor);
    case ValueType::kU32:
      return read_integer<std::uint32_t>(cursor);
    case ValueType::kI32:
      return read_integer<std::int32_t>(cursor);
    case ValueType::kU64:
      return read_integer<std::uint64_t>(cursor);
    default:
      return read_integer<std::int64_t>(cursor);
  }
}

bool read_bool(Cursor& cursor) {
  const auto value = cursor.number<std::uint8_t>();
  if (value > 1) cursor.fail(str("found ", int{value}, ", expected a truth value (0 or 1)"));
  return value == 1;
}

double read_real(Cursor& cursor, ValueType type) {
  return type == ValueType::kF32 ? static_cast<double>(cursor.number<float>()) : cursor.number<double>();
}

template <class T, class Read>
GgufArray read_items(std::uint64_t count, Read read) {
  std::vector<T> items;
  items.reserve(count);
  for (std::uint64_t i = 0; i < count; ++i) items.push_back(read());
  return items;
}

GgufArray read_array(Cursor& cursor) {
  const ValueType type = read_value_type(cursor);
  if (type == ValueType::kArray) cursor.fail("arrays of arrays are not supported");
  const auto count = cursor.number<std::uint64_t>();
  cursor.check_count(count, min_bytes(type), "an array of", "elements");
  if (type == ValueType::kString) return read_items<std::string>(count, [&] { return cursor.string(); });
  if (type == ValueType::kBool) return read_items<std::int64_t>(count, [&] { return std::int64_t{read_bool(cursor)}; });
  if (type == ValueType::kF32 || type == ValueType::kF64) {
    return read_items<double>(count, [&] { return read_real(cursor, type); });
  }
  return read_items<std::int64_t>(count, [&] { return read_integer(cursor, type); });
}

GgufValue read_value(Cursor& cursor) {
  const ValueType type = read_value_type(cursor);
  if (type == ValueType::kString) return cursor.string();
  if (type == ValueType::kArray) return read_array(cursor);
  if (type == ValueType::kBool) return read_bool(cursor);
  if (type == ValueType::kF32 || type == ValueType::kF64) return read_real(cursor, type);
  return read_integer(cursor, type);
}

/// The counts that follow magic and version.
struct Preamble {
  std::uint32_t version = 0;
  std::uint64_t num_tensors = 0, num_keys = 0;
};

Preamble read_preamble(Cursor& cursor, std::string_view text) {
  cursor.enter("header");
  if (!text.starts_with(kMagic)) cursor.fail("does not start with 'GGUF'; is this a GGUF file?");
  cursor.number<std::uint32_t>();
  Preamble preamble;
  preamble.version = cursor.number<std::uint32_t>();
  if ((preamble.version & 0xFFFF) == 0) cursor.fail("is in big-endian byte order, which is not supported");
  if (preamble.version != 2 && preamble.version != 3) {
    cursor.fail(str("version ", preamble.version, " is not supported; supported: 2, 3"));
  }
  preamble.num_tensors = cursor.number<std::uint64_t>();
  preamble.num_keys = cursor.number<std::uint64_t>();
  cursor.check_count(preamble.num_tensors, kMinTensorInfoBytes, "claims", "tensors");
  cursor.check_count(preamble.num_keys, kMinKeyValueBytes, "claims", "metadata keys");
  return preamble;
}

std::uint64_t checked_alignment(const GgufValue* value, const Cursor& cursor) {
  if (value == nullptr) return kDefaultAlignment;
  const std::int64_t* alignment = std::get_if<std::int64_t>(value);
  const bool fits = alignment != nullptr && *alignment > 0 && *alignment <= std::numeric_limits<std::uint32_t>::max() &&
                    std::has_single_bit(static_cast<std::uint64_t>(*alignment));
  if (!fits) cursor.fail("'general.alignment' is no power of two");
  return static_cast<std::uint64_t>(*alignment);
}

void read_dims(Cursor& cursor, GgufTensor& tensor) {
  const auto num_dims = cursor.number<std::uint32_t>();
  if (num_dims < 1 || num_dims > kMaxDims)
    cursor.fail(str("found ", num_dims, " dimensions, expected 1 to ", kMaxDims));
  for (std::uint32_t i = 0; i < num_dims; ++i) tensor.shape.push_back(read_integer<std::uint64_t>(cursor));
  std::reverse(tensor.shape.begin(), tensor.shape.end());
}

/// Bytes of a tensor from its type and shape.
std::uint64_t tensor_bytes(const Cursor& cursor, const GgufTensor& tensor) {
  const GgufBlock block = gguf_block(tensor.type);
  if (tensor.shape.back() % block.num_values != 0) {
    cursor.fail(str("rows of ", count_text(static_cast<std::uint64_t>(tensor.shape.back())),
                    " values, expected a multiple of ", block.num_values, " for ", gguf_type_name(tensor.type)));
  }
  std::int64_t bytes = tensor.shape.back() / block.num_values;
  bool fits = !__builtin_mul_overflow(bytes, block.num_bytes, &bytes);
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    if (tensor.shape[i] == 0) cursor.fail("shape " + shape_text(tensor.shape) + " has no elements");
    fits = fits && !__builtin_mul_overflow(bytes, tensor.shape[i], &bytes);
  }
  if (!fits) cursor.fail("shape " + shape_text(tensor.shape) + " has more bytes than 63 bits count");
  if (bytes == 0) cursor.fail("shape " + shape_text(tensor.shape) + " has no elements");
  return static_cast<std::uint64_t>(bytes);
}

/// One tensor's entry; its offset still counts from the start of the data.
GgufTensor read_tensor_info(Cursor& cursor) {
  GgufTensor tensor;
  tensor.name = cursor.string();
  cursor.enter("tensor " + quoted_for_message(tensor.name));
  read_dims(cursor, tensor);
  tensor.type = parse_type(cursor.number<std::uint32_t>(), cursor.where());
  tensor.offset = cursor.number<std::uint64_t>();
  tensor.size = tensor_bytes(cursor, tensor);
  return tensor;
}

/// Makes offsets count from the start of the file and checks that each tensor lies inside it.
void place_tensors(std::vector<GgufTensor>& tensors, Cursor& cursor, std::uint64_t alignment) {
  const std::uint64_t file_bytes = cursor.position() + cursor.left();
  const std::uint64_t data_start = (cursor.position() + alignment - 1) / alignment * alignment;
  for (GgufTensor& tensor : tensors) {
    cursor.enter("tensor " + quoted_for_message(tensor.name));
    if (tensor.offset % alignment != 0) {
      cursor.fail(str("offset ", tensor.offset, " is no multiple of the alignment, ", alignment));
    }
    std::uint64_t end = 0;
    const bool overflows = __builtin_add_overflow(tensor.offset, data_start, &tensor.offset) ||
                           __builtin_add_overflow(tensor.offset, tensor.size, &end);
    if (overflows || end > file_bytes) {
      cursor.fail(str("needs ", count_text(tensor.size), " bytes from byte ", count_text(tensor.offset),
                      " on, but the file has ", count_text(file_bytes), "; is the download complete?"));
    }
  }
}

void check_overlaps(const std::vector<GgufTensor>& tensors, Cursor& cursor) {
  std::vector<const GgufTensor*> sorted;
  for (const GgufTensor& tensor : tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i]->offset >= sorted[i - 1]->offset + sorted[i - 1]->size) continue;
    cursor.enter("tensor " + quoted_for_message(sorted[i]->name));
    cursor.fail("overlaps tensor " + quoted_for_message(sorted[i - 1]->name));
  }
}

}  // namespace

const char* gguf_type_name(GgufType type) { return type_info(type).name; }

GgufBlock gguf_block(GgufType type) { return type_info(type).block; }

GgufFile GgufFile::open(const std::filesystem::path& path) {
  GgufFile result;
  result.file_ = MappedFile::open(path);
  Cursor cursor(result.file_->bytes(), path.string());
  const Preamble preamble = read_preamble(cursor, result.file_->text());
  result.version_ = preamble.version;
  std::set<std::string> keys;
  for (std::uint64_t i = 0; i < preamble.num_keys; ++i) {
    cursor.enter(str("metadata key ", i + 1, " of ", preamble.num_keys));
    std::string key = cursor.string();
    cursor.enter("metadata key " + quoted_for_message(key));
    if (!keys.insert(key).second) cursor.fail("is given twice");
    GgufValue value = read_value(cursor);
    result.metadata_.emplace_back(std::move(key), std::move(value));
  }
  for (std::uint64_t i = 0; i < preamble.num_tensors; ++i) {
    cursor.enter(str("tensor ", i + 1, " of ", preamble.num_tensors));
    result.tensors_.push_back(read_tensor_info(cursor));
    if (!result.index_.emplace(result.tensors_.back().name, i).second) cursor.fail("is given twice");
  }
  cursor.enter("header");
  place_tensors(result.tensors_, cursor, checked_alignment(result.find("general.alignment"), cursor));
  check_overlaps(result.tensors_, cursor);
  return result;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  for (const auto& [name, value] : metadata_) {
    if (name == key) return &value;
  }
  return nullptr;
}

const GgufTensor* GgufFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::span<const std::byte> GgufFile::bytes(const GgufTensor& tensor) const {
  return file_->bytes().subspan(tensor.offset, tensor.size);
}

}  // namespace dagmoe
