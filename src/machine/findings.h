// What will fail or be slow on a machine, and what to do: judged from facts alone (facts.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "machine/facts.h"

namespace switchyard::machine {

// In the order of importance. impossible: no run ends well; fails: some runs, said which, will fail.
enum class Severity { impossible, fails, slow, note };
const char* name_of(Severity severity);

struct Finding {
  Severity severity = Severity::note;
  std::string id;    // "threads-above-quota": the same in all versions, for programs
  std::string what;  // one line, a clause without an end
  std::string remedy;
};
std::string sentence_of(const Finding& finding);  // "what; remedy"

// The most important ones first.
std::vector<Finding> findings_of(const MachineFacts& facts);

// Who computes on a machine in a run.
struct Team {
  int threads = 1;      // of each rank
  int ranks = 1;        // of this machine
  int cores = 0;        // that they may use together
  bool forked = false;  // the ranks are copies of one process (--nproc), whose threads OpenMP has bound
};
// What of this holds for a run that begins, too: it warns of the first.
std::vector<Finding> thread_findings(const CoreFacts& cores, const Team& team);
// Of `ranks` that a launcher has bound to `used` cores together, where the machine would give `all`.
std::optional<Finding> binding_finding(int ranks, int used, int all);

}  // namespace switchyard::machine
