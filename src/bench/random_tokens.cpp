#include "bench/random_tokens.h"

#include <stdlib.h>

#include <array>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

#include "core/error.h"
#include "core/file.h"
#include "core/rng.h"
#include "data/shard.h"
#include "parallel/world.h"

namespace switchyard::bench {

namespace {

namespace fs = std::filesystem;

// A directory of its own, which is gone at the end of the scope.
class PassingDirectory {
 public:
  PassingDirectory() {
    std::string name = (fs::temp_directory_path() / "switchyard_bench_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      throw_input("{}: no directory for random tokens can be made there; set TMPDIR to one that can be written",
                  fs::temp_directory_path().string());
    path_ = name;
  }
  ~PassingDirectory() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  PassingDirectory(const PassingDirectory&) = delete;
  PassingDirectory& operator=(const PassingDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void write_shard(const fs::path& path, const std::vector<std::int32_t>& tokens) {
  constexpr std::int32_t kMagic = 20240801, kVersion = 7;  // data/shard.h: of uint32
  std::array<std::int32_t, data::kShardHeaderBytes / 4> header{};
  header[0] = kMagic;
  header[1] = kVersion;
  header[2] = static_cast<std::int32_t>(tokens.size());
  OutputFile file(path);
  file.write(std::as_bytes(std::span(header)));
  file.write(std::as_bytes(std::span(tokens)));
  file.close();
}

}  // namespace

std::vector<std::int32_t> random_tokens(std::int64_t n, std::int64_t vocab_size, std::uint64_t seed) {
  const Rng rng(seed, RngPurpose::sampling, hash_name("bench"));
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(rng.bits(i) % static_cast<std::uint64_t>(vocab_size));
  return tokens;
}

train::TrainingData random_data(config::Run& run, std::int64_t windows) {
  const PassingDirectory directory;  // a shard that is mapped needs no name
  const fs::path path = directory.path() / "random.bin";
  write_shard(path, random_tokens(windows * run.train.seq_len + 1, run.model.vocab_size, run.train.seed));
  run.data = {};
  run.data.train = {{path.string(), "random", std::nullopt}};
  return {run, parallel::lone_mesh().all};
}

}  // namespace switchyard::bench
