#include "machine/measure.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

#include "core/disk_space.h"

namespace switchyard::machine {

namespace {

namespace fs = std::filesystem;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }
  void close() { ::close(std::exchange(descriptor_, -1)); }

 private:
  int descriptor_;
};

// A file without a name, so that nothing is left of it however this ends; where the file system has none, one
// whose name is taken away at once.
int open_nameless(const fs::path& directory) {
  const int nameless = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (nameless >= 0) return nameless;
  std::string name = (directory / ".switchyard_doctor_XXXXXX").string();
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

bool write_all(int file, const std::vector<char>& bytes, std::size_t count) {
  for (std::size_t done = 0; done < count;) {
    const ssize_t written = ::write(file, bytes.data() + done, count - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    done += static_cast<std::size_t>(written);
  }
  return true;
}

// Names of the magic numbers of statfs(2).
std::string file_system_of(const fs::path& directory) {
  constexpr std::pair<unsigned long, const char*> kNames[] = {
      {0xef53, "ext4"},       {0x58465342, "xfs"},     {0x9123683e, "btrfs"}, {0x01021994, "tmpfs"},
      {0x858458f6, "ramfs"},  {0x794c7630, "overlay"}, {0x6969, "nfs"},       {0x2fc12fc1, "zfs"},
      {0x0bd00bd0, "lustre"}, {0x47504653, "gpfs"},    {0x65735546, "fuse"},  {0xff534d42, "cifs"},
      {0x01021997, "9p"},     {0x00c36400, "ceph"},    {0xf2f52010, "f2fs"}};
  struct statfs info {};
  if (::statfs(directory.c_str(), &info) != 0) return "";
  for (const auto& [number, name] : kNames)
    if (static_cast<unsigned long>(info.f_type) == number) return name;
  return "";
}

// What a disk with compression cannot make smaller.
std::vector<char> random_bytes(std::size_t count) {
  std::vector<char> bytes(count);
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  for (std::size_t i = 0; i + sizeof(state) <= count; i += sizeof(state)) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(bytes.data() + i, &state, sizeof(state));
  }
  return bytes;
}

void measure_rates(int file, DiskFacts& facts) {
  constexpr std::size_t kPiece = std::size_t{4} << 20, kPieces = 16;
  constexpr double kSeconds = 1.0;  // that writing may take, by the rate of the first piece
  const std::vector<char> bytes = random_bytes(kPiece);
  const auto write_pieces = [&](std::size_t pieces) {
    const double start = seconds_now();
    for (std::size_t i = 0; i < pieces; ++i)
      if (!write_all(file, bytes, kPiece)) return 0.0;
    if (::fsync(file) != 0) return 0.0;
    return std::max(seconds_now() - start, 1e-9);
  };
  const double first = write_pieces(1);
  if (first <= 0) {
    facts.error = std::strerror(errno);
    return;
  }
  const auto more = static_cast<std::size_t>(std::clamp(kSeconds / first, 1.0, static_cast<double>(kPieces)));
  std::size_t pieces = 1;
  facts.write = static_cast<double>(kPiece) / first;
  if (more > 1) {
    const double seconds = write_pieces(more);
    if (seconds <= 0) return;
    pieces += more;
    facts.write = static_cast<double>(more * kPiece) / seconds;
  }
  // What is on the disk leaves the memory; a file system that lives in memory keeps it.
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  std::vector<char> back(kPiece);
  const double start = seconds_now();
  std::size_t read = 0;
  while (read < pieces * kPiece && seconds_now() - start < kSeconds) {
    const ssize_t got = ::pread(file, back.data(), kPiece, static_cast<off_t>(read));
    if (got <= 0) break;
    read += static_cast<std::size_t>(got);
  }
  facts.read = static_cast<double>(read) / std::max(seconds_now() - start, 1e-9);
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// A module of Python's, the tools that import it, and what pip is given to install it.
struct Needed {
  const char *name, *tools, *install;
};
constexpr const char *kTools = "tools/requirements.txt", *kHuggingFace = "tools/requirements-hf.txt";
constexpr Needed kModules[] = {
    {"pyarrow", "documents.py, parquet_to_jsonl.py", kTools},
    {"tokenizers",
     "check_tokenizer.py, export_runs.py, text_tokenizer.py, tokenizer_constructs.py, tokenizing.py", kTools},
    {"torch",
     "bench_transformers.py, check_export.py, compare_hf.py, export_runs.py, hf_reference.py, make_golden.py, "
     "make_golden_greedy.py, make_router_golden.py, modeling_switchyard.py, peers_torch.py, "
     "router_reference.py",
     kHuggingFace},
    {"transformers",
     "bench_transformers.py, check_export.py, compare_hf.py, export_runs.py, hf_reference.py, make_golden.py, "
     "make_golden_greedy.py, modeling_switchyard.py, peers_torch.py",
     kHuggingFace},
    {"safetensors", "check_export.py, compare_hf.py, export_runs.py, make_golden.py, make_router_golden.py",
     kHuggingFace},
    {"lm_eval", "check_tasks.py, export_runs.py", "lm_eval"},
    {"yaml", "check_tasks.py", "pyyaml"},
    {"streamlit", "dashboard.py", "tools/requirements-dashboard.txt"}};

// Finds modules without importing them: torch alone would take seconds.
constexpr const char* kPython = R"(
import importlib.metadata, importlib.util, platform, sys
sys.path = [each for each in sys.path if each]
print(platform.python_version())
names = {"yaml": "pyyaml"}
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    version = ""
    if spec is not None and spec.origin is not None:
        try:
            version = importlib.metadata.version(names.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            version = "of no known version"
    print(version)
)";

}  // namespace

DiskFacts look_at_disk(const fs::path& wanted, bool measured) {
  DiskFacts facts;
  facts.directory = wanted.string();
  std::error_code error;
  fs::path directory = fs::absolute(wanted, error);
  while (!fs::exists(directory, error) && directory.has_relative_path()) directory = directory.parent_path();
  if (!fs::is_directory(directory, error)) {
    facts.error = "it is no directory";
    return facts;
  }
  facts.file_system = file_system_of(directory);
  if (const auto space = disk_space(directory)) {
    facts.size = static_cast<std::int64_t>(space->size);
    facts.free = static_cast<std::int64_t>(space->free);
  }
  const Descriptor file(open_nameless(directory));
  constexpr std::int64_t kRoom = std::int64_t{256} << 20;
  if (file.get() < 0) {
    facts.error = std::strerror(errno);
  } else if (measured && facts.free >= kRoom) {
    measure_rates(file.get(), facts);
  } else if (!write_all(file.get(), random_bytes(4096), 4096) || ::fsync(file.get()) != 0) {
    facts.error = std::strerror(errno);
  }
  return facts;
}

std::optional<std::string> output_of(const std::vector<std::string>& command, double seconds) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  const Descriptor out(ends[0]);
  Descriptor in(ends[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, in.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  pid_t process = -1;
  const int refused = ::posix_spawnp(&process, arguments[0], &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  in.close();
  if (refused != 0) return std::nullopt;
  std::string text;
  const double end = seconds_now() + seconds;
  bool is_over = false;
  while (!is_over && seconds_now() < end) {
    pollfd waited{out.get(), POLLIN, 0};
    if (::poll(&waited, 1, 50) <= 0) continue;
    char piece[4096];
    const ssize_t count = ::read(out.get(), piece, sizeof(piece));
    if (count > 0) text.append(piece, static_cast<std::size_t>(count));
    is_over = count <= 0;
  }
  if (!is_over) ::kill(process, SIGKILL);
  int status = 0;
  while (::waitpid(process, &status, 0) < 0 && errno == EINTR) {
  }
  return is_over && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? std::optional(text) : std::nullopt;
}

void ask_mpirun(MpiFacts& facts) {
  if (const auto text = output_of({"mpirun", "--version"}, 2)) facts.launcher = first_line(*text);
  facts.is_root = ::geteuid() == 0;
  facts.root_is_allowed = std::getenv("OMPI_ALLOW_RUN_AS_ROOT") != nullptr &&
                          std::getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") != nullptr;
}

PythonFacts ask_python() {
  PythonFacts facts;
  std::vector<std::string> command = {"python3", "-c", kPython};
  for (const Needed& module : kModules) command.emplace_back(module.name);
  const auto text = output_of(command, 3);
  if (!text) return facts;
  std::istringstream lines(*text);
  std::getline(lines, facts.version);
  for (const Needed& module : kModules) {
    std::string version;
    std::getline(lines, version);
    facts.modules.push_back({module.name, module.tools, module.install, version});
  }
  return facts;
}

}  // namespace switchyard::machine
