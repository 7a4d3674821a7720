#include "base/text.h"

#include <limits>

#include "tests/support/catch.h"

using namespace dagmoe;

TEST_CASE("text: str puts its arguments one after another", "[base]") {
  CHECK(str("found ", 3, " rows, ", 0.5, std::string("!")) == "found 3 rows, 0.5!");
}

TEST_CASE("text: with_commas groups digits by three, signs and limits included", "[base]") {
  CHECK(with_commas(0) == "0");
  CHECK(with_commas(999) == "999");
  CHECK(with_commas(1000) == "1,000");
  CHECK(with_commas(1234567) == "1,234,567");
  CHECK(with_commas(-999) == "-999");
  CHECK(with_commas(-123456) == "-123,456");
  CHECK(with_commas(std::numeric_limits<std::int64_t>::min()) == "-9,223,372,036,854,775,808");
}

TEST_CASE("text: human_bytes uses decimal units and never prints 1000.0", "[base]") {
  CHECK(human_bytes(0) == "0 B");
  CHECK(human_bytes(999) == "999 B");
  CHECK(human_bytes(1000) == "1.0 kB");
  CHECK(human_bytes(98'412'345) == "98.4 MB");
  CHECK(human_bytes(999'949) == "999.9 kB");
  CHECK(human_bytes(999'950) == "1.0 MB");
  CHECK(human_bytes(3'900'000'000'000) == "3.9 TB");
  CHECK(human_bytes(-1500) == "-1.5 kB");
  CHECK(human_bytes(std::numeric_limits<std::int64_t>::max()) == "9223.4 PB");
}

TEST_CASE("text: human_seconds prints minutes and, from an hour on, hours", "[base]") {
  CHECK(human_seconds(0.0) == "0:00");
  CHECK(human_seconds(5.4) == "0:05");
  CHECK(human_seconds(83.2) == "1:23");
  CHECK(human_seconds(59.6) == "1:00");
  CHECK(human_seconds(3723.0) == "1:02:03");
  CHECK(human_seconds(360000.0) == "100:00:00");
}

TEST_CASE("text: fixed keeps the number of decimals", "[base]") {
  CHECK(fixed(1.005, 1) == "1.0");
  CHECK(fixed(-2.0, 3) == "-2.000");
  CHECK(fixed(1e20, 0) == "100000000000000000000");
}

TEST_CASE("text: split keeps empty pieces and join undoes it", "[base]") {
  CHECK(split("a,,b", ',') == std::vector<std::string>{"a", "", "b"});
  CHECK(split("", ',') == std::vector<std::string>{""});
  CHECK(split(",", ',') == std::vector<std::string>{"", ""});
  CHECK(join(split("a,,b", ','), ",") == "a,,b");
  CHECK(join(std::vector<std::string>{}, ", ").empty());
  CHECK(join(std::vector<std::string>{"a", "b"}, ", ") == "a, b");
}

TEST_CASE("text: trim removes white space at both ends only", "[base]") {
  CHECK(trim(" \t\r\n a b \v\f") == "a b");
  CHECK(trim(" \n ").empty());
  CHECK(trim("").empty());
}

TEST_CASE("text: shapes print as lists", "[base]") {
  CHECK(shape_text(std::vector<std::int64_t>{2, 3, 4}) == "[2, 3, 4]");
  CHECK(shape_text(std::vector<std::int64_t>{7}) == "[7]");
  CHECK(shape_text({}) == "[]");
}

TEST_CASE("text: a table aligns number columns right, others left, and leaves no trailing spaces", "[base]") {
  const std::string text = table_text({{"group", "tensors", "share", "note"},
                                       {"dag", "12", "0.5%", ""},
                                       {"experts", "1,234", "-", "frozen"},
                                       {"lm_head", "1", "12.25%", "x"}});
  CHECK(text ==
        "group    tensors   share  note\n"
        "dag           12    0.5%\n"
        "experts    1,234       -  frozen\n"
        "lm_head        1  12.25%  x\n");
}

TEST_CASE("text: a table measures code points and takes rows of different length", "[base]") {
  CHECK(table_text({{"a", "b"}, {"\xC3\xA9\xC3\xA9\xC3\xA9", "x"}, {"y"}}) ==
        "a    b\n\xC3\xA9\xC3\xA9\xC3\xA9  x\ny\n");
  CHECK(table_text({}).empty());
}

TEST_CASE("text: a column with a single word in it aligns left", "[base]") {
  CHECK(table_text({{"value"}, {"1"}, {"none"}}) == "value\n1\nnone\n");
  CHECK(table_text({{"value"}, {"1e-5"}, {"+2.5"}}) == "value\n 1e-5\n +2.5\n");
}

TEST_CASE("text: UTF-8 that is well formed is accepted", "[base]") {
  const std::string valid[] = {
      "",
      "plain",
      std::string("\0", 1),
      "\x7F",
      "\xC2\x80",          // U+0080
      "\xDF\xBF",          // U+07FF
      "\xE0\xA0\x80",      // U+0800
      "\xED\x9F\xBF",      // U+D7FF
      "\xEE\x80\x80",      // U+E000
      "\xEF\xBF\xBF",      // U+FFFF
      "\xF0\x90\x80\x80",  // U+10000
      "\xF4\x8F\xBF\xBF",  // U+10FFFF
  };
  for (const auto& text : valid) {
    INFO(text);
    CHECK(is_valid_utf8(text));
  }
}

TEST_CASE("text: UTF-8 that is overlong, cut off, a surrogate or too large is refused", "[base]") {
  const std::string invalid[] = {
      "\x80",                  // continuation byte alone
      "\xBF",                  //
      "\xC0\x80",              // overlong U+0000
      "\xC1\xBF",              // overlong U+007F
      "\xC2",                  // cut off
      "\xC2\x41",              // no continuation byte
      "\xE0\x80\x80",          // overlong
      "\xE0\x9F\xBF",          // overlong U+07FF
      "\xE2\x82",              // cut off
      "\xE2\x82\x41",          //
      "\xED\xA0\x80",          // surrogate U+D800
      "\xED\xBF\xBF",          // surrogate U+DFFF
      "\xF0\x80\x80\x80",      // overlong
      "\xF0\x8F\xBF\xBF",      // overlong U+FFFF
      "\xF0\x9F\x98",          // cut off
      "\xF4\x90\x80\x80",      // U+110000
      "\xF5\x80\x80\x80",      //
      "\xF8\x88\x80\x80\x80",  // five bytes
      "\xFE",
      "\xFF",
  };
  for (const auto& text : invalid) {
    INFO("bytes of length " << text.size() << " from " << static_cast<int>(static_cast<unsigned char>(text[0])));
    CHECK_FALSE(is_valid_utf8(text));
    CHECK_FALSE(is_valid_utf8("before" + text));
    CHECK_FALSE(is_valid_utf8(text + "behind"));
  }
}

TEST_CASE("text: code points are counted, not bytes", "[base]") {
  CHECK(count_code_points("") == 0);
  CHECK(count_code_points("abc") == 3);
  CHECK(count_code_points("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80") == 3);
}

TEST_CASE("text: sha256_hex gives the published digests", "[base]") {
  // FIPS 180-4 examples of NIST; the lengths meet every padding case.
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256_hex("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrs"
                   "mnopqrstnopqrstu") == "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK(sha256_hex(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("text: sha256_hex pads right on both sides of a block's end", "[base]") {
  // From sha256sum: printf 'a%.0s' {1..N} | sha256sum.
  CHECK(sha256_hex(std::string(55, 'a')) == "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(sha256_hex(std::string(56, 'a')) == "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(sha256_hex(std::string(64, 'a')) == "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

TEST_CASE("text: text in a message is one short line", "[base]") {
  CHECK(one_line("a\tb\n\x7F\xC3\xA9") == "a\\x09b\\n\\x7f\xC3\xA9");
  CHECK(one_line("\xC2\x9B 2J\xC2\xA0") == "\\x9b 2J\xC2\xA0");  // U+009B starts a terminal's commands as ESC [ does
  CHECK(quoted_for_message("abc") == "'abc'");
  CHECK(quoted_for_message("a\nb\x1b[K") == "'a\\nb\\x1b[K'");
  CHECK(quoted_for_message(std::string(130, 'x')) == "'" + std::string(120, 'x') + "...'");
  CHECK(quoted_for_message(std::string(119, 'x') + "\xC3\xA9") == "'" + std::string(119, 'x') + "...'");
}

TEST_CASE("text: of a shape with very many sizes the rest are counted", "[base]") {
  CHECK(shape_text(std::vector<std::int64_t>(16, 1)) == "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]");
  CHECK(shape_text(std::vector<std::int64_t>(2000, 1)) ==
        "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ... (2000 sizes)]");
}
