// Ends a rank that a launcher has started, where the others do not come: until ranks know each other nobody
// watches them, and MPI's own start waits for ever.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace switchyard::parallel {

// How long rank 0 waits; others leave the word to it for a few seconds more. 40, or what the environment
// variable SWITCHYARD_START_SECONDS says, for clusters on which MPI takes longer to start. Throws InputError
// where that is no number above 0.
double start_seconds();

class StartLimit {
 public:
  // From here to its destruction this process has so many seconds; then it says why, if it is the first rank
  // (or the second, where the first is stopped), and exits with code 1.
  explicit StartLimit(int rank, double seconds = start_seconds());
  ~StartLimit();
  StartLimit(const StartLimit&) = delete;
  StartLimit& operator=(const StartLimit&) = delete;

  void says(const std::string& what);  // what it has come to: "rank 2 has not reached rank 0"

 private:
  void run(double seconds);

  const int rank_;
  std::mutex mutex_;
  std::condition_variable wakes_;
  bool over_ = false;
  std::string what_ = "MPI has not started on all ranks";
  std::thread thread_;
};

}  // namespace switchyard::parallel
