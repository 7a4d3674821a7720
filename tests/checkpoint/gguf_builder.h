// Writes small GGUF files, sound or damaged, for the tests of the reader and of the importer.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dagmoe::testing {

template <class T>
std::string raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

template <class T>
std::string raw_list(const std::vector<T>& values) {
  std::string bytes;
  for (const T value : values) bytes += raw(value);
  return bytes;
}

inline std::string gguf_string(std::string_view text) { return raw<std::uint64_t>(text.size()) + std::string(text); }

class GgufBuilder {
 public:
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  ///< what the data is padded to; add the key yourself
  std::optional<std::uint64_t> claimed_tensors, claimed_keys;

  /// A key with the bytes of any value.
  void add(std::string_view key, std::uint32_t type, std::string_view value) {
    keys_.push_back(gguf_string(key) + raw(type) + std::string(value));
  }
  void add_u32(std::string_view key, std::uint32_t value) { add(key, 4, raw(value)); }
  void add_f32(std::string_view key, float value) { add(key, 6, raw(value)); }
  void add_bool(std::string_view key, bool value) { add(key, 7, std::string(1, value ? '\1' : '\0')); }
  void add_text(std::string_view key, std::string_view text) { add(key, 8, gguf_string(text)); }
  void add_texts(std::string_view key, const std::vector<std::string>& texts) {
    std::string value = raw<std::uint32_t>(8) + raw<std::uint64_t>(texts.size());
    for (const auto& text : texts) value += gguf_string(text);
    add(key, 9, value);
  }
  void add_i32s(std::string_view key, const std::vector<std::int32_t>& numbers) {
    add(key, 9, raw<std::uint32_t>(5) + raw<std::uint64_t>(numbers.size()) + raw_list(numbers));
  }
  /// `dims` in the file's order, the contiguous one first.
  void add_tensor(const std::string& name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                  std::string_view bytes) {
    tensors_.push_back({name, dims, type, data_.size()});
    data_ += bytes;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
  }
  void add_floats(const std::string& name, const std::vector<std::uint64_t>& dims, const std::vector<float>& values) {
    add_tensor(name, dims, 0, raw_list(values));
  }
  void set_offset(std::size_t tensor, std::uint64_t offset) { tensors_[tensor].offset = offset; }

  std::string build() const {
    std::string text = "GGUF" + raw(version) + raw<std::uint64_t>(claimed_tensors.value_or(tensors_.size())) +
                       raw<std::uint64_t>(claimed_keys.value_or(keys_.size()));
    for (const auto& key : keys_) text += key;
    for (const auto& tensor : tensors_) {
      text += gguf_string(tensor.name) + raw(static_cast<std::uint32_t>(tensor.dims.size())) + raw_list(tensor.dims) +
              raw(tensor.type) + raw(tensor.offset);
    }
    text.resize((text.size() + alignment - 1) / alignment * alignment, '\0');
    return text + data_;
  }

 private:
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dims;
    std::uint32_t type;
    std::uint64_t offset;
  };
  std::vector<std::string> keys_;
  std::vector<Tensor> tensors_;
  std::string data_;
};

}  // namespace dagmoe::testing
