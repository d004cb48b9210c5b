#include "core/progress.h"

#include <fmt/format.h>

namespace switchyard {

namespace {

ProgressCell own_cell;
ProgressCell* cell = &own_cell;
std::atomic<const std::int64_t*> begun_on_device{nullptr};

void set(const char* place, std::int64_t index, bool waits) {
  // Read by another thread or process: each field is whole, and all of them belong together but for a moment in
  // which a mark is set.
  cell->place.store(place, std::memory_order_relaxed);
  cell->index.store(index, std::memory_order_relaxed);
  cell->waiting.store(waits, std::memory_order_relaxed);
  cell->marks.fetch_add(1, std::memory_order_release);
  if (progress_hook != nullptr) progress_hook(progress());
}

}  // namespace

ProgressHook progress_hook = nullptr;

void mark(const char* place, std::int64_t index) { set(place, index, false); }
void mark_waiting(const char* place, std::int64_t index) { set(place, index, true); }
void mark_step(std::int64_t step) { cell->step.store(step, std::memory_order_relaxed); }

Progress ProgressCell::read() const {
  const std::int64_t begun = exchanges.load(std::memory_order_relaxed);
  Progress at = {.marks = marks.load(std::memory_order_acquire) + begun,
                 .step = step.load(std::memory_order_relaxed),
                 .place = place.load(std::memory_order_relaxed),
                 .index = index.load(std::memory_order_relaxed),
                 .waiting = waiting.load(std::memory_order_relaxed)};
  if (begun > 0 && at.waiting && at.index == kOnDevice) at.place = kExchangeOfDevices, at.index = begun;
  return at;
}
Progress progress() {
  // A device writes it at any time.
  if (const std::int64_t* const begun = begun_on_device.load())
    cell->exchanges.store(*static_cast<const volatile std::int64_t*>(begun), std::memory_order_relaxed);
  return cell->read();
}
void count_exchanges_in(const std::int64_t* begun) { begun_on_device.store(begun); }
void keep_progress_in(ProgressCell& other) { cell = &other; }

std::string describe(const Progress& at) {
  const std::string where = at.index < 0 ? std::string(at.place) : fmt::format("{} {}", at.place, at.index);
  return at.step == 0 ? "before the first step, " + where : fmt::format("step {}, {}", at.step, where);
}

}  // namespace switchyard
