// A rank's end of the control line: a thread that sends heartbeats with the newest mark and ends this process
// when the run is over because of another. It calls neither MPI nor CUDA, so it speaks where the main thread is
// stuck in them.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "parallel/control_line.h"
#include "parallel/monitor.h"

namespace switchyard::parallel {

// For the body of run_ranks (launch.h); nothing happens where this process is the only rank.
// Seconds without a new mark after which a rank counts as hung; 0: never.
void set_patience(double seconds);
// Where a run that is ended goes on from, for the line that says why: "the last checkpoint is ...".
void set_checkpoint_note(const std::string& text);

class Watch {
 public:
  // `monitor`: whose process the other end is in. `speaks_for_monitor`: prints the line where that one dies.
  Watch(Line line, int rank, RankName monitor, bool speaks_for_monitor);
  // After goodbye() alone: else the thread has to end the process where its own end hangs.
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // From the main thread.
  void alarm(const std::string& text, int exit_code);
  void goodbye(int exit_code);
  bool said_goodbye() const { return leave_; }
  // The exit code of the run, once it is known to be over; `otherwise` after so many seconds.
  int wait_until_over(double seconds, int otherwise) const;
  void say(const Word& word);  // at once, or with the next heartbeat
  void set_patience(double seconds);

 private:
  void run();
  void end_by_monitor(const char* how);
  void over(int exit_code);

  static constexpr int kNotOver = -1;
  std::mutex mutex_;  // of the line
  Line line_;
  int rank_;
  RankName monitor_;
  bool speaks_for_monitor_;
  Progress progress_of_first_;
  std::string note_;
  std::atomic<double> patience_{kStartPatience};
  double over_time_ = 0;
  std::atomic<int> exit_code_{kNotOver};
  std::atomic<bool> leave_{false};
  std::thread thread_;
};

}  // namespace switchyard::parallel
