// How the ranks that a launcher has started on one or more machines get their control lines: rank 0 listens,
// and says where over the transport.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/control_line.h"
#include "parallel/monitor.h"
#include "parallel/start_limit.h"
#include "parallel/world.h"

namespace switchyard::parallel {

struct Rendezvous {
  Line line;                         // of this rank, to the monitor in the process of rank 0
  RankName first;                    // rank 0
  std::unique_ptr<Monitor> monitor;  // of rank 0, with everyone's line; null on others
  std::string error;                 // where one cannot reach rank 0, the same on all ranks; else empty
};
// All ranks call it. `limit` learns whom this one waits for.
Rendezvous meet(World& world, StartLimit& limit);

}  // namespace switchyard::parallel
