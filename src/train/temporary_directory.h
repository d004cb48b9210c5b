// A directory that is written before it is renamed to what it is to be.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace switchyard::train {

// Removes a directory when it goes out of scope, unless told that it is no longer a temporary.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code error;
    std::filesystem::create_directory(path_, error);
    if (error) throw_input("{}: cannot be created: {}", path_.string(), error.message());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!kept_) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }
  void keep() { kept_ = true; }

 private:
  std::filesystem::path path_;
  bool kept_ = false;
};

}  // namespace switchyard::train
