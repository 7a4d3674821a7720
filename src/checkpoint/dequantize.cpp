// Formulas of contracts.md 2.2. Multiply and add round separately, so that values are bit-equal to the reference's: no
// target may compile this file with fused multiply-add.
#include <cstring>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors_convert.h"

namespace dagmoe {
namespace {

constexpr int kHalfBlock = 16;  // Q4_0, Q4_1, Q5_0, Q5_1: byte j holds the low bits of values j and j + 16

std::uint16_t load_u16(const std::byte* bytes) {
  std::uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

float load_half(const std::byte* bytes) { return half_to_float(load_u16(bytes)); }

int low_nibble(std::byte byte) { return std::to_integer<int>(byte & std::byte{15}); }
int high_nibble(std::byte byte) { return std::to_integer<int>(byte >> 4); }
int signed_byte(std::byte byte) { return static_cast<std::int8_t>(byte); }

void decode_f32(const std::byte* b, float* x) { std::memcpy(x, b, sizeof(float)); }

void decode_f16(const std::byte* b, float* x) { *x = load_half(b); }

void decode_bf16(const std::byte* b, float* x) { *x = bfloat16_to_float(load_u16(b)); }

void decode_q8_0(const std::byte* b, float* x) {
  const float d = load_half(b);
  for (int i = 0; i < 32; ++i) x[i] = d * static_cast<float>(signed_byte(b[2 + i]));
}

void decode_q4_0(const std::byte* b, float* x) {
  const float d = load_half(b);
  for (int j = 0; j < kHalfBlock; ++j) {
    x[j] = d * static_cast<float>(low_nibble(b[2 + j]) - 8);
    x[j + kHalfBlock] = d * static_cast<float>(high_nibble(b[2 + j]) - 8);
  }
}

void decode_q4_1(const std::byte* b, float* x) {
  const float d = load_half(b), m = load_half(b + 2);
  for (int j = 0; j < kHalfBlock; ++j) {
    x[j] = d * static_cast<float>(low_nibble(b[4 + j])) + m;
    x[j + kHalfBlock] = d * static_cast<float>(high_nibble(b[4 + j])) + m;
  }
}

/// The fifth bit of value j of a Q5_0 or Q5_1 block, in its place: bit j of a little-endian word.
int fifth_bit(const std::byte* high_bits, int j) {
  return std::to_integer<int>(high_bits[j / 8] >> j % 8 & std::byte{1}) << 4;
}

void decode_q5_0(const std::byte* b, float* x) {
  const float d = load_half(b);
  for (int j = 0; j < kHalfBlock; ++j) {
    x[j] = d * static_cast<float>((low_nibble(b[6 + j]) | fifth_bit(b + 2, j)) - 16);
    x[j + kHalfBlock] = d * static_cast<float>((high_nibble(b[6 + j]) | fifth_bit(b + 2, j + kHalfBlock)) - 16);
  }
}

void decode_q5_1(const std::byte* b, float* x) {
  const float d = load_half(b), m = load_half(b + 2);
  for (int j = 0; j < kHalfBlock; ++j) {
    x[j] = d * static_cast<float>(low_nibble(b[8 + j]) | fifth_bit(b + 4, j)) + m;
    x[j + kHalfBlock] = d * static_cast<float>(high_nibble(b[8 + j]) | fifth_bit(b + 4, j + kHalfBlock)) + m;
  }
}

/// Scale and minimum of one of the 8 sub-blocks of Q4_K and Q5_K, 6 bits each in 12 bytes:
///   bytes 0-3: scales 0-3, 4-7: minima 0-3, with two high bits of numbers 4-7 on top; 8-11: the low nibbles of 4-7
struct ScaleAndMin {
  int scale, min;
};
ScaleAndMin unpack_scale(const std::byte* packed, int s) {
  const auto low_six = [](std::byte byte) { return std::to_integer<int>(byte & std::byte{63}); };
  const auto top_two = [](std::byte byte) { return std::to_integer<int>(byte >> 6) << 4; };
  if (s < 4) return {low_six(packed[s]), low_six(packed[s + 4])};
  return {low_nibble(packed[s + 4]) | top_two(packed[s - 4]), high_nibble(packed[s + 4]) | top_two(packed[s])};
}

/// `quants` has 128 bytes of low nibbles: byte 32 c + l holds values 64 c + l and 64 c + 32 + l. `high_bits`, if any,
/// has a fifth bit for each: bit s of byte l belongs to value 32 s + l.
void decode_k_blocks(const std::byte* b, const std::byte* high_bits, const std::byte* quants, float* x) {
  const float d = load_half(b), dmin = load_half(b + 2);
  for (int s = 0; s < 8; ++s) {
    const ScaleAndMin packed = unpack_scale(b + 4, s);
    const float scale = d * static_cast<float>(packed.scale), min = dmin * static_cast<float>(packed.min);
    for (int l = 0; l < 32; ++l) {
      const std::byte nibbles = quants[s / 2 * 32 + l];
      int q = s % 2 == 0 ? low_nibble(nibbles) : high_nibble(nibbles);
      if (high_bits != nullptr) q |= std::to_integer<int>(high_bits[l] >> s & std::byte{1}) << 4;
      x[32 * s + l] = scale * static_cast<float>(q) - min;
    }
  }
}

void decode_q4_k(const std::byte* b, float* x) { decode_k_blocks(b, nullptr, b + 16, x); }

void decode_q5_k(const std::byte* b, float* x) { decode_k_blocks(b, b + 16, b + 48, x); }

void decode_q6_k(const std::byte* b, float* x) {
  const std::byte* const ql = b;
  const std::byte* const qh = b + 128;
  const std::byte* const sc = b + 192;
  const float d = load_half(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int h = i / 128, g = i % 128 / 32, l = i % 32;
    const std::byte low_bits = ql[64 * h + 32 * (g % 2) + l];
    const int low = g < 2 ? low_nibble(low_bits) : high_nibble(low_bits);
    const int high = std::to_integer<int>(qh[32 * h + l] >> (2 * g) & std::byte{3});
    x[i] = (d * static_cast<float>(signed_byte(sc[i / 16]))) * static_cast<float>((low | high << 4) - 32);
  }
}

using Decode = void (*)(const std::byte*, float*);

Decode decoder_of(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return decode_f32;
    case GgufType::kF16:
      return decode_f16;
    case GgufType::kBF16:
      return decode_bf16;
    case GgufType::kQ8_0:
      return decode_q8_0;
    case GgufType::kQ4_0:
      return decode_q4_0;
    case GgufType::kQ4_1:
      return decode_q4_1;
    case GgufType::kQ5_0:
      return decode_q5_0;
    case GgufType::kQ5_1:
      return decode_q5_1;
    case GgufType::kQ4_K:
      return decode_q4_k;
    case GgufType::kQ5_K:
      return decode_q5_k;
    case GgufType::kQ6_K:
      return decode_q6_k;
  }
  throw InternalError("a GGUF type without a decoder");
}

}  // namespace

void dequantize_blocks(GgufType type, std::span<const std::byte> bytes, std::span<float> values) {
  const GgufBlock block = gguf_block(type);
  const std::size_t num_blocks = bytes.size() / static_cast<std::size_t>(block.num_bytes);
  if (bytes.size() != num_blocks * static_cast<std::size_t>(block.num_bytes) ||
      values.size() != num_blocks * static_cast<std::size_t>(block.num_values)) {
    throw InternalError(str(gguf_type_name(type), ": ", bytes.size(), " bytes for ", values.size(), " values"));
  }
  const Decode decode = decoder_of(type);
  for (std::size_t i = 0; i < num_blocks; ++i) {
    decode(bytes.data() + i * static_cast<std::size_t>(block.num_bytes),
           values.data() + i * static_cast<std::size_t>(block.num_values));
  }
}

std::vector<float> dequantize(const GgufFile& file, const GgufTensor& tensor) {
  const GgufBlock block = gguf_block(tensor.type);
  const std::uint64_t num_blocks = tensor.size / static_cast<std::uint64_t>(block.num_bytes);
  std::vector<float> values(num_blocks * static_cast<std::uint64_t>(block.num_values));
  dequantize_blocks(tensor.type, file.bytes(tensor), values);
  return values;
}

}  // namespace dagmoe
