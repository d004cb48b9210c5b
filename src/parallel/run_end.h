// Whether the run is over because of another rank: set once by whoever watches, looked at by whoever waits.
#pragma once

namespace switchyard::parallel {

void set_run_over();  // from any thread; also in a signal handler
bool run_is_over();

}  // namespace switchyard::parallel
