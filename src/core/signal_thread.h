// Where the signals of a program are handled: on a thread of their own.
#pragma once

#include <condition_variable>
#include <csignal>
#include <mutex>
#include <span>
#include <thread>

namespace switchyard {

// While this lives, the calling thread and all that are started from it leave these signals to one thread that
// does nothing else; what a signal does (its handler, or its default) is as it was. oneDNN's matrix products
// use the stack pointer for a buffer of the heap: a handler that ran on a thread that multiplies would write
// its frame of some kilobytes over what lies below that buffer. Make it before threads that compute are
// started.
class SignalThread {
 public:
  explicit SignalThread(std::span<const int> signals);  // throws RunError where no thread can be started
  ~SignalThread();
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;

 private:
  sigset_t signals_, before_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace switchyard
