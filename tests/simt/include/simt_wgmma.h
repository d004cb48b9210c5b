// The instructions of sm_90a that cuda/wgmma.h wraps, as the PTX ISA defines them: "Tensors" (bulk copies),
// "mbarrier", "Asynchronous Warpgroup Level Matrix Instructions". Everything happens as late as it may:
//   - a bulk copy arrives when somebody waits for its barrier, and is NaN from the moment it is begun;
//   - one from shared memory reads it when its thread waits for that, and writes when that waits for all;
//   - products are computed when their group is waited for; until then their accumulators are NaN;
//   - products and bulk copies see what threads wrote to shared memory only after a fence_proxy_async;
//   - registers of a product must not have been written since the wgmma_fence before it, nor while it goes on.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace simt {

// E4M3: NaN is 0x7f, a sign away from the largest.
inline float from_e4m3(unsigned char bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float size =
      std::ldexp(static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa), std::max(exponent, 1) - 10);
  if (exponent == 15 && mantissa == 7) size = std::numeric_limits<float>::quiet_NaN();
  return bits & 0x80 ? -size : size;
}
// cvt.rn.satfinite.e4m3x2.f32: `low` is the low byte. By search: the numbers of a sign ascend with their bits.
inline std::uint16_t e4m3_pair(float low, float high) {
  const auto to = [](float x) -> unsigned {
    if (std::isnan(x)) return 0x7f;
    const float size = std::abs(x);
    unsigned bits = 0;
    for (unsigned bit = 0x40; bit != 0; bit /= 2)
      if ((bits | bit) < 0x7f && from_e4m3(static_cast<unsigned char>(bits | bit)) <= size) bits |= bit;
    if (bits < 0x7e) {
      const float below = size - from_e4m3(static_cast<unsigned char>(bits)),
                  above = from_e4m3(static_cast<unsigned char>(bits + 1)) - size;
      if (above < below || (above == below && bits % 2 != 0)) ++bits;
    }
    return bits | (std::signbit(x) ? 0x80u : 0u);
  };
  return static_cast<std::uint16_t>(to(low) | to(high) << 8);
}

struct TensorMap {
  const std::byte* data;
  std::int64_t size[4];          // elements of 2 bytes, or 4; the first dimension is contiguous
  std::int64_t stride_bytes[4];  // of each dimension
  int box[4];
};

// Shared addresses start here: no more aligned than cuda/launch.h promises, so that it shows who relies on
// more.
constexpr unsigned kSharedStart = 1024 + 128;

struct Product;

class Hopper : public BlockState {
 public:
  Hopper() : view_(dynamic_shared_bytes(), std::byte{0xff}) {}

  // ---- addresses ----
  unsigned address_of(const void* p) const;

  // ---- barriers ----
  void barrier_init(const void* at, unsigned arrivals);
  void barrier_arrive(const void* at, unsigned expected_bytes);
  void barrier_wait(const void* at, unsigned parity);
  // bar.sync
  void named_barrier(unsigned id, unsigned threads);

  // ---- memory ----
  void fence_proxy_async();
  // One box of a tensor with rows of 128 bytes, swizzled.
  void bulk_copy(void* to, const TensorMap& map, const void* barrier_address, const int (&first)[4]);
  // One box of three dimensions from shared memory, or added to what is there in float32, subnormal numbers as
  // zeros.
  void bulk_store(const TensorMap& map, const int (&first)[3], const void* from, bool add);
  void bulk_commit();
  void bulk_wait(unsigned groups_left, bool read_only);

  // ---- products ----
  struct Wgmma {
    int n;
    std::uint64_t a, b;  // descriptors; a is 0 where it is in registers
    bool a_along_m, b_along_n, add;
    bool e4m3;  // 32 of K in the bytes of 16 bf16
    auto key() const { return std::tuple(n, a, b, a_along_m, b_along_n, add, e4m3); }
  };
  struct Args {
    Hopper* block;
    Wgmma product;
    const unsigned* a_registers;
    const void* place;  // in the kernel
    std::shared_ptr<Product> result;
  };
  void wgmma_fence();
  // a_registers: of a in registers, read when the product is waited for.
  void wgmma(float* d, const Wgmma& product, const unsigned* a_registers);
  void wgmma_commit();
  void wgmma_wait(unsigned groups_left);

  void check_end() override;

 private:
  struct Barrier {
    const void* at;
    unsigned arrivals, pending;
    std::int64_t bytes = 0;
    unsigned phase = 0;
    bool published = false;
    std::vector<std::function<void()>> copies = {};

    void advance();
    void finish_copies() {
      for (const auto& copy : std::exchange(copies, {})) copy();
    }
  };
  struct Named {
    unsigned arrived = 0, round = 0;
  };
  struct Accumulator {
    std::vector<float> value;
    unsigned in_flight = 0;
  };
  struct Begun {
    std::shared_ptr<Product> product;
    float* d;
    const unsigned* a_registers;
    unsigned a[4];  // what was in them
  };
  struct Store {  // a bulk copy from shared memory
    TensorMap map;
    std::int64_t first[3];
    const void* from;
    bool add;
    std::vector<std::byte> box = {};  // once it is read
  };
  struct Thread {
    std::map<float*, Accumulator> accumulators;  // with what the registers will hold
    std::vector<Begun> open;
    std::deque<std::vector<Begun>> groups;
    std::vector<Store> open_stores;
    std::deque<std::vector<Store>> stores;
    bool fenced = false;
    // The thread's stack when it was fenced: what the kernel's registers are here.
    const std::byte* stack = nullptr;
    std::vector<std::byte> on_stack;

    bool unchanged(const void* registers, std::size_t bytes) const;
  };

  std::map<unsigned, Barrier> barriers_;
  std::map<unsigned, Named> named_;
  std::vector<std::byte> view_;  // shared memory as products and bulk copies see it
  bool fenced_ = false;          // it is to be brought up to date before the next of them
  std::map<unsigned, Thread> threads_;
  std::map<unsigned, std::vector<std::shared_ptr<Product>>> begun_by_group_;  // all its warps begin the same
  std::map<unsigned, std::size_t> n_begun_;                                   // of each warp

  static std::byte* base() { return static_cast<std::byte*>(dynamic_shared()); }
  Thread& thread() { return threads_[thread_number()]; }
  Barrier& barrier_at(const void* at) {
    const auto found = barriers_.find(address_of(at));
    if (found == barriers_.end()) fail("a barrier that was not initialised");
    return found->second;
  }
  // With 128-byte swizzle: bits 4 to 6 change with bits 7 to 9.
  static unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }
  std::size_t offset_of(unsigned address) const {
    if (address < kSharedStart || address + 2 > kSharedStart + view_.size())
      fail("shared address " + std::to_string(address) + " is outside the dynamic shared memory");
    return address - kSharedStart;
  }
  void write(unsigned address, std::uint16_t bits) {
    const std::size_t offset = offset_of(address);
    std::memcpy(base() + offset, &bits, sizeof bits);
    std::memcpy(view_.data() + offset, &bits, sizeof bits);
  }
  // Element (i, k) of an operand, i along M or N. Descriptor: start, leading and stride offset in 16 bytes.
  //   along K:       rows of 128 bytes, eight of them, then the next eight a stride further
  //   along M or N:  lines of 128 bytes, one for each k, eight of them, then the next eight a stride further;
  //                  64 i in a line, the next 64 a leading offset further
  static unsigned element_address(std::uint64_t descriptor, bool along_k, unsigned i, unsigned k) {
    const auto field = [&](int shift) { return static_cast<unsigned>(descriptor >> shift & 0x3fff) * 16; };
    const unsigned start = field(0), leading = field(16), stride = field(32);
    return swizzled(start + (along_k ? i % 8 * 128 + i / 8 * stride + 2 * k
                                     : k % 8 * 128 + k / 8 * stride + i % 64 * 2 + i / 64 * leading));
  }
  float element(std::uint64_t descriptor, bool along_k, unsigned i, unsigned k) const {
    std::uint16_t bits;
    std::memcpy(&bits, view_.data() + offset_of(element_address(descriptor, along_k, i, k)), sizeof bits);
    return __bfloat162float({bits});
  }
  // Tells that the warp's part of a product is about to read `count` of an operand, i from `first` on.
  void tell_of_operand(std::uint64_t descriptor, bool along_k, unsigned first, unsigned count,
                       const void* place) const;

  // The same of E4M3 along K.
  float element_of_e4m3(std::uint64_t descriptor, unsigned i, unsigned k) const {
    const unsigned start = static_cast<unsigned>(descriptor & 0x3fff) * 16,
                   stride = static_cast<unsigned>(descriptor >> 32 & 0x3fff) * 16;
    static const std::vector<float> value = [] {
      std::vector<float> all;
      for (unsigned bits = 0; bits < 256; ++bits) all.push_back(from_e4m3(static_cast<unsigned char>(bits)));
      return all;
    }();
    return value[static_cast<std::size_t>(
        view_[offset_of(swizzled(start + i % 8 * 128 + i / 8 * stride + k))])];
  }

  void read(Store& store) const;
  static void write(const Store& store);

  static void begin(void* const args[kWarpSize]);
  static void compute(const Hopper& block, Product& product, unsigned warp);
  void finish(Thread& t, const Begun& begun);
};

Hopper& hopper();  // of the block that runs

}  // namespace simt
