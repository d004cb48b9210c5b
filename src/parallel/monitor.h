// Watches all ranks of a run over their control lines and ends it when one fails, dies, stops or hangs: prints
// the one line that says which rank and where, and tells the others. It knows no processes: whoever does (the
// parent with --nproc) tells it how one died.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/progress.h"
#include "parallel/control_line.h"
#include "parallel/judgement.h"

namespace switchyard::parallel {

struct RankName {
  std::string host;
  std::int64_t process = 0;
};
// "rank 3 (host b, process 4711)"
std::string describe(int rank, const RankName& name);
std::string during(const Progress& at);  // "during step 120, backward of layer 7"

constexpr int kExitRun = 1, kExitInput = 2;  // as main.cpp has them
constexpr double kGoodbyeSeconds = 5;        // a rank that has been told has so long until its process is ended

class Monitor {
 public:
  explicit Monitor(int ranks);

  // `cell`: where its marks can be seen; null: it sends them. `closing_is_death`: a rank that closes without
  // goodbye has died; else whoever knows how calls died().
  void add(int rank, Line line, RankName name, const ProgressCell* cell, bool closing_is_death);

  // One round: hears what has come in so many milliseconds, and ends the run where it has to be.
  void watch(int milliseconds);

  // how: "was killed by signal 9 (SIGKILL)". A rank that has sent an alarm has a right to end.
  void died(int rank, const std::string& how);
  void set_stopped(int rank, bool stopped) { of(rank).stopped = stopped; }
  // What a rank that has said goodbye is going to end with.
  std::optional<int> promised_exit_code(int rank) const { return of(rank).promised_exit_code; }
  double seconds_after_goodbye(int rank) const {
    return of(rank).promised_exit_code ? now() - of(rank).heard : 0;
  }

  // Prints the line, if there is one, and tells all ranks; the first call counts.
  void end(const std::string& line, int exit_code);
  bool is_over() const { return over_; }
  int exit_code() const { return exit_code_; }
  double seconds_over() const { return over_ ? now() - over_time_ : 0; }
  // All have said goodbye or closed.
  bool all_gone() const;

 private:
  struct Rank {
    Line line;
    RankName name;
    const ProgressCell* cell = nullptr;
    RankSeen seen;
    double heard = 0, marked = 0;  // when
    std::int64_t first_step = 0;
    bool closing_is_death = false, stopped = false, alarmed = false;
    std::optional<int> promised_exit_code;
  };
  struct Alarm {
    int rank;
    std::string text;
    int exit_code;
    Progress progress;
  };
  static double now();
  Rank& of(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }
  const Rank& of(int rank) const { return ranks_[static_cast<std::size_t>(rank)]; }
  void hear(int rank, const Word& word);
  void see(Rank& rank, const Progress& progress);
  void look(double time);
  void judge_alarms(double time);
  void judge_hangs();
  std::string with_note(const std::string& line) const;

  std::vector<Rank> ranks_;
  double patience_ = kStartPatience;
  std::string note_;
  std::vector<Alarm> alarms_;
  double first_alarm_time_ = 0, last_round_ = 0, last_ping_ = 0, over_time_ = 0;
  bool over_ = false;
  int exit_code_ = 0;
};

}  // namespace switchyard::parallel
