// What ranks say to each other. One rank is a communicator of size one, not a special case at the call sites.
#pragma once

#include <memory>

#include "core/tensor.h"

namespace switchyard::parallel {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // In place, over all ranks, in rank order. Contiguous tensors of equal shape, f32 or f64.
  virtual void all_reduce_sum(Tensor tensor) = 0;
};

// The only rank: every sum is complete as it is.
std::unique_ptr<Communicator> make_single_process();

}  // namespace switchyard::parallel
