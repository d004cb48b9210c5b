#include "machine/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/cores.h"

namespace switchyard::machine {

namespace {

std::string bytes(std::int64_t count) {
  constexpr double kGiB = 1 << 30;
  return count >= (std::int64_t{1} << 30) ? fmt::format("{:.1f} GiB", static_cast<double>(count) / kGiB)
                                          : fmt::format("{} MiB", count >> 20);
}
std::string limit(const std::optional<std::int64_t>& value, bool is_bytes = true) {
  if (!value) return "unlimited";
  return is_bytes ? bytes(*value) : std::to_string(*value);
}
std::string cuda_version(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }
std::string nccl_version(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}
void add(std::string& text, const std::string& more) {
  if (!more.empty()) text += (text.empty() ? "" : ", ") + more;
}

// What of these the kernel lets programs use, by the names that people know.
std::string instruction_sets(const ProcessorFacts& processor) {
  constexpr std::pair<const char*, const char*> kSets[] = {
      {"avx2", "AVX2"},        {"fma", "FMA"},      {"avx_vnni", "AVX-VNNI"}, {"avx512f", "AVX-512 F"},
      {"avx512bw", "BW"},      {"avx512vl", "VL"},  {"avx512_vnni", "VNNI"},  {"avx512_bf16", "BF16"},
      {"avx512_fp16", "FP16"}, {"amx_tile", "AMX"}, {"amx_bf16", "AMX-BF16"}, {"amx_int8", "AMX-INT8"},
      {"asimd", "NEON"},       {"sve", "SVE"},      {"bf16", "BF16"}};
  std::string text;
  for (const auto& [flag, name] : kSets)
    if (processor.flags.contains(flag)) add(text, name);
  return text.empty() ? "none that matter" : text;
}

class Lines {
 public:
  void add(const std::string& name, const std::string& value) {
    constexpr int kColumn = 18;
    if (!value.empty()) lines_.push_back(fmt::format("{:<{}}{}", name, kColumn, value));
  }
  void plain(std::string line) { lines_.push_back(std::move(line)); }
  std::vector<std::string> take() && { return std::move(lines_); }

 private:
  std::vector<std::string> lines_;
};

void write_cores(const CoreFacts& cores, Lines& lines) {
  const std::size_t online = cores.online.size(), physical = cores.physical.size();
  std::string text = fmt::format("{} ({} physical{})", online, physical, online > physical ? ", SMT" : "");
  add(text, fmt::format("usable here: {}", cores.usable.empty() ? "not known" : list_of_cores(cores.usable)));
  if (cores.quota) add(text, fmt::format("quota of the control group: {:.3g}", *cores.quota));
  lines.add("cores", text);
  if (cores.nodes.size() > 1)
    for (const NumaNode& node : cores.nodes)
      lines.add(fmt::format("  NUMA node {}", node.number),
                fmt::format("cores {}, {}", list_of_cores(node.cores), bytes(node.memory)));
  text = fmt::format("{} of a run{}", cores.threads,
                     cores.ranks > 1 ? fmt::format("'s {} ranks each", cores.ranks) : "");
  for (const auto& [name, value] : cores.variables) add(text, fmt::format("{}={}", name, value));
  lines.add("threads", text);
}

void write_limits(const LimitFacts& limits, Lines& lines) {
  lines.add("limits", fmt::format("open files {}, locked memory {}, address space {}, core file {}, file {}",
                                  limit(limits.open_files, false), limit(limits.locked),
                                  limit(limits.address_space), limit(limits.core), limit(limits.file_size)));
  lines.add("/dev/shm", limits.shm
                            ? fmt::format("{}, {} free", bytes(*limits.shm), bytes(limits.shm_free.value_or(0)))
                            : "none");
}

// Three digits, or all before the point.
std::string digits(double value) {
  return fmt::format("{:.{}f}", value, value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

std::string rates_text(double float32, double bfloat16, double copy) {
  if (copy <= 0) return "";
  return fmt::format("products {} GFLOP/s in float32, {} in bfloat16; copies {} GB/s", digits(float32 * 1e-9),
                     digits(bfloat16 * 1e-9), digits(copy * 1e-9));
}

void write_devices(const CudaFacts& cuda, const RateFacts& rates, Lines& lines) {
  std::string text;
  if (cuda.built) {
    text = fmt::format("CUDA {} of the build", cuda_version(cuda.toolkit));
    add(text, cuda.cublas.empty() ? "no cuBLAS" : "cuBLAS " + cuda.cublas);
    add(text, cuda.cudnn.empty() ? "no cuDNN" : "cuDNN " + cuda.cudnn);
    add(text, cuda.nccl > 0    ? "NCCL " + nccl_version(cuda.nccl)
              : cuda.nccl == 0 ? "no NCCL"
                               : "NCCL of the build, which is not found");
  } else {
    text = "built without CUDA";
  }
  lines.add("devices", text);
  text.clear();
  if (cuda.cards > 0)
    add(text, fmt::format("{} NVIDIA card{} on the bus", cuda.cards, cuda.cards == 1 ? "" : "s"));
  add(text, cuda.kernel_driver.empty() ? "" : "driver " + cuda.kernel_driver);
  if (cuda.driver > 0) add(text, fmt::format("the driver knows CUDA {}", cuda_version(cuda.driver)));
  if (cuda.nodes > 0) add(text, fmt::format("{} of /dev/nvidia0, ...", cuda.nodes));
  lines.add("  driver", text.empty() ? "no NVIDIA card or driver is visible" : text);
  for (std::size_t i = 0; i < cuda.device.size(); ++i)
    lines.add(
        fmt::format("  device {}", i),
        fmt::format("{}, {}, compute capability {}{}", cuda.device[i].name, bytes(cuda.device[i].memory),
                    cuda.device[i].capability, cuda.device[i].unusable.empty() ? "" : "; cannot be used"));
  if (cuda.device.size() > 1)
    lines.add("  peer access", cuda.apart.empty() ? "between all devices"
                                                  : fmt::format("missing between {} pairs", cuda.apart.size()));
  lines.add("  rates", rates_text(rates.device_float32, rates.device_bfloat16, rates.device_copy));
}

}  // namespace

std::vector<std::string> lines_of(const MachineFacts& facts, const std::vector<Finding>& findings) {
  Lines lines;
  lines.add("switchyard", facts.program);
  lines.add("system", facts.kernel);
  const ProcessorFacts& processor = facts.processor;
  lines.add("processor",
            fmt::format("{} (family {}, model {}{})", processor.name.empty() ? "unknown" : processor.name,
                        processor.family, processor.model, processor.is_virtual ? ", virtual" : ""));
  lines.add("instructions", instruction_sets(processor));
  if (!processor.governor.empty())
    lines.add("frequency", fmt::format("governor {} of {}", processor.governor, processor.frequency_driver));
  write_cores(facts.cores, lines);
  const ProductFacts& products = facts.products;
  if (!products.library.empty())
    lines.add("products", fmt::format("{} with {}; this program compiled for {}; bfloat16 {}", products.library,
                                      name_of(products.library_level), name_of(products.compiled),
                                      products.bf16_products ? "multiplied as such" : "multiplied as float32"));
  const RateFacts& rates = facts.rates;
  if (rates.copy > 0)
    lines.add("rates", fmt::format("{}, on {} threads", rates_text(rates.float32, rates.bfloat16, rates.copy),
                                   rates.threads));
  else
    lines.add("rates", rates.not_measured.empty() ? "" : "not measured: " + rates.not_measured);
  const MemoryFacts& memory = facts.memory;
  std::string text = fmt::format("{}, {} available", memory.total ? bytes(*memory.total) : "not known",
                                 memory.available ? bytes(*memory.available) : "not known how much");
  if (memory.limit) add(text, "limit of the control group " + bytes(*memory.limit));
  add(text, memory.swap > 0 ? fmt::format("swap {}, {} in use", bytes(memory.swap), bytes(memory.swap_used))
                            : "no swap");
  if (!memory.large_pages.empty()) add(text, "large pages: " + memory.large_pages);
  lines.add("memory", text);
  const DiskFacts& disk = facts.disk;
  text =
      fmt::format("{}: {}{} free of {}", disk.directory,
                  disk.file_system.empty() ? "" : disk.file_system + ", ", bytes(disk.free), bytes(disk.size));
  if (disk.write > 0)
    add(text, fmt::format("writes {:.0f} MB/s, reads {:.0f} MB/s", disk.write * 1e-6, disk.read * 1e-6));
  lines.add("disk", text);
  write_limits(facts.limits, lines);
  write_devices(facts.cuda, rates, lines);
  lines.add("MPI", fmt::format("{}; {}", facts.mpi.built ? facts.mpi.library : "built without",
                               facts.mpi.launcher.empty() ? "no mpirun is found" : facts.mpi.launcher));
  text = facts.python.version.empty() ? "no python3" : facts.python.version;
  for (const PythonModule& module : facts.python.modules)
    if (!module.version.empty()) add(text, module.name + " " + module.version);
  lines.add("Python of tools/", text);
  lines.plain("");
  if (findings.empty()) lines.plain("Nothing was found that would fail or be slow.");
  for (const Finding& finding : findings)
    lines.plain(fmt::format("{}: {}", name_of(finding.severity), sentence_of(finding)));
  return std::move(lines).take();
}

namespace {

Json optional_json(const std::optional<std::int64_t>& value) { return value ? Json(*value) : Json(); }

Json cores_json(const CoreFacts& cores) {
  Json json, variables(Json::Object{}), nodes(Json::Array{});
  for (const auto& [name, value] : cores.variables) variables[name] = value;
  for (const NumaNode& node : cores.nodes)
    nodes.push_back(
        Json::Object{{"node", node.number}, {"cores", list_of_cores(node.cores)}, {"memory", node.memory}});
  json["online"] = list_of_cores(cores.online);
  json["physical"] = cores.physical.size();
  json["usable"] = list_of_cores(cores.usable);
  json["unbound"] = cores.unbound;
  json["quota"] = cores.quota ? Json(*cores.quota) : Json();
  json["numa_nodes"] = std::move(nodes);
  json["threads"] = cores.threads;
  json["ranks"] = cores.ranks;
  json["variables"] = std::move(variables);
  return json;
}

Json cuda_json(const CudaFacts& cuda) {
  Json json, devices(Json::Array{}), apart(Json::Array{});
  for (const CudaDevice& device : cuda.device)
    devices.push_back(Json::Object{{"name", device.name},
                                   {"memory", device.memory},
                                   {"capability", device.capability},
                                   {"unusable", device.unusable}});
  for (const auto& [low, high] : cuda.apart) apart.push_back(Json::list(std::vector<int>{low, high}));
  json["built"] = cuda.built;
  json["unusable"] = cuda.unusable;
  json["devices"] = std::move(devices);
  json["without_peer_access"] = std::move(apart);
  json["driver_cuda"] = cuda.driver;
  json["toolkit_cuda"] = cuda.toolkit;
  json["cublas"] = cuda.cublas;
  json["cudnn"] = cuda.cudnn;
  json["nccl"] = cuda.nccl;
  json["cards"] = cuda.cards;
  json["kernel_driver"] = cuda.kernel_driver;
  json["has_libcuda"] = cuda.has_library;
  json["device_files"] = cuda.nodes;
  json["has_control_files"] = cuda.has_control_nodes;
  json["visible"] = cuda.visible ? Json(*cuda.visible) : Json();
  json["may_read_process_memory"] = cuda.may_read_memory;
  json["has_infiniband"] = cuda.has_infiniband;
  return json;
}

}  // namespace

Json json_of(const MachineFacts& facts, const std::vector<Finding>& findings) {
  Json json;
  json["switchyard"] = facts.program;
  json["system"] = facts.kernel;
  const ProcessorFacts& processor = facts.processor;
  json["processor"] = Json::Object{{"name", processor.name},
                                   {"vendor", processor.vendor},
                                   {"family", processor.family},
                                   {"model", processor.model},
                                   {"is_virtual", processor.is_virtual},
                                   {"instructions", instruction_sets(processor)},
                                   {"says_amx", processor.says_amx ? Json(*processor.says_amx) : Json()},
                                   {"may_use_amx", processor.may_use_amx},
                                   {"governor", processor.governor},
                                   {"frequency_driver", processor.frequency_driver}};
  json["cores"] = cores_json(facts.cores);
  const MemoryFacts& memory = facts.memory;
  json["memory"] = Json::Object{{"total", optional_json(memory.total)},
                                {"available", optional_json(memory.available)},
                                {"limit", optional_json(memory.limit)},
                                {"swap", memory.swap},
                                {"swap_used", memory.swap_used},
                                {"large_pages", memory.large_pages},
                                {"reserved_large_pages", memory.reserved_pages}};
  const LimitFacts& limits = facts.limits;
  json["limits"] = Json::Object{{"open_files", optional_json(limits.open_files)},
                                {"locked_memory", optional_json(limits.locked)},
                                {"address_space", optional_json(limits.address_space)},
                                {"core_file", optional_json(limits.core)},
                                {"file", optional_json(limits.file_size)},
                                {"shm", optional_json(limits.shm)},
                                {"shm_free", optional_json(limits.shm_free)}};
  const DiskFacts& disk = facts.disk;
  json["disk"] = Json::Object{
      {"error", disk.error}, {"file_system", disk.file_system},      {"size", disk.size},
      {"free", disk.free},   {"write_bytes_per_second", disk.write}, {"read_bytes_per_second", disk.read}};
  const ProductFacts& products = facts.products;
  json["products"] = Json::Object{{"library", products.library},
                                  {"library_uses", name_of(products.library_level)},
                                  {"compiled_for", name_of(products.compiled)},
                                  {"bfloat16_products", products.bf16_products}};
  const RateFacts& rates = facts.rates;
  json["rates"] = Json::Object{{"not_measured", rates.not_measured},
                               {"threads", rates.threads},
                               {"float32_flops_per_second", rates.float32},
                               {"bfloat16_flops_per_second", rates.bfloat16},
                               {"copy_bytes_per_second", rates.copy},
                               {"device_float32_flops_per_second", rates.device_float32},
                               {"device_bfloat16_flops_per_second", rates.device_bfloat16},
                               {"device_copy_bytes_per_second", rates.device_copy},
                               {"stolen_share", rates.stolen},
                               {"others_share", rates.others},
                               {"swapped_pages", rates.swapped_pages}};
  json["cuda"] = cuda_json(facts.cuda);
  json["mpi"] = Json::Object{{"built", facts.mpi.built},
                             {"library", facts.mpi.library},
                             {"mpirun", facts.mpi.launcher},
                             {"is_root", facts.mpi.is_root}};
  Json modules(Json::Object{});
  for (const PythonModule& module : facts.python.modules) modules[module.name] = module.version;
  json["python"] = Json::Object{{"version", facts.python.version}, {"modules", std::move(modules)}};
  Json found(Json::Array{});
  for (const Finding& finding : findings)
    found.push_back(Json::Object{{"severity", name_of(finding.severity)},
                                 {"id", finding.id},
                                 {"what", finding.what},
                                 {"remedy", finding.remedy}});
  json["findings"] = std::move(found);
  return json;
}

}  // namespace switchyard::machine
