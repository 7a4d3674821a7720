#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <tuple>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace dagmoe {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are used as they lie in the file");

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's limit
constexpr std::size_t kHeaderAlignment = 8;

struct DTypeInfo {
  const char* name;
  std::int64_t size;
};
// By enumerator, which is also the ascending rank of the reference writer.
constexpr std::array<DTypeInfo, 13> kDTypes = {{{"BOOL", 1},
                                                {"U8", 1},
                                                {"I8", 1},
                                                {"I16", 2},
                                                {"U16", 2},
                                                {"F16", 2},
                                                {"BF16", 2},
                                                {"I32", 4},
                                                {"U32", 4},
                                                {"F32", 4},
                                                {"F64", 8},
                                                {"I64", 8},
                                                {"U64", 8}}};
// Of the format, but nothing here computes with them.
constexpr std::array<std::string_view, 9> kOtherDTypes = {"F4",      "F6_E2M3",     "F6_E3M2",     "F8_E5M2", "F8_E4M3",
                                                          "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"};

std::string bytes_text(std::uint64_t bytes) {
  return bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())
             ? std::to_string(bytes)
             : with_commas(static_cast<std::int64_t>(bytes));
}

DType parse_dtype(const std::string& name, const std::string& where) {
  std::vector<std::string> supported;
  for (std::size_t i = 0; i < kDTypes.size(); ++i) {
    if (name == kDTypes[i].name) return static_cast<DType>(i);
    supported.emplace_back(kDTypes[i].name);
  }
  const bool known = std::find(kOtherDTypes.begin(), kOtherDTypes.end(), name) != kOtherDTypes.end();
  throw InputError(str(where, ": dtype ", quoted_for_message(name), " is ", known ? "not supported" : "unknown",
                       "; supported: ", join(supported, ", ")));
}

std::uint64_t read_size(const Json& value, const std::string& where, std::string_view key) {
  // Non-negative integers are what the parser calls unsigned.
  if (!value.is_number_unsigned() ||
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    const std::string found = value.is_number() ? value.dump() : value.type_name();
    throw InputError(str(where, ": '", key, "' has ", found, ", expected integers from 0 to 2^63 - 1"));
  }
  return value.get<std::uint64_t>();
}

const Json& member(const Json& entry, std::string_view key, Json::value_t type, const std::string& where) {
  const auto found = entry.find(key);
  if (found == entry.end()) throw InputError(str(where, ": '", key, "' is missing"));
  if (found->type() != type) {
    throw InputError(str(where, ": '", key, "': found ", found->type_name(), ", expected ", Json(type).type_name()));
  }
  return *found;
}

/// Bytes of a tensor; throws when the number does not fit.
std::uint64_t tensor_bytes(DType dtype, const std::vector<std::int64_t>& shape, const std::string& where) {
  std::uint64_t count = 1, bytes = 0;
  bool fits = true;
  for (const std::int64_t size : shape) {
    fits = fits && !__builtin_mul_overflow(count, static_cast<std::uint64_t>(size), &count);
  }
  fits = fits && !__builtin_mul_overflow(count, static_cast<std::uint64_t>(dtype_size(dtype)), &bytes);
  if (!fits) throw InputError(str(where, ": shape ", shape_text(shape), " has more bytes than 64 bits count"));
  return bytes;
}

TensorInfo read_entry(const std::string& name, const Json& entry, const std::string& where) {
  if (!entry.is_object()) throw InputError(str(where, ": found ", entry.type_name(), ", expected an object"));
  TensorInfo info;
  info.name = name;
  info.dtype = parse_dtype(member(entry, "dtype", Json::value_t::string, where).get<std::string>(), where);
  for (const Json& size : member(entry, "shape", Json::value_t::array, where)) {
    info.shape.push_back(static_cast<std::int64_t>(read_size(size, where, "shape")));
  }
  const Json& offsets = member(entry, "data_offsets", Json::value_t::array, where);
  if (offsets.size() != 2)
    throw InputError(str(where, ": 'data_offsets' has ", offsets.size(), " numbers, expected 2"));
  info.begin = read_size(offsets[0], where, "data_offsets");
  info.end = read_size(offsets[1], where, "data_offsets");
  if (info.end < info.begin) {
    throw InputError(str(where, ": 'data_offsets' end at ", info.end, ", before they begin at ", info.begin));
  }
  const std::uint64_t expected = tensor_bytes(info.dtype, info.shape, where);
  if (info.end - info.begin != expected) {
    throw InputError(str(where, ": 'data_offsets' span ", bytes_text(info.end - info.begin), " bytes, but ",
                         dtype_name(info.dtype), " ", shape_text(info.shape), " needs ", bytes_text(expected)));
  }
  return info;
}

std::map<std::string, std::string> read_metadata(const Json& json, const std::string& where) {
  if (!json.is_object())
    throw InputError(str(where, ": '__metadata__': found ", json.type_name(), ", expected object"));
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      throw InputError(str(where, ": '__metadata__': ", quoted_for_message(key), ": found ", value.type_name(),
                           ", expected string"));
    }
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

/// The header's text; throws unless its length and first byte are plausible.
std::string_view header_text(const MappedFile& file) {
  const std::string where = file.path().string();
  const std::string_view text = file.text();
  if (text.starts_with("version https://git-lfs")) {
    throw InputError(where + ": is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'");
  }
  if (text.size() < kLengthBytes) {
    throw InputError(
        str(where, ": has ", text.size(), " bytes, too few for a safetensors file; is the download complete?"));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    throw InputError(str(where, ": header claims ", bytes_text(length), " bytes, more than the ",
                         bytes_text(kMaxHeaderBytes), " allowed; is this a safetensors file?"));
  }
  if (length > text.size() - kLengthBytes) {
    throw InputError(str(where, ": header claims ", bytes_text(length), " bytes but the file has ",
                         bytes_text(text.size()), "; is the download complete?"));
  }
  const std::string_view header = text.substr(kLengthBytes, length);
  if (!header.starts_with('{'))
    throw InputError(where + ": header does not start with '{'; is this a safetensors file?");
  if (!is_valid_utf8(header)) throw InputError(where + ": header is not valid UTF-8");
  return header;
}

// `tensors` in the order of the data: no holes, no overlaps, nothing left over.
void check_layout(const std::vector<TensorInfo>& tensors, std::uint64_t data_bytes, const std::string& where) {
  std::uint64_t end = 0;
  for (const TensorInfo& info : tensors) {
    if (info.begin != end) {
      throw InputError(str(where, ": tensor ", quoted_for_message(info.name), ": data begin at byte ",
                           bytes_text(info.begin), ", expected ", bytes_text(end),
                           info.begin > end ? " (a hole)" : " (an overlap)"));
    }
    end = info.end;
  }
  if (end > data_bytes) {
    throw InputError(str(where, ": tensor ", quoted_for_message(tensors.back().name), ": data end at byte ",
                         bytes_text(end), " but the file has ", bytes_text(data_bytes),
                         " bytes of data; is the download complete?"));
  }
  if (end < data_bytes) {
    throw InputError(str(where, ": ", bytes_text(data_bytes - end), " bytes after the last tensor's data"));
  }
}

/// Moves `tensors` into the reference writer's order and returns the header with its length in front.
std::string build_header(std::vector<TensorSource>& tensors, const std::map<std::string, std::string>& metadata,
                         const std::string& where) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    return std::tie(b.dtype, a.name) < std::tie(a.dtype, b.name);
  });
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  // Equal names may have different dtypes, so they need not be neighbours.
  std::map<std::string_view, int> names = {{"__metadata__", 1}};
  std::uint64_t begin = 0;
  auto& members = static_cast<Json::object_t::Container&>(header.get_ref<Json::object_t&>());
  for (const TensorSource& tensor : tensors) {
    if (names[tensor.name]++ > 0) throw InternalError(str(where, ": tensor '", tensor.name, "' is written twice"));
    const std::uint64_t end = begin + tensor_bytes(tensor.dtype, tensor.shape, tensor.name);
    Json entry = Json::object();
    entry["dtype"] = dtype_name(tensor.dtype);
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {begin, end};
    // operator[] would search all earlier names.
    members.emplace_back(tensor.name, std::move(entry));
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  const std::uint64_t length = text.size();
  std::string with_length(kLengthBytes, '\0');
  std::memcpy(with_length.data(), &length, kLengthBytes);
  return with_length + text;
}

}  // namespace

const char* dtype_name(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].name; }

std::int64_t dtype_size(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].size; }

bool is_float(DType dtype) {
  return dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF32 || dtype == DType::kF64;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result;
  result.file_ = MappedFile::open(path);
  const std::string where = path.string();
  const std::string_view text = header_text(*result.file_);
  result.data_start_ = kLengthBytes + text.size();
  const Json header = parse_json(text, where + ": header");
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      result.metadata_ = read_metadata(entry, where);
    } else {
      result.tensors_.push_back(read_entry(name, entry, str(where, ": tensor ", quoted_for_message(name))));
    }
  }
  std::sort(result.tensors_.begin(), result.tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_layout(result.tensors_, result.file_->bytes().size() - result.data_start_, where);
  for (std::size_t i = 0; i < result.tensors_.size(); ++i) result.index_.emplace(result.tensors_[i].name, i);
  return result;
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::span<const std::byte> SafetensorsFile::bytes(const TensorInfo& info) const {
  return file_->bytes().subspan(data_start_ + info.begin, info.end - info.begin);
}

void write_safetensors(const std::filesystem::path& path, std::vector<TensorSource> tensors,
                       const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path);
  file.write(build_header(tensors, metadata, path.string()));
  for (const TensorSource& tensor : tensors) {
    const std::span<const std::byte> bytes = tensor.bytes();
    if (bytes.size() != tensor_bytes(tensor.dtype, tensor.shape, tensor.name)) {
      throw InternalError(str("tensor '", tensor.name, "': ", bytes.size(), " bytes for ", dtype_name(tensor.dtype),
                              " ", shape_text(tensor.shape)));
    }
    file.write(bytes);
  }
  file.commit();
}

}  // namespace dagmoe
