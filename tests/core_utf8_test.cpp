#include "core/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/rng.h"

namespace switchyard {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

TEST(Utf8Stream, ACharacterComesWholeWithItsLastByte) {
  // One of each length, the smallest and largest of some, and a byte order mark.
  for (const std::string text : {"a", "\x7F", "\xC2\x80", "é", "€", "\xED\x9F\xBF", "\xEE\x80\x80",
                                 "\xEF\xBB\xBF", "😀", "\xF4\x8F\xBF\xBF"}) {
    Utf8Stream stream;
    for (std::size_t i = 0; i + 1 < text.size(); ++i) EXPECT_EQ(stream.push(text.substr(i, 1)), "") << text;
    EXPECT_EQ(stream.push(text.substr(text.size() - 1)), text);
    EXPECT_EQ(stream.finish(), "");
  }
}

TEST(Utf8Stream, ATokenMayEndOneCharacterAndBeginTheNext) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xE2"), "a");
  EXPECT_EQ(stream.push(""), "");
  EXPECT_EQ(stream.push("\x82\xAC\xC3"), "€");
  EXPECT_EQ(stream.push("\xA9"
                        "b"),
            "éb");
  EXPECT_EQ(stream.finish(), "");
}

// One U+FFFD for the longest beginning of a character that could have gone on, one for any other byte. The
// expected texts are Python's: bytes.decode(errors="replace").
TEST(Utf8Stream, ByteThatIsPartOfNoCharacterIsReplaced) {
  const std::string& r = kReplacement;
  for (const auto& [bytes, expected] : std::vector<std::pair<std::string, std::string>>{
           {"\x80z", r + "z"},                      // a continuation of nothing
           {"\xFFz", r + "z"},                      // never in UTF-8
           {"\xC3z", r + "z"},                      // begun, then something else
           {"\xE2\x82z", r + "z"},                  //
           {"\xF0\x9F\x98z", r + "z"},              //
           {"\xF0\x9F\xE2\x82\x82", r + "₂"},       //
           {"\xF1\x80\xC3\xA9", r + "é"},           //
           {"\xE0\xA0\xFF", r + r},                 //
           {"\xE2\xE2\x82\xAC", r + "€"},           // begun anew
           {"\xC0\xAF", r + r},                     // "/" written too long
           {"\xE0\x80\xAF", r + r + r},             //
           {"\xED\xA0\x80", r + r + r},             // a surrogate
           {"\xF4\x90\x80\x80", r + r + r + r}}) {  // past U+10FFFF
    Utf8Stream at_once, by_byte;
    std::string whole = at_once.push(bytes);
    whole += at_once.finish();
    EXPECT_EQ(whole, expected) << testing::PrintToString(bytes);
    std::string got;
    for (const char byte : bytes) got += by_byte.push(std::string(1, byte));
    got += by_byte.finish();
    EXPECT_EQ(got, expected) << testing::PrintToString(bytes);
  }
}

TEST(Utf8Stream, WhatIsLeftUnfinishedIsReplacedAtTheEnd) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0\x9F\x98"), "a");
  EXPECT_EQ(stream.finish(), kReplacement);
  EXPECT_EQ(stream.finish(), "");
}

// Bytes of which about half are parts of characters: each piece given back is UTF-8 by itself, and together
// they do not depend on how the bytes were cut.
TEST(Utf8Stream, EveryPieceOfAnyBytesIsUtf8) {
  const Rng rng(11, RngPurpose::init, 1);
  const std::string parts[] = {"é", "€", "😀", "a", "\xE2", "\xF0\x9F", "\x80", "\xFF"};
  std::string bytes;
  for (std::uint64_t i = 0; i < 4000; ++i) bytes += parts[static_cast<std::size_t>(rng.uniform(i) * 8)];
  Utf8Stream whole;
  std::string expected = whole.push(bytes);
  expected += whole.finish();
  EXPECT_NE(expected.find("😀"), std::string::npos);
  for (const std::size_t most : {1, 2, 3, 5}) {
    Utf8Stream stream;
    std::string got;
    for (std::size_t at = 0; at < bytes.size(); at += most) {
      const std::string piece = stream.push(bytes.substr(at, most));
      ASSERT_FALSE(first_invalid_byte(piece)) << testing::PrintToString(piece);
      got += piece;
    }
    got += stream.finish();
    EXPECT_TRUE(got == expected) << "by " << most;
  }
}

TEST(Utf8, TheFirstInvalidByteIsFound) {
  EXPECT_FALSE(first_invalid_byte(""));
  EXPECT_FALSE(first_invalid_byte("aé€😀"));
  EXPECT_EQ(first_invalid_byte("aé\xFF"), 3u);
  EXPECT_EQ(first_invalid_byte("€\xE2\x82"), 3u);  // begun, but not ended
}

}  // namespace
}  // namespace switchyard
