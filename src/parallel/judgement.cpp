#include "parallel/judgement.h"

#include <algorithm>
#include <string_view>
#include <tuple>

namespace switchyard::parallel {

double patience_for(std::span<const RankSeen> seen_R, double patience) {
  double longest_gap = 0;
  bool all_have_done_a_step = true;
  for (const RankSeen& seen : seen_R) {
    longest_gap = std::max(longest_gap, seen.longest_gap);
    all_have_done_a_step = all_have_done_a_step && seen.first_step_done;
  }
  return std::max(all_have_done_a_step ? patience : 4 * patience, 5 * longest_gap);
}

double longest_silence(double patience) { return std::min(patience, kLongestSilence); }

std::optional<Culprit> find_culprit(std::span<const RankSeen> seen_R, double patience) {
  if (patience <= 0) return std::nullopt;
  const double limit = patience_for(seen_R, patience);
  // Who is farthest behind, of those of a kind.
  const RankSeen *silent = nullptr, *stuck = nullptr, *behind = nullptr;
  bool all_stand = true;
  const auto work_done = [](const RankSeen& seen) {
    // Whoever waits in a later exchange has done more, whatever else it has marked. Exchanges of hosts and of
    // devices are counted apart: where a host waits for another, it is that one's device that is waited for.
    const bool of_hosts = seen.progress.waiting && seen.progress.place != std::string_view(kExchangeOfDevices);
    return std::tuple(of_hosts, seen.progress.waiting ? seen.progress.index : -1, seen.progress.marks);
  };
  for (const RankSeen& seen : seen_R) {
    if (seen.ended) continue;
    if (seen.silence > longest_silence(patience) && (!silent || seen.silence > silent->silence)) silent = &seen;
    const bool stands = seen.since_mark > limit;
    all_stand = all_stand && stands;
    if (stands && !seen.progress.waiting && (!stuck || seen.progress.marks < stuck->progress.marks))
      stuck = &seen;
    if (stands && (!behind || work_done(seen) < work_done(*behind))) behind = &seen;
  }
  const auto culprit = [&](const RankSeen* seen, Culprit::Why why, double seconds) {
    return Culprit{static_cast<int>(seen - seen_R.data()), why, seconds};
  };
  if (silent) return culprit(silent, Culprit::Why::silent, silent->silence);
  if (stuck) return culprit(stuck, Culprit::Why::stuck, stuck->since_mark);
  if (!behind || !all_stand) return std::nullopt;
  // Exchanges are counted, and of hosts marks tell who has come to one too early. Of devices in one exchange,
  // or in none, nothing is known.
  const bool alike = std::all_of(seen_R.begin(), seen_R.end(), [&](const RankSeen& seen) {
    const Progress &one = seen.progress, &other = behind->progress;
    const bool on_device = one.index < 0 || one.place == std::string_view(kExchangeOfDevices);
    return seen.ended || (one.waiting && other.waiting && one.step == other.step && on_device &&
                          one.index == other.index && std::string_view(one.place) == other.place);
  });
  return culprit(behind, alike ? Culprit::Why::alike : Culprit::Why::in_vain, behind->since_mark);
}

}  // namespace switchyard::parallel
