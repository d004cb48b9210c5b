#include "parallel/control_line.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

namespace switchyard::parallel {

namespace {

// Before the text of each word.
struct Header {
  std::uint32_t text_bytes;
  std::uint32_t say;
  std::array<std::int64_t, 4> number;
};
constexpr std::size_t kMostText = 1 << 16;  // longer ones are cut

// The same text for ever: places are few.
const char* kept(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string>* const texts = new std::set<std::string>;  // also used while the program ends
  const std::lock_guard lock(mutex);
  return texts->insert(text).first->c_str();
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Word word_of(const Progress& progress) {
  return {Say::heartbeat,
          {progress.marks, progress.step, progress.index, progress.waiting ? 1 : 0},
          progress.place};
}

Progress progress_of(const Word& word) {
  return {.marks = word.number[0],
          .step = word.number[1],
          .place = kept(word.text),
          .index = word.number[2],
          .waiting = word.number[3] != 0};
}

Line::Line(int descriptor) : descriptor_(descriptor) {
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
}

Line::Line(Line&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      unsent_(std::move(other.unsent_)),
      received_(std::move(other.received_)) {}

Line& Line::operator=(Line&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(unsent_, other.unsent_);
  std::swap(received_, other.received_);
  return *this;
}

void Line::close() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
  unsent_.clear();
}

void Line::send(const Word& word) {
  if (!is_open()) return;
  const std::string text = word.text.substr(0, kMostText);
  const Header header{static_cast<std::uint32_t>(text.size()), static_cast<std::uint32_t>(word.say),
                      word.number};
  unsent_.append(reinterpret_cast<const char*>(&header), sizeof(header));
  unsent_ += text;
  send_more();
}

void Line::send_more() {
  while (is_open() && !unsent_.empty()) {
    const ssize_t sent = ::send(descriptor_, unsent_.data(), unsent_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      unsent_.erase(0, static_cast<std::size_t>(sent));
    } else if (errno != EINTR) {
      if (errno != EAGAIN && errno != EWOULDBLOCK) unsent_.clear();  // nobody hears it; receive() says so
      return;
    }
  }
}

bool Line::flush(double seconds) {
  const double end = seconds_now() + seconds;
  for (send_more(); has_unsent(); send_more()) {
    const double left = end - seconds_now();
    if (left <= 0) return false;
    wait_for_lines({this}, static_cast<int>(left * 1000) + 1);
  }
  return true;
}

bool Line::take_in() {
  while (is_open()) {
    char bytes[4096];
    const ssize_t got = ::recv(descriptor_, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (got > 0)
      received_.append(bytes, static_cast<std::size_t>(got));
    else if (got == 0 || (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK))
      return false;
    else if (errno != EINTR)
      return true;
  }
  return false;
}

bool Line::next(Word& word) {
  Header header;
  if (received_.size() < sizeof(header)) return false;
  std::memcpy(&header, received_.data(), sizeof(header));
  if (header.text_bytes > kMostText) {  // not one of us
    received_.clear();
    return false;
  }
  if (received_.size() < sizeof(header) + header.text_bytes) return false;
  word = {static_cast<Say>(header.say), header.number, received_.substr(sizeof(header), header.text_bytes)};
  received_.erase(0, sizeof(header) + header.text_bytes);
  return true;
}

bool Line::receive(std::vector<Word>& words) {
  const bool open = take_in();
  for (Word word; next(word);) words.push_back(word);
  return open;
}

bool Line::receive_one(Word& word, double seconds) {
  const double end = seconds_now() + seconds;
  while (!next(word)) {
    const double left = end - seconds_now();
    if (left <= 0) return false;
    wait_for_lines({this}, static_cast<int>(left * 1000) + 1);
    if (!take_in()) return next(word);
  }
  return true;
}

void wait_for_lines(const std::vector<const Line*>& lines, int milliseconds) {
  std::vector<pollfd> polled;
  for (const Line* line : lines)
    if (line->is_open())
      polled.push_back(
          {line->descriptor(), static_cast<short>(line->has_unsent() ? POLLIN | POLLOUT : POLLIN), 0});
  ::poll(polled.data(), polled.size(), milliseconds);
}

void wait_to_read(int descriptor, int milliseconds) {
  pollfd polled{descriptor, POLLIN, 0};
  ::poll(&polled, 1, milliseconds);
}

}  // namespace switchyard::parallel
