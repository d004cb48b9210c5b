// For operators that work element by element: a thread takes one pack of one row. As many loads are in flight
// as threads are resident, and each thread has its two or three; more work a thread buys nothing.
#pragma once

#include "elements.h"
#include "launch.h"

namespace switchyard::ops::cuda {

constexpr int kPackThreads = 256;

template <int kSize, class F>
__global__ void __launch_bounds__(kPackThreads)
    for_each_pack_kernel(F f, std::int64_t n_packs, std::int64_t packs_a_row) {
  const std::int64_t pack = std::int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  if (pack >= n_packs) return;
  std::int64_t row = 0, pack_of_row = pack;
  if (packs_a_row < n_packs) {  // more than one row: divided in 32 bits, which the launcher has made sure of
    const auto narrow = static_cast<unsigned>(pack), divisor = static_cast<unsigned>(packs_a_row);
    row = narrow / divisor;
    pack_of_row = narrow % divisor;
  }
  f(row, pack_of_row * kSize);
}

// Calls f(row, column) on the device for the first column of each pack of kSize columns; width is a multiple of
// kSize. f is a struct with a const operator().
template <int kSize, class F>
void for_each_pack(const char* op, std::int64_t rows, std::int64_t width, Context& ctx, const F& f) {
  const std::int64_t packs_a_row = width / kSize, n_packs = rows * packs_a_row;
  SY_CHECK(width % kSize == 0 && (rows <= 1 || n_packs <= 0xffffffff), "{}: {} rows of {}, {} at once", op,
           rows, width, kSize);
  launch(op, for_each_pack_kernel<kSize, F>, {blocks(ceil_div(n_packs, kPackThreads)), kPackThreads}, ctx, f,
         n_packs, packs_a_row);
}

}  // namespace switchyard::ops::cuda
