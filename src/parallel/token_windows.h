// Memory in which the ranks of an expert group reach each other's tokens on their devices: what a rank needs of
// another's is written to it or read from it there, and nothing is packed, counted or told to the host.
//
// A rank has two windows. Others write rows into its `arrivals`; it reads them, and others may write again. It
// writes rows into its `departures`; others read them, and it may write again. Row s * T + t is always token t
// of place s: where a token has no expert on a rank its row there is left as it was, and is not read, since its
// slots are free there.
//
// The order between ranks comes from meetings: exchanges of a few bytes, or of what has to be exchanged anyway,
// on the same stream. What a rank started on the stream before a meeting is done before anything begins that
// another rank started behind it, since an exchange ends nowhere before it has begun everywhere. Nor is it done
// in name alone: the end of a kernel makes its writes, to its own device's memory and to others', visible to
// the whole system, before NCCL's kernel begins, which tells the others so by releases and acquires at system
// scope; and a kernel that begins finds nothing older in its caches. So
//   rows are written to others   between a meeting after all have read what was there, and a meeting before any
//   reads rows are read from others    between a meeting after all have written, and one before any writes
//   again
#pragma once

#include <cstdint>
#include <vector>

#include "core/device_memory.h"
#include "parallel/group.h"

namespace switchyard::parallel {

class TokenWindows {
 public:
  // For up to so many rows. All ranks of the group call, with the same numbers; the group outlives this, and
  // the memory stays until the process ends. Throws RunError where ranks do not reach each other.
  TokenWindows(const Group& group, std::int64_t most_rows, std::int64_t width, DType dtype, Context& ctx);
  // In memory of each place that all ranks reach already, as large as bytes() says, and a count of its own.
  TokenWindows(const Group& group, std::int64_t most_rows, std::int64_t width, DType dtype,
               std::vector<void*> arrivals_N, std::vector<void*> departures_N, Tensor sent_bytes_1);
  // Of both windows of a rank.
  static std::int64_t bytes(std::int64_t most_rows, std::int64_t width, DType dtype);

  // The first rows of the own windows.
  Tensor arrivals(std::int64_t rows) const { return of(arrivals_N_, group_.place(), rows); }
  Tensor departures(std::int64_t rows) const { return of(departures_N_, group_.place(), rows); }
  // Of every place, its own among them.
  std::vector<Tensor> all_arrivals(std::int64_t rows) const { return of_all(arrivals_N_, rows); }
  std::vector<Tensor> all_departures(std::int64_t rows) const { return of_all(departures_N_, rows); }

  // f64, on the device: bytes that this rank has written to others and read from them, since it was zeroed.
  Tensor sent_bytes_1() const { return sent_bytes_1_; }

 private:
  std::vector<void*> open(std::int64_t bytes) const;  // that many of each place
  Tensor of(const std::vector<void*>& memory_N, int place, std::int64_t rows) const;
  std::vector<Tensor> of_all(const std::vector<void*>& memory_N, std::int64_t rows) const;

  const Group& group_;
  std::int64_t most_rows_, width_;
  DType dtype_;
  std::vector<void*> arrivals_N_, departures_N_;
  AlignedBuffer sent_bytes_;
  Tensor sent_bytes_1_;
};

}  // namespace switchyard::parallel
