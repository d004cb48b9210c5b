#include "parallel/watch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <utility>
#include <vector>

#include "core/log.h"
#include "parallel/run_end.h"

namespace switchyard::parallel {

namespace {

constexpr int kHeartbeatMilliseconds = 250;
constexpr double kFlushSeconds = 2;
// Others leave so much later than the rank that speaks where the monitor is gone: a launcher ends all ranks
// when the first has left, and by then that rank has to have spoken.
constexpr double kLaterSeconds = 2;

std::atomic<Watch*> the_watch{nullptr};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void set_patience(double seconds) {
  if (Watch* const watch = the_watch.load()) watch->set_patience(seconds);
}

void set_checkpoint_note(const std::string& text) {
  if (Watch* const watch = the_watch.load()) watch->say({Say::note, {}, text});
}

Watch::Watch(Line line, int rank, RankName monitor, bool speaks_for_monitor)
    : line_(std::move(line)),
      rank_(rank),
      monitor_(std::move(monitor)),
      speaks_for_monitor_(speaks_for_monitor),
      thread_([this] { run(); }) {
  the_watch = this;
}

Watch::~Watch() {
  the_watch = nullptr;
  leave_ = true;
  thread_.join();
}

void Watch::say(const Word& word) {
  const std::lock_guard lock(mutex_);
  line_.send(word);
}

void Watch::set_patience(double seconds) {
  patience_ = seconds;
  say({Say::patience, {static_cast<std::int64_t>(seconds * 1000)}, ""});
}

void Watch::alarm(const std::string& text, int exit_code) {
  const std::lock_guard lock(mutex_);
  line_.send(word_of(progress()));
  line_.send({Say::alarm, {exit_code}, text});
  line_.flush(kFlushSeconds);
}

void Watch::goodbye(int exit_code) {
  leave_ = true;  // the monitor may close as soon as it has heard this
  const std::lock_guard lock(mutex_);
  line_.send(word_of(progress()));
  line_.send({Say::goodbye, {exit_code}, ""});
  line_.flush(kFlushSeconds);
}

int Watch::wait_until_over(double seconds, int otherwise) const {
  for (const double end = now() + seconds; exit_code_ == kNotOver && now() < end;)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return exit_code_ == kNotOver ? otherwise : exit_code_.load();
}

void Watch::over(int exit_code) {
  if (exit_code_ != kNotOver) return;
  over_time_ = now();
  exit_code_ = exit_code;  // before the main thread can look for it
  set_run_over();
}

// Rank 1 alone prints; where it is dead too, nobody is left who could be told to.
void Watch::end_by_monitor(const char* how) {
  if (speaks_for_monitor_) {
    log_error_of_run(fmt::format("{} {}, last heard of {}{}", describe(0, monitor_), how,
                                 during(progress_of_first_), note_.empty() ? "" : "; " + note_));
    say({Say::spoken, {}, ""});  // to a process that is stopped and may go on
  }
  over(kExitRun);
}

void Watch::run() {
  double heard = now(), open_time = heard, last_round = heard, last_beat = 0;
  bool open = true;
  while (!leave_) {
    std::vector<Word> words;
    {
      const std::lock_guard lock(mutex_);
      const double time = now();
      if (time - last_beat >= kHeartbeatMilliseconds / 1000.0 && exit_code_ == kNotOver) {
        last_beat = time;
        // A monitor that does not read, as a stopped one, is not sent more and more.
        if (!line_.has_unsent()) line_.send(word_of(progress()));
      }
      line_.send_more();
      if (open) open = line_.receive(words);
    }
    const double time = now();
    if (time - last_round > 2) heard += time - last_round;  // this process itself was stopped
    last_round = time;
    for (const Word& word : words) {
      heard = time;
      if (word.say == Say::over) over(static_cast<int>(word.number[0]));
      if (word.say == Say::heartbeat) progress_of_first_ = progress_of(word);
      if (word.say == Say::note) note_ = word.text;
    }
    const double patience = patience_;
    if (exit_code_ == kNotOver && !leave_) {
      if (open) open_time = time;
      const double later = speaks_for_monitor_ ? 0 : kLaterSeconds;
      if (!open && time - open_time >= later)
        end_by_monitor("ended without a word");
      else if (open && patience > 0 && time - heard > longest_silence(patience) + 1 + later)
        end_by_monitor("is stopped, or its machine is gone");
    }
    if (exit_code_ != kNotOver && now() - over_time_ > kGoodbyeSeconds) ::_exit(exit_code_);
    // Not under the lock, so that the main thread can speak; what arrives in between is seen a little later.
    if (open && exit_code_ == kNotOver)
      wait_to_read(line_.descriptor(), 50);
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

}  // namespace switchyard::parallel
