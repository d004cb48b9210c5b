#include "parallel/token_windows.h"

#include <utility>

#include "ops/elementwise.h"
#include "ops/peer_memory.h"
#include "ops/token_rows.h"
#include "parallel/agreement.h"

namespace switchyard::parallel {

namespace {

std::int64_t window_bytes(std::int64_t most_rows, std::int64_t width, DType dtype) {
  return most_rows * width * size_of(dtype);
}

}  // namespace

std::int64_t TokenWindows::bytes(std::int64_t most_rows, std::int64_t width, DType dtype) {
  return 2 * window_bytes(most_rows, width, dtype);
}

TokenWindows::TokenWindows(const Group& group, std::int64_t most_rows, std::int64_t width, DType dtype,
                           std::vector<void*> arrivals_N, std::vector<void*> departures_N, Tensor sent_bytes_1)
    : group_(group),
      most_rows_(most_rows),
      width_(width),
      dtype_(dtype),
      arrivals_N_(std::move(arrivals_N)),
      departures_N_(std::move(departures_N)),
      sent_bytes_1_(sent_bytes_1) {
  SY_CHECK(group.size() <= ops::kMostPlaces, "{} ranks share windows", group.size());
}

TokenWindows::TokenWindows(const Group& group, std::int64_t most_rows, std::int64_t width, DType dtype,
                           Context& ctx)
    : TokenWindows(group, most_rows, width, dtype, {}, {}, {}) {
  arrivals_N_ = open(window_bytes(most_rows, width, dtype));
  departures_N_ = open(window_bytes(most_rows, width, dtype));
  sent_bytes_ = allocate_aligned(size_of(DType::f64), "a count of bytes", ctx.device);
  sent_bytes_1_ = Tensor(sent_bytes_.get(), Shape{1}, DType::f64, ctx.device);
  ops::fill_zero(sent_bytes_1_, ctx);
}

std::vector<void*> TokenWindows::open(std::int64_t bytes) const {
  void* mine = nullptr;
  const std::vector<std::string> handle_N = gather(group_, [&] {
    mine = ops::take_peer_memory(bytes);
    return ops::peer_memory_handle(mine);
  });
  std::vector<void*> memory_N(handle_N.size(), mine);
  together(group_, [&] {
    for (std::size_t p = 0; p < handle_N.size(); ++p)
      if (static_cast<int>(p) != group_.place()) memory_N[p] = ops::open_peer_memory(handle_N[p]);
  });
  return memory_N;
}

Tensor TokenWindows::of(const std::vector<void*>& memory_N, int place, std::int64_t rows) const {
  SY_CHECK(rows <= most_rows_, "{} rows in a window of {}", rows, most_rows_);
  return Tensor(memory_N[static_cast<std::size_t>(place)], Shape{rows, width_}, dtype_, sent_bytes_1_.device());
}

std::vector<Tensor> TokenWindows::of_all(const std::vector<void*>& memory_N, std::int64_t rows) const {
  std::vector<Tensor> window_N;
  for (int place = 0; place < group_.size(); ++place) window_N.push_back(of(memory_N, place, rows));
  return window_N;
}

}  // namespace switchyard::parallel
