// Waiting for something that does not call back: a device, another process.
#pragma once

#include <functional>

namespace switchyard {

// Returns when ready() is true: asks without a pause for a moment, since most waits are short, then naps
// between questions, which grow with the time waited and so cost a small share of it. Calls check() every 10 ms
// meanwhile; what it throws ends the waiting.
void poll(const std::function<bool()>& ready, const std::function<void()>& check);

}  // namespace switchyard
