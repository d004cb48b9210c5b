#include "checkpoint/shared_directory.h"

#include <fmt/format.h>

#include <fstream>
#include <random>
#include <string>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "parallel/agreement.h"
#include "parallel/world.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;

bool is_seen(const fs::path& path, const std::string& content, std::chrono::milliseconds patience) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    mark("looking for the token of the run directory");
    std::string found;
    std::getline(std::ifstream(path), found);
    if (found == content) return true;
    if (std::chrono::steady_clock::now() - start > patience) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

struct Token {
  fs::path path;
  ~Token() {
    std::error_code ignored;
    if (!path.empty()) fs::remove(path, ignored);
  }
};

}  // namespace

void check_shared_directory(const fs::path& run_directory, const parallel::Group& all,
                            std::chrono::milliseconds patience) {
  if (all.size() == 1) return;
  Token mine;  // of the first rank
  const std::string token = parallel::by_first(all, [&] {
    std::random_device random;
    const std::string name = fmt::format(".seen_by_all_{:08x}{:08x}", random(), random());
    mine.path = run_directory / name;
    write_text_file(mine.path, name);
    return name;
  });
  // Nothing to say, or where it was looked for in vain.
  const std::vector<std::string> missed = parallel::gather(all, [&] {
    const fs::path directory = fs::absolute(run_directory);
    return is_seen(directory / token, token, patience)
               ? ""
               : fmt::format("{} does not see {}", parallel::host_name(), directory.string());
  });
  for (std::size_t place = 0; place < missed.size(); ++place)
    if (!missed[place].empty())
      throw_input(
          "rank {} on {} as the first rank does; ranks share one run directory: give --out a place that all "
          "machines see under one path",
          all.ranks()[place], missed[place]);
}

}  // namespace switchyard::checkpoint
