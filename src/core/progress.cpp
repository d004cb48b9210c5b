#include "core/progress.h"

#include <fmt/format.h>

#include <atomic>

namespace switchyard {

namespace {

// Written by the main thread, read by one that watches: each field is whole, and all of them belong together
// but for a moment in which a mark is set.
std::atomic<std::int64_t> marks{0}, step{0}, place_index{-1};
std::atomic<const char*> place{"start"};
std::atomic<bool> waiting{false};

void set(const char* at, std::int64_t index, bool waits) {
  place.store(at, std::memory_order_relaxed);
  place_index.store(index, std::memory_order_relaxed);
  waiting.store(waits, std::memory_order_relaxed);
  marks.fetch_add(1, std::memory_order_release);
  if (progress_hook != nullptr) progress_hook(progress());
}

}  // namespace

ProgressHook progress_hook = nullptr;

void mark(const char* at, std::int64_t index) { set(at, index, false); }
void mark_waiting(const char* at, std::int64_t index) { set(at, index, true); }
void mark_step(std::int64_t number) { step.store(number, std::memory_order_relaxed); }

Progress progress() {
  return {.marks = marks.load(std::memory_order_acquire),
          .step = step.load(std::memory_order_relaxed),
          .place = place.load(std::memory_order_relaxed),
          .index = place_index.load(std::memory_order_relaxed),
          .waiting = waiting.load(std::memory_order_relaxed)};
}

std::string describe(const Progress& at) {
  const std::string where = at.index < 0 ? std::string(at.place) : fmt::format("{} {}", at.place, at.index);
  return at.step == 0 ? "before the first step, " + where : fmt::format("step {}, {}", at.step, where);
}

}  // namespace switchyard
