// Which kernels have been started for the first time since all should have been.
#include <mutex>
#include <unordered_set>

#include "device.h"

namespace switchyard::ops::cuda {

namespace {

struct Launched {
  std::mutex mutex;
  std::unordered_set<const void*> functions;
  bool all = false;  // that there should be
  LateKernels late;
};
Launched& launched() {
  static Launched launched;
  return launched;
}

}  // namespace

void note_launch(const char* op, const void* function) {
  const std::lock_guard lock(launched().mutex);
  if (!launched().functions.insert(function).second || !launched().all) return;
  if (launched().late.count++ == 0) launched().late.first = op;
}

void expect_no_new_kernels() {
  const std::lock_guard lock(launched().mutex);
  launched().all = true;
  launched().late = {};
}

LateKernels late_kernels() {
  const std::lock_guard lock(launched().mutex);
  return launched().late;
}

}  // namespace switchyard::ops::cuda
