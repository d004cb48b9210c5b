// Where ranks, each a process, meet: a memory file with a ring of bytes for each pair of them. Each message
// says before its bytes which call it belongs to, and whoever gets one of another call than its own ends the
// exchange for all ranks, with a message that names both.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace simt {

enum class CallKind : std::uint32_t {
  none,
  split,
  window,
  message,
  all_gather,
  all_to_all,
  all_reduce,
  reduce_scatter,
  reduce
};

// What all who take part in a call must say alike.
struct Call {
  char communicator[56] = "";
  CallKind kind = CallKind::none;
  std::int32_t type = 0;      // of elements
  std::int32_t root = 0;      // of a reduce
  std::int32_t replayed = 0;  // 1: it was recorded, and this is a replay
  std::uint64_t bytes = 0;    // of one rank's piece
  std::uint64_t number = 0;  // of the calls that the program made; of a message, among those from here to there
  std::uint64_t turn = 0;    // how many were done before this one
  // In windows of symmetric memory: which, from 1, and how far in; 0: in none. Of a rank's own piece, within
  // what it is a part of, where the whole lies.
  std::uint32_t from_window = 0, to_window = 0;
  std::uint64_t from_offset = 0, to_offset = 0;
  bool operator==(const Call&) const = default;
};

class Meeting {
 public:
  static constexpr int kMaxRanks = 16;

  static std::string make_id();  // below 128 characters
  // Waits until all ranks have come. Throws std::runtime_error, as all others do.
  Meeting(const std::string& id, int rank, int n_ranks, int device);

  int rank() const { return rank_; }
  int n_ranks() const { return n_ranks_; }
  int device_of(int rank) const;  // what it has come with

  // Bytes for and from other ranks or this one, all at once; those of one pair in this order on both sides. A
  // message that is no part of a call of all ranks is done when the other rank has taken all of it.
  struct Outgoing {
    int to;
    Call call;
    const std::byte* data;
    std::size_t bytes;
    bool begun = false;
    std::uint64_t end = 0;  // where in the ring
  };
  struct Incoming {
    int from;
    Call call;
    std::byte* data;
    std::size_t bytes;
    bool begun = false;
  };
  // Looks at check() now and then while it waits: it throws where waiting is to end.
  void exchange(std::vector<Outgoing> out, std::vector<Incoming> in, const std::function<void()>& check);

  // Ends the exchanges of all ranks with this message.
  [[noreturn]] void fail(const std::string& what);
  // Whether some rank has. From any thread.
  bool failed() const;

 private:
  struct Header;
  struct Bell;
  struct Ring;
  struct Layout;

  bool push(Outgoing& message);
  bool pop(Incoming& message);
  void meet_myself(std::vector<Outgoing>& out, std::vector<Incoming>& in);
  void wait(std::uint32_t seen);
  void throw_if_failed() const;
  [[noreturn]] void fail_to_agree(int other, const Call& theirs, const Call& mine);
  [[noreturn]] void fail_alone(const std::vector<Outgoing>& out, const std::vector<Incoming>& in);

  Layout* shared_ = nullptr;
  int rank_, n_ranks_;
};

}  // namespace simt
