// A directory with files like those of the kernel, as long as a test.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "temp_dir.h"

namespace switchyard::test {

class FileTree : public testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  const TempDir directory_;
  const std::filesystem::path root_ = directory_.path();
};

}  // namespace switchyard::test
