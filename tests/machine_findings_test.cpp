// Made-up machines, and what is said of them. Each starts from one of which nothing is said, so that a finding
// is that of the one fact that was changed.
#include "machine/findings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "machine/report.h"

namespace switchyard::machine {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20, kGiB = std::int64_t{1} << 30;

void give_cores(CoreFacts& cores, int count, int threads_of_core = 1) {
  cores.online.resize(static_cast<std::size_t>(count));
  std::iota(cores.online.begin(), cores.online.end(), 0);
  cores.usable = cores.online;
  cores.unbound = cores.threads = count;
  cores.physical.clear();
  // Siblings are half the cores apart, as Linux numbers them on most servers.
  const int physical = count / threads_of_core;
  for (int core = 0; core < physical; ++core) {
    cores.physical.push_back({core});
    for (int sibling = 1; sibling < threads_of_core; ++sibling)
      cores.physical.back().push_back(core + sibling * physical);
  }
  cores.nodes = {{.number = 0, .cores = cores.online, .memory = 64 * kGiB}};
}

MachineFacts sound() {
  MachineFacts facts;
  facts.processor = {
      .name = "Intel(R) Xeon(R) Platinum 8480+",
      .vendor = "GenuineIntel",
      .family = 6,
      .model = 0x8f,
      .flags = {"avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"},
      .says_amx = true,
      .governor = "performance",
      .frequency_driver = "intel_pstate"};
  give_cores(facts.cores, 16);
  facts.memory.total = 64 * kGiB;
  facts.memory.available = 60 * kGiB;
  facts.memory.large_pages = "madvise";
  facts.limits.open_files = 1024;
  facts.limits.locked = 8 * kMiB;
  facts.limits.shm = facts.limits.shm_free = 32 * kGiB;
  facts.disk.directory = "runs";
  facts.disk.file_system = "ext4";
  facts.disk.size = 500 * kGiB;
  facts.disk.free = 300 * kGiB;
  facts.disk.write = 900e6;
  facts.products = {.library = "oneDNN 3.5.3",
                    .library_level = VectorLevel::amx,
                    .compiled = VectorLevel::avx512_bf16,
                    .bf16_products = true};
  facts.rates = {};
  facts.rates.threads = 16;
  facts.rates.float32 = 1e12;
  facts.rates.bfloat16 = 8e12;
  facts.rates.copy = 100e9;
  facts.mpi = {};
  facts.mpi.built = true;
  facts.mpi.library = "Open MPI v4.1.4";
  facts.mpi.launcher = "mpirun (Open MPI) 4.1.4";
  facts.python = {.version = "3.11.2",
                  .modules = {{"torch", "compare_hf.py", "tools/requirements-hf.txt", "2.15.0"}}};
  return facts;
}

MachineFacts with_devices(int count) {
  MachineFacts facts = sound();
  facts.cuda = {};
  facts.cuda.built = true;
  facts.cuda.driver = 13000;
  facts.cuda.toolkit = 13000;
  facts.cuda.nccl = 22809;
  facts.cuda.cards = count;
  facts.cuda.kernel_driver = "580.65.06";
  facts.cuda.has_library = true;
  facts.cuda.nodes = count;
  facts.cuda.has_control_nodes = true;
  for (int i = 0; i < count; ++i) facts.cuda.device.push_back({"NVIDIA H100 80GB HBM3", "9.0", 80 * kGiB, ""});
  return facts;
}

// On all cores of sound().
Team team(int threads, int ranks, bool forked) {
  return {.threads = threads, .ranks = ranks, .cores = 16, .forked = forked};
}

std::string words(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings)
    text += std::string(name_of(finding.severity)) + " " + finding.id + ": " + sentence_of(finding) + "\n";
  return text;
}

// That this and nothing else is found.
void expect_only(const MachineFacts& facts, Severity severity, const std::string& id,
                 const std::vector<std::string>& parts) {
  const std::vector<Finding> findings = findings_of(facts);
  ASSERT_EQ(findings.size(), 1u) << id << ":\n" << words(findings);
  EXPECT_EQ(findings[0].severity, severity) << words(findings);
  EXPECT_EQ(findings[0].id, id);
  for (const std::string& part : parts)
    EXPECT_NE(sentence_of(findings[0]).find(part), std::string::npos) << part << "\n"
                                                                      << sentence_of(findings[0]);
  EXPECT_EQ(sentence_of(findings[0]).find('\n'), std::string::npos);
}

TEST(Findings, OfASoundMachineNothingIsSaid) {
  EXPECT_EQ(words(findings_of(sound())), "");
  EXPECT_EQ(words(findings_of(with_devices(1))), "");
  EXPECT_EQ(words(findings_of(with_devices(8))), "");
}

TEST(Findings, AmxThatIsHidden) {
  MachineFacts facts = sound();
  facts.processor.flags.erase("amx_tile");
  facts.processor.flags.erase("amx_bf16");
  facts.products.library_level = VectorLevel::avx512_bf16;
  expect_only(facts, Severity::slow, "amx-hidden",
              {"the processor has AMX, but the kernel does not", "Linux 5.16"});
  facts.processor.says_amx = false;
  expect_only(facts, Severity::slow, "amx-hidden", {"the firmware or the kernel hides it"});
  facts.processor.is_virtual = true;
  expect_only(facts, Severity::slow, "amx-hidden",
              {"processors of this model have AMX", "the hypervisor hides it"});
  facts.processor.model = 0x6a;  // Ice Lake has none
  EXPECT_EQ(words(findings_of(facts)), "");
}

TEST(Findings, AmxThatIsRefused) {
  MachineFacts facts = sound();
  facts.processor.may_use_amx = false;
  facts.products.library_level = VectorLevel::avx512_bf16;
  expect_only(facts, Severity::slow, "amx-refused", {"refuses its registers"});
}

TEST(Findings, InstructionsThatAVariableTakesAway) {
  MachineFacts facts = sound();
  facts.cores.variables["ONEDNN_MAX_CPU_ISA"] = "AVX2";
  EXPECT_EQ(words(findings_of(facts)), "");  // the library says that it uses AMX all the same
  facts.products.library_level = VectorLevel::avx2;
  expect_only(facts, Severity::slow, "isa-limited",
              {"ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN 3.5.3 to AVX2", "has AMX", "unset ONEDNN_MAX_CPU_ISA"});
}

TEST(Findings, AProgramForOlderProcessors) {
  MachineFacts facts = sound();
  facts.products.compiled = VectorLevel::avx2;
  expect_only(facts, Severity::slow, "compiled-for-older", {"compiled for AVX2", "SWITCHYARD_NATIVE"});
}

TEST(Findings, AQuotaOfOneAndAHalfOf64Cores) {
  MachineFacts facts = sound();
  give_cores(facts.cores, 64);
  facts.cores.quota = 1.5;
  expect_only(
      facts, Severity::slow, "threads-above-quota",
      {"64 threads would compute", "grants the time of 1.5 cores", "OMP_NUM_THREADS or parallel.threads to 1"});
  facts.cores.threads = 2;  // the third half of a core is there to be used
  EXPECT_EQ(words(thread_findings(facts.cores, team(2, 1, false))), "");
  facts.cores.quota = 64;
  facts.cores.threads = 64;
  EXPECT_EQ(words(findings_of(facts)), "");
}

TEST(Findings, MoreThreadsThanCores) {
  MachineFacts facts = sound();
  facts.cores.threads = 64;
  facts.cores.variables["OMP_NUM_THREADS"] = "64";
  expect_only(facts, Severity::slow, "threads-above-cores", {"64 threads on 16 cores", "to 16"});
  // Waiting by spinning makes that worse, and on its own does no harm.
  facts.cores.variables["OMP_WAIT_POLICY"] = "ACTIVE";
  const std::vector<Finding> both = findings_of(facts);
  ASSERT_EQ(both.size(), 2u) << words(both);
  EXPECT_EQ(both[0].id, "threads-above-cores");
  EXPECT_EQ(both[1].id, "active-waiting");
  facts.cores.threads = 16;
  EXPECT_EQ(words(findings_of(facts)), "");
}

TEST(Findings, MoreRanksThanCores) {
  const CoreFacts cores = sound().cores;
  EXPECT_EQ(words(thread_findings(cores, team(4, 4, true))), "");
  EXPECT_EQ(thread_findings(cores, team(8, 4, true)).at(0).what.substr(0, 35),
            "4 ranks of 8 threads on 16 cores: t");
  EXPECT_EQ(thread_findings(cores, team(8, 4, true)).at(0).remedy, "set parallel.threads to 4");
  EXPECT_EQ(thread_findings(cores, team(1, 17, true)).at(0).remedy, "start at most 16 ranks");
}

TEST(Findings, RanksWhoseThreadsAreBoundAlike) {
  CoreFacts cores = sound().cores;
  cores.variables["OMP_PROC_BIND"] = "close";
  EXPECT_EQ(thread_findings(cores, team(4, 4, true)).at(0).id, "ranks-bound-alike");
  EXPECT_EQ(words(thread_findings(cores, team(4, 4, false))),
            "");  // each of mpirun's binds within its own cores
  EXPECT_EQ(words(thread_findings(cores, team(16, 1, true))), "");
  cores.variables["OMP_PROC_BIND"] = "false";
  EXPECT_EQ(words(thread_findings(cores, team(4, 4, true))), "");
}

TEST(Findings, SiblingsThatCountAsCores) {
  MachineFacts facts = sound();
  give_cores(facts.cores, 32, 2);
  expect_only(facts, Severity::slow, "threads-on-siblings",
              {"32 threads on 16 physical cores", "OMP_NUM_THREADS=16"});
  facts.cores.threads = 16;
  EXPECT_EQ(words(findings_of(facts)), "");
}

TEST(Findings, CoresThatAreNotUsed) {
  MachineFacts facts = sound();
  facts.cores.threads = 2;
  facts.cores.variables["OMP_NUM_THREADS"] = "2";
  expect_only(facts, Severity::slow, "few-threads", {"OMP_NUM_THREADS is 2, and 16 cores could be used"});
  facts = sound();
  facts.cores.usable = {0, 1};
  facts.cores.threads = 2;
  expect_only(facts, Severity::slow, "bound-to-few-cores", {"bound to 2 of 16 cores", "taskset"});
  facts.cores.unbound = 2;  // a set of cores that the process cannot leave is the machine to it
  EXPECT_EQ(words(findings_of(facts)), "");
  EXPECT_EQ(
      sentence_of(*binding_finding(2, 2, 16)),
      "2 ranks are bound to 2 of this machine's 16 cores; mpirun --bind-to none, or --map-by slot:PE=8, uses "
      "them");
}

TEST(Findings, OneProcessOnTwoNodes) {
  MachineFacts facts = sound();
  facts.cores.nodes = {{.number = 0, .cores = {0, 1, 2, 3, 4, 5, 6, 7}, .memory = 32 * kGiB},
                       {.number = 1, .cores = {8, 9, 10, 11, 12, 13, 14, 15}, .memory = 32 * kGiB}};
  expect_only(facts, Severity::slow, "several-numa-nodes", {"2 NUMA nodes", "mpirun -n 2 --map-by numa"});
  facts.cores.threads = 8;
  EXPECT_EQ(words(findings_of(facts)), "");
}

TEST(Findings, ASlowAndAFullDisk) {
  MachineFacts facts = sound();
  facts.disk.write = 20e6;
  expect_only(facts, Severity::slow, "slow-disk", {"the disk of runs writes 20 MB/s", "takes 60 s"});
  facts = sound();
  facts.disk.free = 1500 * kMiB;
  expect_only(facts, Severity::fails, "little-disk", {"1.5 GiB are free"});
  facts.disk.free = 10 * kMiB;
  expect_only(facts, Severity::impossible, "disk-full", {"10 MiB are free"});
  facts.disk.error = "Permission denied";
  expect_only(facts, Severity::impossible, "directory-not-writable",
              {"runs cannot be written to runs: Permission"});
  facts = sound();
  facts.disk.file_system = "tmpfs";
  expect_only(facts, Severity::note, "run-directory-in-memory", {"runs lies in memory (tmpfs)"});
}

TEST(Findings, MemoryThatIsLimited) {
  MachineFacts facts = sound();
  facts.memory.limit = 8 * kGiB;
  facts.memory.available = 6 * kGiB;
  expect_only(facts, Severity::note, "memory-limit",
              {"limit is 8.0 GiB of the machine's 64.0 GiB", "is killed"});
  facts.memory.available = kGiB;  // 2^30 / 16 bytes: 67 million parameters
  expect_only(
      facts, Severity::fails, "little-memory",
      {"1.0 GiB of memory are left (the control group's limit is 8.0 GiB", "above some 67 million parameters"});
  facts.memory.available = 100 * kMiB;
  expect_only(facts, Severity::impossible, "no-memory", {"100 MiB of memory are left"});
}

TEST(Findings, SwapAndLargePages) {
  MachineFacts facts = sound();
  facts.memory.swap = 8 * kGiB;
  EXPECT_EQ(words(findings_of(facts)), "");
  facts.memory.swap_used = 2 * kGiB;
  expect_only(facts, Severity::slow, "swap-in-use", {"2.0 GiB are swapped out"});
  facts.rates.swapped_pages = 900;
  expect_only(facts, Severity::slow, "swapping", {"900 pages"});
  facts = sound();
  facts.memory.large_pages = "never";
  expect_only(facts, Severity::slow, "no-large-pages", {"transparent_hugepage is never"});
}

TEST(Findings, LimitsOfTheProcess) {
  MachineFacts facts = sound();
  facts.limits.open_files = 64;
  expect_only(facts, Severity::note, "few-open-files", {"may open 64 files: --nproc starts at most 56 ranks"});
  give_cores(facts.cores, 64);
  facts.cores.ranks = 60;
  facts.cores.threads = 1;
  expect_only(facts, Severity::impossible, "open-files", {"may open 64 files, and 60 ranks need 68"});
  facts = with_devices(8);
  facts.limits.open_files = 64;
  expect_only(facts, Severity::fails, "few-open-files", {"NCCL needs files"});
  facts = sound();
  facts.limits.address_space = 8 * kGiB;
  expect_only(facts, Severity::fails, "address-space", {"limited to 8.0 GiB"});
  facts.limits.address_space = 100 * kMiB;
  expect_only(facts, Severity::impossible, "address-space", {"limited to 100 MiB"});
  facts = sound();
  facts.limits.file_size = 1 * kMiB;
  expect_only(facts, Severity::fails, "file-size", {"files are limited to 1 MiB"});
  facts = with_devices(2);
  facts.cuda.has_infiniband = true;
  expect_only(facts, Severity::fails, "locked-memory", {"may lock 8 MiB", "memlock"});
}

TEST(Findings, SharedMemoryOf64MiB) {
  MachineFacts facts = sound();
  facts.limits.shm = facts.limits.shm_free = 64 * kMiB;  // Docker's default
  EXPECT_EQ(words(findings_of(facts)), "");              // nothing of one rank is there
  facts.cores.ranks = 4;
  facts.cores.threads = 4;
  expect_only(facts, Severity::note, "small-shm",
              {"/dev/shm has 64 MiB", "--nproc on the CPU does not use it"});
  facts.cores.ranks = 16;
  facts.cores.threads = 1;
  facts.limits.shm_free = 60 * kMiB;
  expect_only(facts, Severity::fails, "small-shm", {"16 ranks under Open MPI's mpirun need 64 MiB"});
  facts = with_devices(4);
  facts.limits.shm = facts.limits.shm_free = 64 * kMiB;
  expect_only(facts, Severity::fails, "small-shm", {"NCCL needs shared memory", "--shm-size=1g"});
}

TEST(Findings, AGovernorThatKeepsTheFrequencyLow) {
  MachineFacts facts = sound();
  facts.processor.governor = "powersave";
  EXPECT_EQ(words(findings_of(facts)), "");  // intel_pstate raises it under load all the same
  facts.processor.frequency_driver = "acpi-cpufreq";
  expect_only(facts, Severity::slow, "governor", {"governor powersave of acpi-cpufreq"});
}

TEST(Findings, NeighboursThatTakeTime) {
  MachineFacts facts = sound();
  facts.rates.stolen = 0.25;
  expect_only(facts, Severity::slow, "stolen-time", {"25 % of the processor's time to other machines"});
  facts.rates.stolen = 0;
  facts.rates.others = 0.5;
  expect_only(facts, Severity::slow, "others-compute", {"other programs used 50 %"});
}

TEST(Findings, Bfloat16ThatIsNoFaster) {
  MachineFacts facts = sound();
  facts.rates.bfloat16 = 5e11;
  expect_only(facts, Severity::note, "bfloat16-is-slower", {"(500 and 1000 GFLOP/s)"});
  facts.rates.others = 0.5;  // then nobody knows
  expect_only(facts, Severity::slow, "others-compute", {});
}

TEST(Findings, ACardThatAProgramWithoutCudaDoesNotUse) {
  MachineFacts facts = sound();
  facts.cuda.has_library = true;  // the library alone is no card
  EXPECT_EQ(words(findings_of(facts)), "");
  facts.cuda.cards = 1;
  expect_only(facts, Severity::slow, "card-not-used", {"built without CUDA", "install NVIDIA's driver"});
  facts.cuda.kernel_driver = "550.54.15";
  expect_only(facts, Severity::slow, "card-not-used", {"build with the preset 'cuda'"});
}

TEST(Findings, DevicesThatAreMissing) {
  const auto none = [] {
    MachineFacts facts = with_devices(1);
    facts.cuda.device.clear();
    facts.cuda.unusable = "there is no CUDA device on this machine";
    return facts;
  };
  MachineFacts facts = none();
  facts.cuda.visible = "";
  expect_only(facts, Severity::fails, "cuda-visible-devices",
              {"CUDA_VISIBLE_DEVICES is \"\" and hides all devices"});
  facts = none();
  facts.cuda.nodes = 0;
  expect_only(facts, Severity::fails, "no-device-nodes", {"/dev/nvidia0 is not here", "--gpus all"});
  facts = none();
  facts.cuda.has_control_nodes = false;
  expect_only(facts, Severity::fails, "no-device-nodes", {"/dev/nvidiactl or /dev/nvidia-uvm is not here"});
  facts = none();
  facts.cuda.kernel_driver = "";
  facts.cuda.nodes = 0;
  expect_only(facts, Severity::fails, "no-driver", {"there is a card on the bus"});
  facts = none();
  facts.cuda.has_library = false;
  expect_only(facts, Severity::fails, "no-libcuda", {"libcuda.so.1"});
  facts = none();
  facts.cuda.driver = 12040;
  expect_only(facts, Severity::fails, "old-driver",
              {"the driver knows CUDA 12.4, and this program was built with 13.0", "a toolkit of CUDA 12"});
  facts = none();
  facts.cuda = {};
  facts.cuda.built = true;
  facts.cuda.unusable = "there is no CUDA device on this machine";
  facts.cuda.toolkit = 13000;
  expect_only(facts, Severity::slow, "no-device",
              {"there is no CUDA device on this machine: runs compute on the CPU"});
}

TEST(Findings, DevicesThatDoNotReachEachOther) {
  MachineFacts facts = with_devices(4);
  facts.cuda.apart = {{0, 2}, {1, 3}};
  expect_only(facts, Severity::slow, "no-peer-access", {"devices 0 and 2", "(nor do 1 other pairs)"});
  facts = with_devices(2);
  facts.cuda.may_read_memory = false;
  expect_only(facts, Severity::slow, "process-memory", {"process_vm_readv", "--cap-add=SYS_PTRACE"});
  facts = with_devices(2);
  facts.cuda.nccl = 0;
  expect_only(facts, Severity::fails, "no-nccl", {"built without NCCL"});
  facts = with_devices(1);
  facts.cuda.device[0].unusable = "Tesla V100 has compute capability 7.0, 8.0 or newer is needed";
  expect_only(facts, Severity::fails, "device-too-old", {"7.0"});
}

TEST(Findings, AnMpirunOfAnotherMpi) {
  MachineFacts facts = sound();
  for (const char* launcher : {"HYDRA build details:", "Intel(R) MPI Library for Linux* OS, Version 2021.9",
                               "mpirun (Open MPI) 5.0.3"}) {
    facts.mpi.launcher = launcher;
    expect_only(facts, Severity::fails, "mpi-mismatch", {launcher, "Open MPI v4.1.4"});
  }
  facts.mpi.launcher = "mpirun of some machine";  // what is not known is not judged
  EXPECT_EQ(words(findings_of(facts)), "");
  facts.mpi = {};
  facts.mpi.built = true;
  facts.mpi.library = "MPICH Version: 4.0.2";
  facts.mpi.launcher = "HYDRA build details:";
  EXPECT_EQ(words(findings_of(facts)), "");
  facts.mpi = {};
  facts.mpi.built = false;
  facts.mpi.launcher = "mpirun (Open MPI) 4.1.4";
  expect_only(facts, Severity::note, "built-without-mpi", {"--nproc"});
  facts.mpi = {};
  facts.mpi.built = true;
  facts.mpi.library = "Open MPI v4.1.4";
  expect_only(facts, Severity::note, "no-mpirun", {"no mpirun is found"});
  facts.mpi.launcher = "mpirun (Open MPI) 4.1.4";
  facts.mpi.is_root = true;
  expect_only(facts, Severity::note, "mpirun-as-root", {"OMPI_ALLOW_RUN_AS_ROOT"});
  facts.mpi.root_is_allowed = true;
  EXPECT_EQ(words(findings_of(facts)), "");
}

TEST(Findings, PythonModulesThatAreMissing) {
  MachineFacts facts = sound();
  facts.python.modules = {{"pyarrow", "documents.py, parquet_to_jsonl.py", "tools/requirements.txt", ""},
                          {"tokenizers", "tokenizing.py", "tools/requirements.txt", "0.21"},
                          {"streamlit", "dashboard.py", "tools/requirements-dashboard.txt", "1.40"}};
  expect_only(facts, Severity::note, "no-python-module",
              {"python3 has no module pyarrow (tools/documents.py, parquet_to_jsonl.py)",
               "pip install -r tools/requirements.txt"});
  // One line for what one command installs.
  facts.python.modules[1].version = "";
  expect_only(
      facts, Severity::note, "no-python-module",
      {"no module pyarrow (tools/documents.py, parquet_to_jsonl.py), tokenizers (tools/tokenizing.py)"});
  facts.python.modules = {{"lm_eval", "one.py, two.py, three.py, four.py", "lm_eval", ""}};
  expect_only(facts, Severity::note, "no-python-module", {"one.py, two.py and 2 more)", "pip install lm_eval"});
  facts.python.version = "";
  expect_only(facts, Severity::note, "no-python", {"there is no python3"});
}

TEST(Findings, ComeInTheOrderOfImportance) {
  MachineFacts facts = sound();
  facts.disk.write = 20e6;
  facts.python.version = "";
  facts.limits.file_size = kMiB;
  facts.memory.available = kMiB;
  std::vector<Severity> order;
  for (const Finding& finding : findings_of(facts)) order.push_back(finding.severity);
  EXPECT_EQ(order, (std::vector{Severity::impossible, Severity::fails, Severity::slow, Severity::note}));
}

TEST(Report, ShowsEachFindingOnce) {
  MachineFacts facts = with_devices(2);
  facts.disk.write = 20e6;
  facts.cores.variables["OMP_NUM_THREADS"] = "16";
  const std::vector<Finding> findings = findings_of(facts);
  const std::vector<std::string> lines = lines_of(facts, findings);
  EXPECT_EQ(
      std::count_if(lines.begin(), lines.end(), [](const auto& line) { return line.starts_with("slow: "); }),
      1);
  const auto has = [&](const std::string& text) {
    return std::any_of(lines.begin(), lines.end(),
                       [&](const auto& line) { return line.find(text) != line.npos; });
  };
  EXPECT_TRUE(has("16 (16 physical), usable here: 0-15"));
  EXPECT_TRUE(has("OMP_NUM_THREADS=16"));
  EXPECT_TRUE(has("NCCL 2.28.9"));
  EXPECT_TRUE(has("between all devices"));
  EXPECT_TRUE(has("products 1000 GFLOP/s in float32, 8000 in bfloat16; copies 100 GB/s, on 16 threads"));
  EXPECT_TRUE(has("AMX, AMX-BF16"));
  const Json json = json_of(facts, findings);
  EXPECT_EQ(json["findings"][0]["id"].text(), "slow-disk");
  EXPECT_EQ(json["cuda"]["devices"].size(), 2u);
  EXPECT_EQ(json["disk"].find("directory"), nullptr);
}

}  // namespace
}  // namespace switchyard::machine
