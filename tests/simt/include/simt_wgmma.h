// The instructions of sm_90a that cuda/wgmma.h wraps, as the PTX ISA defines them: "Tensors" (bulk copies),
// "mbarrier", "Asynchronous Warpgroup Level Matrix Instructions". Everything happens as late as it may:
//   - a bulk copy arrives when somebody waits for its barrier, and is NaN from the moment it is begun;
//   - products are computed when their group is waited for; until then their accumulators are NaN;
//   - products see what threads wrote to shared memory only after a fence_proxy_async.
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
  std::int64_t size[3];          // elements of 2 bytes; the first dimension is contiguous
  std::int64_t stride_bytes[3];  // of each dimension
  int box[3];
};

// Shared addresses start here: no more aligned than cuda/launch.h promises, so that it shows who relies on
// more.
constexpr unsigned kSharedStart = 1024 + 128;

struct Product;

class Hopper : public BlockState {
 public:
  Hopper() : view_(dynamic_shared_bytes(), std::byte{0xff}) {}

  // ---- addresses ----
  unsigned address_of(const void* p) const {
    const std::ptrdiff_t offset = static_cast<const std::byte*>(p) - base();
    if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(view_.size()))
      fail("an address outside the dynamic shared memory");
    return kSharedStart + static_cast<unsigned>(offset);
  }

  // ---- barriers ----
  void barrier_init(const void* at, unsigned arrivals) {
    if (!barriers_.emplace(address_of(at), Barrier{arrivals, arrivals, 0, 0, false, {}}).second)
      fail("a barrier that is initialised twice");
  }
  void barrier_arrive(const void* at, unsigned expected_bytes) {
    Barrier& barrier = barrier_at(at);
    barrier.bytes += expected_bytes;
    if (barrier.pending == 0) fail("more arrivals at a barrier than it counts");
    --barrier.pending;
    barrier.advance();
  }
  void barrier_wait(const void* at, unsigned parity) {
    Barrier& barrier = barrier_at(at);
    const std::function<bool()> passed = [&] {
      if (barrier.phase % 2 == parity) barrier.finish_copies();
      return barrier.phase % 2 != parity;
    };
    wait_until(passed, "parity " + std::to_string(parity) + " of the barrier at " +
                           std::to_string(address_of(at)) + " (arrivals missing: " +
                           std::to_string(barrier.pending) + ", bytes: " + std::to_string(barrier.bytes) + ")");
  }
  // bar.sync
  void named_barrier(unsigned id, unsigned threads) {
    Named& named = named_[id];
    const unsigned round = named.round;
    if (++named.arrived == threads) {
      named.arrived = 0;
      ++named.round;
    } else {
      wait_until([&] { return named.round != round; }, "the others at barrier " + std::to_string(id));
    }
  }

  // ---- memory ----
  void fence_proxy_async() {
    fenced_ = true;
    for (auto& [address, barrier] : barriers_) barrier.published = true;
  }
  // One box of a tensor with rows of 128 bytes, swizzled.
  void bulk_copy(void* to, const TensorMap& map, const void* barrier_address, const int (&first)[3]) {
    Barrier& barrier = barrier_at(barrier_address);
    if (!barrier.published) fail("a bulk copy with a barrier that was not published to it");
    const unsigned start = address_of(to), rows = static_cast<unsigned>(map.box[1] * map.box[2]);
    if (start % 1024 != 0) fail("a bulk copy to an address that is no multiple of 1024");
    for (unsigned at = start; at < start + 128 * rows; at += 2) write(at, 0xffff);
    barrier.copies.push_back([this, &barrier, map, start, rows, x = first[0], y = first[1], z = first[2]] {
      for (unsigned row = 0; row < rows; ++row) {
        for (unsigned column = 0; column < 64; ++column) {
          const std::int64_t at[3] = {x + static_cast<int>(column), y + static_cast<int>(row) % map.box[1],
                                      z + static_cast<int>(row) / map.box[1]};
          std::uint16_t bits = 0;  // outside the tensor
          if (std::min({at[0], at[1], at[2]}) >= 0 && at[0] < map.size[0] && at[1] < map.size[1] &&
              at[2] < map.size[2])
            std::memcpy(&bits, map.data + 2 * at[0] + at[1] * map.stride_bytes[1] + at[2] * map.stride_bytes[2],
                        sizeof bits);
          write(swizzled(start + 128 * row + 2 * column), bits);
        }
      }
      barrier.bytes -= 128 * rows;
      barrier.advance();
    });
  }

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
    std::shared_ptr<Product> result;
  };
  void wgmma_fence() { thread().fenced = true; }
  // a_registers: of a in registers, read when the product is waited for.
  void wgmma(float* d, const Wgmma& product, const unsigned* a_registers) {
    if (std::exchange(fenced_, false)) std::memcpy(view_.data(), base(), view_.size());
    Args args{this, product, a_registers, {}};
    meet_warp(kFullMask, "wgmma.mma_async", &args, begin);
    Thread& t = thread();
    if (!t.fenced) fail("wgmma.mma_async without a wgmma.fence after its registers were written");
    const auto count = static_cast<std::size_t>(product.n / 2);
    auto [found, is_new] = t.accumulators.try_emplace(d);
    if (is_new) found->second.value.assign(d, d + count);
    ++found->second.in_flight;
    std::fill(d, d + count, std::numeric_limits<float>::quiet_NaN());
    t.open.push_back({args.result, d});
  }
  void wgmma_commit() {
    Thread& t = thread();
    t.groups.push_back(std::exchange(t.open, {}));
  }
  void wgmma_wait(unsigned groups_left) {
    Thread& t = thread();
    while (t.groups.size() > groups_left) {
      for (const Begun& begun : t.groups.front()) finish(t, begun);
      t.groups.pop_front();
    }
  }

  void check_end() override {
    for (const auto& [address, barrier] : barriers_) {
      if (!barrier.copies.empty()) fail("leaves a bulk copy for which nobody waited");
    }
    for (const auto& [number, t] : threads_) {
      if (!t.open.empty() || !t.groups.empty()) fail("leaves products for which nobody waited");
    }
    for (const auto& [group, products] : begun_by_group_) {
      for (unsigned warp = 4 * group; warp < 4 * group + 4; ++warp) {
        if (n_begun_[warp] != products.size()) fail("a warp left out a product of its warpgroup");
      }
    }
  }

 private:
  struct Barrier {
    unsigned arrivals, pending;
    std::int64_t bytes;
    unsigned phase;
    bool published;
    std::vector<std::function<void()>> copies;

    void advance() {
      if (pending > 0 || bytes != 0) return;
      ++phase;
      pending = arrivals;
    }
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
  };
  struct Thread {
    std::map<float*, Accumulator> accumulators;  // with what the registers will hold
    std::vector<Begun> open;
    std::deque<std::vector<Begun>> groups;
    bool fenced = false;
  };

  std::map<unsigned, Barrier> barriers_;
  std::map<unsigned, Named> named_;
  std::vector<std::byte> view_;  // shared memory as products see it
  bool fenced_ = false;          // it is to be brought up to date before the next product
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
  float element(std::uint64_t descriptor, bool along_k, unsigned i, unsigned k) const {
    const auto field = [&](int shift) { return static_cast<unsigned>(descriptor >> shift & 0x3fff) * 16; };
    const unsigned start = field(0), leading = field(16), stride = field(32);
    const unsigned address = start + (along_k ? i % 8 * 128 + i / 8 * stride + 2 * k
                                              : k % 8 * 128 + k / 8 * stride + i % 64 * 2 + i / 64 * leading);
    std::uint16_t bits;
    std::memcpy(&bits, view_.data() + offset_of(swizzled(address)), sizeof bits);
    return __bfloat162float({bits});
  }

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

  static void begin(void* const args[kWarpSize]);
  static void compute(const Hopper& block, Product& product, unsigned warp);
  void finish(Thread& t, const Begun& begun);
};

// A warpgroup's 64 x n sums.
struct Product {
  Hopper::Wgmma wgmma;
  const unsigned* a_registers[4][kWarpSize] = {};
  std::vector<float> of_warp[4] =
      {};  // 16 rows each; empty until somebody waits for it, and after all lanes have
  unsigned lanes_left[4] = {kWarpSize, kWarpSize, kWarpSize, kWarpSize};
};

inline void Hopper::begin(void* const args[kWarpSize]) {
  const auto& first = *static_cast<const Args*>(args[0]);
  const Wgmma& wgmma = first.product;
  for (std::uint64_t descriptor : {first.a_registers ? wgmma.b : wgmma.a, wgmma.b}) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
      fail("a descriptor without 128-byte swizzle, or with a base offset");
  }
  const unsigned warp = thread_number() / kWarpSize;
  auto& of_group = first.block->begun_by_group_[warp / 4];
  const std::size_t number = first.block->n_begun_[warp]++;
  if (number == of_group.size()) of_group.push_back(std::make_shared<Product>(Product{wgmma}));
  if (of_group[number]->wgmma.key() != wgmma.key()) fail("warps of one warpgroup begin different products");
  for (unsigned l = 0; l < kWarpSize; ++l) {
    auto& lane_args = *static_cast<Args*>(args[l]);
    if (lane_args.product.key() != wgmma.key()) fail("lanes of one warp begin different products");
    lane_args.result = of_group[number];
    of_group[number]->a_registers[warp % 4][l] = lane_args.a_registers;
  }
}

inline void Hopper::compute(const Hopper& block, Product& product, unsigned warp) {
  const Wgmma& wgmma = product.wgmma;
  const auto n = static_cast<unsigned>(wgmma.n);
  const auto a_at = [&](unsigned row, unsigned k) {
    if (wgmma.e4m3) return block.element_of_e4m3(wgmma.a, 16 * warp + row, k);
    const unsigned* const registers = product.a_registers[warp][row % 8 * 4 + k % 8 / 2];
    if (!registers) return block.element(wgmma.a, !wgmma.a_along_m, 16 * warp + row, k);
    const auto bits = static_cast<std::uint16_t>(registers[row / 8 + k / 8 * 2] >> (k % 2 * 16));
    return __bfloat162float({bits});
  };
  std::vector<float>& value = product.of_warp[warp];
  value.resize(16 * n);
  std::vector<float> b(n);
  for (unsigned k = 0; k < (wgmma.e4m3 ? 32u : 16u); ++k) {
    for (unsigned j = 0; j < n; ++j)
      b[j] = wgmma.e4m3 ? block.element_of_e4m3(wgmma.b, j, k) : block.element(wgmma.b, !wgmma.b_along_n, j, k);
    for (unsigned row = 0; row < 16; ++row) {
      const float a = a_at(row, k);
      for (unsigned j = 0; j < n; ++j) value[row * n + j] += a * b[j];
    }
  }
}

inline void Hopper::finish(Thread& t, const Begun& begun) {
  Product& product = *begun.product;
  const auto n = static_cast<unsigned>(product.wgmma.n);
  const unsigned l = lane(), warp = thread_number() / kWarpSize % 4;
  std::vector<float>& of_warp = product.of_warp[warp];
  if (of_warp.empty()) compute(*this, product, warp);
  const auto found = t.accumulators.find(begun.d);
  Accumulator& accumulator = found->second;
  for (unsigned i = 0; i < n / 2; ++i) {
    const unsigned row = l / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (l % 4) + i % 2;
    const float value = of_warp[row * n + column];
    accumulator.value[i] = product.wgmma.add ? accumulator.value[i] + value : value;
  }
  if (--product.lanes_left[warp] == 0) of_warp = {};
  if (--accumulator.in_flight > 0) return;
  std::copy(accumulator.value.begin(), accumulator.value.end(), begun.d);
  t.accumulators.erase(found);
  t.fenced = false;
}

inline Hopper& hopper() {
  if (!block_state()) block_state() = std::make_unique<Hopper>();
  return static_cast<Hopper&>(*block_state());
}

}  // namespace simt
