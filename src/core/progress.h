// Where the process is in its work, for whoever watches from outside (parallel/watch.h): a rank that hangs is
// found by its marks, and named with the last one.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace switchyard {

// The work has come to `place` ("backward of layer", a string that lives for ever) number `index`; -1: has
// none. From the main thread alone; a few nanoseconds.
void mark(const char* place, std::int64_t index = -1);
// The same, of a place where this process waits for others: it has done its own part.
void mark_waiting(const char* place, std::int64_t index = -1);
// As the index of mark_waiting(): for a device, which may wait for those of others.
constexpr std::int64_t kOnDevice = -2;
// Where the device counts the exchanges with others that it has come to. Each counts as a mark, and who waits
// for its device is in `kExchangeOfDevices` of that number: whose number is lowest has not come to what the
// others wait in.
void count_exchanges_in(const std::int64_t* begun);
inline constexpr const char* kExchangeOfDevices = "exchange of devices";
// The optimizer step that the following marks belong to, from 1; 0: before the first.
void mark_step(std::int64_t step);

struct Progress {
  std::int64_t marks = 0;  // so far
  std::int64_t step = 0;
  const char* place = "start";
  std::int64_t index = -1;
  bool waiting = false;
};
Progress progress();                             // from any thread
std::string describe(const Progress& progress);  // "step 120, backward of layer 7"

// Where the marks are kept: in memory of the process' own, or in memory that it shares with the one that has
// forked it, which so knows the newest mark of a process that is dead. `place` is the same address in both.
struct ProgressCell {
  std::atomic<std::int64_t> marks{0}, step{0}, index{-1};
  std::atomic<std::int64_t> exchanges{0};  // begun by the device, as progress() has last seen it
  std::atomic<const char*> place{"start"};
  std::atomic<bool> waiting{false};
  Progress read() const;
};
// From now on, as long as the process lives; before a thread looks at progress().
void keep_progress_in(ProgressCell& cell);

// Called at each mark, where it is set: tests break a rank at a given place by it.
using ProgressHook = void (*)(const Progress& at);
extern ProgressHook progress_hook;

}  // namespace switchyard
