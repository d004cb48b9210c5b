// The two ways in which switchyard stops, and the check for broken invariants.
//
//   InputError   what the user gave cannot be used: configuration, data, checkpoint, output place. Exit code 2.
//   RunError     the run itself failed: a loss that is not finite, a device fault.               Exit code 1.
//   SY_CHECK     a promise between two functions of this program is broken: std::logic_error.    Exit code 1.
//
// A message is one line: what, where (JSON path, file and offset), what to do. Names of files, keys and other
// texts of the user's may stand in it as they are: what would break the line is escaped.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace switchyard {

// The text with control characters as JSON writes them: \n, \t, \u001b.
std::string one_line(std::string text);

class InputError : public std::runtime_error {
 public:
  explicit InputError(std::string message) : std::runtime_error(one_line(std::move(message))) {}
};

class RunError : public std::runtime_error {
 public:
  explicit RunError(std::string message) : std::runtime_error(one_line(std::move(message))) {}
};

template <class... Args>
[[noreturn]] void throw_input(fmt::format_string<Args...> format, Args&&... args) {
  throw InputError(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void throw_run(fmt::format_string<Args...> format, Args&&... args) {
  throw RunError(fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void throw_broken_invariant(const char* expression, const char* file, int line,
                                         const std::string& why);

}  // namespace switchyard

// Checks an invariant; the arguments after the condition are a format string and its values.
#define SY_CHECK(condition, ...)                                                                         \
  do {                                                                                                   \
    if (!(condition))                                                                                    \
      ::switchyard::throw_broken_invariant(#condition, __FILE__, __LINE__, fmt::format("" __VA_ARGS__)); \
  } while (0)
