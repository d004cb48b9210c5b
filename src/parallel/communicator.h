// What ranks say to each other. One rank is a communicator of size one, not a special case at the call sites.
#pragma once

#include <memory>

#include "core/context.h"

namespace switchyard::parallel {

// Every rank calls the same verbs in the same order. Tensors are contiguous and of equal shape and type on all
// ranks; they lie where the run computes (`ctx`), in whose order the work is done, or on the host.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // In place, f32 or f64: the sum over all ranks. The order of additions is the same on every run, and every
  // rank gets the same bits.
  virtual void all_reduce_sum(Tensor tensor, Context& ctx) = 0;
  // True on every rank where it is true on one. Waits for all of them.
  virtual bool agree(bool flag) = 0;
};

// The only rank: every sum is complete as it is.
std::unique_ptr<Communicator> make_single_process();

}  // namespace switchyard::parallel
