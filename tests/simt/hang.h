// Work of a stream that does not end, as that of a kernel that waits for a rank that is gone.
#pragma once

#include "streams.h"

namespace simt {

// From here on whoever asks for the stream is told that it is not ready, and whoever blocks on it gets an
// exception in place of waiting for ever. False: the work has ended.
void hang(Stream* stream, bool hangs);
void hang_all();  // of the streams that there are

}  // namespace simt
