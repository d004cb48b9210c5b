#include "train/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <system_error>

#include "core/log.h"

namespace switchyard::train {

namespace {

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

double fraction_done(const StepReport& report) {
  if (report.steps <= 0) return 1.0;
  return std::clamp(static_cast<double>(report.step) / static_cast<double>(report.steps), 0.0, 1.0);
}

}  // namespace

std::string format_step(const StepReport& report) {
  const std::string steps = std::to_string(report.steps);
  std::string line = fmt::format("step {:>{}}/{}  {:5.1f}%  loss {:.4f}", report.step, steps.size(), steps,
                                 100.0 * fraction_done(report), report.loss);
  if (report.mtp_loss) line += fmt::format("  mtp {:.4f}", *report.mtp_loss);
  if (report.val_loss) line += fmt::format("  val {:.4f}", *report.val_loss);
  if (report.val_bits_per_byte) line += fmt::format("  {:.2f} bits/byte", *report.val_bits_per_byte);
  line += fmt::format("  lr {:.2e}  norm {:.2f}  {} tok/s", report.lr, report.grad_norm,
                      format_count(report.tokens_per_second));
  if (report.gini) line += fmt::format("  gini {:.3f}", *report.gini);
  if (report.seconds_left) line += fmt::format("  left {}", format_duration(*report.seconds_left));
  return line;
}

std::string format_bar(const StepReport& report, int columns) {
  std::string tail =
      fmt::format(" {:3.0f}%  {}/{}", std::floor(100.0 * fraction_done(report)), report.step, report.steps);
  if (report.seconds_left) tail += fmt::format("  left {}", format_duration(*report.seconds_left));
  const auto room = static_cast<std::size_t>(std::max(0, columns));
  constexpr std::size_t kNarrowest = 5, kWidest = 50;  // characters inside the brackets
  if (room < tail.size() + 2 + kNarrowest) return tail.substr(0, room);
  const std::size_t inside = std::min(kWidest, room - tail.size() - 2);
  const auto done = static_cast<std::size_t>(fraction_done(report) * static_cast<double>(inside));
  std::string bar(done, '=');
  if (done < inside) bar += '>';
  bar.resize(inside, ' ');
  return "[" + bar + "]" + tail;
}

Console::Console() : bar_(::isatty(STDOUT_FILENO) == 1) {}

// A reader that has gone is no signal here: train ignores SIGPIPE.
void Console::write(const std::string& text) {
  if (lost_) return;
  if (std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0) return;
  lost_ = true;
  log_warning(
      fmt::format("standard output cannot be written: {}; the run goes on without it, and metrics.jsonl has "
                  "every step",
                  std::generic_category().message(errno)));
}

void Console::clear_bar() {
  if (!drawn_) return;
  write("\r\033[K");  // to the line's start, and erase it
  drawn_ = false;
}

void Console::line(const std::string& text) {
  clear_bar();
  drawn_ = bar_ && !last_bar_.empty();
  write(text + "\n" + (drawn_ ? last_bar_ : ""));
}

void Console::step(const StepReport& report, bool print_line) {
  if (bar_) {
    // One column stays free: a full line would wrap, and a wrapped one cannot be erased.
    last_bar_ = format_bar(report, terminal_columns() - 1);
    if (!print_line) {
      write("\r\033[K" + last_bar_);
      drawn_ = true;
    }
  }
  if (print_line) line(format_step(report));
}

}  // namespace switchyard::train
