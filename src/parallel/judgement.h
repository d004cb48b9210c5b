// Which rank a run hangs on, from what is known of each.
#pragma once

#include <optional>
#include <span>

#include "core/progress.h"

namespace switchyard::parallel {

// Seconds, until the configuration says another number; four times that, since no step has been done.
constexpr double kStartPatience = 12;
constexpr double kLongestSilence = 15;

// What a monitor knows of a rank; seconds by its own clock.
struct RankSeen {
  Progress progress;
  double silence = 0;      // since it was heard of
  double since_mark = 0;   // since a mark that it had not set before
  double longest_gap = 0;  // between two marks, of those after its first step
  bool first_step_done = false;
  bool ended = false;  // it has said goodbye
};

// Seconds without a new mark after which a rank counts as hung: `patience`; four times as long until all have
// done a step, since files and memory are prepared then; at least five times the longest gap that was work.
double patience_for(std::span<const RankSeen> seen_R, double patience);
// After which a rank that does not send heartbeats counts as stopped.
double longest_silence(double patience);

struct Culprit {
  int rank = 0;
  // silent: no heartbeat. stuck: at work, but no new mark. in_vain: all ranks wait, and this one is behind.
  // alike: all wait for their devices in the same place, and which is at fault is not known.
  enum class Why { silent, stuck, in_vain, alike } why = Why::stuck;
  double seconds = 0;
};
// None where the run does not hang. A rank that waits is never stuck while another sets marks: that one works.
// patience 0: never.
std::optional<Culprit> find_culprit(std::span<const RankSeen> seen_R, double patience);

}  // namespace switchyard::parallel
