// Where a step's time goes: of each operator how often it ran, how long, what it moved and what it multiplied.
// Each operator's Signature (ops/operator.h) measures it where Context::profile is set.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/context.h"

namespace switchyard::ops {

constexpr std::size_t kMatmulTypes = 3;

// Seconds of a steady clock.
double steady_seconds();

class Profile {
 public:
  // All figures are exclusive: those of an operator without the operators that it calls.
  struct Row {
    std::string name;  // "linear_forward"
    std::int64_t calls = 0;
    double seconds = 0;
    double bytes = 0;                             // read and written, each once
    std::array<double, kMatmulTypes> flops = {};  // of products, by the MatmulType they were asked for in
    double all_flops() const { return flops[0] + flops[1] + flops[2]; }
  };

  // What is between begin_step() and end_step() is a step. The first `warm_up` are not counted.
  static constexpr std::int64_t kWarmUp = 3;

  // `ctx` outlives this. `now`: seconds of any clock; a test has its own.
  explicit Profile(Context& ctx, double (*now)() = steady_seconds, std::int64_t warm_up = kWarmUp);

  void begin_step();
  void end_step();

  // An operator begins or ends; one within another is that one's part. `name`: a string literal, or what
  // std::source_location says of a function; where rows have the same name they are one. A device is waited
  // for at both ends, so that the time is its own.
  void begin(const char* name);
  void end() noexcept;
  // Of the innermost operator that runs, those that it calls included.
  void add_bytes(std::int64_t bytes) {
    if (depth_ > 0) top().bytes += static_cast<double>(bytes);
  }
  void add_flops(double flops) {
    if (depth_ > 0) top().flops += flops;
  }

  std::int64_t steps() const { return steps_ > warm_up_ ? steps_ - warm_up_ : 0; }  // that were counted
  double seconds() const { return seconds_; }                                       // of these steps
  // By time, the longest first. The last is "outside operators": the rest of the steps' time.
  std::vector<Row> rows() const;

 private:
  struct Frame {
    std::size_t at = 0;
    std::size_t type = 0;
    double start = 0;
    double bytes = 0, flops = 0;                                 // all there are
    double inner_seconds = 0, inner_bytes = 0, inner_flops = 0;  // of operators within it
  };
  struct Counter {
    const char* name;
    Row row;
  };
  Frame& top() { return frame_[depth_ - 1]; }
  bool counts() const { return in_step_ && steps_ >= warm_up_; }
  std::size_t counter_of(const char* name);
  void wait() noexcept;

  static constexpr std::size_t kMostNested = 16;
  Context& ctx_;
  double (*now_)();
  std::int64_t warm_up_;
  std::vector<Counter> counter_;
  std::array<Frame, kMostNested> frame_;
  std::size_t depth_ = 0;
  bool in_step_ = false;
  std::int64_t steps_ = 0;
  double step_start_ = 0, seconds_ = 0;
};

// Work that is no operator and has a row nevertheless, to the end of the scope: an exchange between ranks.
class Profiled {
 public:
  Profiled(Context& ctx, const char* name) : profile_(ctx.profile) {
    if (profile_ != nullptr) profile_->begin(name);
  }
  ~Profiled() {
    if (profile_ != nullptr) profile_->end();
  }
  Profiled(const Profiled&) = delete;
  Profiled& operator=(const Profiled&) = delete;

 private:
  Profile* profile_;
};

}  // namespace switchyard::ops
