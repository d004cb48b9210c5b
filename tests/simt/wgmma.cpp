#include "include/simt_wgmma.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "watcher.h"

namespace simt {

// A warpgroup's 64 x n sums.
struct Product {
  Hopper::Wgmma wgmma;
  const unsigned* a_registers[4][kWarpSize] = {};
  std::vector<float> of_warp[4] =
      {};  // 16 rows each; empty until somebody waits for it, and after all lanes have
  unsigned lanes_left[4] = {kWarpSize, kWarpSize, kWarpSize, kWarpSize};
};

// The place in the kernel from which a member function was called.
#define SIMT_PLACE __builtin_return_address(0)

unsigned Hopper::address_of(const void* p) const {
  const std::ptrdiff_t offset = static_cast<const std::byte*>(p) - base();
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(view_.size()))
    fail("an address outside the dynamic shared memory");
  return kSharedStart + static_cast<unsigned>(offset);
}

void Hopper::Barrier::advance() {
  if (pending > 0 || bytes != 0) return;
  ++phase;
  pending = arrivals;
  if (watcher) watcher->pass(at);
}
void Hopper::barrier_init(const void* at, unsigned arrivals) {
  if (watcher) watcher->write(at, sizeof(std::uint64_t), SIMT_PLACE);
  if (!barriers_.emplace(address_of(at), Barrier{at, arrivals, arrivals}).second)
    fail("a barrier that is initialised twice");
}
void Hopper::barrier_arrive(const void* at, unsigned expected_bytes) {
  Barrier& barrier = barrier_at(at);
  if (watcher) {
    watcher->read(at, sizeof(std::uint64_t), SIMT_PLACE);
    watcher->arrive(at);
  }
  barrier.bytes += expected_bytes;
  if (barrier.pending == 0) fail("more arrivals at a barrier than it counts");
  --barrier.pending;
  barrier.advance();
}
void Hopper::barrier_wait(const void* at, unsigned parity) {
  Barrier& barrier = barrier_at(at);
  if (watcher) watcher->read(at, sizeof(std::uint64_t), SIMT_PLACE);
  const std::function<bool()> passed = [&] {
    if (barrier.phase % 2 == parity) barrier.finish_copies();
    return barrier.phase % 2 != parity;
  };
  wait_until(passed, "parity " + std::to_string(parity) + " of the barrier at " +
                         std::to_string(address_of(at)) + " (arrivals missing: " +
                         std::to_string(barrier.pending) + ", bytes: " + std::to_string(barrier.bytes) + ")");
  if (watcher) watcher->wait(at);
}
void Hopper::named_barrier(unsigned id, unsigned threads) {
  Named& named = named_[id];
  const unsigned round = named.round;
  if (watcher) watcher->arrive(&named);
  if (++named.arrived == threads) {
    named.arrived = 0;
    ++named.round;
    if (watcher) watcher->pass(&named);
  } else {
    wait_until([&] { return named.round != round; }, "the others at barrier " + std::to_string(id));
  }
  if (watcher) watcher->wait(&named);
}

void Hopper::fence_proxy_async() {
  if (watcher) watcher->fence_proxy_async();
  fenced_ = true;
  for (auto& [address, barrier] : barriers_) barrier.published = true;
}
void Hopper::bulk_copy(void* to, const TensorMap& map, const void* barrier_address, const int (&first)[4]) {
  Barrier& barrier = barrier_at(barrier_address);
  if (!barrier.published) fail("a bulk copy with a barrier that was not published to it");
  const unsigned start = address_of(to), rows = static_cast<unsigned>(map.box[1] * map.box[2] * map.box[3]);
  // Of a line of the box: where it begins in the tensor, null where it is outside.
  const auto line_of = [map, y0 = first[1], z0 = first[2], w0 = first[3]](unsigned line) -> const std::byte* {
    const int row = static_cast<int>(line);
    const std::int64_t y = y0 + row % map.box[1], z = z0 + row / map.box[1] % map.box[2],
                       w = w0 + row / map.box[1] / map.box[2];
    if (std::min({y, z, w}) < 0 || y >= map.size[1] || z >= map.size[2] || w >= map.size[3]) return nullptr;
    return map.data + y * map.stride_bytes[1] + z * map.stride_bytes[2] + w * map.stride_bytes[3];
  };
  if (start % 1024 != 0) fail("a bulk copy to an address that is no multiple of 1024");
  if (watcher) {
    const void* const place = SIMT_PLACE;
    watcher->bulk_read(barrier_address, barrier_address, sizeof(std::uint64_t), place);
    watcher->bulk_write(barrier_address, to, 128 * rows, place);
    const std::int64_t begin = std::max(first[0], 0), end = std::min<std::int64_t>(first[0] + 64, map.size[0]);
    for (unsigned row = 0; row < rows; ++row) {
      if (const std::byte* const line = line_of(row); line != nullptr && begin < end)
        watcher->bulk_read(barrier_address, line + 2 * begin, static_cast<std::size_t>(2 * (end - begin)),
                           place);
    }
  }
  for (unsigned at = start; at < start + 128 * rows; at += 2) write(at, 0xffff);
  barrier.copies.push_back([this, &barrier, line_of, width = map.size[0], start, rows, x0 = first[0]] {
    for (unsigned row = 0; row < rows; ++row) {
      const std::byte* const line = line_of(row);
      for (unsigned column = 0; column < 64; ++column) {
        const std::int64_t x = x0 + static_cast<int>(column);
        std::uint16_t bits = 0;  // outside the tensor
        if (line != nullptr && x >= 0 && x < width) std::memcpy(&bits, line + 2 * x, sizeof bits);
        write(swizzled(start + 128 * row + 2 * column), bits);
      }
    }
    barrier.bytes -= 128 * rows;
    barrier.advance();
  });
}

// f(the place in the box, elements of a row of the map that lie in the tensor, how many), row by row.
template <class F>
void for_rows_of_box(const TensorMap& map, const std::int64_t (&first)[3], F&& f) {
  const auto bytes = static_cast<std::size_t>(map.stride_bytes[0]);
  const std::int64_t begin = std::max<std::int64_t>(first[0], 0),
                     end = std::min(first[0] + map.box[0], map.size[0]);
  for (int row = 0; row < map.box[1] * map.box[2]; ++row) {
    const std::int64_t y = first[1] + row % map.box[1], z = first[2] + row / map.box[1];
    if (begin >= end || y < 0 || y >= map.size[1] || z < 0 || z >= map.size[2]) continue;
    f(static_cast<std::size_t>(row) * 128 + static_cast<std::size_t>(begin - first[0]) * bytes,
      map.data + begin * map.stride_bytes[0] + y * map.stride_bytes[1] + z * map.stride_bytes[2],
      static_cast<std::size_t>(end - begin) * bytes);
  }
}
void Hopper::bulk_store(const TensorMap& map, const int (&first)[3], const void* from, bool add) {
  const unsigned start = address_of(from), bytes = static_cast<unsigned>(128 * map.box[1] * map.box[2]);
  if (start % 1024 != 0) fail("a bulk copy from an address that is no multiple of 1024");
  if (add && map.stride_bytes[0] != sizeof(float)) fail("a bulk copy that adds what is no float32");
  const Store store{map, {first[0], first[1], first[2]}, from, add};
  if (watcher) {
    const void* const place = SIMT_PLACE;
    watcher->store_read(from, bytes, place);
    for_rows_of_box(map, store.first, [&](std::size_t, const std::byte* to, std::size_t size) {
      watcher->store_write(const_cast<std::byte*>(to), size, place);
    });
  }
  // Others' fences may be of later use, so that fenced_ stays as it is.
  if (fenced_) std::memcpy(view_.data() + offset_of(start), from, bytes);
  thread().open_stores.push_back(store);
}
void Hopper::bulk_commit() {
  if (watcher) watcher->commit_stores();
  Thread& t = thread();
  t.stores.push_back(std::exchange(t.open_stores, {}));
}
void Hopper::bulk_wait(unsigned groups_left, bool read_only) {
  if (watcher) watcher->wait_for_stores(groups_left, read_only);
  auto& groups = thread().stores;
  for (std::size_t i = 0; i + groups_left < groups.size(); ++i)
    for (Store& store : groups[i]) read(store);
  while (!read_only && groups.size() > groups_left) {
    for (const Store& store : groups.front()) write(store);
    groups.pop_front();
  }
}
void Hopper::read(Store& store) const {
  if (!store.box.empty()) return;
  const unsigned start = address_of(store.from),
                 rows = static_cast<unsigned>(store.map.box[1] * store.map.box[2]);
  store.box.resize(128 * rows);
  for (unsigned at = 0; at < 128 * rows; at += 16)
    std::memcpy(store.box.data() + at, view_.data() + offset_of(swizzled(start + at)), 16);
}
void Hopper::write(const Store& store) {
  for_rows_of_box(store.map, store.first, [&](std::size_t at, const std::byte* place, std::size_t size) {
    auto* const to = const_cast<std::byte*>(place);
    if (!store.add) return static_cast<void>(std::memcpy(to, store.box.data() + at, size));
    const auto flushed = [](float x) {
      return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
    };
    for (std::size_t i = 0; i < size; i += sizeof(float)) {
      float sum, term;
      std::memcpy(&sum, to + i, sizeof sum);
      std::memcpy(&term, store.box.data() + at + i, sizeof term);
      sum = flushed(flushed(sum) + flushed(term));
      std::memcpy(to + i, &sum, sizeof sum);
    }
  });
}

// Sums that are being computed are NaN.
void check_in_flight(const float* d, std::size_t count) {
  if (!std::all_of(d, d + count, [](float x) { return x != x; }))
    fail("sums of a product are written before it was waited for");
}

void Hopper::wgmma(float* d, const Wgmma& product, const unsigned* a_registers) {
  if (std::exchange(fenced_, false)) std::memcpy(view_.data(), base(), view_.size());
  Args args{this, product, a_registers, SIMT_PLACE, {}};
  meet_warp(kFullMask, "wgmma.mma_async", &args, begin);
  Thread& t = thread();
  const auto count = static_cast<std::size_t>(product.n / 2);
  auto [found, is_new] = t.accumulators.try_emplace(d);
  if (!t.fenced || (is_new && !t.unchanged(d, count * sizeof *d)) ||
      (a_registers && !t.unchanged(a_registers, 4 * sizeof *a_registers)))
    fail("wgmma.mma_async without a wgmma.fence after its registers were written");
  if (is_new) found->second.value.assign(d, d + count);
  if (!is_new) check_in_flight(d, count);
  ++found->second.in_flight;
  std::fill(d, d + count, std::numeric_limits<float>::quiet_NaN());
  Begun begun{args.result, d, a_registers, {}};
  if (a_registers) std::copy(a_registers, a_registers + 4, begun.a);
  t.open.push_back(begun);
}
void Hopper::wgmma_fence() {
  Thread& t = thread();
  t.fenced = true;
  t.stack = static_cast<const std::byte*>(__builtin_frame_address(0));
  t.on_stack.assign(t.stack, end_of_stack());
}
bool Hopper::Thread::unchanged(const void* registers, std::size_t bytes) const {
  const std::ptrdiff_t at = static_cast<const std::byte*>(registers) - stack;
  // Elsewhere: the address sanitizer keeps locals apart.
  if (at < 0 || at + static_cast<std::ptrdiff_t>(bytes) > static_cast<std::ptrdiff_t>(on_stack.size()))
    return true;
  return std::memcmp(registers, on_stack.data() + at, bytes) == 0;
}
void Hopper::wgmma_commit() {
  if (watcher) watcher->commit_products();
  Thread& t = thread();
  t.groups.push_back(std::exchange(t.open, {}));
}
void Hopper::wgmma_wait(unsigned groups_left) {
  if (watcher) watcher->wait_for_products(groups_left);
  Thread& t = thread();
  while (t.groups.size() > groups_left) {
    for (const Begun& begun : t.groups.front()) finish(t, begun);
    t.groups.pop_front();
  }
}

void Hopper::check_end() {
  for (const auto& [address, barrier] : barriers_) {
    if (!barrier.copies.empty()) fail("leaves a bulk copy for which nobody waited");
  }
  for (const auto& [number, t] : threads_) {
    if (!t.open.empty() || !t.groups.empty()) fail("leaves products for which nobody waited");
    if (!t.open_stores.empty() || !t.stores.empty())
      fail("leaves a bulk copy from shared memory for which nobody waited");
  }
  for (const auto& [group, products] : begun_by_group_) {
    for (unsigned warp = 4 * group; warp < 4 * group + 4; ++warp) {
      if (n_begun_[warp] != products.size()) fail("a warp left out a product of its warpgroup");
    }
  }
}

void Hopper::begin(void* const args[kWarpSize]) {
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
  if (!watcher) return;
  watcher->begin_product();
  if (!first.a_registers)
    first.block->tell_of_operand(wgmma.a, !wgmma.a_along_m, warp % 4 * 16, 16, first.place);
  first.block->tell_of_operand(wgmma.b, !wgmma.b_along_n, 0, static_cast<unsigned>(wgmma.n), first.place);
}

void Hopper::tell_of_operand(std::uint64_t descriptor, bool along_k, unsigned first, unsigned count,
                             const void* place) const {
  for (unsigned i = first; i < first + count; i += along_k ? 1 : 8) {
    for (unsigned k = 0; k < 16; k += along_k ? 8 : 1)
      watcher->product_read(base() + offset_of(element_address(descriptor, along_k, i, k)), 16, place);
  }
}

void Hopper::compute(const Hopper& block, Product& product, unsigned warp) {
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

void Hopper::finish(Thread& t, const Begun& begun) {
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
  if (begun.a_registers && !std::equal(begun.a, begun.a + 4, begun.a_registers))
    fail("registers of a product's left operand are written before it was waited for");
  check_in_flight(begun.d, n / 2);
  if (--product.lanes_left[warp] == 0) of_warp = {};
  if (--accumulator.in_flight > 0) return;
  std::copy(accumulator.value.begin(), accumulator.value.end(), begun.d);
  t.accumulators.erase(found);
  t.fenced = false;
}

Hopper& hopper() {
  if (!block_state()) block_state() = std::make_unique<Hopper>();
  return static_cast<Hopper&>(*block_state());
}

}  // namespace simt
