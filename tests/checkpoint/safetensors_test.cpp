#include "checkpoint/safetensors.h"

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/safetensors_convert.h"
#include "tests/base/helpers.h"
#include "tests/support/catch.h"

using namespace dagmoe;
using namespace dagmoe::testing;

namespace {

std::string file_text(std::string_view header, std::string_view data) {
  std::string text(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(text.data(), &length, 8);
  return text + std::string(header) + std::string(data);
}

/// What opening a file says, without its path in front.
std::string error_at(const std::filesystem::path& path) {
  const std::string prefix = path.string() + ": ";
  const std::string message = message_of<InputError>([&] { SafetensorsFile::open(path); });
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

std::string error_of(std::string_view content) {
  const TemporaryFolder folder;
  write_text(folder / "m.safetensors", content);
  return error_at(folder / "m.safetensors");
}

std::string error_of(std::string_view header, std::string_view data) { return error_of(file_text(header, data)); }

template <class T>
TensorSource source(std::string name, DType dtype, std::vector<std::int64_t> shape, std::vector<T> values) {
  const auto kept = std::make_shared<std::vector<T>>(std::move(values));
  return {std::move(name), dtype, std::move(shape), [kept] { return std::as_bytes(std::span(*kept)); }};
}

template <class T>
std::vector<T> values_of(const SafetensorsFile& file, std::string_view name) {
  const std::span<const std::byte> bytes = file.bytes(*file.find(name));
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

template <class T>
std::vector<T> convert(DType from, DType to, auto values) {
  const std::vector<std::byte> bytes = convert_floats(std::as_bytes(std::span(values)), from, to, "x");
  std::vector<T> result(bytes.size() / sizeof(T));
  std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

}  // namespace

TEST_CASE("safetensors: a scalar, an empty tensor and a matrix round-trip", "[safetensors]") {
  const TemporaryFolder folder;
  write_safetensors(folder / "m.safetensors",
                    {source<float>("scalar", DType::kF32, {}, {7.5f}), source<float>("empty", DType::kF32, {0, 5}, {}),
                     source<std::int64_t>("matrix", DType::kI64, {2, 1}, {-1, 1})});
  const SafetensorsFile file = SafetensorsFile::open(folder / "m.safetensors");
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.find("scalar")->shape.empty());
  CHECK(values_of<float>(file, "scalar") == std::vector<float>{7.5f});
  CHECK(file.find("empty")->shape == std::vector<std::int64_t>{0, 5});
  CHECK(file.bytes(*file.find("empty")).empty());
  CHECK(values_of<std::int64_t>(file, "matrix") == std::vector<std::int64_t>{-1, 1});
  CHECK(file.find("absent") == nullptr);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
}

TEST_CASE("safetensors: a file of every dtype is byte-identical to the reference writer's", "[safetensors]") {
  using S = std::string;
  const std::uint16_t one_bf16 = 0x3F80, two_bf16 = 0x4000, one_f16 = 0x3C00, two_f16 = 0x4000;
  std::vector<TensorSource> tensors = {
      source<double>("of F64", DType::kF64, {3}, {0, 1, 2}),
      source<float>("of F32", DType::kF32, {3}, {0, 1, 2}),
      source<std::uint16_t>("of BF16", DType::kBF16, {3}, {0, one_bf16, two_bf16}),
      source<std::uint16_t>("of F16", DType::kF16, {3}, {0, one_f16, two_f16}),
      source<std::int64_t>("of I64", DType::kI64, {3}, {0, 1, 2}),
      source<std::uint64_t>("of U64", DType::kU64, {3}, {0, 1, 2}),
      source<std::int32_t>("of I32", DType::kI32, {3}, {0, 1, 2}),
      source<std::uint32_t>("of U32", DType::kU32, {3}, {0, 1, 2}),
      source<std::int16_t>("of I16", DType::kI16, {3}, {0, 1, 2}),
      source<std::uint16_t>("of U16", DType::kU16, {3}, {0, 1, 2}),
      source<std::int8_t>("of I8", DType::kI8, {3}, {0, 1, 2}),
      source<std::uint8_t>("of U8", DType::kU8, {3}, {0, 1, 2}),
      source<std::uint8_t>("of BOOL", DType::kBool, {3}, {0, 1, 1}),
      source<float>("z", DType::kF32, {2, 3}, {0, 1, 2, 3, 4, 5}),
      source<float>("B", DType::kF32, {1, 2, 2}, {0, 1, 2, 3}),
      source<float>("scalar", DType::kF32, {}, {7}),
      source<float>("empty", DType::kF32, {0, 5}, {}),
      source<std::uint8_t>(S("quote \" backslash \\ slash / tab \t bell \x07 del \x7f ") + "é 漢 😀", DType::kU8, {2},
                           {0, 1})};
  const TemporaryFolder folder;
  write_safetensors(folder / "m.safetensors", std::move(tensors));
  CHECK(read_text(folder / "m.safetensors") == read_text(DAGMOE_SOURCE_DIR "/tests/golden/mixed_dtypes.safetensors"));
}

TEST_CASE("safetensors: the reference writer's file is read with every dtype", "[safetensors]") {
  const SafetensorsFile file = SafetensorsFile::open(DAGMOE_SOURCE_DIR "/tests/golden/mixed_dtypes.safetensors");
  CHECK(file.tensors().size() == 18);
  for (const DType dtype : {DType::kBool, DType::kU8, DType::kI8, DType::kI16, DType::kU16, DType::kF16, DType::kBF16,
                            DType::kI32, DType::kU32, DType::kF32, DType::kF64, DType::kI64, DType::kU64}) {
    const TensorInfo* info = file.find(std::string("of ") + dtype_name(dtype));
    REQUIRE(info != nullptr);
    CHECK(info->dtype == dtype);
  }
  CHECK(values_of<double>(file, "of F64") == std::vector<double>{0, 1, 2});
}

TEST_CASE("safetensors: the header is padded to a multiple of 8 and metadata may be absent", "[safetensors]") {
  const TemporaryFolder folder;
  for (const char* name : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"}) {
    write_safetensors(folder / "m.safetensors", {source<std::uint8_t>(name, DType::kU8, {1}, {9})}, {});
    std::uint64_t length = 0;
    std::memcpy(&length, read_text(folder / "m.safetensors").data(), 8);
    CHECK(length % 8 == 0);
    const SafetensorsFile file = SafetensorsFile::open(folder / "m.safetensors");
    CHECK(file.metadata().empty());
    CHECK(values_of<std::uint8_t>(file, name) == std::vector<std::uint8_t>{9});
  }
}

TEST_CASE("safetensors: order in the header need not be order in the data, and extra fields are ignored",
          "[safetensors]") {
  const TemporaryFolder folder;
  write_text(folder / "m.safetensors", file_text(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2],"note":[1]},)"
                                                 R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   )",
                                                 "AB"));
  const SafetensorsFile file = SafetensorsFile::open(folder / "m.safetensors");
  CHECK(file.tensors()[0].name == "a");
  CHECK(values_of<char>(file, "b") == std::vector<char>{'B'});
}

TEST_CASE("safetensors: a file that is too short for its header is refused with both sizes", "[safetensors]") {
  CHECK(error_of("") == "has 0 bytes, too few for a safetensors file; is the download complete?");
  CHECK(error_of("1234567") == "has 7 bytes, too few for a safetensors file; is the download complete?");
  std::string text = file_text(std::string(91233, ' '), "");
  text.resize(4096);
  CHECK(error_of(text) == "header claims 91,233 bytes but the file has 4,096; is the download complete?");
}

TEST_CASE("safetensors: a header length beyond the limit is refused without reading on", "[safetensors]") {
  CHECK(
      error_of("<!DOCTYPE html><html>") ==
      "header claims 5,789,751,444,030,890,300 bytes, more than the 100,000,000 allowed; is this a safetensors file?");
  CHECK(error_of("\xff\xff\xff\xff\xff\xff\xff\xff{}") ==
        "header claims 18446744073709551615 bytes, more than the 100,000,000 allowed; is this a safetensors file?");
}

TEST_CASE("safetensors: a Git LFS pointer is named as such", "[safetensors]") {
  CHECK(error_of("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n") ==
        "is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'");
}

TEST_CASE("safetensors: a header that is no JSON object is refused", "[safetensors]") {
  CHECK(error_of(" {}", "") == "header does not start with '{'; is this a safetensors file?");
  CHECK(error_of("[]", "") == "header does not start with '{'; is this a safetensors file?");
  CHECK_THAT(error_of("{\"a\":", ""), Catch::StartsWith("header:1:6: broken JSON"));
  CHECK(error_of("{\"\xff\":1}", "") == "header is not valid UTF-8");
}

TEST_CASE("safetensors: a name that occurs twice is refused by name", "[safetensors]") {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  CHECK_THAT(error_of("{\"a\":" + entry + ",\"a\":" + entry + "}", "A"), Catch::Contains("key 'a' is given twice"));
}

TEST_CASE("safetensors: metadata other than text is refused", "[safetensors]") {
  CHECK(error_of(R"({"__metadata__":{"format":1}})", "") == "'__metadata__': 'format': found number, expected string");
  CHECK(error_of(R"({"__metadata__":[]})", "") == "'__metadata__': found array, expected object");
}

TEST_CASE("safetensors: a damaged entry is refused with the tensor's name", "[safetensors]") {
  const auto entry_error = [](const std::string& entry, std::string_view data) {
    return error_of("{\"w\":" + entry + "}", data);
  };
  CHECK(entry_error("3", "") == "tensor 'w': found number, expected an object");
  CHECK(entry_error(R"({"shape":[1],"data_offsets":[0,1]})", "A") == "tensor 'w': 'dtype' is missing");
  CHECK(entry_error(R"({"dtype":8,"shape":[1],"data_offsets":[0,1]})", "A") ==
        "tensor 'w': 'dtype': found number, expected string");
  CHECK(entry_error(R"({"dtype":"U8","data_offsets":[0,1]})", "A") == "tensor 'w': 'shape' is missing");
  CHECK(entry_error(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})", "A") ==
        "tensor 'w': 'shape' has -1, expected integers from 0 to 2^63 - 1");
  CHECK(entry_error(R"({"dtype":"U8","shape":[1.0],"data_offsets":[0,1]})", "A") ==
        "tensor 'w': 'shape' has 1.0, expected integers from 0 to 2^63 - 1");
  CHECK(entry_error(R"({"dtype":"U8","shape":[1],"data_offsets":[0]})", "A") ==
        "tensor 'w': 'data_offsets' has 1 numbers, expected 2");
  CHECK(entry_error(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})", "A") ==
        "tensor 'w': 'data_offsets' end at 0, before they begin at 1");
  CHECK(entry_error(R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,20]})", std::string(20, 'x')) ==
        "tensor 'w': 'data_offsets' span 20 bytes, but F32 [2, 3] needs 24");
  CHECK(entry_error(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", "") ==
        "tensor 'w': shape [4294967296, 4294967296] has more bytes than 64 bits count");
}

TEST_CASE("safetensors: dtypes that are unknown and dtypes that are not supported are told apart", "[safetensors]") {
  const auto dtype_error = [](const std::string& dtype) {
    return error_of("{\"w\":{\"dtype\":\"" + dtype + "\",\"shape\":[1],\"data_offsets\":[0,1]}}", "A");
  };
  const std::string supported = "; supported: BOOL, U8, I8, I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64";
  CHECK(dtype_error("F33") == "tensor 'w': dtype 'F33' is unknown" + supported);
  CHECK(dtype_error("F8_E4M3") == "tensor 'w': dtype 'F8_E4M3' is not supported" + supported);
}

TEST_CASE("safetensors: names and values that no line can hold are printed short and without control characters",
          "[safetensors]") {
  const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]}})";
  CHECK(error_of(R"({"a\n\u001b[2J":)" + entry, "12345678") ==
        "tensor 'a\\n\\x1b[2J': 'data_offsets' span 8 bytes, but F32 [1] needs 4");
  CHECK_THAT(error_of("{\"" + std::string(5000, 'n') + "\":" + entry, "12345678"),
             Catch::StartsWith("tensor '" + std::string(120, 'n') + "...': "));
  CHECK(error_of(R"({"a":{"dtype":"F32","shape":[["x"]],"data_offsets":[0,4]}})", "1234") ==
        "tensor 'a': 'shape' has array, expected integers from 0 to 2^63 - 1");
}

TEST_CASE("safetensors: holes, overlaps, missing and left-over bytes are refused", "[safetensors]") {
  const auto two = [](std::string_view first, std::string_view second, std::string_view data) {
    return error_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + std::string(first) +
                        R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + std::string(second) + "}}",
                    data);
  };
  CHECK(two("[0,2]", "[3,5]", "ABCDE") == "tensor 'b': data begin at byte 3, expected 2 (a hole)");
  CHECK(two("[1,3]", "[3,5]", "ABCDE") == "tensor 'a': data begin at byte 1, expected 0 (a hole)");
  CHECK(two("[0,2]", "[1,3]", "ABC") == "tensor 'b': data begin at byte 1, expected 2 (an overlap)");
  CHECK(two("[0,2]", "[2,4]", "ABCDE") == "1 bytes after the last tensor's data");
  CHECK(two("[0,2]", "[2,4]", "ABC") ==
        "tensor 'b': data end at byte 4 but the file has 3 bytes of data; is the download complete?");
}

TEST_CASE("safetensors: a file cut anywhere is refused", "[safetensors]") {
  const TemporaryFolder folder;
  const std::string whole = read_text(DAGMOE_SOURCE_DIR "/tests/golden/mixed_dtypes.safetensors");
  write_text(folder / "m.safetensors", whole);
  for (std::size_t size = whole.size(); size-- > 0;) {
    std::filesystem::resize_file(folder / "m.safetensors", size);
    if (error_at(folder / "m.safetensors") == "(nothing was thrown)") FAIL("accepted " << size << " bytes");
  }
}

TEST_CASE("safetensors: a tensor written twice is our bug, and so are bytes that do not fit the shape",
          "[safetensors]") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(write_safetensors(folder / "m", {source<float>("a", DType::kF32, {1}, {1}),
                                                   source<std::uint8_t>("a", DType::kU8, {1}, {1})}),
                  InternalError);
  CHECK_THROWS_AS(write_safetensors(folder / "m", {source<float>("a", DType::kF32, {2}, {1})}), InternalError);
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("convert: half and bfloat16 bits widen to their values", "[safetensors]") {
  CHECK(half_to_float(0x3C00) == 1.0f);
  CHECK(half_to_float(0xC000) == -2.0f);
  CHECK(half_to_float(0x0001) == 0x1p-24f);
  CHECK(half_to_float(0x03FF) == 1023 * 0x1p-24f);
  CHECK(half_to_float(0x7BFF) == 65504.0f);
  CHECK(half_to_float(0xFC00) == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(half_to_float(0x7E00)));
  CHECK(std::signbit(half_to_float(0x8000)));
  CHECK(bfloat16_to_float(0x4049) == 3.140625f);
}

TEST_CASE("convert: ties round to even", "[safetensors]") {
  // Half: neighbours of 1 are 2^-10 apart, those of 2048 are 2 apart; bfloat16: neighbours of 1 are 2^-7 apart.
  CHECK(float_to_half(1.0f + 0x1p-11f) == 0x3C00);
  CHECK(float_to_half(1.0f + 3 * 0x1p-11f) == 0x3C02);
  CHECK(float_to_half(1.0f + 0x1p-11f + 0x1p-20f) == 0x3C01);
  CHECK(float_to_half(2049.0f) == float_to_half(2048.0f));
  CHECK(float_to_half(65519.0f) == 0x7BFF);
  CHECK(float_to_half(65520.0f) == 0x7C00);
  CHECK(float_to_half(0x1p-25f) == 0x0000);
  CHECK(float_to_half(3 * 0x1p-25f) == 0x0002);
  CHECK(float_to_half(-0x1p-24f) == 0x8001);
  CHECK(float_to_bfloat16(1.0f + 0x1p-8f) == 0x3F80);
  CHECK(float_to_bfloat16(1.0f + 3 * 0x1p-8f) == 0x3F82);
  CHECK(float_to_bfloat16(-1.0f) == 0xBF80);
}

TEST_CASE("convert: every half survives the way to float and back", "[safetensors]") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(half);
    const bool same =
        std::isnan(value) ? std::isnan(half_to_float(float_to_half(value))) : float_to_half(value) == half;
    if (!same) FAIL("half " << bits);
  }
}

TEST_CASE("convert: tensors change dtype, and NaN and infinity stay what they are", "[safetensors]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  CHECK(convert<float>(DType::kF16, DType::kF32, std::vector<std::uint16_t>{0x3C00, 0xFC00}) ==
        std::vector<float>{1, -infinity});
  CHECK(convert<std::uint16_t>(DType::kF64, DType::kBF16, std::vector<double>{1.0, -2.0}) ==
        std::vector<std::uint16_t>{0x3F80, 0xC000});
  CHECK(convert<double>(DType::kBF16, DType::kF64, std::vector<std::uint16_t>{0x4049}) ==
        std::vector<double>{3.140625});
  const std::vector<std::uint16_t> halves =
      convert<std::uint16_t>(DType::kF32, DType::kF16, std::vector<float>{nan, infinity});
  CHECK(std::isnan(half_to_float(halves[0])));
  CHECK(half_to_float(halves[1]) == infinity);
}

TEST_CASE("convert: a value that is too large for the new dtype is refused", "[safetensors]") {
  const std::vector<float> values = {1.0f, 70000.0f};
  CHECK(message_of<InputError>([&] {
          convert_floats(std::as_bytes(std::span(values)), DType::kF32, DType::kF16, "m: tensor 'w'");
        }) == "m: tensor 'w': value 70000 is too large for F16");
}
