#include "machine/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <set>
#include <utility>

namespace switchyard::machine {

namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20, kGiB = std::int64_t{1} << 30;

std::string size_of(std::int64_t bytes) {
  return bytes >= kGiB ? fmt::format("{:.1f} GiB", static_cast<double>(bytes) / static_cast<double>(kGiB))
                       : fmt::format("{} MiB", bytes / kMiB);
}
std::string cuda_version(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }
std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

class Findings {
 public:
  void add(Severity severity, const char* id, std::string what, std::string remedy) {
    all_.push_back({severity, id, std::move(what), std::move(remedy)});
  }
  void add(Finding finding) { all_.push_back(std::move(finding)); }
  // Of one severity those that were found first stay first.
  std::vector<Finding> sorted() && {
    std::stable_sort(all_.begin(), all_.end(),
                     [](const Finding& a, const Finding& b) { return a.severity < b.severity; });
    return std::move(all_);
  }

 private:
  std::vector<Finding> all_;
};

std::string value_of(const CoreFacts& cores, const char* name) {
  const auto found = cores.variables.find(name);
  return found == cores.variables.end() ? "" : found->second;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

int usable_physical(const CoreFacts& cores) {
  const std::set<int> usable(cores.usable.begin(), cores.usable.end());
  return static_cast<int>(std::count_if(cores.physical.begin(), cores.physical.end(), [&](const auto& core) {
    return std::any_of(core.begin(), core.end(), [&](int each) { return usable.contains(each); });
  }));
}

std::string threads_in_words(int threads, int ranks) {
  const std::string of_rank = fmt::format("{} thread{}", threads, threads == 1 ? "" : "s");
  return ranks == 1 ? of_rank : fmt::format("{} ranks of {}", ranks, of_rank);
}
// OMP_NUM_THREADS is what a process alone goes by.
std::string fewer_threads(int cores, int ranks) {
  const int threads = std::max(1, cores / ranks);
  if (ranks > cores) return fmt::format("start at most {} rank{}", cores, cores == 1 ? "" : "s");
  return ranks == 1 ? fmt::format("set OMP_NUM_THREADS or parallel.threads to {}", threads)
                    : fmt::format("set parallel.threads to {}", threads);
}

// --- what makes runs fail

void judge_disk(const DiskFacts& disk, Findings& findings) {
  if (!disk.error.empty()) {
    findings.add(Severity::impossible, "directory-not-writable",
                 fmt::format("runs cannot be written to {}: {}", disk.directory, disk.error),
                 "name another directory with train --out (here: --dir)");
    return;
  }
  if (disk.size > 0 && disk.free < 64 * kMiB) {
    findings.add(Severity::impossible, "disk-full",
                 fmt::format("the disk of {} is full: {} are free", disk.directory, size_of(disk.free)),
                 "free some space or name another directory with train --out");
  } else if (disk.size > 0 && disk.free < 2 * kGiB) {
    findings.add(Severity::fails, "little-disk",
                 fmt::format("{} are free on the disk of {}: a checkpoint takes 12 bytes a parameter, and the "
                             "newest is there beside the one before",
                             size_of(disk.free), disk.directory),
                 "free some space or name another directory with train --out");
  }
  constexpr double kSlowDisk = 100e6;  // bytes a second
  if (disk.write > 0 && disk.write < kSlowDisk)
    findings.add(
        Severity::slow, "slow-disk",
        fmt::format("the disk of {} writes {:.0f} MB/s: a checkpoint of 100 million parameters (1.2 GB) "
                    "takes {:.0f} s",
                    disk.directory, disk.write * 1e-6, 1.2e9 / disk.write),
        "write runs to a faster disk, or checkpoints more rarely (checkpoint.every)");
  if (disk.file_system == "tmpfs" || disk.file_system == "ramfs")
    findings.add(
        Severity::note, "run-directory-in-memory",
        fmt::format("{} lies in memory ({}): checkpoints take memory from the run, and are gone after a "
                    "restart of the machine",
                    disk.directory, disk.file_system),
        "name a directory on a disk with train --out");
}

void judge_memory(const MemoryFacts& memory, const RateFacts& rates, Findings& findings) {
  const std::string of = memory.limit && memory.total && *memory.limit < *memory.total
                             ? fmt::format(" (the control group's limit is {} of the machine's {})",
                                           size_of(*memory.limit), size_of(*memory.total))
                             : "";
  // Weights, gradients and two moments in float32.
  constexpr std::int64_t kBytesOfParameter = 16;
  if (memory.available && *memory.available < 256 * kMiB) {
    findings.add(Severity::impossible, "no-memory",
                 fmt::format("{} of memory are left{}, too little for any run", size_of(*memory.available), of),
                 "end other programs, or raise the container's limit");
  } else if (memory.available && *memory.available < 2 * kGiB) {
    findings.add(
        Severity::fails, "little-memory",
        fmt::format("{} of memory are left{}: training takes {} bytes a parameter and its activations, so "
                    "models above some {} million parameters do not fit",
                    size_of(*memory.available), of, kBytesOfParameter,
                    *memory.available / kBytesOfParameter / 1000000),
        "end other programs, or raise the container's limit");
  } else if (!of.empty()) {
    findings.add(
        Severity::note, "memory-limit",
        fmt::format("the control group's memory limit is {} of the machine's {}: what takes more is killed",
                    size_of(*memory.limit), size_of(*memory.total)),
        "raise the container's limit where a run needs more");
  }
  if (rates.swapped_pages > 0)
    findings.add(Severity::slow, "swapping",
                 fmt::format("memory was moved to or from the swap space while this was measured ({} pages)",
                             rates.swapped_pages),
                 "end other programs, or choose a smaller model or micro-batch");
  else if (memory.swap_used >= kGiB || (memory.total && memory.swap_used > *memory.total / 20))
    findings.add(Severity::slow, "swap-in-use",
                 fmt::format("{} are swapped out: memory was short, and who needs them back waits for the disk",
                             size_of(memory.swap_used)),
                 "look for what takes the memory (free, top) before a long run");
  if (memory.large_pages == "never")
    findings.add(
        Severity::slow, "no-large-pages",
        "large pages are switched off (transparent_hugepage is never): training is a few percent slower",
        "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
}

// What a launcher of processes needs of files, as counted: one for each rank and 8 more.
constexpr std::int64_t kOwnFiles = 8;

void judge_limits(const LimitFacts& limits, const MachineFacts& facts, Findings& findings) {
  const std::int64_t ranks = facts.cores.ranks;
  const auto devices = static_cast<std::int64_t>(facts.cuda.device.size());
  if (limits.open_files && *limits.open_files < kOwnFiles + (ranks > 1 ? ranks : 0)) {
    findings.add(Severity::impossible, "open-files",
                 fmt::format("this process may open {} files, and {} need {}", *limits.open_files,
                             ranks > 1 ? fmt::format("{} ranks", ranks) : "a run", kOwnFiles + ranks),
                 fmt::format("ulimit -n {}", std::max<std::int64_t>(1024, 4 * (kOwnFiles + ranks))));
  } else if (limits.open_files && *limits.open_files < 256) {
    findings.add(devices > 1 ? Severity::fails : Severity::note, "few-open-files",
                 fmt::format("this process may open {} files: --nproc starts at most {} ranks{}",
                             *limits.open_files, *limits.open_files - kOwnFiles,
                             devices > 1 ? ", and NCCL needs files for each connection between devices" : ""),
                 "ulimit -n 1024");
  }
  if (limits.address_space && *limits.address_space < 512 * kMiB) {
    findings.add(Severity::impossible, "address-space",
                 fmt::format("the address space is limited to {}, too little for any run",
                             size_of(*limits.address_space)),
                 "ulimit -v unlimited");
  } else if (limits.address_space) {
    findings.add(
        Severity::fails, "address-space",
        fmt::format("the address space is limited to {}: what needs more ends as out of memory, whatever "
                    "the machine has{}",
                    size_of(*limits.address_space),
                    facts.cuda.built ? ", and CUDA reserves more than it takes" : ""),
        "ulimit -v unlimited");
  }
  if (limits.file_size)
    findings.add(
        Severity::fails, "file-size",
        fmt::format("files are limited to {}: a larger checkpoint ends the run", size_of(*limits.file_size)),
        "ulimit -f unlimited");
  if (limits.locked && *limits.locked < kGiB && devices > 0 && facts.cuda.has_infiniband)
    findings.add(Severity::fails, "locked-memory",
                 fmt::format("this process may lock {} of memory: NCCL locks what it sends over InfiniBand",
                             size_of(*limits.locked)),
                 "ulimit -l unlimited (docker run --ulimit memlock=-1)");

  constexpr std::int64_t kShmOfRank = 4 * kMiB;  // Open MPI's btl_vader_segment_size
  const std::int64_t shm = limits.shm.value_or(0);
  const std::string shm_text =
      limits.shm ? fmt::format("/dev/shm has {}", size_of(shm)) : std::string("there is no /dev/shm");
  if (devices > 1 && shm < kGiB)
    findings.add(Severity::fails, "small-shm", shm_text + ": NCCL needs shared memory for each pair of devices",
                 "docker run --shm-size=1g, or --ipc=host");
  else if (ranks > 1 && facts.mpi.built && limits.shm_free.value_or(0) < ranks * kShmOfRank)
    findings.add(
        Severity::fails, "small-shm",
        fmt::format("{}, of which {} are free: {} ranks under Open MPI's mpirun need {} (--nproc needs none)",
                    shm_text, size_of(limits.shm_free.value_or(0)), ranks, size_of(ranks * kShmOfRank)),
        "docker run --shm-size=1g, or --nproc in place of mpirun");
  else if (ranks > 1 && shm < kGiB)
    findings.add(
        Severity::note, "small-shm",
        shm_text + ": --nproc on the CPU does not use it, but mpirun takes some 4 MiB a rank and NCCL more",
        "docker run --shm-size=1g before several ranks compute on devices");
}

// --- devices

bool shows_none(const CudaFacts& cuda) {
  return cuda.visible && (cuda.visible->empty() || *cuda.visible == "-1");
}

// Why a program with the backend has no device: the first cause of several.
void judge_missing_device(const CudaFacts& cuda, Findings& findings) {
  const std::string effect = ": runs compute on the CPU, and --device cuda is refused";
  const bool has_card = cuda.cards > 0 || !cuda.kernel_driver.empty() || cuda.nodes > 0;
  if (shows_none(cuda) && has_card)
    findings.add(Severity::fails, "cuda-visible-devices",
                 fmt::format("CUDA_VISIBLE_DEVICES is \"{}\" and hides all devices{}", *cuda.visible, effect),
                 "unset CUDA_VISIBLE_DEVICES");
  else if (cuda.cards > 0 && cuda.kernel_driver.empty() && cuda.nodes == 0)
    findings.add(Severity::fails, "no-driver",
                 fmt::format("there {} on the bus, and NVIDIA's driver is not loaded{}",
                             cuda.cards == 1 ? "is a card" : fmt::format("are {} cards", cuda.cards), effect),
                 "install NVIDIA's driver, or load it (modprobe nvidia)");
  else if (!cuda.kernel_driver.empty() && (cuda.nodes == 0 || !cuda.has_control_nodes))
    findings.add(
        Severity::fails, "no-device-nodes",
        fmt::format("NVIDIA's driver {} is loaded, but {} not here{}", cuda.kernel_driver,
                    cuda.nodes == 0 ? "/dev/nvidia0 is" : "/dev/nvidiactl or /dev/nvidia-uvm is", effect),
        "start the container with docker run --gpus all; outside of one, run nvidia-modprobe -u -c=0");
  else if (has_card && !cuda.has_library)
    findings.add(Severity::fails, "no-libcuda", "libcuda.so.1, the driver's library, cannot be loaded" + effect,
                 "install the library of the driver's version; in a container, docker run --gpus all gives it");
  else if (cuda.driver > 0 && cuda.driver / 1000 < cuda.toolkit / 1000)
    findings.add(Severity::fails, "old-driver",
                 fmt::format("the driver knows CUDA {}, and this program was built with {}{}",
                             cuda_version(cuda.driver), cuda_version(cuda.toolkit), effect),
                 fmt::format("update the driver, or build with a toolkit of CUDA {}", cuda.driver / 1000));
  else
    findings.add(
        has_card ? Severity::fails : Severity::slow, "no-device",
        (cuda.unusable.empty() ? "there is no CUDA device" : cuda.unusable) + effect,
        has_card ? "see what nvidia-smi says" : "run on a machine with a device, or expect the CPU's speed");
}

void judge_devices(const CudaFacts& cuda, Findings& findings) {
  if (!cuda.built) {
    const bool has_driver = !cuda.kernel_driver.empty() || cuda.driver > 0;
    if (cuda.cards == 0 && !has_driver && cuda.nodes == 0) return;
    findings.add(
        Severity::slow, "card-not-used",
        "this machine has an NVIDIA card, and this program was built without CUDA: runs compute on the CPU",
        has_driver ? "build with the preset 'cuda' (docs/cuda.md)"
                   : "install NVIDIA's driver, and build with the preset 'cuda' (docs/cuda.md)");
    return;
  }
  if (cuda.device.empty()) return judge_missing_device(cuda, findings);
  for (const CudaDevice& device : cuda.device)
    if (!device.unusable.empty())
      findings.add(Severity::fails, "device-too-old", device.unusable,
                   "use another device (CUDA_VISIBLE_DEVICES)");
  if (cuda.device.size() < 2) return;
  if (cuda.nccl <= 0)
    findings.add(Severity::fails, "no-nccl",
                 fmt::format("there are {} devices, and {}: a run uses one of them", cuda.device.size(),
                             cuda.nccl == 0 ? "this program was built without NCCL" : "NCCL was not found"),
                 cuda.nccl == 0 ? "install libnccl-dev and build again" : "install libnccl2");
  if (!cuda.apart.empty())
    findings.add(
        Severity::slow, "no-peer-access",
        fmt::format(
            "devices {} and {} do not reach each other's memory{}: what they exchange goes through "
            "the host, and parallel.token_exchange \"rows\" is refused",
            cuda.apart.front().first, cuda.apart.front().second,
            cuda.apart.size() > 1 ? fmt::format(" (nor do {} other pairs)", cuda.apart.size() - 1) : ""),
        "see nvidia-smi topo -m; on virtual machines and behind an IOMMU peer access is often off");
  if (!cuda.may_read_memory)
    findings.add(
        Severity::slow, "process-memory",
        "a process here may not look into another one (process_vm_readv is refused, as in containers): "
        "libraries that pass device memory between processes may be refused too, or copy through the host",
        "docker run --cap-add=SYS_PTRACE --ipc=host");
}

// --- what makes runs slow

// Models of Intel's that have AMX (Linux, arch/x86/include/asm/intel-family.h): Sapphire Rapids, Emerald
// Rapids, Granite Rapids, Granite Rapids D.
bool model_has_amx(const ProcessorFacts& processor) {
  static const std::set<int> models = {0x8f, 0xcf, 0xad, 0xae};
  return processor.vendor == "GenuineIntel" && processor.family == 6 && models.contains(processor.model);
}

// What a library could use.
VectorLevel level_of(const ProcessorFacts& processor) {
  const auto has = [&](const char* flag) { return processor.flags.contains(flag); };
  if (has("amx_tile") && has("amx_bf16") && processor.may_use_amx) return VectorLevel::amx;
  if (has("avx512_bf16")) return VectorLevel::avx512_bf16;
  if (has("avx512_vnni")) return VectorLevel::avx512_vnni;
  if (has("avx512f") && has("avx512bw")) return VectorLevel::avx512;
  return has("avx2") ? VectorLevel::avx2 : VectorLevel::none;
}

void judge_processor(const ProcessorFacts& processor, const ProductFacts& products, const CoreFacts& cores,
                     Findings& findings) {
  const std::string effect = ": products in bfloat16 are several times slower than they could be";
  if (processor.flags.contains("amx_tile")) {
    if (!processor.may_use_amx)
      findings.add(Severity::slow, "amx-refused",
                   "the processor has AMX, and the kernel refuses its registers to this process" + effect,
                   "let the container's seccomp profile pass arch_prctl");
  } else if (processor.says_amx.value_or(false)) {
    findings.add(Severity::slow, "amx-hidden",
                 "the processor has AMX, but the kernel does not offer it" + effect,
                 "use Linux 5.16 or newer, and boot it without clearcpuid or noxsave");
  } else if (model_has_amx(processor)) {
    findings.add(Severity::slow, "amx-hidden",
                 fmt::format("processors of this model have AMX, but {} hides it{}",
                             processor.is_virtual ? "the hypervisor" : "the firmware or the kernel", effect),
                 processor.is_virtual ? "take a machine whose hypervisor passes AMX on (QEMU: -cpu host)"
                                      : "look for AMX in the firmware's settings and the kernel's version");
  }
  // Without AMX's registers, and where the library was not asked, nothing is expected of it.
  const VectorLevel has = level_of(processor);
  const std::string limit = [&] {
    for (const char* const name : {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"})
      if (const std::string value = value_of(cores, name); !value.empty())
        return fmt::format("{}={}", name, value);
    return std::string();
  }();
  if (!products.library.empty() && !limit.empty() && products.library_level < has)
    findings.add(Severity::slow, "isa-limited",
                 fmt::format("{} keeps {} to {}, and the processor has {}", limit, products.library,
                             name_of(products.library_level), name_of(has)),
                 fmt::format("unset {}", limit.substr(0, limit.find('='))));
  if (!products.library.empty() && has >= VectorLevel::avx512 && products.compiled < VectorLevel::avx512)
    findings.add(Severity::slow, "compiled-for-older",
                 fmt::format("the processor has AVX-512, and this program was compiled for {}",
                             name_of(products.compiled)),
                 "build on this machine with -DSWITCHYARD_NATIVE=ON, which is the default");
  const bool fixed_low = processor.governor == "powersave" &&
                         !processor.frequency_driver.starts_with("intel_pstate") &&
                         !processor.frequency_driver.starts_with("amd-pstate");
  // With these two drivers "powersave" still raises the frequency under load.
  if (fixed_low)
    findings.add(Severity::slow, "governor",
                 fmt::format("the processor's frequency is kept at its lowest (governor powersave{})",
                             processor.frequency_driver.empty() ? "" : " of " + processor.frequency_driver),
                 "as root: cpupower frequency-set -g performance");
}

void judge_cores(const CoreFacts& cores, Findings& findings) {
  const auto usable = static_cast<int>(cores.usable.size());
  const Team team{.threads = cores.threads, .ranks = cores.ranks, .cores = usable, .forked = cores.ranks > 1};
  for (Finding& finding : thread_findings(cores, team)) findings.add(std::move(finding));
  if (auto bound = binding_finding(1, usable, cores.unbound)) findings.add(std::move(*bound));
  const std::string wanted = value_of(cores, "OMP_NUM_THREADS");
  if (cores.ranks == 1 && !wanted.empty() && 2 * cores.threads <= usable &&
      (!cores.quota || 2 * cores.threads <= static_cast<int>(*cores.quota)))
    findings.add(Severity::slow, "few-threads",
                 fmt::format("OMP_NUM_THREADS is {}, and {} cores could be used", wanted, usable),
                 "unset OMP_NUM_THREADS, or set it to the number of physical cores");
  const int physical = usable_physical(cores), all = cores.threads * cores.ranks;
  if (physical > 0 && all > physical && all <= usable && (!cores.quota || *cores.quota >= all))
    findings.add(
        Severity::slow, "threads-on-siblings",
        fmt::format("{} on {} physical cores: two threads share the vector units of one (SMT)",
                    threads_in_words(cores.threads, cores.ranks), physical),
        fmt::format("try OMP_NUM_THREADS={} with OMP_PLACES=cores and OMP_PROC_BIND=close, and measure with "
                    "switchyard bench",
                    std::max(1, physical / cores.ranks)));
  std::size_t nodes = 0;
  std::size_t most = 0;
  for (const NumaNode& node : cores.nodes) {
    const bool used = std::any_of(node.cores.begin(), node.cores.end(), [&](int core) {
      return std::find(cores.usable.begin(), cores.usable.end(), core) != cores.usable.end();
    });
    nodes += used;
    if (used) most = std::max(most, node.cores.size());
  }
  if (nodes > 1 && cores.ranks == 1 && cores.threads > static_cast<int>(most))
    findings.add(
        Severity::slow, "several-numa-nodes",
        fmt::format("one process spans {} NUMA nodes: its threads read memory that is far from them", nodes),
        fmt::format("try a rank a node: mpirun -n {} --map-by numa --bind-to numa", nodes));
}

void judge_rates(const RateFacts& rates, Findings& findings) {
  if (rates.stolen > 0.05)
    findings.add(Severity::slow, "stolen-time",
                 fmt::format("the hypervisor gave {} of the processor's time to other machines while this was "
                             "measured",
                             percent(rates.stolen)),
                 "expect runs to be slower by as much, and timings to differ; take a machine of its own cores");
  if (rates.others > 0.10)
    findings.add(Severity::slow, "others-compute",
                 fmt::format("other programs used {} of the processor's time while this was measured",
                             percent(rates.others)),
                 "end them, or leave cores to them with OMP_NUM_THREADS; the rates above are too low");
  // Both are measured one after the other: where others compute, one may have had more of the processor.
  const bool is_quiet = rates.stolen <= 0.05 && rates.others <= 0.10;
  if (is_quiet && rates.bfloat16 > 0 && rates.bfloat16 < 0.95 * rates.float32)
    findings.add(Severity::note, "bfloat16-is-slower",
                 fmt::format("products in bfloat16 are slower here than in float32 ({:.0f} and {:.0f} GFLOP/s)",
                             rates.bfloat16 * 1e-9, rates.float32 * 1e-9),
                 "train with train.dtype \"float32\"");
}

// --- programs beside this one

enum class MpiKind { unknown, open_mpi, mpich };
MpiKind kind_of(const std::string& text) {
  const std::string words = lower(text);
  const auto has = [&](const char* word) { return words.find(word) != std::string::npos; };
  if (has("open mpi") || has("openrte") || has("prrte")) return MpiKind::open_mpi;
  // Intel MPI and MVAPICH descend from MPICH and are started alike.
  if (has("mpich") || has("hydra") || has("intel") || has("mvapich")) return MpiKind::mpich;
  return MpiKind::unknown;
}
// The first number of "Open MPI v4.1.4" or "mpirun (Open MPI) 4.1.4".
std::string major_of(const std::string& text) {
  const std::size_t first = text.find_first_of("0123456789");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_first_not_of("0123456789", first) - first);
}

void judge_mpi(const MpiFacts& mpi, Findings& findings) {
  if (!mpi.built) {
    if (!mpi.launcher.empty())
      findings.add(
          Severity::note, "built-without-mpi",
          fmt::format("there is an mpirun ({}), and this program was built without MPI, which refuses it",
                      mpi.launcher),
          "use --nproc on one machine, or build with -DSWITCHYARD_MPI=ON");
    return;
  }
  if (mpi.launcher.empty()) {
    findings.add(Severity::note, "no-mpirun",
                 fmt::format("this program was built with {}, and no mpirun is found", mpi.library),
                 "use --nproc on one machine, or install openmpi-bin");
    return;
  }
  const MpiKind own = kind_of(mpi.library), launcher = kind_of(mpi.launcher);
  const bool known = own != MpiKind::unknown && launcher != MpiKind::unknown;
  if (known &&
      (own != launcher || (own == MpiKind::open_mpi && major_of(mpi.library) != major_of(mpi.launcher))))
    findings.add(
        Severity::fails, "mpi-mismatch",
        fmt::format("the mpirun that is found is another MPI's ({}) than this program's ({}): the copies that "
                    "it starts do not find each other",
                    mpi.launcher, mpi.library),
        "put this program's own mpirun first in PATH, or use --nproc on one machine");
  else if (own == MpiKind::open_mpi && mpi.is_root && !mpi.root_is_allowed)
    findings.add(
        Severity::note, "mpirun-as-root", "Open MPI's mpirun refuses to start programs as root",
        "use --nproc, another user, or set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1");
}

// "a.py, b.py and 3 more" of a longer list.
std::string shortened(const std::string& list) {
  const auto count = 1 + std::count(list.begin(), list.end(), ',');
  if (count <= 3) return list;
  const std::size_t second = list.find(',', list.find(',') + 1);
  return fmt::format("{} and {} more", list.substr(0, second), count - 2);
}

void judge_python(const PythonFacts& python, Findings& findings) {
  if (python.version.empty()) {
    findings.add(Severity::note, "no-python",
                 "there is no python3: nothing of tools/ runs; the program needs none", "install python3");
    return;
  }
  // One line for what one command installs.
  std::vector<std::pair<std::string, std::string>> missing;  // what pip is given, the modules
  for (const PythonModule& module : python.modules) {
    if (!module.version.empty()) continue;
    const std::string words = fmt::format("{} (tools/{})", module.name, shortened(module.tools));
    const auto found = std::find_if(missing.begin(), missing.end(),
                                    [&](const auto& each) { return each.first == module.install; });
    if (found == missing.end())
      missing.emplace_back(module.install, words);
    else
      found->second += ", " + words;
  }
  for (const auto& [install, words] : missing)
    findings.add(Severity::note, "no-python-module", "python3 has no module " + words,
                 fmt::format("pip install {}{}", install.ends_with(".txt") ? "-r " : "", install));
}

}  // namespace

const char* name_of(Severity severity) {
  switch (severity) {
    case Severity::impossible:
      return "impossible";
    case Severity::fails:
      return "fails";
    case Severity::slow:
      return "slow";
    case Severity::note:
      return "note";
  }
  return "";
}

std::string sentence_of(const Finding& finding) { return finding.what + "; " + finding.remedy; }

std::vector<Finding> thread_findings(const CoreFacts& cores, const Team& team) {
  Findings findings;
  const int threads = team.threads, ranks = team.ranks, all = threads * ranks, usable = team.cores;
  const bool above_quota = cores.quota && all > static_cast<int>(std::ceil(*cores.quota - 1e-6)),
             above_cores = usable > 0 && all > usable;
  const std::string words = threads_in_words(threads, ranks);
  if (above_quota) {
    const int granted = std::max(1, static_cast<int>(*cores.quota));
    findings.add(
        Severity::slow, "threads-above-quota",
        fmt::format("{} would compute, and the control group (a container's --cpus) grants the time of {:.3g} "
                    "core{}: when it is used up, all of them stand still",
                    words, *cores.quota, *cores.quota == 1 ? "" : "s"),
        fewer_threads(std::min(granted, std::max(1, usable)), ranks));
  } else if (above_cores) {
    findings.add(Severity::slow, "threads-above-cores",
                 fmt::format("{} on {} core{}: they wait for each other at every operator", words, usable,
                             usable == 1 ? "" : "s"),
                 fewer_threads(usable, ranks));
  }
  if ((above_quota || above_cores) && lower(value_of(cores, "OMP_WAIT_POLICY")) == "active")
    findings.add(
        Severity::slow, "active-waiting",
        "OMP_WAIT_POLICY is active and there are more threads than cores: those that wait keep the cores from "
        "those that compute",
        "unset OMP_WAIT_POLICY");
  const std::string bind = lower(value_of(cores, "OMP_PROC_BIND"));
  const bool binds = (!bind.empty() && bind != "false") || !value_of(cores, "GOMP_CPU_AFFINITY").empty() ||
                     (bind.empty() && !value_of(cores, "OMP_PLACES").empty());
  if (team.forked && ranks > 1 && binds)
    findings.add(
        Severity::slow, "ranks-bound-alike",
        fmt::format("OpenMP binds threads to places, and so the threads of all {} ranks to the same cores",
                    ranks),
        "unset OMP_PROC_BIND, OMP_PLACES and GOMP_CPU_AFFINITY, or let mpirun bind the ranks");
  return std::move(findings).sorted();
}

std::optional<Finding> binding_finding(int ranks, int used, int all) {
  if (used <= 0 || 2 * used >= all) return std::nullopt;
  if (ranks == 1)
    return Finding{Severity::slow, "bound-to-few-cores",
                   fmt::format("this process is bound to {} of {} cores", used, all),
                   "start it without taskset or numactl; under mpirun, --bind-to none"};
  return Finding{
      Severity::slow, "bound-to-few-cores",
      fmt::format("{} ranks are bound to {} of this machine's {} cores", ranks, used, all),
      fmt::format("mpirun --bind-to none, or --map-by slot:PE={}, uses them", std::max(1, all / ranks))};
}

std::vector<Finding> findings_of(const MachineFacts& facts) {
  Findings findings;
  judge_disk(facts.disk, findings);
  judge_limits(facts.limits, facts, findings);
  judge_devices(facts.cuda, findings);
  judge_cores(facts.cores, findings);
  judge_processor(facts.processor, facts.products, facts.cores, findings);
  judge_rates(facts.rates, findings);
  judge_memory(facts.memory, facts.rates, findings);
  judge_mpi(facts.mpi, findings);
  judge_python(facts.python, findings);
  return std::move(findings).sorted();
}

}  // namespace switchyard::machine
