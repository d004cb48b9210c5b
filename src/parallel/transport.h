// How bytes get from one rank's memory to another's: the one thing that differs between ranks on one machine
// (shared_memory.h), under mpirun (mpi.h) and in a process alone. What ranks do with each other is group.h's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>

namespace switchyard::parallel {

// What bytes are sent for: counted apart, since each has a formula of its own (docs/parallel.md); control, the
// texts and flags of group.h, has none.
enum class Traffic : std::uint8_t { gradients, weights, tokens, sums, checkpoint, control };
constexpr std::size_t kTrafficKinds = 6;
const char* name_of(Traffic kind);  // "gradients", ...

struct Outgoing {
  int to = 0;
  std::span<const std::byte> bytes;
};
struct Incoming {
  int from = 0;
  std::span<std::byte> bytes;
};

// The run is over because of another rank, which has said why or is spoken for (watch.h): nothing is left to
// say.
class RunIsOver : public std::runtime_error {
 public:
  RunIsOver() : std::runtime_error("the run was ended by another rank") {}
};

// What a rank has sent and how long it has waited.
struct TransportCounts {
  std::array<std::int64_t, kTrafficKinds> sent_bytes{};  // to other ranks
  double wait_seconds = 0;                               // with nothing to copy, until others came
};

class Transport {
 public:
  virtual ~Transport() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }

  // Sends and receives all of these, all at once; returns when what goes out may be overwritten and what comes
  // in is there. Between two ranks messages arrive in the order in which they were sent, of one call or of
  // several. Both sides name the same bytes and kind of traffic: else std::logic_error, which names both.
  // Messages of no bytes are not sent, and none is to the rank itself. Marks the progress (core/progress.h) as
  // waiting in "exchange", with the number of the call, and at the end as what it was. Throws RunIsOver.
  void move(std::span<const Outgoing> out, std::span<const Incoming> in, Traffic kind);

  const TransportCounts& counts() const { return counts_; }
  // What has gone another way, from device to device.
  void count_sent(Traffic kind, std::int64_t bytes) {
    counts_.sent_bytes[static_cast<std::size_t>(kind)] += bytes;
  }
  void forget_counts() { counts_ = {}; }  // of what is not the run's

 protected:
  Transport(int rank, int size) : rank_(rank), size_(size) {}
  virtual void do_move(std::span<const Outgoing> out, std::span<const Incoming> in, Traffic kind) = 0;
  TransportCounts counts_;

  // What one side says of a message; `number`: how many of this pair of ranks came before it.
  struct Message {
    std::uint64_t bytes, number, kind;
  };
  // Throws where `taken` from another rank is not what that rank has `sent`.
  void check_agreement(int from, const Message& taken, const Message& sent) const;

 private:
  int rank_, size_;
  std::int64_t moves_ = 0;
};

// Of the only rank: it has nobody to send to.
std::unique_ptr<Transport> make_lone_transport();

}  // namespace switchyard::parallel
