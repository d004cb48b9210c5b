// How the ranks that a launcher has started on one or more machines get their control lines: rank 0 listens,
// and says where over the transport.
#pragma once

#include <memory>
#include <vector>

#include "parallel/control_line.h"
#include "parallel/monitor.h"
#include "parallel/world.h"

namespace switchyard::parallel {

struct Rendezvous {
  Line line;                         // of this rank, to the monitor in the process of rank 0
  RankName first;                    // rank 0
  std::unique_ptr<Monitor> monitor;  // of rank 0, with everyone's line; null on others
};
// All ranks call it. Throws RunError on all of them where one cannot reach rank 0.
Rendezvous meet(World& world);

}  // namespace switchyard::parallel
