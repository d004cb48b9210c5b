// The commands of the program, one file each: its options, its help and what it does. None of inspect, export
// and tokenize needs a trainer (src/CMakeLists.txt: they are a library that links none).
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace switchyard::commands {

struct Command {
  const char* name;
  const char* help;  // one line
  // Declares the options on `app`. Call what it returns once the command line has been read: it returns the
  // exit code and throws InputError or RunError.
  std::function<int()> (*describe)(CLI::App& app);
};

extern const Command kTrain, kEval, kCompareRouting, kPlan, kInspect, kExport, kDump, kGenerate, kBench, kSweep,
    kTokenize, kDoctor;

}  // namespace switchyard::commands
