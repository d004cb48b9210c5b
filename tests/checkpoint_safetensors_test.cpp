#include "checkpoint/weights_files.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "json_values.h"
#include "run_samples.h"

namespace switchyard::checkpoint {
namespace {

using namespace test;

// A file made by hand: length, header, data.
std::string file_of(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

std::string refusal_of(const std::string& bytes) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  test::write_bytes(path, bytes);
  const std::string message = message_of<InputError>([&] { SafetensorsFile file(path); });
  EXPECT_CONTAINS(message, path.string());
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  return message;
}

TEST(Safetensors, RoundTripIsBitForBit) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  std::vector<float> a = {1.0f, -0.0f, NAN, INFINITY, 1e-45f, 0.1f};
  std::vector<double> b = {0.1, -1e-320, 3.0};
  std::vector<std::int32_t> c = {-1, 7};
  std::vector<std::uint16_t> d = {0x3f80, 0x8000, 0x0001};
  const std::vector<NamedTensor> tensors = {{"z.first", Tensor(a.data(), {2, 3}, DType::f32)},
                                            {"a.second", Tensor(b.data(), {3}, DType::f64)},
                                            {"ints", Tensor(c.data(), {1, 2, 1}, DType::i32)},
                                            {"empty", Tensor(a.data(), {0, 4}, DType::f32)},
                                            {"halves \"\\é", Tensor(d.data(), {3, 1}, DType::bf16)}};
  const FileDigest digest = write_safetensors(path, tensors);
  const std::string bytes = slurp(path);
  EXPECT_EQ(digest.bytes, bytes.size());
  EXPECT_EQ(digest.bytes, safetensors_bytes(as_written(tensors)));
  EXPECT_EQ(digest.crc, crc32(std::as_bytes(std::span(bytes))));

  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const StoredTensor* stored = file.find(name);
    ASSERT_NE(stored, nullptr) << name;
    std::vector<std::byte> memory(static_cast<std::size_t>(tensor.nbytes()) + 1);
    const Tensor back(memory.data(), tensor.shape(), tensor.dtype());
    file.read(*stored, back);
    EXPECT_EQ(bytes_of(back), bytes_of(tensor)) << name;
  }
  EXPECT_EQ(file.tensors().front().name, "z.first");  // the order of writing
  EXPECT_EQ(file.find("absent"), nullptr);
}

TEST(Safetensors, HeaderIsWhatTheFormatAsksFor) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  std::vector<float> a = {1.0f, 2.0f};
  write_safetensors(path, std::vector<NamedTensor>{{"w", Tensor(a.data(), {2}, DType::f32)}});
  const std::string bytes = slurp(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  ASSERT_EQ(bytes.size(), 8 + length + 8);
  const Json header = parsed(bytes.substr(8, length));
  EXPECT_EQ(header, parsed(R"({"__metadata__": {"format": "pt"},
                                              "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})"));
  EXPECT_EQ(bytes.substr(8 + length), std::string(reinterpret_cast<const char*>(a.data()), 8));
}

TEST(Safetensors, NarrowTypesWidenExactly) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  // f16: 1, -2, the smallest subnormal 2^-24, the largest 65504, minus infinity. bf16: 1, -2, 2^-133.
  const std::vector<std::uint16_t> f16 = {0x3c00, 0xc000, 0x0001, 0x7bff, 0xfc00};
  const std::vector<std::uint16_t> bf16 = {0x3f80, 0xc000, 0x0001};
  std::string data(reinterpret_cast<const char*>(f16.data()), 10);
  data.append(reinterpret_cast<const char*>(bf16.data()), 6);
  test::write_bytes(path, file_of(R"({"h":{"dtype":"F16","shape":[5],"data_offsets":[0,10]},)"
                                  R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[10,16]}})",
                                  data));
  const SafetensorsFile file(path);
  std::vector<float> h(5);
  file.read(*file.find("h"), Tensor(h.data(), {5}, DType::f32));
  EXPECT_EQ(h, (std::vector<float>{1.0f, -2.0f, 0x1p-24f, 65504.0f, -INFINITY}));
  std::vector<double> b(3);
  file.read(*file.find("b"), Tensor(b.data(), {3}, DType::f64));
  EXPECT_EQ(b, (std::vector<double>{1.0, -2.0, 0x1p-133}));
}

TEST(Safetensors, ReadRefusesAnotherShapeAndALossyType) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  std::vector<double> a = {1.0, 2.0};
  write_safetensors(path, std::vector<NamedTensor>{{"w", Tensor(a.data(), {2}, DType::f64)}});
  const SafetensorsFile file(path);
  std::vector<float> out(2);
  std::string message = message_of<InputError>([&] {
    file.read(*file.find("w"), Tensor(out.data(), {2, 1}, DType::f32));
  });
  EXPECT_CONTAINS(message, "\"w\" has shape [2], expected [2, 1]");
  message = message_of<InputError>([&] { file.read(*file.find("w"), Tensor(out.data(), {2}, DType::f32)); });
  EXPECT_CONTAINS(message, "F64");
}

TEST(Safetensors, ATruncatedFileIsRefusedAtEveryLength) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  std::vector<float> a = {1.0f, 2.0f, 3.0f};
  write_safetensors(path, std::vector<NamedTensor>{{"w", Tensor(a.data(), {3}, DType::f32)},
                                                   {"v", Tensor(a.data(), {1, 1}, DType::f32)}});
  const std::string whole = slurp(path);
  for (std::size_t size = 0; size < whole.size(); ++size) refusal_of(whole.substr(0, size));
  refusal_of(whole + '\0');
}

struct Malformed {
  const char* name;
  const char* header;
  std::size_t data_bytes;
  const char* expected;  // part of the message
};

class MalformedHeader : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedHeader, IsRefused) {
  const std::string message = refusal_of(file_of(GetParam().header, std::string(GetParam().data_bytes, '\1')));
  EXPECT_CONTAINS(message, GetParam().expected);
}

#define ENTRY(dtype, shape, offsets) "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

INSTANTIATE_TEST_SUITE_P(
    All, MalformedHeader,
    testing::Values(
        Malformed{"NotJson", "{\"w\":", 0, "is not JSON"},
        Malformed{"NotUtf8", "{\"w\xff\":1}", 0, "is not JSON"}, Malformed{"Empty", "", 0, "is empty"},
        Malformed{"Array", "[1]", 0, "not a JSON object"},
        Malformed{"Deep", "{\"w\":[[[[[[[[[[[[[[[[[[[[[[[[", 0, "is not JSON"},
        Malformed{"EntryIsANumber", "{\"w\":1}", 0, "\"w\""},
        Malformed{"EntryWithoutShape", R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4, "\"w\""},
        Malformed{"UnknownDtype", "{\"w\":" ENTRY("\"F7\"", "[1]", "[0,4]") "}", 4, "dtype \"F7\""},
        Malformed{"DtypeIsANumber", "{\"w\":" ENTRY("32", "[1]", "[0,4]") "}", 4, "dtype 32"},
        Malformed{"NegativeDimension", "{\"w\":" ENTRY("\"F32\"", "[-1]", "[0,4]") "}", 4, "shape"},
        Malformed{"FractionalDimension", "{\"w\":" ENTRY("\"F32\"", "[1.0]", "[0,4]") "}", 4, "shape"},
        Malformed{"ShapeIsANumber", "{\"w\":" ENTRY("\"F32\"", "1", "[0,4]") "}", 4, "shape"},
        Malformed{"ShapeOverflows", "{\"w\":" ENTRY("\"F32\"", "[4294967296,4294967296]", "[0,0]") "}", 0,
                  "impossibly large"},
        Malformed{"HugeDimension", "{\"w\":" ENTRY("\"F32\"", "[18446744073709551615]", "[0,4]") "}", 4,
                  "impossibly large"},
        Malformed{"NegativeOffset", "{\"w\":" ENTRY("\"F32\"", "[1]", "[-4,0]") "}", 4, "data_offsets"},
        Malformed{"FractionalOffset", "{\"w\":" ENTRY("\"F32\"", "[1]", "[0,4.0]") "}", 4, "data_offsets"},
        Malformed{"OneOffset", "{\"w\":" ENTRY("\"F32\"", "[1]", "[4]") "}", 4, "data_offsets"},
        Malformed{"EndBeforeBegin", "{\"w\":" ENTRY("\"F32\"", "[1]", "[4,0]") "}", 4, "outside"},
        Malformed{"BeyondTheFile", "{\"w\":" ENTRY("\"F32\"", "[2]", "[0,8]") "}", 4, "outside"},
        Malformed{"FarBeyondTheFile",
                  "{\"w\":" ENTRY("\"F32\"", "[1]", "[18446744073709551611,18446744073709551615]") "}", 4,
                  "outside"},
        Malformed{"ShapeAndSizeDiffer", "{\"w\":" ENTRY("\"F32\"", "[2]", "[0,4]") "}", 4, "needs 8 bytes"},
        Malformed{"ScalarIsOneElement", "{\"w\":" ENTRY("\"F32\"", "[]", "[0,8]") "}", 8, "needs 4 bytes"},
        Malformed{"Overlap",
                  "{\"a\":" ENTRY("\"F32\"", "[2]", "[0,8]") ",\"b\":" ENTRY("\"F32\"", "[1]", "[4,8]") "}", 8,
                  "overlap"},
        Malformed{"SameBytesTwice",
                  "{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"b\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 4,
                  "overlap"},
        Malformed{"Gap",
                  "{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"b\":" ENTRY("\"F32\"", "[1]", "[8,12]") "}",
                  12, "a gap"},
        Malformed{"GapAtTheStart", "{\"a\":" ENTRY("\"F32\"", "[1]", "[4,8]") "}", 8, "a gap"},
        Malformed{"DataWithoutATensor", "{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 8,
                  "the tensors end at 4"},
        Malformed{"NameTwice",
                  "{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"a\":" ENTRY("\"F32\"", "[1]", "[4,8]") "}", 8,
                  "\"a\" twice"},
        Malformed{"KeyTwice", R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4,
                  "\"shape\" twice"},
        Malformed{"MetadataOfNumbers", R"({"__metadata__":{"format":1}})", 0, "__metadata__"},
        Malformed{"MetadataIsAString", R"({"__metadata__":"pt"})", 0, "__metadata__"}),
    [](const auto& test) { return std::string(test.param.name); });

// As the format's own reader does: metadata may be null, an entry may hold more, and every type has its size.
TEST(Safetensors, WhatNobodyNeedsDoesNotSpoilTheFile) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  test::write_bytes(path, file_of(R"({"__metadata__":null,)"
                                  R"("a":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},)"
                                  R"("b":{"dtype":"F4","shape":[2,3],"data_offsets":[3,6],"x":1},)"
                                  R"("c":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[6,9]},)"
                                  R"("d":{"dtype":"C64","shape":[],"data_offsets":[9,17]}})",
                                  std::string(17, '\1')));
  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(name_of(file.find("b")->type), std::string("F4"));
  EXPECT_EQ(file.find("d")->bytes.size(), 8u);
  EXPECT_CONTAINS(refusal_of(file_of(R"({"b":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "ab")),
                  "needs 1.5 bytes");
}

TEST(Safetensors, AFileThatStandsForAnotherIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n", "is a Git LFS pointer"},
      {"\n <!DOCTYPE html><html>Sign in</html>", "is a web page"},
      {"<HTML><body>404</body></HTML>", "is a web page"},
      {"PK\3\4..........................", "is a zip archive"},
      {"\x1f\x8b..........................", "is compressed with gzip"},
      {"", "is empty"}};
  for (const auto& [content, expected] : cases) EXPECT_CONTAINS(refusal_of(content), expected);
}

TEST(Safetensors, AHeaderLengthBeyondTheFileIsRefused) {
  for (const std::uint64_t length : {std::uint64_t{3}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    std::string bytes(10, '{');
    std::memcpy(bytes.data(), &length, 8);
    const std::string message = refusal_of(bytes);
    EXPECT_CONTAINS(message, std::to_string(length));
  }
}

TEST(Safetensors, ABitFlipInTheHeaderIsRefusedOrStaysInsideTheFile) {
  const TempDir place;
  const auto path = place.path() / "x.safetensors";
  std::vector<float> a = {1.0f, 2.0f, 3.0f};
  write_safetensors(path, std::vector<NamedTensor>{{"w", Tensor(a.data(), {3}, DType::f32)}});
  const std::string whole = slurp(path);
  int refused = 0;
  for (std::size_t bit = 0; bit < (whole.size() - 12) * 8; bit += 3) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    test::write_bytes(path, damaged);
    try {
      const SafetensorsFile file(path);
      // What is still accepted (another name, I32 for F32) stays inside the file.
      for (const StoredTensor& tensor : file.tensors()) EXPECT_EQ(tensor.bytes.size(), 12u);
    } catch (const InputError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace switchyard::checkpoint
