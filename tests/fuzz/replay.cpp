// Stands in for libFuzzer: gives every file of a directory to the target once.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  if (argc == 2)
    for (const auto& entry : std::filesystem::directory_iterator(argv[1])) files.push_back(entry.path());
  if (files.empty()) {
    std::fputs("usage: give a directory with at least one file\n", stderr);
    return 2;
  }
  std::sort(files.begin(), files.end());
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> text{std::istreambuf_iterator<char>(file), {}};
    // A copy of exactly its size, so that a sanitizer sees the first byte read beyond it.
    const std::vector<std::uint8_t> bytes(text.begin(), text.end());
    std::printf("%s: %zu bytes\n", path.filename().c_str(), bytes.size());
    std::fflush(stdout);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  return 0;
}
