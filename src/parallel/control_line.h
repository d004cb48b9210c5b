// The control line: beside what ranks compute, each has one connection to the monitor (monitor.h) and says in
// short words how far it is. Whole words arrive in the order in which they were said.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/progress.h"

namespace switchyard::parallel {

enum class Say : std::uint8_t {
  // A rank to the monitor.
  hello,      // number 0: its rank, 1: its process; text: the run's token, a space, its host
  heartbeat,  // the progress
  alarm,      // number 0: the exit code; text: what went wrong
  note,       // text: where a run that ends here goes on from
  patience,   // number 0: milliseconds
  goodbye,    // number 0: the exit code
  spoken,     // the monitor's process was taken for dead, and the line about it is printed
  // The monitor to a rank.
  welcome,  // number 0: the monitor's process; text: the run's token, a space, its host
  over,     // number 0: the exit code
};

struct Word {
  Say say = Say::heartbeat;
  std::array<std::int64_t, 4> number{};
  std::string text;
};
Word word_of(const Progress& progress);  // a heartbeat
Progress progress_of(const Word& word);

// One end of a connected stream socket. Nothing below waits but flush().
class Line {
 public:
  Line() = default;
  explicit Line(int descriptor);  // which it closes in the end
  ~Line() { close(); }
  Line(Line&& other) noexcept;
  Line& operator=(Line&& other) noexcept;

  bool is_open() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  void close();

  // What does not go out at once goes with a later call.
  void send(const Word& word);
  void send_more();
  bool has_unsent() const { return !unsent_.empty(); }
  // Until all has gone out; false where it has not after so many seconds.
  bool flush(double seconds);
  // Adds what has arrived; false: the other side has closed, and there will be no more.
  bool receive(std::vector<Word>& words);
  // The next word alone; false: none within so many seconds, or the other side has closed.
  bool receive_one(Word& word, double seconds);

 private:
  bool take_in();         // what has arrived; false: the other side has closed
  bool next(Word& word);  // the first that is whole, of what was taken in

  int descriptor_ = -1;
  std::string unsent_, received_;
};

// Waits until one of these has something to read or to send, or so many milliseconds; from any end.
void wait_for_lines(const std::vector<const Line*>& lines, int milliseconds);
void wait_to_read(int descriptor, int milliseconds);

}  // namespace switchyard::parallel
