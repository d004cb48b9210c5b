// Small arguments and results that live on the host: a table's frequencies, sums that all ranks add up. An
// operator that takes them from the device as well neither copies nor waits then.
#pragma once

#include "core/context.h"
#include "core/device_memory.h"

namespace switchyard::ops::cuda {

// Room on the device for a result: its own where it lies there, else scratch space, from where deliver()
// copies.
inline Tensor room_for(const Tensor& result, Context& ctx) {
  return result.device() == Device::cuda ? result : ctx.scratch.take(result.shape(), result.dtype());
}
inline void deliver(const Tensor& result, const Tensor& room) {
  if (room.raw() != result.raw()) copy(result, room);
}

// The tensor itself where it lies on the device, else a copy in scratch space.
inline Tensor on_device(const Tensor& tensor, Context& ctx) {
  const Tensor room = room_for(tensor, ctx);
  deliver(room, tensor);
  return room;
}

}  // namespace switchyard::ops::cuda
