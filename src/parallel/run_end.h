// Whether the run is over because of another rank: set once by whoever watches, looked at by whoever waits.
#pragma once

#include <functional>

namespace switchyard::parallel {

void set_run_over();  // from any thread; also in a signal handler
bool run_is_over();

// What a rank that waits for others looks for beside that, for the rest of the run: the check throws where it
// finds something. From the main thread.
void set_wait_check(std::function<void()> check);
// For whoever waits, every now and then: throws RunIsOver where the run is over, or what the check throws.
void look_while_waiting();

}  // namespace switchyard::parallel
