#include "core/signal_thread.h"

#include <system_error>

#include "core/error.h"

namespace switchyard {

SignalThread::SignalThread(std::span<const int> signals) {
  ::sigemptyset(&signals_);
  for (const int signal : signals) ::sigaddset(&signals_, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  try {
    thread_ = std::thread([this] {
      ::pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return over_; });
    });
  } catch (const std::system_error& error) {
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    throw_run("cannot start a thread for signals: {}; raise the limit of processes (ulimit -u)", error.what());
  }
}

SignalThread::~SignalThread() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  wake_.notify_one();
  thread_.join();
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace switchyard
