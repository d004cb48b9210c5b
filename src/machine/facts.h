// What is known of a machine and of what this process may use of it. Plain values: they are read by read.h and
// measure.h, or made up by a test, and findings.h judges them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/vector_level.h"

namespace switchyard::machine {

struct ProcessorFacts {
  std::string name;    // "Intel(R) Xeon(R) Platinum 8480+"
  std::string vendor;  // "GenuineIntel"
  int family = 0, model = 0;
  std::set<std::string> flags;  // as the kernel names what it lets programs use: "avx2", "amx_bf16"
  bool is_virtual = false;      // behind a hypervisor
  // Whether the processor itself says that it has AMX, whatever the kernel says; no value where nobody asked
  // it.
  std::optional<bool> says_amx;
  bool may_use_amx = true;  // the kernel gives this process the registers of AMX, where there are any
  std::string governor, frequency_driver;  // "powersave", "acpi-cpufreq"; empty: the system does not say
};

struct NumaNode {
  int number = 0;
  std::vector<int> cores;
  std::int64_t memory = 0;  // bytes; 0: the system does not say
};

struct CoreFacts {
  std::vector<int> online;                 // logical cores of the machine; empty: the system does not say
  std::vector<std::vector<int>> physical;  // the logical cores of each physical one
  std::vector<int> usable;                 // by this process
  int unbound = 0;                         // how many it could use if nothing had bound it; 0: not known
  std::optional<double> quota;             // of processor time, in cores; no value: no limit
  std::vector<NumaNode> nodes;
  int threads = 1;  // that a run of one process uses if its configuration does not say
  int ranks = 1;    // that share these cores
  // Variables that steer threads and libraries, those alone that are set: "OMP_NUM_THREADS" to "8".
  std::map<std::string, std::string> variables;
};

struct MemoryFacts {
  std::optional<std::int64_t> total, available;  // bytes; available: with the control groups' limits
  std::optional<std::int64_t> limit;             // of the control groups
  std::int64_t swap = 0, swap_used = 0;
  std::string large_pages;  // of programs that ask for them: "always", "madvise", "never"; empty: not known
  std::int64_t reserved_pages = 0;  // of a fixed pool, which this program does not use
};

// No value: no limit.
struct LimitFacts {
  std::optional<std::int64_t> open_files, locked, address_space, core, file_size;
  std::optional<std::int64_t> shm, shm_free;  // bytes of /dev/shm; no value: there is none
};

struct DiskFacts {
  std::string directory;            // as it is to be named to people
  std::string error;                // why nothing can be written there; empty: it can
  std::string file_system;          // "ext4", "tmpfs"; empty: not known
  std::int64_t size = 0, free = 0;  // bytes
  double write = 0, read = 0;       // bytes a second, to the disk and from it; 0: not measured
};

// The paths that products on the CPU take.
struct ProductFacts {
  std::string library;                            // "oneDNN 2.6.3"; empty: not asked
  VectorLevel library_level = VectorLevel::none;  // that it uses here
  VectorLevel compiled = VectorLevel::none;       // that this program was compiled for
  bool bf16_products = false;  // of bfloat16; false: rounded to bfloat16 and multiplied in float32
};

// 0: not measured.
struct RateFacts {
  std::string not_measured;  // why; empty: it was, or nobody asked
  int threads = 0;
  double float32 = 0, bfloat16 = 0;                                 // FLOP/s of a large product
  double copy = 0;                                                  // bytes read and written a second
  double device_float32 = 0, device_bfloat16 = 0, device_copy = 0;  // of the first CUDA device
  // While that was measured, shares of the processor time of the machine's cores: taken by the hypervisor for
  // others, and used by other programs here.
  double stolen = 0, others = 0;
  std::int64_t swapped_pages = 0;  // in that time, in or out
};

struct CudaDevice {
  std::string name, capability;
  std::int64_t memory = 0;  // bytes
  std::string unusable;     // why; empty: it can be used
};

struct CudaFacts {
  bool built = false;  // the program has the CUDA backend
  // Of a program with the backend.
  std::string unusable;  // why there is no device; empty: there are
  std::vector<CudaDevice> device;
  std::vector<std::pair<int, int>> apart;  // of which neither reaches the other's memory
  int driver = 0,
      toolkit = 0;            // the newest CUDA that the driver knows, and the build's: 12080 is 12.8; 0: none
  std::string cublas, cudnn;  // versions; empty: not in this build
  int nccl = 0;               // 22809 is 2.28.9; 0: not in this build; -1: not on this machine
  // Of the machine, whatever the program was built for.
  int cards = 0;                       // on the PCI bus
  std::string kernel_driver;           // "550.54.15"; empty: none is loaded
  bool has_library = false;            // libcuda.so.1 can be loaded
  int nodes = 0;                       // /dev/nvidia0, /dev/nvidia1, ...
  bool has_control_nodes = false;      // /dev/nvidiactl and /dev/nvidia-uvm
  std::optional<std::string> visible;  // CUDA_VISIBLE_DEVICES; no value: not set
  bool may_read_memory = true;         // a process may read another's (process_vm_readv): containers forbid it
  bool has_infiniband = false;
};

struct MpiFacts {
  bool built = false;
  std::string library;           // of this build: "Open MPI v4.1.4"
  std::string launcher;          // the first line of mpirun --version; empty: there is none
  bool is_root = false;          // Open MPI's mpirun then refuses
  bool root_is_allowed = false;  // by OMPI_ALLOW_RUN_AS_ROOT
};

struct PythonModule {
  std::string name;
  std::string tools;    // that import it: "a.py, b.py"
  std::string install;  // what pip is given: a file of requirements, or a package's name
  std::string version;  // empty: it is not there
};
struct PythonFacts {
  std::string version;  // of python3; empty: there is none
  std::vector<PythonModule> modules;
};

struct MachineFacts {
  std::string program;  // its version
  std::string kernel;   // "Linux 6.1.0-18-amd64"
  ProcessorFacts processor;
  CoreFacts cores;
  MemoryFacts memory;
  LimitFacts limits;
  DiskFacts disk;
  ProductFacts products;
  RateFacts rates;
  CudaFacts cuda;
  MpiFacts mpi;
  PythonFacts python;
};

}  // namespace switchyard::machine
