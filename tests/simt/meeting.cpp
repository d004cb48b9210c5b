#include "meeting.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>

namespace simt {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kLine = 128, kRingBytes = 256 * 1024, kChunk = kRingBytes / 4;
constexpr auto kSpin = std::chrono::microseconds(30);
constexpr long kNapNanoseconds = 50'000'000;  // then a waiting rank looks whether it is to give up
static_assert(sizeof(Call) <= kLine && std::atomic<std::uint32_t>::is_always_lock_free);

std::size_t whole_lines(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

double patience_seconds() {
  const char* const set = std::getenv("SIMT_NCCL_PATIENCE");
  return set ? std::atof(set) : 30;
}

const char* name_of(CallKind kind) {
  switch (kind) {
    case CallKind::none:
      break;
    case CallKind::split:
      return "split";
    case CallKind::window:
      return "window";
    case CallKind::message:
      return "message";
    case CallKind::all_gather:
      return "all-gather";
    case CallKind::all_to_all:
      return "all-to-all";
    case CallKind::all_reduce:
      return "all-reduce";
    case CallKind::reduce_scatter:
      return "reduce-scatter";
    case CallKind::reduce:
      return "reduce";
  }
  return "no call";
}

std::string words_of(const Call& call) {
  if (call.kind == CallKind::none) return "no call";
  std::string words = name_of(call.kind);
  if (call.kind == CallKind::reduce) words += " to place " + std::to_string(call.root);
  if (call.kind == CallKind::window)
    return words + " of " + std::to_string(call.bytes) + " bytes, number " + std::to_string(call.number) +
           " of communicator " + call.communicator;
  const auto place = [](const char* way, std::uint32_t window, std::uint64_t offset) {
    return window == 0
               ? std::string()
               : std::string(way) + "byte " + std::to_string(offset) + " of window " + std::to_string(window);
  };
  return words + place(" from ", call.from_window, call.from_offset) +
         place(" to ", call.to_window, call.to_offset) + " of " + std::to_string(call.bytes) +
         " bytes of type " + std::to_string(call.type) + ", call " + std::to_string(call.number) +
         " of communicator " + call.communicator + ", " +
         (call.replayed != 0 ? "recorded, " : "not recorded, ") + "turn " + std::to_string(call.turn);
}

}  // namespace

struct Meeting::Header {
  std::uint64_t key;
  std::atomic<std::uint32_t> failed;  // 1: the message is being written, 2: it is there
  char failure[2000];
};

// Who has put something into a ring of this rank, or taken something out, rings.
struct alignas(kLine) Meeting::Bell {
  std::atomic<std::uint32_t> count, asleep;
  std::atomic<std::int32_t> device;   // what this rank has come with
  std::atomic<std::int32_t> n_ranks;  // the same; 0: it has not come

  // In this order, as wait() does it in the other: either the sleeper is seen here, or the kernel sees the
  // count there.
  void ring() {
    count.fetch_add(1);
    if (asleep.load() != 0) syscall(SYS_futex, &count, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
};

// Bytes that were ever put in and taken out; the difference is what lies in the ring.
struct Meeting::Ring {
  alignas(kLine) std::atomic<std::uint64_t> put;    // of the sender
  alignas(kLine) std::atomic<std::uint64_t> taken;  // of the receiver
  std::byte data[kRingBytes];
};

// A new memory file is all zeros, which is where each of these begins; pages that no one touches cost nothing.
struct Meeting::Layout {
  Header header;
  Bell bells[kMaxRanks];
  Ring rings[kMaxRanks][kMaxRanks];  // from, to
};

std::string Meeting::make_id() {
  std::random_device random;
  const std::uint64_t key = std::uint64_t{random()} << 32 | random() | 1;
  const int file = memfd_create("simt ranks", MFD_CLOEXEC);  // open as long as this process lives
  if (file < 0 || ftruncate(file, sizeof(Layout)) != 0 || pwrite(file, &key, sizeof key, 0) != sizeof key)
    throw std::runtime_error("nccl: no memory file for ranks to meet in");
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file) + " " + std::to_string(key);
}

int Meeting::device_of(int rank) const { return shared_->bells[rank].device.load(); }

Meeting::Meeting(const std::string& id, int rank, int n_ranks, int device) : rank_(rank), n_ranks_(n_ranks) {
  const std::string path = id.substr(0, id.find(' ')), key = id.substr(std::min(id.find(' ') + 1, id.size()));
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  void* const base =
      file < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (base == MAP_FAILED || std::to_string(static_cast<const Header*>(base)->key) != key)
    throw std::runtime_error("nccl: rank " + std::to_string(rank) + ": no rank waits at the unique id '" + id +
                             "': its process has ended, or the id was not told whole");
  shared_ = static_cast<Layout*>(base);
  shared_->bells[rank].device = device;
  if (shared_->bells[rank].n_ranks.exchange(n_ranks) != 0)
    fail("two processes of one unique id say that they are rank " + std::to_string(rank));
  for (Bell& bell : shared_->bells) bell.ring();
  const auto start = Clock::now();
  for (int other = 0; other < n_ranks;) {
    const std::uint32_t seen = shared_->bells[rank].count.load();
    const int theirs = shared_->bells[other].n_ranks.load();
    throw_if_failed();
    if (theirs != 0 && theirs != n_ranks)
      fail("rank " + std::to_string(rank) + " comes as one of " + std::to_string(n_ranks) + ", rank " +
           std::to_string(other) + " as one of " + std::to_string(theirs));
    if (theirs != 0) {
      ++other;
    } else if (std::chrono::duration<double>(Clock::now() - start).count() > patience_seconds()) {
      fail("rank " + std::to_string(other) + " has not come to the unique id, for which rank " +
           std::to_string(rank) + " waits");
    } else {
      wait(seen);
    }
  }
}

void Meeting::fail(const std::string& what) {
  Header& header = shared_->header;
  std::uint32_t none = 0;
  if (header.failed.compare_exchange_strong(none, 1)) {
    std::snprintf(header.failure, sizeof header.failure, "nccl: %s", what.c_str());
    header.failed.store(2);
    for (Bell& bell : shared_->bells) bell.ring();
  }
  throw std::runtime_error("nccl: " + what);
}

bool Meeting::failed() const { return shared_->header.failed.load() != 0; }

void Meeting::throw_if_failed() const {
  if (shared_->header.failed.load() == 2) throw std::runtime_error(shared_->header.failure);
}

void Meeting::fail_to_agree(int other, const Call& theirs, const Call& mine) {
  fail("rank " + std::to_string(other) + " comes with " + words_of(theirs) + "; rank " + std::to_string(rank_) +
       " with " + words_of(mine));
}

void Meeting::fail_alone(const std::vector<Outgoing>& out, const std::vector<Incoming>& in) {
  std::string missing;
  Call call;
  const auto miss = [&](int rank, const Call& theirs) {
    const std::string name = "rank " + std::to_string(rank);
    if ((missing + ",").find(name + ",") == std::string::npos) missing += (missing.empty() ? "" : ", ") + name;
    call = theirs;
  };
  for (const Incoming& message : in)
    if (!message.begun) miss(message.from, message.call);
  if (missing.empty()) {
    for (const Incoming& message : in) miss(message.from, message.call);
    for (const Outgoing& message : out) miss(message.to, message.call);
  }
  fail(missing + " did not come to " + words_of(call) + ", in which rank " + std::to_string(rank_) + " waits");
}

// Puts what fits into the ring, at most a chunk; true if anything did, or all was taken.
bool Meeting::push(Outgoing& message) {
  Ring& ring = shared_->rings[rank_][message.to];
  std::uint64_t put = ring.put.load(std::memory_order_relaxed);
  const std::uint64_t before = put;
  std::size_t room = kRingBytes - (put - ring.taken.load(std::memory_order_acquire));
  if (!message.begun && room >= kLine) {
    std::memcpy(ring.data + put % kRingBytes, &message.call, sizeof message.call);
    put += kLine;
    room -= kLine;
    message.begun = true;
  }
  std::size_t count = message.begun ? std::min({message.bytes, room, kChunk}) : 0;
  while (count > 0) {
    const std::size_t at = put % kRingBytes, piece = std::min(count, kRingBytes - at);
    std::memcpy(ring.data + at, message.data, piece);
    message.data += piece;
    message.bytes -= piece;
    count -= piece;
    put += whole_lines(piece);  // whole lines but at the message's end
  }
  if (put == before) return false;
  message.end = put;
  ring.put.store(put, std::memory_order_release);
  shared_->bells[message.to].ring();
  return true;
}

// Takes what is there out of the ring, at most a chunk; true if there was anything.
bool Meeting::pop(Incoming& message) {
  Ring& ring = shared_->rings[message.from][rank_];
  std::uint64_t taken = ring.taken.load(std::memory_order_relaxed);
  const std::uint64_t before = taken;
  std::size_t there = ring.put.load(std::memory_order_acquire) - taken;
  if (!message.begun && there >= kLine) {
    Call theirs;
    std::memcpy(&theirs, ring.data + taken % kRingBytes, sizeof theirs);
    if (theirs != message.call) fail_to_agree(message.from, theirs, message.call);
    taken += kLine;
    there -= kLine;
    message.begun = true;
  }
  std::size_t count = message.begun ? std::min({message.bytes, there, kChunk}) : 0;
  while (count > 0) {
    const std::size_t at = taken % kRingBytes, piece = std::min(count, kRingBytes - at);
    std::memcpy(message.data, ring.data + at, piece);
    message.data += piece;
    message.bytes -= piece;
    count -= piece;
    taken += whole_lines(piece);
  }
  if (taken == before) return false;
  ring.taken.store(taken, std::memory_order_release);
  shared_->bells[message.from].ring();
  return true;
}

void Meeting::meet_myself(std::vector<Outgoing>& out, std::vector<Incoming>& in) {
  const auto to_me = [&](const Outgoing& message) { return message.to == rank_; };
  const auto from_me = [&](const Incoming& message) { return message.from == rank_; };
  auto to = in.begin();
  for (const Outgoing& message : out) {
    if (!to_me(message)) continue;
    to = std::find_if(to, in.end(), from_me);
    if (to == in.end()) fail_to_agree(rank_, message.call, Call());
    if (message.call != to->call) fail_to_agree(rank_, message.call, to->call);
    if (message.bytes > 0) std::memmove(to->data, message.data, message.bytes);
    ++to;
  }
  to = std::find_if(to, in.end(), from_me);
  if (to != in.end()) fail_to_agree(rank_, Call(), to->call);
  std::erase_if(out, to_me);
  std::erase_if(in, from_me);
}

void Meeting::exchange(std::vector<Outgoing> out, std::vector<Incoming> in,
                       const std::function<void()>& check) {
  meet_myself(out, in);
  // In a call of all ranks each hears of each other anyway.
  const auto is_through = [&](const Outgoing& message) {
    return message.begun && message.bytes == 0 &&
           (message.call.kind != CallKind::message ||
            shared_->rings[rank_][message.to].taken.load(std::memory_order_acquire) >= message.end);
  };
  auto moved_at = Clock::now();
  while (!out.empty() || !in.empty()) {
    check();
    const std::uint32_t seen = shared_->bells[rank_].count.load();
    bool moved = false;
    std::uint32_t blocked = 0;  // a bit for each rank for which an earlier message is not yet through
    for (Outgoing& message : out) {
      if (blocked >> message.to & 1) continue;
      moved |= push(message);
      if (!message.begun || message.bytes > 0) blocked |= 1u << message.to;
    }
    blocked = 0;
    for (Incoming& message : in) {
      if (blocked >> message.from & 1) continue;
      moved |= pop(message);
      if (!message.begun || message.bytes > 0) blocked |= 1u << message.from;
    }
    moved |= std::erase_if(out, is_through) > 0;
    std::erase_if(in, [](const Incoming& message) { return message.begun && message.bytes == 0; });
    if (moved) {
      moved_at = Clock::now();
      continue;
    }
    if (out.empty() && in.empty()) break;
    throw_if_failed();
    if (std::chrono::duration<double>(Clock::now() - moved_at).count() > patience_seconds())
      fail_alone(out, in);
    wait(seen);
  }
}

// Until the bell has rung since it was `seen`, or a nap: spins shortly, then sleeps, since ranks that spin take
// the cores from those that compute.
void Meeting::wait(std::uint32_t seen) {
  Bell& bell = shared_->bells[rank_];
  const auto start = Clock::now();
  while (bell.count.load() == seen) {
    if (Clock::now() - start < kSpin) continue;
    const timespec nap{0, kNapNanoseconds};
    bell.asleep.store(1);
    syscall(SYS_futex, &bell.count, FUTEX_WAIT, seen, &nap, nullptr, 0);
    bell.asleep.store(0);
    return;
  }
}

}  // namespace simt
