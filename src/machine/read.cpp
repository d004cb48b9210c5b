#include "machine/read.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/control_group.h"
#include "core/cores.h"
#include "core/disk_space.h"
#include "core/process_memory.h"
#include "core/system_file.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace switchyard::machine {

namespace {

namespace fs = std::filesystem;

// The first line; empty: there is no such file.
std::string line_of(const fs::path& path) {
  std::ifstream file = open_system_file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string trimmed(std::string_view text) {
  const auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return std::string(text);
}

std::optional<std::int64_t> whole(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(number) : std::nullopt;
}

// The numbers of folders or files "node0", "node12" of a directory, ascending.
std::vector<int> numbered(const fs::path& directory, std::string_view prefix) {
  std::vector<int> numbers;
  std::error_code error;
  for (fs::directory_iterator entries = open_system_directory(directory), end; !error && entries != end;
       entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (!name.starts_with(prefix)) continue;
    if (const auto number = whole(std::string_view(name).substr(prefix.size())))
      numbers.push_back(static_cast<int>(*number));
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

// "always [madvise] never": the one in brackets.
std::string chosen_of(const std::string& line) {
  const std::size_t open = line.find('['), close = line.find(']');
  return open == std::string::npos || close == std::string::npos ? "" : line.substr(open + 1, close - open - 1);
}

// Those that steer how a run uses the machine. Others are none of a report's business.
constexpr const char* kVariables[] = {
    "OMP_NUM_THREADS",     "OMP_THREAD_LIMIT",   "OMP_DYNAMIC",          "OMP_PROC_BIND",    "OMP_PLACES",
    "OMP_WAIT_POLICY",     "GOMP_CPU_AFFINITY",  "GOMP_SPINCOUNT",       "KMP_AFFINITY",     "KMP_BLOCKTIME",
    "ONEDNN_MAX_CPU_ISA",  "DNNL_MAX_CPU_ISA",   "CUDA_VISIBLE_DEVICES", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE",
    "SWITCHYARD_NO_GRAPH", "SWITCHYARD_NO_WGMMA"};

std::optional<std::int64_t> limit_of(decltype(RLIMIT_NOFILE) what) {
  rlimit limit{};
  if (::getrlimit(what, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return static_cast<std::int64_t>(limit.rlim_cur);
}

}  // namespace

ProcessorFacts read_processor(const fs::path& root) {
  ProcessorFacts facts;
  std::ifstream file = open_system_file(root / "proc/cpuinfo");
  // The lines of the first core; the others say the same.
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = trimmed(std::string_view(line).substr(0, colon)),
                      value = trimmed(std::string_view(line).substr(colon + 1));
    if (key == "model name") facts.name = value;
    if (key == "vendor_id" || key == "CPU implementer") facts.vendor = value;
    if (key == "cpu family") facts.family = static_cast<int>(whole(value).value_or(0));
    if (key == "model") facts.model = static_cast<int>(whole(value).value_or(0));
    if (key == "flags" || key == "Features") {
      std::istringstream words(value);
      for (std::string word; words >> word;) facts.flags.insert(word);
    }
  }
  facts.is_virtual = facts.flags.contains("hypervisor");
  const fs::path frequency = root / "sys/devices/system/cpu/cpu0/cpufreq";
  facts.governor = trimmed(line_of(frequency / "scaling_governor"));
  facts.frequency_driver = trimmed(line_of(frequency / "scaling_driver"));
  return facts;
}

void ask_processor([[maybe_unused]] ProcessorFacts& facts) {
#if defined(__x86_64__)
  // CPUID, leaf 7: bit 24 of EDX is AMX-TILE (Intel, Software Developer's Manual, volume 2A, CPUID).
  unsigned a = 0, b = 0, c = 0, d = 0;
  facts.says_amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1) != 0;
  if (!facts.flags.contains("amx_tile")) return;
  // The tiles' registers are given to those who ask (Linux, Documentation/arch/x86/xstate.rst).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  facts.may_use_amx = ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
}

CoreFacts read_cores(const fs::path& root) {
  CoreFacts facts;
  const fs::path system = root / "sys/devices/system";
  facts.online = cores_of_list(line_of(system / "cpu/online"));
  for (const int core : facts.online) {
    // Each physical core is met at the first of its logical ones.
    const fs::path topology = system / fmt::format("cpu/cpu{}/topology", core);
    const std::vector<int> siblings = cores_of_list(line_of(topology / "thread_siblings_list"));
    if (siblings.empty()) {
      facts.physical.push_back({core});
    } else if (siblings.front() == core) {
      facts.physical.push_back(siblings);
    }
  }
  for (const int number : numbered(system / "node", "node")) {
    const fs::path folder = system / fmt::format("node/node{}", number);
    NumaNode node{.number = number, .cores = cores_of_list(line_of(folder / "cpulist"))};
    std::ifstream memory = open_system_file(folder / "meminfo");
    for (std::string line; std::getline(memory, line);) {
      const std::size_t at = line.find("MemTotal:");
      if (at != std::string::npos) node.memory = std::atoll(line.c_str() + at + 9) * 1024;
    }
    facts.nodes.push_back(node);
  }
  facts.quota = control_group(root).cores;
  facts.usable = usable_cores();
  facts.unbound = unbound_cores();
  for (const char* const name : kVariables)
    if (const char* const value = std::getenv(name)) facts.variables.emplace(name, value);
  return facts;
}

MemoryFacts read_memory(const fs::path& root) {
  const SystemMemory system = system_memory(root);
  MemoryFacts facts;
  facts.total = system.total;
  facts.available = available_memory(root);
  facts.limit = control_group(root).memory_limit;
  facts.swap = system.swap;
  facts.swap_used = system.swap_used;
  facts.large_pages = chosen_of(line_of(root / "sys/kernel/mm/transparent_hugepage/enabled"));
  facts.reserved_pages = whole(trimmed(line_of(root / "proc/sys/vm/nr_hugepages"))).value_or(0);
  return facts;
}

LimitFacts read_limits(const fs::path& root) {
  LimitFacts facts;
  facts.open_files = limit_of(RLIMIT_NOFILE);
  facts.locked = limit_of(RLIMIT_MEMLOCK);
  facts.address_space = limit_of(RLIMIT_AS);
  facts.core = limit_of(RLIMIT_CORE);
  facts.file_size = limit_of(RLIMIT_FSIZE);
  if (const auto space = disk_space(root / "dev/shm")) {
    facts.shm = static_cast<std::int64_t>(space->size);
    facts.shm_free = static_cast<std::int64_t>(space->free);
  }
  return facts;
}

void read_devices(CudaFacts& facts, const fs::path& root) {
  std::error_code error;
  const fs::path bus = root / "sys/bus/pci/devices";
  for (fs::directory_iterator entries(bus, error), end; !error && entries != end; entries.increment(error))
    // NVIDIA's number, and the classes of display and 3D controllers (PCI Code and ID Assignment).
    facts.cards += line_of(entries->path() / "vendor") == "0x10de" &&
                   line_of(entries->path() / "class").starts_with("0x03");
  // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 ...": the first word like a version.
  std::istringstream words(line_of(root / "proc/driver/nvidia/version"));
  for (std::string word; facts.kernel_driver.empty() && words >> word;)
    if (word.find('.') != std::string::npos &&
        std::all_of(word.begin(), word.end(), [](char c) { return c == '.' || (c >= '0' && c <= '9'); }))
      facts.kernel_driver = word;
  facts.nodes = static_cast<int>(numbered(root / "dev", "nvidia").size());
  facts.has_control_nodes =
      fs::exists(root / "dev/nvidiactl", error) && fs::exists(root / "dev/nvidia-uvm", error);
  facts.has_infiniband =
      fs::exists(root / "sys/class/infiniband", error) &&
      fs::directory_iterator(root / "sys/class/infiniband", error) != fs::directory_iterator();
  if (void* const library = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL)) {
    facts.has_library = true;
    int version = 0;
    const auto ask = reinterpret_cast<int (*)(int*)>(::dlsym(library, "cuDriverGetVersion"));
    if (ask != nullptr && ask(&version) == 0) facts.driver = version;
    ::dlclose(library);
  }
  if (const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES")) facts.visible = visible;
  facts.may_read_memory = may_read_memory();
}

std::string read_kernel() {
  utsname names{};
  return ::uname(&names) == 0 ? fmt::format("{} {} {}", names.sysname, names.release, names.machine) : "";
}

bool may_read_memory() {
  int from = 1, to = 0;
  const iovec local{&to, sizeof(to)}, remote{&from, sizeof(from)};
  return ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(sizeof(from));
}

Ticks read_ticks(const fs::path& root) {
  Ticks ticks;
  // "cpu  user nice system idle iowait irq softirq steal guest guest_nice" (proc_stat(5)); guest is in user.
  std::istringstream line(line_of(root / "proc/stat"));
  std::string word;
  line >> word;
  std::int64_t value = 0;
  for (int i = 0; i < 8 && line >> value; ++i) {
    ticks.all += value;
    if (i != 3 && i != 4 && i != 7) ticks.busy += value;
    if (i == 7) ticks.stolen = value;
  }
  // "pid (name) state ...": user and system time are fields 14 and 15; the name may hold anything.
  const std::string own = line_of(root / "proc/self/stat");
  std::istringstream fields(own.substr(std::min(own.size(), own.rfind(')') + 1)));
  for (int field = 3; field <= 15 && fields >> word; ++field)
    if (field >= 14) ticks.own += whole(word).value_or(0);
  std::ifstream pages = open_system_file(root / "proc/vmstat");
  for (std::int64_t count = 0; pages >> word >> count;)
    if (word == "pswpin" || word == "pswpout") ticks.swapped_pages += count;
  return ticks;
}

void set_shares(RateFacts& rates, const Ticks& before, const Ticks& after) {
  const auto all = static_cast<double>(after.all - before.all);
  rates.swapped_pages = after.swapped_pages - before.swapped_pages;
  if (all <= 0) return;
  const auto own = static_cast<double>(after.own - before.own);
  rates.stolen = static_cast<double>(after.stolen - before.stolen) / all;
  rates.others = std::max(0.0, static_cast<double>(after.busy - before.busy) - own) / all;
}

}  // namespace switchyard::machine
