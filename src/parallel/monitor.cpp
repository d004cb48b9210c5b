#include "parallel/monitor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "core/log.h"

namespace switchyard::parallel {

namespace {

// Ranks that fail for the same reason do so one shortly after the other.
constexpr double kAlarmWindow = 0.2;
// The more so where all of them read the same configuration and files.
constexpr double kStartAlarmWindow = 2;
constexpr double kPingSeconds = 1;
// A round that took longer was not the ranks' doing: this process itself was stopped.
constexpr double kLongRound = 2;

std::string text_of_alarm(int rank, const std::string& text, int exit_code, const Progress& at) {
  const bool is_input = exit_code == kExitInput;
  // Before the first step, all ranks look at the same input; what ranks tell each other names the rank already.
  const bool is_plain = (rank == 0 && is_input && at.step == 0) || text.starts_with("rank ");
  std::string line = is_plain ? text : fmt::format("rank {}: {}", rank, text);
  const bool says_step = at.step > 0 && text.find(fmt::format("step {}", at.step)) != std::string::npos;
  if (!says_step && (at.step > 0 || !is_input)) line += fmt::format(" ({})", switchyard::describe(at));
  return line;
}

}  // namespace

std::string during(const Progress& at) { return (at.step == 0 ? "" : "during ") + switchyard::describe(at); }

std::string describe(int rank, const RankName& name) {
  return fmt::format("rank {} (host {}, process {})", rank, name.host, name.process);
}

double Monitor::now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Monitor::Monitor(int ranks) : ranks_(static_cast<std::size_t>(ranks)), last_round_(now()) {}

void Monitor::add(int rank, Line line, RankName name, const ProgressCell* cell, bool closing_is_death) {
  Rank& each = of(rank);
  each.line = std::move(line);
  each.name = std::move(name);
  each.cell = cell;
  each.closing_is_death = closing_is_death;
  each.heard = each.marked = now();
}

void Monitor::watch(int milliseconds) {
  std::vector<const Line*> lines;
  for (const Rank& rank : ranks_) lines.push_back(&rank.line);
  wait_for_lines(lines, milliseconds);
  const double time = now();
  if (const double round = time - last_round_; round > kLongRound)
    for (Rank& rank : ranks_) {
      rank.heard += round;
      rank.marked += round;
    }
  last_round_ = time;
  for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
    Rank& rank = of(r);
    if (!rank.line.is_open()) continue;
    rank.line.send_more();
    std::vector<Word> words;
    const bool open = rank.line.receive(words);
    for (const Word& word : words) hear(r, word);
    if (open) continue;
    rank.line.close();
    if (rank.closing_is_death) died(r, "ended without a word");
  }
  look(time);
}

void Monitor::hear(int r, const Word& word) {
  Rank& rank = of(r);
  rank.heard = now();
  switch (word.say) {
    case Say::heartbeat:
      see(rank, progress_of(word));
      break;
    case Say::alarm:
      if (rank.cell) see(rank, rank.cell->read());
      rank.alarmed = true;
      if (alarms_.empty()) first_alarm_time_ = now();
      alarms_.push_back({r, word.text, static_cast<int>(word.number[0]), rank.seen.progress});
      break;
    case Say::note:
      note_ = word.text;
      break;
    case Say::patience:
      patience_ = static_cast<double>(word.number[0]) / 1000;
      break;
    case Say::goodbye:
      rank.seen.ended = true;
      rank.promised_exit_code = static_cast<int>(word.number[0]);
      break;
    case Say::spoken:
      end("", kExitRun);
      break;
    case Say::hello:
    case Say::welcome:
    case Say::over:
      break;
  }
}

void Monitor::see(Rank& rank, const Progress& progress) {
  if (progress.marks != rank.seen.progress.marks || progress.step != rank.seen.progress.step) {
    const double time = now();
    if (rank.seen.first_step_done) rank.seen.longest_gap = std::max(rank.seen.longest_gap, time - rank.marked);
    rank.marked = time;
  }
  if (rank.first_step == 0) rank.first_step = progress.step;
  rank.seen.first_step_done = rank.first_step != 0 && progress.step != rank.first_step;
  rank.seen.progress = progress;
}

void Monitor::look(double time) {
  for (Rank& rank : ranks_) {
    if (rank.cell) see(rank, rank.cell->read());
    rank.seen.silence = time - rank.heard;
    rank.seen.since_mark = time - rank.marked;
  }
  if (over_) return;
  // So that ranks know of the first, whose process may be this one, what they say when it is dead.
  if (time - last_ping_ >= kPingSeconds) {
    last_ping_ = time;
    for (Rank& rank : ranks_)
      if (!rank.line.has_unsent()) {
        rank.line.send(word_of(of(0).seen.progress));
        if (!note_.empty()) rank.line.send({Say::note, {}, note_});
      }
  }
  judge_alarms(time);
  if (!over_) judge_hangs();
}

void Monitor::judge_alarms(double time) {
  if (alarms_.empty()) return;
  const auto first = std::min_element(alarms_.begin(), alarms_.end(),
                                      [](const Alarm& a, const Alarm& b) { return a.rank < b.rank; });
  const bool is_input = first->exit_code == kExitInput;
  const double window = is_input && first->progress.step == 0 ? kStartAlarmWindow : kAlarmWindow;
  // Of a death that comes within the window the alarm may be the consequence, and then is not what is printed.
  if (time - first_alarm_time_ < window && !(first->rank == 0 && is_input)) return;
  end(text_of_alarm(first->rank, first->text, first->exit_code, first->progress), first->exit_code);
}

void Monitor::judge_hangs() {
  std::vector<RankSeen> seen_R;
  for (const Rank& rank : ranks_) seen_R.push_back(rank.seen);
  const auto culprit = find_culprit(seen_R, patience_);
  if (!culprit) return;
  const Rank& rank = of(culprit->rank);
  const std::string who = describe(culprit->rank, rank.name), where = during(rank.seen.progress);
  std::string line;
  switch (culprit->why) {
    case Culprit::Why::silent:
      line = rank.stopped ? fmt::format("{} is stopped, for {:.0f} s, {}", who, culprit->seconds, where)
                          : fmt::format(
                                "{} has not been heard of for {:.0f} s, last {}; the process is "
                                "stopped, or its machine is gone",
                                who, culprit->seconds, where);
      break;
    case Culprit::Why::stuck:
      line = fmt::format("{} has come no further for {:.0f} s, {}; if that is work, raise parallel.patience",
                         who, culprit->seconds, where);
      break;
    case Culprit::Why::in_vain:
      line = fmt::format("all ranks wait for each other, for {:.0f} s; the one behind is {}, {}",
                         culprit->seconds, who, where);
      break;
    case Culprit::Why::alike:
      line = fmt::format("all ranks wait for each other, for {:.0f} s, and none is behind the others, {}",
                         culprit->seconds, where);
      break;
  }
  end(with_note(line), kExitRun);
}

void Monitor::died(int r, const std::string& how) {
  Rank& rank = of(r);
  if (rank.cell) see(rank, rank.cell->read());
  const bool was_expected = rank.alarmed || (rank.seen.ended && rank.closing_is_death);
  rank.seen.ended = true;  // there is nobody left to wait for
  if (was_expected) return;
  // A rank that sends its marks has gone on since the last of them.
  end(with_note(fmt::format("{} {}{} {}", describe(r, rank.name), how, rank.cell ? "" : ", last heard of",
                            during(rank.seen.progress))),
      kExitRun);
}

std::string Monitor::with_note(const std::string& line) const {
  return note_.empty() ? line : line + "; " + note_;
}

void Monitor::end(const std::string& line, int exit_code) {
  if (over_) return;
  over_ = true;
  over_time_ = now();
  exit_code_ = exit_code;
  if (!line.empty()) {
    if (::isatty(STDERR_FILENO) != 0) std::fputs("\r\033[K", stderr);  // where a progress bar stands
    log_error(line);
  }
  for (Rank& rank : ranks_) rank.line.send({Say::over, {exit_code}, ""});
}

bool Monitor::all_gone() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const Rank& rank) { return rank.seen.ended || !rank.line.is_open(); });
}

}  // namespace switchyard::parallel
