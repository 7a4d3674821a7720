#include "checkpoint/gguf.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "tests/base/helpers.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

constexpr std::uint64_t kHuge = std::uint64_t{1} << 60;

/// A sound file: two keys, one 2 x 3 and one 4-element tensor.
GgufBuilder sound() {
  GgufBuilder builder;
  builder.add_text("general.architecture", "llama");
  builder.add_u32("a.number", 7);
  builder.add_floats("matrix", {3, 2}, {1, 2, 3, 4, 5, 6});
  builder.add_floats("vector", {4}, {7, 8, 9, 10});
  return builder;
}

GgufFile opened(const TemporaryFolder& folder, const GgufBuilder& builder) {
  write_text(folder / "m.gguf", builder.build());
  return GgufFile::open(folder / "m.gguf");
}

/// What opening a file says, without its path in front.
std::string error_at(const std::filesystem::path& path) {
  const std::string prefix = path.string() + ": ";
  const std::string message = message_of<InputError>([&] { GgufFile::open(path); });
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

std::string error_of(const std::string& content) {
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", content);
  return error_at(folder / "m.gguf");
}

std::string error_with(const std::function<void(GgufBuilder&)>& change) {
  GgufBuilder builder = sound();
  change(builder);
  return error_of(builder.build());
}

std::string value_error(std::uint32_t type, const std::string& value) {
  return error_with([&](GgufBuilder& builder) { builder.add("k", type, value); });
}

std::vector<float> decode(GgufType type, const std::string& bytes) {
  const GgufBlock block = gguf_block(type);
  std::vector<float> values(bytes.size() / static_cast<std::size_t>(block.num_bytes) *
                            static_cast<std::size_t>(block.num_values));
  dequantize_blocks(type, std::as_bytes(std::span(bytes)), values);
  return values;
}

const std::string kHalfOne = raw<std::uint16_t>(0x3C00), kHalfQuarter = raw<std::uint16_t>(0x3400);

}  // namespace

TEST_CASE("gguf: metadata of every type is read", "[gguf]") {
  GgufBuilder builder = sound();
  builder.add("u8", 0, raw<std::uint8_t>(200));
  builder.add("i8", 1, raw<std::int8_t>(-3));
  builder.add("u16", 2, raw<std::uint16_t>(60000));
  builder.add("i16", 3, raw<std::int16_t>(-4));
  builder.add("i32", 5, raw<std::int32_t>(-5));
  builder.add_f32("f32", 0.5f);
  builder.add_bool("bool", true);
  builder.add("u64", 10, raw<std::uint64_t>(1));
  builder.add("i64", 11, raw<std::int64_t>(-6));
  builder.add("f64", 12, raw(0.1));
  builder.add_texts("texts", {"a", "", "é"});
  builder.add_i32s("numbers", {1, -2});
  const TemporaryFolder folder;
  const GgufFile file = opened(folder, builder);
  CHECK(file.version() == 3);
  CHECK(file.metadata().size() == 14);
  CHECK(*file.find("general.architecture") == GgufValue("llama"));
  CHECK(*file.find("a.number") == GgufValue(std::int64_t{7}));
  CHECK(*file.find("u8") == GgufValue(std::int64_t{200}));
  CHECK(*file.find("i8") == GgufValue(std::int64_t{-3}));
  CHECK(*file.find("u16") == GgufValue(std::int64_t{60000}));
  CHECK(*file.find("i16") == GgufValue(std::int64_t{-4}));
  CHECK(*file.find("i32") == GgufValue(std::int64_t{-5}));
  CHECK(*file.find("f32") == GgufValue(0.5));
  CHECK(*file.find("bool") == GgufValue(true));
  CHECK(*file.find("u64") == GgufValue(std::int64_t{1}));
  CHECK(*file.find("i64") == GgufValue(std::int64_t{-6}));
  CHECK(*file.find("f64") == GgufValue(0.1));
  CHECK(*file.find("texts") == GgufValue(GgufArray(std::vector<std::string>{"a", "", "é"})));
  CHECK(*file.find("numbers") == GgufValue(GgufArray(std::vector<std::int64_t>{1, -2})));
  CHECK(file.find("absent") == nullptr);
}

TEST_CASE("gguf: shapes are in row-major order and values are where they belong", "[gguf]") {
  const TemporaryFolder folder;
  const GgufFile file = opened(folder, sound());
  REQUIRE(file.tensor("matrix") != nullptr);
  CHECK(file.tensor("matrix")->shape == std::vector<std::int64_t>{2, 3});
  CHECK(dequantize(file, *file.tensor("matrix")) == std::vector<float>{1, 2, 3, 4, 5, 6});
  CHECK(dequantize(file, *file.tensor("vector")) == std::vector<float>{7, 8, 9, 10});
  CHECK(file.tensor("absent") == nullptr);
}

TEST_CASE("gguf: version 2 and another alignment are read", "[gguf]") {
  GgufBuilder builder;
  builder.version = 2;
  builder.alignment = 64;
  builder.add_u32("general.alignment", 64);
  builder.add_floats("a", {1}, {1});
  builder.add_floats("b", {1}, {2});
  const TemporaryFolder folder;
  const GgufFile file = opened(folder, builder);
  CHECK(file.version() == 2);
  CHECK(file.tensor("a")->offset % 64 == 0);
  CHECK(dequantize(file, *file.tensor("b")) == std::vector<float>{2});
}

TEST_CASE("gguf: other files, versions and byte orders are refused", "[gguf]") {
  CHECK(error_of("") == "header: does not start with 'GGUF'; is this a GGUF file?");
  CHECK(error_of("ggml and more bytes") == "header: does not start with 'GGUF'; is this a GGUF file?");
  const auto version_error = [](std::uint32_t version) {
    return error_with([&](GgufBuilder& builder) { builder.version = version; });
  };
  CHECK(version_error(1) == "header: version 1 is not supported; supported: 2, 3");
  CHECK(version_error(7) == "header: version 7 is not supported; supported: 2, 3");
  CHECK(version_error(0x03000000) == "header: is in big-endian byte order, which is not supported");
}

TEST_CASE("gguf: counts that the file cannot hold are refused before memory is taken", "[gguf]") {
  for (const std::uint64_t count : {kHuge, std::uint64_t{1} << 40, std::uint64_t{1} << 32, ~std::uint64_t{0}}) {
    CHECK_THAT(error_with([&](GgufBuilder& builder) { builder.claimed_tensors = count; }),
               Catch::StartsWith("header: claims "));
    CHECK_THAT(error_with([&](GgufBuilder& builder) { builder.claimed_keys = count; }),
               Catch::StartsWith("header: claims "));
    CHECK_THAT(value_error(8, raw(count) + "abc"), Catch::StartsWith("metadata key 'k': a text of "));
    for (std::uint32_t type = 0; type < 13; ++type) {
      if (type == 9) continue;
      CHECK_THAT(value_error(9, raw(type) + raw(count) + "abc"), Catch::StartsWith("metadata key 'k': an array of "));
    }
  }
  CHECK_THAT(error_with([&](GgufBuilder& builder) { builder.claimed_tensors = kHuge; }),
             Catch::StartsWith("header: claims 1,152,921,504,606,846,976 tensors, but only "));
}

TEST_CASE("gguf: damaged values are refused with their key", "[gguf]") {
  CHECK(value_error(13, "") == "metadata key 'k': value type 13 is unknown");
  CHECK(value_error(9, raw<std::uint32_t>(9) + raw<std::uint64_t>(0)) ==
        "metadata key 'k': arrays of arrays are not supported");
  CHECK(value_error(9, raw<std::uint32_t>(99) + raw<std::uint64_t>(0)) == "metadata key 'k': value type 99 is unknown");
  CHECK(value_error(7, "\2") == "metadata key 'k': found 2, expected a truth value (0 or 1)");
  CHECK(value_error(10, raw(~std::uint64_t{0})) ==
        "metadata key 'k': number 18446744073709551615 does not fit 63 bits");
  CHECK(value_error(8, gguf_string("\xff")) == "metadata key 'k': a text is not valid UTF-8");
  CHECK(error_with([](GgufBuilder& builder) { builder.add_u32("a.number", 8); }) ==
        "metadata key 'a.number': is given twice");
}

TEST_CASE("gguf: an alignment that is no power of two is refused", "[gguf]") {
  const auto alignment_error = [](std::uint32_t alignment) {
    return error_with([&](GgufBuilder& builder) { builder.add_u32("general.alignment", alignment); });
  };
  CHECK(alignment_error(0) == "header: 'general.alignment' is no power of two");
  CHECK(alignment_error(24) == "header: 'general.alignment' is no power of two");
  CHECK(error_with([](GgufBuilder& builder) { builder.add_text("general.alignment", "32"); }) ==
        "header: 'general.alignment' is no power of two");
}

TEST_CASE("gguf: damaged tensor entries are refused with the tensor's name", "[gguf]") {
  const auto tensor_error = [](const std::vector<std::uint64_t>& dims, std::uint32_t type) {
    return error_with([&](GgufBuilder& builder) { builder.add_tensor("w", dims, type, std::string(64, 'x')); });
  };
  CHECK(tensor_error({1, 1, 1, 1, 1}, 0) == "tensor 'w': found 5 dimensions, expected 1 to 4");
  CHECK(tensor_error({}, 0) == "tensor 'w': found 0 dimensions, expected 1 to 4");
  CHECK(tensor_error({kHuge, kHuge}, 0) ==
        "tensor 'w': shape [1152921504606846976, 1152921504606846976] has more bytes than 63 bits count");
  CHECK(tensor_error({4, 0}, 0) == "tensor 'w': shape [0, 4] has no elements");
  CHECK(tensor_error({0, 4}, 0) == "tensor 'w': shape [4, 0] has no elements");
  CHECK(tensor_error({48, 1}, 2) == "tensor 'w': rows of 48 values, expected a multiple of 32 for Q4_0");
  CHECK(error_with([](GgufBuilder& builder) { builder.add_floats("vector", {1}, {1}); }) ==
        "tensor 'vector': is given twice");
}

TEST_CASE("gguf: encodings that are not supported are refused by name and id", "[gguf]") {
  const auto type_error = [](std::uint32_t type) {
    return error_with([&](GgufBuilder& builder) { builder.add_tensor("w", {256}, type, std::string(64, 'x')); });
  };
  const std::string supported =
      " is not supported; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";
  CHECK(type_error(9) == "tensor 'w': type Q8_1 (id 9)" + supported);
  CHECK(type_error(10) == "tensor 'w': type Q2_K (id 10)" + supported);
  CHECK(type_error(39) == "tensor 'w': type MXFP4 (id 39)" + supported);
  CHECK(type_error(999) == "tensor 'w': type unknown (id 999)" + supported);
}

TEST_CASE("gguf: tensors outside the file, unaligned or over each other are refused", "[gguf]") {
  const auto offset_error = [](std::uint64_t offset) {
    return error_with([&](GgufBuilder& builder) { builder.set_offset(1, offset); });
  };
  CHECK(offset_error(8) == "tensor 'vector': offset 8 is no multiple of the alignment, 32");
  CHECK(offset_error(0) == "tensor 'vector': overlaps tensor 'matrix'");
  CHECK_THAT(offset_error(std::uint64_t{1} << 40),
             Catch::StartsWith("tensor 'vector': needs 16 bytes from byte 1,099,511,"));
  CHECK_THAT(offset_error(~std::uint64_t{31}), Catch::StartsWith("tensor 'vector': needs 16 bytes from byte "));
}

TEST_CASE("gguf: a file cut anywhere is refused", "[gguf]") {
  // The padding behind the last tensor is all that may be missing.
  const std::string whole = sound().build();
  const std::size_t needed = whole.size() - 16;
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", whole.substr(0, needed));
  CHECK(error_at(folder / "m.gguf") == "(nothing was thrown)");
  std::filesystem::resize_file(folder / "m.gguf", needed - 1);
  CHECK_THAT(error_at(folder / "m.gguf"), Catch::Contains("is the download complete?"));
  for (std::size_t size = needed; size-- > 0;) {
    std::filesystem::resize_file(folder / "m.gguf", size);
    if (error_at(folder / "m.gguf") == "(nothing was thrown)") FAIL("accepted " << size << " bytes");
  }
}

TEST_CASE("gguf: no damaged byte does more than an input error", "[gguf]") {
  const std::string whole = sound().build();
  const TemporaryFolder folder;
  write_text(folder / "m.gguf", whole);
  std::fstream stream(folder / "m.gguf", std::ios::in | std::ios::out | std::ios::binary);
  const auto put = [&](std::size_t at, char value) {
    stream.seekp(static_cast<std::streamoff>(at)).put(value).flush();
  };
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const char value : {'\0', '\x7f', '\xff'}) {
      put(at, value);
      CHECK_NOTHROW(error_at(folder / "m.gguf"));
    }
    put(at, whole[at]);
  }
}

TEST_CASE("gguf: plain types decode to their values", "[gguf]") {
  CHECK(decode(GgufType::kF32, raw_list<float>({1.5f, -2.0f})) == std::vector<float>{1.5f, -2.0f});
  CHECK(decode(GgufType::kF16, raw_list<std::uint16_t>({0x3C00, 0xC000})) == std::vector<float>{1.0f, -2.0f});
  CHECK(decode(GgufType::kBF16, raw_list<std::uint16_t>({0x3F80, 0x4049})) == std::vector<float>{1.0f, 3.140625f});
}

TEST_CASE("gguf: a Q8_0 block is a scale times signed bytes", "[gguf]") {
  std::string block = kHalfQuarter + std::string(32, '\0');
  block[2] = '\x04', block[3] = '\xff', block[33] = '\x80';
  const std::vector<float> values = decode(GgufType::kQ8_0, block);
  CHECK(values[0] == 1.0f);
  CHECK(values[1] == -0.25f);
  CHECK(values[2] == 0.0f);
  CHECK(values[31] == -32.0f);
}

TEST_CASE("gguf: a Q4_0 block holds values j and j + 16 in one byte, eight below", "[gguf]") {
  std::string block = kHalfQuarter + std::string(16, '\x88');
  block[2] = '\xf0', block[17] = '\x4b';
  const std::vector<float> values = decode(GgufType::kQ4_0, block);
  CHECK(values[0] == -2.0f);
  CHECK(values[16] == 1.75f);
  CHECK(values[1] == 0.0f);
  CHECK(values[15] == 0.75f);
  CHECK(values[31] == -1.0f);
}

TEST_CASE("gguf: a Q4_1 block adds a minimum", "[gguf]") {
  std::string block = kHalfQuarter + kHalfOne + std::string(16, '\0');
  block[4] = '\xf4';
  const std::vector<float> values = decode(GgufType::kQ4_1, block);
  CHECK(values[0] == 2.0f);
  CHECK(values[16] == 4.75f);
  CHECK(values[1] == 1.0f);
}

TEST_CASE("gguf: a Q5_0 block adds a fifth bit from a word of 32 bits, sixteen below", "[gguf]") {
  std::string block = kHalfQuarter + std::string(20, '\0');
  block[2] = '\x01', block[5] = '\x80';  // the fifth bits of values 0 and 31
  block[6] = '\x4f', block[21] = '\xf0';
  const std::vector<float> values = decode(GgufType::kQ5_0, block);
  CHECK(values[0] == 3.75f);   // (15 + 16 - 16) / 4
  CHECK(values[16] == -3.0f);  // (4 - 16) / 4
  CHECK(values[31] == 3.75f);  // (15 + 16 - 16) / 4
  CHECK(values[15] == -4.0f);  // (0 - 16) / 4
}

TEST_CASE("gguf: a Q5_1 block adds a fifth bit and a minimum", "[gguf]") {
  std::string block = kHalfQuarter + kHalfOne + std::string(20, '\0');
  block[5] = '\x02', block[6] = '\x02';  // the fifth bits of values 9 and 17
  block[17] = '\x23', block[9] = '\x10';
  const std::vector<float> values = decode(GgufType::kQ5_1, block);
  CHECK(values[9] == 5.75f);   // (3 + 16) / 4 + 1
  CHECK(values[25] == 1.5f);   // 2 / 4 + 1
  CHECK(values[17] == 5.25f);  // (1 + 16) / 4 + 1
  CHECK(values[1] == 1.0f);
}

TEST_CASE("gguf: a Q4_K block has eight scales and minima of six bits", "[gguf]") {
  std::string block = kHalfQuarter + kHalfOne + std::string(140, '\0');
  block[4] = '\x85';   // scale 0: 5; two high bits of scale 4: 2
  block[8] = '\x43';   // minimum 0: 3; two high bits of minimum 4: 1
  block[12] = '\x21';  // scale 4: 1 + 32; minimum 4: 2 + 16
  block[7] = '\x3f';   // scale 3: 63
  block[16] = '\xa7', block[80] = '\x0c', block[79] = '\xb0';
  const std::vector<float> values = decode(GgufType::kQ4_K, block);
  CHECK(values[0] == 5.75f);      // 5 / 4 * 7 - 3
  CHECK(values[1] == -3.0f);      // 5 / 4 * 0 - 3
  CHECK(values[32] == 0.0f);      // scale and minimum 1 are 0
  CHECK(values[127] == 173.25f);  // 63 / 4 * 11 - 0
  CHECK(values[128] == 81.0f);    // 33 / 4 * 12 - 18
  CHECK(values[129] == -18.0f);
}

TEST_CASE("gguf: a Q5_K block is a Q4_K block with a fifth bit for each value", "[gguf]") {
  std::string block = kHalfQuarter + kHalfOne + std::string(172, '\0');
  block[4] = '\x85', block[8] = '\x43', block[12] = '\x21', block[7] = '\x3f';  // as above
  block[16] = '\x11', block[47] = '\x08';  // fifth bits of values 0 and 128; of value 3 * 32 + 31
  block[48] = '\xa7', block[112] = '\x0c', block[111] = '\xb0';
  const std::vector<float> values = decode(GgufType::kQ5_K, block);
  CHECK(values[0] == 25.75f);  // 5 / 4 * (7 + 16) - 3
  CHECK(values[1] == -3.0f);
  CHECK(values[127] == 425.25f);  // 63 / 4 * (11 + 16) - 0
  CHECK(values[128] == 213.0f);   // 33 / 4 * (12 + 16) - 18
  CHECK(values[129] == -18.0f);
}

TEST_CASE("gguf: a Q6_K block joins four low bits, two high bits and a scale per 16 values", "[gguf]") {
  std::string block(210, '\0');
  block[0] = '\x21', block[32] = '\x5a';  // low bits of values 0, 64 and 32, 96
  block[128] = '\xe4';                    // high bits of values 0, 32, 64, 96: 0, 1, 2, 3
  for (int s = 0; s < 16; ++s) block[static_cast<std::size_t>(192 + s)] = '\x04';
  block[192 + 8] = '\xfd';  // values 128 to 143: -3
  block.replace(208, 2, kHalfQuarter);
  const std::vector<float> values = decode(GgufType::kQ6_K, block);
  CHECK(values[0] == -31.0f);
  CHECK(values[32] == -6.0f);
  CHECK(values[64] == 2.0f);
  CHECK(values[96] == 21.0f);
  CHECK(values[1] == -32.0f);
  CHECK(values[128] == 24.0f);
}

TEST_CASE("gguf: random blocks decode bit for bit as in the reference package", "[gguf]") {
  const SafetensorsFile golden = SafetensorsFile::open(DAGMOE_SOURCE_DIR "/tests/golden/gguf_blocks.safetensors");
  for (const GgufType type : {GgufType::kF16, GgufType::kBF16, GgufType::kQ8_0, GgufType::kQ4_0, GgufType::kQ4_1,
                              GgufType::kQ5_0, GgufType::kQ5_1, GgufType::kQ4_K, GgufType::kQ5_K, GgufType::kQ6_K}) {
    const std::string name = gguf_type_name(type);
    INFO(name);
    const TensorInfo* bytes = golden.find(name + ".bytes");
    const TensorInfo* expected = golden.find(name + ".values");
    REQUIRE(bytes != nullptr);
    REQUIRE(expected != nullptr);
    std::vector<float> values(static_cast<std::size_t>(expected->shape[0]));
    dequantize_blocks(type, golden.bytes(*bytes), values);
    CHECK(std::memcmp(values.data(), golden.bytes(*expected).data(), values.size() * sizeof(float)) == 0);
  }
}
