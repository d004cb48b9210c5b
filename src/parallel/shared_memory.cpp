#include "parallel/shared_memory.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"
#include "parallel/run_end.h"

namespace switchyard::parallel {

namespace {

constexpr std::size_t kLine = 64, kPage = 4096;
constexpr std::uint32_t kMagic = 0x53594d31;
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr long kNapNanoseconds = 100'000'000;  // then a waiting rank looks whether the run is over

constexpr std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// The words are shared between processes, so not private futexes.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen) {
  const timespec nap{0, kNapNanoseconds};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &nap, nullptr, 0);
}
void futex_wake(std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}
static_assert(sizeof(std::atomic<std::uint32_t>) == 4 && std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct SharedMemory::Header {
  std::uint32_t magic;
  std::int32_t ranks;
  std::uint64_t ring_bytes;
  std::atomic<std::uint32_t> over;
};

// Who has put something into a ring of this rank, or taken something out, rings.
struct alignas(kLine) SharedMemory::Bell {
  std::atomic<std::uint32_t> count;
  std::atomic<std::uint32_t> asleep;  // 1: the rank may wait in the kernel

  void ring() {
    // In this order, as wait() does it in the other: either the sleeper is seen here, or the kernel sees the
    // count there.
    count.fetch_add(1);
    if (asleep.load() != 0) futex_wake(count);
  }
  void wait(std::uint32_t seen) {
    asleep.store(1);
    futex_wait(count, seen);
    asleep.store(0);
  }
};

// Bytes that were ever put in and taken out; the difference is what lies in the ring.
struct SharedMemory::Ring {
  alignas(kLine) std::atomic<std::uint64_t> put;    // of the sender
  alignas(kLine) std::atomic<std::uint64_t> taken;  // of the receiver
};

std::size_t SharedMemory::ring_bytes_for(int ranks) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const auto others = static_cast<std::size_t>(std::max(1, ranks - 1));
  return std::clamp(8 * kMiB / others / kPage * kPage, kPage, kMiB);
}

SharedMemory::SharedMemory(int ranks, std::size_t ring_bytes) {
  SY_CHECK(ranks >= 1 && ring_bytes >= 2 * kLine && ring_bytes % kLine == 0, "{} ranks with rings of {} bytes",
           ranks, ring_bytes);
  const auto n = static_cast<std::size_t>(ranks);
  const std::size_t words = kPage + n * sizeof(Bell) + n * n * sizeof(Ring);
  const std::size_t bytes = round_up(words, kPage) + n * n * round_up(ring_bytes, kPage);
  descriptor_ = memfd_create("switchyard ranks", MFD_CLOEXEC);
  if (descriptor_ < 0 || ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0)
    throw_run("no memory that {} ranks can share, {} bytes: {}", ranks, bytes, std::strerror(errno));
  map(bytes);
  header().magic = kMagic;
  header().ranks = ranks;
  header().ring_bytes = ring_bytes;
}

SharedMemory SharedMemory::open(int descriptor) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0)
    throw_run("descriptor {} holds no memory that ranks share: {}", descriptor, std::strerror(errno));
  SharedMemory memory;
  memory.descriptor_ = descriptor;
  memory.map(static_cast<std::size_t>(status.st_size));
  SY_CHECK(memory.bytes_ >= kPage && memory.header().magic == kMagic,
           "descriptor {} holds something else than the memory of ranks", descriptor);
  return memory;
}

void SharedMemory::map(std::size_t bytes) {
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
  if (base == MAP_FAILED) throw_run("cannot map {} bytes that ranks share: {}", bytes, std::strerror(errno));
  base_ = static_cast<std::byte*>(base);
  bytes_ = bytes;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory::~SharedMemory() {
  if (base_) munmap(base_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

int SharedMemory::ranks() const { return header().ranks; }

SharedMemory::Bell& SharedMemory::bell(int rank) const { return reinterpret_cast<Bell*>(base_ + kPage)[rank]; }

SharedMemory::Ring& SharedMemory::ring(int from, int to) const {
  std::byte* const rings = base_ + kPage + static_cast<std::size_t>(ranks()) * sizeof(Bell);
  return reinterpret_cast<Ring*>(rings)[from * ranks() + to];
}

std::byte* SharedMemory::ring_data(int from, int to) const {
  const auto n = static_cast<std::size_t>(ranks());
  const std::size_t words = round_up(kPage + n * sizeof(Bell) + n * n * sizeof(Ring), kPage);
  const auto index = static_cast<std::size_t>(from) * n + static_cast<std::size_t>(to);
  return base_ + words + index * round_up(header().ring_bytes, kPage);
}

void SharedMemory::end_run() {
  header().over.store(1);
  for (int rank = 0; rank < ranks(); ++rank) bell(rank).ring();
}

bool SharedMemory::run_ended() const { return header().over.load() != 0; }

class SharedMemoryTransport final : public Transport {
 public:
  SharedMemoryTransport(SharedMemory& memory, int rank)
      : Transport(rank, memory.ranks()),
        memory_(memory),
        ring_bytes_(memory.header().ring_bytes),
        // A quarter of a ring at once: while one side copies that, the other has something to copy too.
        chunk_(std::max(ring_bytes_ / 4 / kLine * kLine, kLine)),
        sent_(static_cast<std::size_t>(memory.ranks())),
        received_(static_cast<std::size_t>(memory.ranks())) {}

 protected:
  void do_move(std::span<const Outgoing> out, std::span<const Incoming> in, Traffic kind) override {
    std::vector<Flow<const std::byte>> send;
    std::vector<Flow<std::byte>> receive;
    for (const Outgoing& message : out) send.push_back({message.to, message.bytes, false});
    for (const Incoming& message : in) receive.push_back({message.from, message.bytes, false});
    std::vector<char> blocked;  // peers for which an earlier message is not yet through
    while (!send.empty() || !receive.empty()) {
      const std::uint32_t seen = memory_.bell(rank()).count.load();
      bool copied = false;
      blocked.assign(static_cast<std::size_t>(size()), 0);
      for (auto& flow : send) copied |= advance(flow, blocked, [&] { return push(flow, kind); });
      blocked.assign(static_cast<std::size_t>(size()), 0);
      for (auto& flow : receive) copied |= advance(flow, blocked, [&] { return pop(flow, kind); });
      std::erase_if(send, [](const auto& flow) { return flow.done(); });
      std::erase_if(receive, [](const auto& flow) { return flow.done(); });
      if (!copied) wait(seen);
    }
  }

 private:
  // Before the bytes of each message lies what the sender says of it. That takes a line, and a message whole
  // lines, so that no header wraps around and what is copied is aligned as in the sender's memory.
  static_assert(sizeof(Message) <= kLine);

  // A message on its way: the peer, what is not yet copied, and whether its header is through.
  template <class Byte>
  struct Flow {
    int peer;
    std::span<Byte> rest;
    bool begun;
    bool done() const { return begun && rest.empty(); }
  };

  template <class Byte, class Step>
  static bool advance(const Flow<Byte>& flow, std::vector<char>& blocked, Step&& step) {
    char& is_blocked = blocked[static_cast<std::size_t>(flow.peer)];
    if (is_blocked != 0) return false;
    const bool copied = step();
    is_blocked = static_cast<char>(!flow.done());
    return copied;
  }

  // Puts what fits into the ring, at most a chunk; true if anything did.
  bool push(Flow<const std::byte>& flow, Traffic kind) {
    SharedMemory::Ring& ring = memory_.ring(rank(), flow.peer);
    std::byte* const data = memory_.ring_data(rank(), flow.peer);
    std::uint64_t put = ring.put.load(std::memory_order_relaxed);
    const std::uint64_t before = put;
    std::size_t room = ring_bytes_ - (put - ring.taken.load(std::memory_order_acquire));
    if (!flow.begun && room >= kLine) {
      const Message header{flow.rest.size(), sent_[static_cast<std::size_t>(flow.peer)]++,
                           static_cast<std::uint64_t>(kind)};
      std::memcpy(data + put % ring_bytes_, &header, sizeof(header));
      put += kLine;
      room -= kLine;
      flow.begun = true;
    }
    if (flow.begun) {
      std::size_t count = std::min({flow.rest.size(), room, chunk_});
      while (count > 0) {
        const std::size_t at = put % ring_bytes_, piece = std::min(count, ring_bytes_ - at);
        std::memcpy(data + at, flow.rest.data(), piece);
        flow.rest = flow.rest.subspan(piece);
        count -= piece;
        put += round_up(piece, kLine);  // whole lines but at the message's end
      }
    }
    if (put == before) return false;
    ring.put.store(put, std::memory_order_release);
    memory_.bell(flow.peer).ring();
    return true;
  }

  // Takes what is there out of the ring, at most a chunk; true if there was anything.
  bool pop(Flow<std::byte>& flow, Traffic kind) {
    SharedMemory::Ring& ring = memory_.ring(flow.peer, rank());
    const std::byte* const data = memory_.ring_data(flow.peer, rank());
    std::uint64_t taken = ring.taken.load(std::memory_order_relaxed);
    const std::uint64_t before = taken;
    std::size_t there = ring.put.load(std::memory_order_acquire) - taken;
    if (!flow.begun && there >= kLine) {
      Message sent;
      std::memcpy(&sent, data + taken % ring_bytes_, sizeof(sent));
      check_agreement(flow.peer,
                      {flow.rest.size(), received_[static_cast<std::size_t>(flow.peer)]++,
                       static_cast<std::uint64_t>(kind)},
                      sent);
      taken += kLine;
      there -= kLine;
      flow.begun = true;
    }
    if (flow.begun) {
      std::size_t count = std::min({flow.rest.size(), there, chunk_});
      while (count > 0) {
        const std::size_t at = taken % ring_bytes_, piece = std::min(count, ring_bytes_ - at);
        std::memcpy(flow.rest.data(), data + at, piece);
        flow.rest = flow.rest.subspan(piece);
        count -= piece;
        taken += round_up(piece, kLine);
      }
    }
    if (taken == before) return false;
    ring.taken.store(taken, std::memory_order_release);
    memory_.bell(flow.peer).ring();
    return true;
  }

  // Until the bell has rung since it was `seen`: spins shortly, since the others are mostly at work on the same
  // call, then sleeps, since ranks that spin take the cores from those that compute.
  void wait(std::uint32_t seen) {
    SharedMemory::Bell& bell = memory_.bell(rank());
    const auto start = std::chrono::steady_clock::now();
    while (bell.count.load() == seen) {
      if (std::chrono::steady_clock::now() - start < kSpin) {
        pause_briefly();
        continue;
      }
      if (memory_.run_ended()) break;
      look_while_waiting();
      bell.wait(seen);
    }
    counts_.wait_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (memory_.run_ended() || run_is_over()) throw RunIsOver();
  }

  SharedMemory& memory_;
  std::size_t ring_bytes_, chunk_;
  std::vector<std::uint64_t> sent_, received_;  // messages to and from each rank
};

std::unique_ptr<Transport> make_shared_memory_transport(SharedMemory& memory, int rank) {
  SY_CHECK(rank >= 0 && rank < memory.ranks(), "rank {} of {}", rank, memory.ranks());
  return std::make_unique<SharedMemoryTransport>(memory, rank);
}

}  // namespace switchyard::parallel
