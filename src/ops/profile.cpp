#include "ops/profile.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string_view>

#include "core/error.h"
#include "ops/device.h"

namespace switchyard::ops {

namespace {

// "linear_forward" of "void switchyard::ops::linear_forward(switchyard::Tensor, ...)".
std::string short_name(std::string_view function) {
  const std::size_t bracket = function.find('(');
  if (bracket == std::string_view::npos) return std::string(function);
  function = function.substr(0, bracket);
  const std::size_t before = function.find_last_of(": ");
  return std::string(before == std::string_view::npos ? function : function.substr(before + 1));
}

}  // namespace

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Profile::Profile(Context& ctx, double (*now)(), std::int64_t warm_up)
    : ctx_(ctx), now_(now), warm_up_(warm_up) {
  constexpr std::size_t kManyOperators = 256;  // more than there are: no memory is taken amid a step
  counter_.reserve(kManyOperators);
}

void Profile::begin_step() {
  wait();
  in_step_ = true;
  depth_ = 0;
  step_start_ = now_();
}

void Profile::end_step() {
  wait();
  if (counts()) seconds_ += now_() - step_start_;
  in_step_ = false;
  ++steps_;
}

// Whatever the waiting throws, the run's own next waiting does, too.
void Profile::wait() noexcept {
  if (ctx_.device == Device::cpu || std::uncaught_exceptions() > 0) return;
  try {
    synchronise(ctx_);
  } catch (const std::exception&) {
  }
}

std::size_t Profile::counter_of(const char* name) {
  const auto found = std::find_if(counter_.begin(), counter_.end(),
                                  [&](const Counter& counter) { return counter.name == name; });
  if (found != counter_.end()) return static_cast<std::size_t>(found - counter_.begin());
  counter_.push_back({name, {}});
  counter_.back().row.name = short_name(name);
  return counter_.size() - 1;
}

void Profile::begin(const char* name) {
  SY_CHECK(depth_ < kMostNested, "{} operators within each other", depth_ + 1);
  wait();
  frame_[depth_++] = {.at = counter_of(name), .type = static_cast<std::size_t>(ctx_.matmul), .start = now_()};
}

void Profile::end() noexcept {
  if (depth_ == 0) return;
  wait();
  const Frame frame = top();
  --depth_;
  const double elapsed = now_() - frame.start;
  if (depth_ > 0) {
    top().inner_seconds += elapsed;
    top().inner_bytes += std::max(frame.bytes, frame.inner_bytes);
    top().inner_flops += std::max(frame.flops, frame.inner_flops);
  }
  if (!counts()) return;
  Row& row = counter_[frame.at].row;
  row.calls += 1;
  row.seconds += elapsed - frame.inner_seconds;
  row.bytes += std::max(0.0, frame.bytes - frame.inner_bytes);
  row.flops[frame.type] += std::max(0.0, frame.flops - frame.inner_flops);
}

std::vector<Profile::Row> Profile::rows() const {
  std::vector<Row> rows;
  Row outside{.name = "outside operators", .calls = steps(), .seconds = seconds_};
  for (const Counter& counter : counter_) {
    const Row& more = counter.row;
    if (more.calls == 0) continue;
    outside.seconds -= more.seconds;
    auto row = std::find_if(rows.begin(), rows.end(), [&](const Row& each) { return each.name == more.name; });
    if (row == rows.end()) {
      rows.push_back(more);
      continue;
    }
    row->calls += more.calls;
    row->seconds += more.seconds;
    row->bytes += more.bytes;
    for (std::size_t type = 0; type < kMatmulTypes; ++type) row->flops[type] += more.flops[type];
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  rows.push_back(outside);
  return rows;
}

}  // namespace switchyard::ops
