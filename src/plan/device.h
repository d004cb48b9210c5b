// What a device can do at most, from the makers' data sheets, and what it is joined to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::plan {

struct Device {
  std::string name;
  double float32 = 0, bfloat16 = 0, fp8 = 0;  // dense FLOP/s of matrix products; 0: it has none
  double memory = 0;                          // bytes that a run can take
  double bandwidth = 0;                       // bytes a second of that memory
  double link = 0;          // bytes a second, one way, to devices of the same domain (NVLink, Infinity Fabric)
  double network = 0;       // the same to all others
  std::int64_t domain = 1;  // devices that the fast links join
  double watts = 0;         // of one device at full load
  bool block_scales = false;  // products take FP8 with scales of blocks (MXFP8)
  std::string source;
};

// The devices that are known by name, in the order in which they are listed.
const std::vector<Device>& known_devices();

// NAME, or NAME,key=value,... where a key is one of bf16, fp8, fp32 (TFLOP/s), memory (GB), bandwidth (TB/s),
// link, network (GB/s one way), domain (devices), watts: "H100,memory=96,bandwidth=2.4". Throws InputError,
// with the names that there are.
Device parse_device(const std::string& text);

}  // namespace switchyard::plan
