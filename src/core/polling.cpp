#include "core/polling.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace switchyard {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr auto kShortestNap = std::chrono::microseconds(10);
constexpr auto kLongestNap = std::chrono::microseconds(1000);
constexpr auto kBetweenChecks = std::chrono::milliseconds(10);

}  // namespace

void poll(const std::function<bool()>& ready, const std::function<void()>& check) {
  const Clock::time_point start = Clock::now();
  Clock::time_point checked = start;
  while (!ready()) {
    const Clock::time_point now = Clock::now();
    if (now - checked >= kBetweenChecks) {
      check();
      checked = now;
    }
    if (now - start > kSpin)
      std::this_thread::sleep_for(std::clamp<Clock::duration>((now - start) / 16, kShortestNap, kLongestNap));
  }
}

}  // namespace switchyard
