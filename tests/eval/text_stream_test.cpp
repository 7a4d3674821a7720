#include "eval/text_stream.h"

#include "tests/support/byte_tokenizer.h"
#include "tests/support/catch.h"

namespace dagmoe {
namespace {

using Texts = std::vector<std::string>;

// What each byte of `text` shows, and what the end shows.
Texts pushed(TextStream& stream, std::string_view text) {
  Texts pieces;
  for (const char byte : text) pieces.push_back(stream.push(static_cast<unsigned char>(byte)));
  pieces.push_back(stream.finish());
  return pieces;
}

TEST_CASE("text stream: bytes of a character are held until it is whole", "[eval]") {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer);
  CHECK(pushed(stream, "aé€") == Texts{"a", "", "é", "", "", "€", ""});
  CHECK(stream.text() == "aé€");
}

TEST_CASE("text stream: a character that never completes ends as a replacement", "[eval]") {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer);
  CHECK(pushed(stream, "a\xE2\x82") == Texts{"a", "", "", "\xEF\xBF\xBD"});
  TextStream broken(tokenizer);
  CHECK(pushed(broken, "a\x80\xC3z") == Texts{"a", "\xEF\xBF\xBD", "", "\xEF\xBF\xBDz", ""});
}

TEST_CASE("text stream: what may begin a stop string is held back and shown when it does not", "[eval]") {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer, {"\n\nQ"});
  CHECK(pushed(stream, "a\n\nb") == Texts{"a", "", "", "\n\nb", ""});
  CHECK_FALSE(stream.stopped());
}

TEST_CASE("text stream: text ends before a stop string and takes no more", "[eval]") {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer, {"STOP", ""});
  pushed(stream, "goSTO");
  CHECK(stream.text() == "goSTO");
  TextStream other(tokenizer, {"STOP"});
  for (const char byte : std::string_view("goSTOP more")) other.push(static_cast<unsigned char>(byte));
  CHECK(other.stopped());
  CHECK(other.text() == "go");
  CHECK(other.finish().empty());
}

TEST_CASE("text stream: control tokens have no text", "[eval]") {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer);
  CHECK(stream.push(kByteImEnd).empty());
  CHECK(stream.push('a') == "a");
}

}  // namespace
}  // namespace dagmoe
