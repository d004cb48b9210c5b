#include "plan/device.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace switchyard::plan {

namespace {

struct Key {
  const char* name;
  double Device::*member;
  double unit;
};
constexpr Key kKeys[] = {{"fp32", &Device::float32, 1e12},
                         {"bf16", &Device::bfloat16, 1e12},
                         {"fp8", &Device::fp8, 1e12},
                         {"memory", &Device::memory, 1e9},
                         {"bandwidth", &Device::bandwidth, 1e12},
                         {"link", &Device::link, 1e9},
                         {"network", &Device::network, 1e9},
                         {"watts", &Device::watts, 1}};

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

std::string names() {
  std::string list = "cpu";
  for (const Device& device : known_devices()) list += ", " + device.name;
  return list;
}

void set(Device& device, const std::string& item, const std::string& text) {
  const std::size_t equals = item.find('=');
  if (equals == std::string::npos)
    throw_input("--device: {}: '{}' is no key=value; write NAME,memory=96,bandwidth=2.4", text, item);
  const std::string key = item.substr(0, equals), value = item.substr(equals + 1);
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty() || *end != '\0' || !std::isfinite(number) || number <= 0)
    throw_input("--device: {}: {} is '{}', expected a number above 0", text, key, value);
  if (key == "domain") {
    if (number != std::floor(number) || number > 1e6)
      throw_input("--device: {}: domain is '{}', expected a whole number of devices", text, value);
    device.domain = static_cast<std::int64_t>(number);
    return;
  }
  for (const Key& each : kKeys) {
    if (key == each.name) {
      device.*each.member = number * each.unit;
      return;
    }
  }
  throw_input(
      "--device: {}: there is no key '{}'; the keys are fp32, bf16, fp8, memory, bandwidth, link, network, "
      "domain and "
      "watts",
      text, key);
}

}  // namespace

const std::vector<Device>& known_devices() {
  // Memory: what PyTorch's messages give as the capacity where it was found (79.1 GiB of an H100 or A100 of "80
  // GB", 139.8 of an H200, 178.4 of a B200, 192.0 of an MI300X), less 1.5 GB for the driver's context and NCCL;
  // else the sheet's. Dense rates, without sparsity. Links one way: half of what the sheets print for both.
  static const std::vector<Device> devices = {
      {"A100", 19.5e12, 312e12, 0, 83.4e9, 2.039e12, 300e9, 25e9, 8, 400, false,
       "NVIDIA A100 80GB data sheet (SXM); HDR InfiniBand, 200 Gbit/s a GPU, as in DGX A100"},
      {"H100", 67e12, 989.5e12, 1979e12, 83.4e9, 3.35e12, 450e9, 50e9, 8, 700, false,
       "NVIDIA H100 data sheet (SXM); NDR InfiniBand, 400 Gbit/s a GPU, as in DGX H100"},
      {"H800", 67e12, 989.5e12, 1979e12, 83.4e9, 3.35e12, 200e9, 50e9, 8, 700, false,
       "the H100's, with NVLink of 400 GB/s both ways (DeepSeek-V3 report, section 3.1: 160 GB/s used)"},
      {"H200", 67e12, 989.5e12, 1979e12, 148.6e9, 4.8e12, 450e9, 50e9, 8, 700, false,
       "NVIDIA H200 data sheet (SXM)"},
      {"B200", 75e12, 2250e12, 4500e12, 190e9, 7.7e12, 900e9, 50e9, 8, 1000, true,
       "NVIDIA DGX B200 data sheet, an eighth of it; ConnectX-7, 400 Gbit/s a GPU"},
      {"B300", 75e12, 2250e12, 4500e12, 270e9, 7.7e12, 900e9, 100e9, 8, 1100, true,
       "NVIDIA HGX B300 data sheet, an eighth of it; ConnectX-8, 800 Gbit/s a GPU"},
      {"GB200", 80e12, 2500e12, 5000e12, 186e9, 8e12, 900e9, 50e9, 72, 1200, true,
       "NVIDIA GB200 NVL72 data sheet, a 72nd of it; ConnectX-7, 400 Gbit/s a GPU"},
      {"GB300", 80e12, 2500e12, 5000e12, 279e9, 8e12, 900e9, 100e9, 72, 1400, true,
       "NVIDIA GB300 NVL72 data sheet, a 72nd of it; ConnectX-8, 800 Gbit/s a GPU"},
      {"MI300X", 163.4e12, 1307.4e12, 2614.9e12, 204.6e9, 5.3e12, 448e9, 50e9, 8, 750, false,
       "AMD Instinct MI300X data sheet; 400 Gbit/s a GPU"}};
  return devices;
}

Device parse_device(const std::string& text) {
  const std::size_t comma = text.find(',');
  const std::string name = upper(text.substr(0, comma));
  for (const Device& known : known_devices()) {
    if (known.name != name) continue;
    Device device = known;
    for (std::size_t at = comma; at != std::string::npos;) {
      const std::size_t next = text.find(',', at + 1);
      set(device, text.substr(at + 1, next == std::string::npos ? next : next - at - 1), text);
      at = next;
    }
    if (comma != std::string::npos) device.name = text;
    return device;
  }
  throw_input("--device: there is no device '{}'; the devices are {}, and NAME,key=value,... changes one", text,
              names());
}

}  // namespace switchyard::plan
