// What a person sees of a run on standard output: one line a logged step and, on a terminal, a bar below the
// lines. Where it cannot be written, as after `| head`, a warning says so once, and the run goes on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace switchyard::train {

struct StepReport {
  std::int64_t step = 0;
  std::int64_t steps = 0;
  double loss = 0.0;               // nats a token
  std::optional<double> mtp_loss;  // of multi-token prediction, where it is trained
  std::optional<double> val_loss;
  std::optional<double> val_bits_per_byte;  // none where the size of the text is not known
  double lr = 0.0;
  double grad_norm = 0.0;  // before clipping
  double tokens_per_second = 0.0;
  std::optional<double> gini;          // of the experts' loads; none for a model without experts
  std::optional<double> seconds_left;  // none while it is not known
};

// "step  120/4000   3.0%  loss 2.3456  lr 1.00e-03  norm 0.83  12,345 tok/s  gini 0.123  left 3m 05s"
std::string format_step(const StepReport& report);
// "[=========>          ]  45%  120/4000  left 3m 05s", at most `columns` wide.
std::string format_bar(const StepReport& report, int columns);

class Console {
 public:
  Console();  // draws the bar if standard output is a terminal
  explicit Console(bool bar) : bar_(bar) {}
  ~Console() { clear_bar(); }
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // After each step: prints the step's line if `print_line`, and draws the bar anew.
  void step(const StepReport& report, bool print_line);
  // Any other line, above the bar.
  void line(const std::string& text);
  // Takes the bar away, before something else writes to the terminal.
  void clear_bar();

 private:
  void write(const std::string& text);

  bool bar_ = false;
  bool lost_ = false;  // standard output cannot be written any more
  bool drawn_ = false;
  std::string last_bar_;
};

}  // namespace switchyard::train
