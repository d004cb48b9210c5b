#include <execinfo.h>
#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "commands/commands.h"
#include "config/fields.h"
#include "config/spelling.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/threads.h"
#include "parallel/launch.h"
#include "router/router.h"

namespace {

using namespace switchyard::commands;

constexpr int kExitRun = 1;    // the run itself failed
constexpr int kExitInput = 2;  // usage, configuration, data

// In the order of the help.
constexpr const Command* kCommands[] = {&kTrain, &kEval,     &kCompareRouting, &kPlan,  &kInspect,  &kExport,
                                        &kDump,  &kGenerate, &kBench,          &kSweep, &kTokenize, &kDoctor};

int show_help(const CLI::App& app) {
  std::fputs(app.help().c_str(), stdout);
  return std::fflush(stdout) == 0 ? 0 : kExitInput;
}

int help_config(const std::string& name) {
  try {
    std::fputs(switchyard::config::help_on(name, switchyard::router::router_schemas()).c_str(), stdout);
    return std::fflush(stdout) == 0 ? 0 : kExitInput;
  } catch (const switchyard::InputError& error) {
    switchyard::log_error(error.what());
    return kExitInput;
  }
}

constexpr const char* kConfigTopic = "config";  // that `help` explains beside the commands

std::string no_command(const CLI::App& app, const std::string& word, bool asks_for_help) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  std::vector<std::string_view> known(names.begin(), names.end());
  if (asks_for_help) known.emplace_back(kConfigTopic);
  const std::string_view near = switchyard::config::nearest(word, known);
  return "'" + word + "' is no command" + (near.empty() ? "" : "; did you mean '" + std::string(near) + "'?") +
         (near.empty() ? "; the commands are " : " The commands are ") + CLI::detail::join(names, ", ") +
         ", and 'switchyard help' explains them";
}

// Takes no memory. Of a rank the one line of error is that of whoever watches it.
void say_out_of_memory() {
  char text[160];
  constexpr const char* kAdvice = "free some, or take a smaller model, train.micro_batch_size or train.seq_len";
  const int size =
      switchyard::parallel::is_watched()
          ? std::snprintf(text, sizeof text, "process %d: out of memory; %s\n", ::getpid(), kAdvice)
          : std::snprintf(text, sizeof text, "error: out of memory; %s\n", kAdvice);
  std::fflush(stdout);
  if (::write(STDERR_FILENO, text, static_cast<std::size_t>(size)) < 0) return;  // there is nobody to tell
}

// A page of mapped memory that is not to be had: of a file that somebody has made shorter meanwhile, or of
// memory that ranks share where the system has none left. Takes no memory.
void end_for_lost_page(int signal, siginfo_t* info, void*) {
  char path[1024], text[1400], who[32] = "error:";
  if (info->si_code <= 0 || !switchyard::find_mapped_file(info->si_addr, path, sizeof path)) {
    std::signal(signal, SIG_DFL);  // sent by somebody, or a fault of another kind
    std::raise(signal);
    return;
  }
  if (switchyard::parallel::is_watched()) std::snprintf(who, sizeof who, "process %d:", ::getpid());
  const std::string_view name = path;
  // In /dev/shm users keep data, too; what MPI and NCCL keep there has other names.
  const bool is_own = name.ends_with(".bin") || name.ends_with(".safetensors");
  const bool is_shared = name.starts_with("/memfd:") || name.starts_with("/dev/zero") ||
                         (name.starts_with("/dev/shm/") && !is_own);
  const int size =
      std::snprintf(text, sizeof text, "%s %s: %s\n", who, path,
                    is_shared ? "there is no memory left to share between processes; free some, or take a "
                                "smaller model or fewer ranks"
                              : "was made shorter, or could not be read, while the program read it; leave a "
                                "run's files as they are until it ends");
  if (::write(STDERR_FILENO, text, static_cast<std::size_t>(size)) < 0) ::_exit(kExitRun);
  ::_exit(kExitRun);
}

// Whether this thread has been refused memory before.
thread_local bool lacked_memory = false;

void throw_lack_of_memory() {
  lacked_memory = true;
  throw std::bad_alloc();
}

// Of an exception that nobody can catch, as one within a parallel loop: the line that it would have been. One
// that comes out of a function that throws nothing, as of the standard library's where it goes through a
// directory, is not to be had here: then what is known is whether memory was missing.
[[noreturn]] void end_in_one_line() {
  try {
    if (const std::exception_ptr error = std::current_exception()) std::rethrow_exception(error);
    if (lacked_memory) throw std::bad_alloc();
    switchyard::log_error("internal error: the program was ended by its runtime; please report it");
  } catch (const std::bad_alloc&) {
    say_out_of_memory();
    ::_exit(kExitRun);
  } catch (const std::exception& error) {
    try {
      switchyard::log_error(error.what());
    } catch (const std::bad_alloc&) {  // which the runtime would take for a reason to abort without a word
      say_out_of_memory();
    }
    ::_exit(kExitRun);
  } catch (...) {
  }
  std::abort();
}

int run_program(int argc, char** argv) {
#ifdef __GLIBC__
  // oneDNN allocates and frees buffers in each product. Up to 8 MiB they stay in the heap, which is never cut:
  // asking the system for each was a sixth of a small model's step. Larger ones go back when they are freed; by
  // default malloc keeps those from the second time on, where they do not fit each other's gaps, and memory
  // grew.
  mallopt(M_MMAP_THRESHOLD, 8 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
  // A file size limit is then a failed write, which is reported like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  struct sigaction lost_page {};
  lost_page.sa_sigaction = end_for_lost_page;
  lost_page.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &lost_page, nullptr);
  CLI::App app(
      "switchyard trains mixture-of-experts language models from scratch and shows where their tokens went.",
      "switchyard");
  app.set_version_flag("--version", SWITCHYARD_VERSION);
  app.require_subcommand(1);
  app.footer(
      "'switchyard help COMMAND' explains a command, 'switchyard help config [SECTION or KEY]' the keys of a "
      "configuration. Exit codes: 0 done, 1 the run failed, 2 input that "
      "cannot be used.");

  std::function<int()> run;
  for (const Command* command : kCommands) {
    CLI::App& sub = *app.add_subcommand(command->name, command->help);
    sub.callback([&run, of_command = command->describe(sub)] { run = of_command; });
  }

  // 'switchyard' alone and 'switchyard help' explain everything, 'switchyard help train' one command.
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || (words[0] == "help" && words.size() == 1)) return show_help(app);
  const bool help = words[0] == "help";
  const std::string& name = words[help ? 1 : 0];
  if (help && name == kConfigTopic) return help_config(words.size() > 2 ? words[2] : "");
  const auto commands = app.get_subcommands([&](const CLI::App* each) { return each->get_name() == name; });
  CLI::App* const named = commands.empty() ? nullptr : commands.front();
  if (named == nullptr && !name.starts_with("-")) {
    switchyard::log_error(no_command(app, name, help));
    return kExitInput;
  }
  if (help) return show_help(named != nullptr ? *named : app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    switchyard::log_error(std::string(error.what()) + "; 'switchyard help" +
                          (named != nullptr ? " " + name : "") + "' shows the usage");
    return kExitInput;
  }
  return run();
}

}  // namespace

int main(int argc, char** argv) {
  std::set_terminate(end_in_one_line);
  std::set_new_handler(throw_lack_of_memory);
#ifdef __GLIBC__
  // The C library loads what unwinds a stack when it is first asked to, and aborts where memory for that is
  // missing: before memory is.
  void* frame = nullptr;
  static_cast<void>(::backtrace(&frame, 1));
#endif
  switchyard::limit_openmp_spinning(argv);
  try {
    return run_program(argc, argv);
  } catch (const switchyard::InputError& error) {
    switchyard::log_error(error.what());
    return kExitInput;
  } catch (const std::bad_alloc&) {
    say_out_of_memory();
    return kExitRun;
  } catch (const std::exception& error) {
    switchyard::log_error(error.what());
    return kExitRun;
  }
}
