#include "core/signal_thread.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

namespace switchyard {

namespace {

std::atomic<int> handled_by{0};
void note_thread(int) { handled_by = ::gettid(); }

bool is_blocked(int signal) {
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
  return ::sigismember(&now, signal) == 1;
}

}  // namespace

TEST(SignalThread, HandlersRunOnAThreadOfTheirOwn) {
  const auto before = std::signal(SIGUSR2, note_thread);
  {
    const SignalThread taker(std::array{SIGUSR2});
    EXPECT_TRUE(is_blocked(SIGUSR2));
    bool inherited = false;
    std::thread([&] { inherited = is_blocked(SIGUSR2); }).join();
    EXPECT_TRUE(inherited);
    ::kill(::getpid(), SIGUSR2);
    // A guard against a hang: a signal takes microseconds.
    for (int i = 0; i < 10'000 && handled_by == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_NE(handled_by, 0);
    EXPECT_NE(handled_by, ::gettid());
  }
  EXPECT_FALSE(is_blocked(SIGUSR2));
  std::signal(SIGUSR2, before);
}

}  // namespace switchyard
