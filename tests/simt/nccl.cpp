// NCCL for ranks on emulated devices. What moves is work of the emulator: done at once, or recorded and
// replayed as kernels are. Where NCCL would hang or go on, this says what is wrong.
//
// In what a call returns, and ncclGetLastError:
//   - memory that is no live piece of device memory, or overlaps where it must not;
//   - a call on another stream than the one before, which no event makes it follow: it may overtake it;
//   - a communicator that is no more;
//   - a window of memory that is not ncclMemAlloc's, or that is one of the communicator already; the end of one
//     that is none; the freeing of memory that is a window, or not ncclMemAlloc's.
// In a std::runtime_error out of the work, as of a kernel:
//   - ranks whose calls differ in kind, size, type or number, or in that one is recorded and one is not, or in
//     the windows and places where a gather's or an all-to-all's memory lies; windows of different sizes;
//   - a rank that does not come within SIMT_NCCL_PATIENCE seconds (30).
//
// For tests of what goes wrong, from the environment:
//   SIMT_NCCL_DELAY=SEED                 naps before and after calls, of other lengths on each rank
//   SIMT_NCCL_NO_WINDOWS=1               windows are not made, though the call says success, as where devices
//                                        do not reach each other's memory
//   SIMT_NCCL_VERSION=21805              the library is of that version
//   SIMT_NCCL_REMOTE_ERROR_AFTER=N[@R]   call N, counted from 0, (of rank R) meets an error of another rank
//                                        and does not return
//   SIMT_NCCL_REMOTE_ERROR_RETURNS=1     or does, and what the stream was given does not end
//   SIMT_NCCL_ABORT_HANGS=1              ncclCommAbort does not return
//   SIMT_NCCL_INIT_HANGS_ON=R            ncclCommInitRankConfig of rank R does not return
// As of NCCL itself: with NCCL_MULTI_RANK_GPU_ENABLE several ranks may share a device.
#include "include/nccl.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine.h"
#include "hang.h"
#include "include/cuda_bf16.h"
#include "meeting.h"

namespace {

using simt::Call;
using simt::CallKind;
using simt::Meeting;

enum class Life { lives, finalized, destroyed, aborted };

}  // namespace

struct ncclWindow_vidmem {
  const ncclComm* comm;
  const std::byte* memory;
  std::size_t bytes;
  std::uint32_t number;  // of the communicator's, from 1
};

struct ncclComm {
  std::shared_ptr<Meeting> meeting;
  std::string name;
  std::vector<int> rank_of;  // of the meeting, by place in this communicator
  int place = 0, device = 0;
  std::atomic<Life> life{Life::lives};
  std::atomic<bool> remote_error{false};

  int n_splits = 0;
  std::uint32_t n_windows = 0;  // so far
  // Calls made and done: those that all ranks take part in, and messages to and from each place.
  struct Count {
    std::uint64_t made = 0, done = 0;
  };
  Count all;
  std::vector<Count> sent, received;

  ncclComm(std::shared_ptr<Meeting> where, std::string called, std::vector<int> ranks, int own)
      : meeting(std::move(where)),
        name(std::move(called)),
        rank_of(std::move(ranks)),
        place(own),
        sent(rank_of.size()),
        received(rank_of.size()) {
    (void)cudaGetDevice(&device);
  }
  int size() const { return static_cast<int>(rank_of.size()); }
};

namespace {

// What one call does: of a message, one of `from` and `to` has no bytes.
struct Operation {
  ncclComm* comm;
  Call call;   // but for its turn
  bool sends;  // of a message: here it goes out
  int peer;    // of a message: its place
  ncclComm::Count* count;
  const std::byte* from;
  std::size_t from_bytes;
  std::byte* to;
  std::size_t to_bytes;
};

// Communicators that are destroyed stay, so that their use is known for what it is.
std::vector<std::unique_ptr<ncclComm>>& communicators() {
  static auto& all = *new std::vector<std::unique_ptr<ncclComm>>;
  return all;
}
// Of all communicators; one that has ended stays, unused.
std::vector<std::unique_ptr<ncclWindow_vidmem>>& windows() {
  static auto& all = *new std::vector<std::unique_ptr<ncclWindow_vidmem>>;
  return all;
}
std::map<const std::byte*, std::size_t>& lent() {  // by ncclMemAlloc
  static auto& pieces = *new std::map<const std::byte*, std::size_t>;
  return pieces;
}
thread_local std::string last_error;
int group_depth = 0;
std::vector<Operation> group;
ncclResult_t group_error = ncclSuccess;
std::uint64_t n_done = 0;  // groups of calls, of all communicators
cudaStream_t group_stream = nullptr;

ncclResult_t refuse(ncclResult_t error, const std::string& what) {
  last_error = what;
  return error;
}

const char* setting(const char* name) { return std::getenv(name); }
[[noreturn]] void hang() {
  for (;;) pause();
}
int version() {
  return setting("SIMT_NCCL_VERSION") ? std::atoi(setting("SIMT_NCCL_VERSION")) : NCCL_VERSION_CODE;
}

std::size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
  }
  return 0;
}

const char* death_of(Life life) {
  switch (life) {
    case Life::lives:
      break;
    case Life::finalized:
      return "finalized";
    case Life::destroyed:
      return "destroyed";
    case Life::aborted:
      return "aborted";
  }
  return nullptr;
}

bool overlap(const std::byte* a, std::size_t a_bytes, const std::byte* b, std::size_t b_bytes) {
  return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

std::string side(const ncclComm& comm) {
  return "rank " + std::to_string(comm.meeting->rank()) + " of communicator " + comm.name;
}

// Ends where waiting has no sense left.
void check_alive(const ncclComm& comm) {
  if (const char* const death = death_of(comm.life.load()))
    throw std::runtime_error("nccl: " + side(comm) + ": a call, but the communicator is " + death);
}

template <class T, class Load, class Store>
void add_up(std::byte* to, const std::vector<std::byte>& pieces, std::size_t n_pieces, Load load, Store store) {
  const std::size_t bytes = pieces.size() / n_pieces;
  for (std::size_t at = 0; at < bytes; at += sizeof(T)) {
    T sum, next;
    std::memcpy(&sum, &pieces[at], sizeof(T));
    for (std::size_t p = 1; p < n_pieces; ++p) {
      std::memcpy(&next, &pieces[p * bytes + at], sizeof(T));
      sum = store(load(sum) + load(next));
    }
    std::memcpy(to + at, &sum, sizeof(T));
  }
}
void add_up(int type, std::byte* to, const std::vector<std::byte>& pieces, std::size_t n_pieces) {
  const auto same = [](auto x) { return x; };
  if (type == ncclFloat32) add_up<float>(to, pieces, n_pieces, same, same);
  if (type == ncclFloat64) add_up<double>(to, pieces, n_pieces, same, same);
  if (type == ncclBfloat16) add_up<__nv_bfloat16>(to, pieces, n_pieces, __bfloat162float, __float2bfloat16_rn);
}

void nap(const Meeting& meeting) {
  if (!setting("SIMT_NCCL_DELAY")) return;
  static std::minstd_rand random(static_cast<unsigned>(std::atoi(setting("SIMT_NCCL_DELAY"))) * 100 +
                                 static_cast<unsigned>(meeting.rank()) + 1);
  const auto length = std::chrono::microseconds(random() % 3000);
  std::this_thread::sleep_for(random() % 8 == 0 ? 10 * length
                                                : length);  // some outlast a kernel of another rank
}

// Whether the call is over with that: its work never ends.
bool meets_remote_error(const std::vector<Operation>& operations) {
  const std::string set =
      setting("SIMT_NCCL_REMOTE_ERROR_AFTER") ? setting("SIMT_NCCL_REMOTE_ERROR_AFTER") : "";
  if (set.empty() || n_done < std::strtoull(set.c_str(), nullptr, 10)) return false;
  const std::size_t at = set.find('@');
  if (at != std::string::npos && std::stoi(set.substr(at + 1)) != operations.front().comm->meeting->rank())
    return false;
  for (const Operation& o : operations) o.comm->remote_error = true;
  if (setting("SIMT_NCCL_REMOTE_ERROR_RETURNS")) {
    simt::hang_all();
    return true;
  }
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(5)))
    for (const Operation& o : operations) check_alive(*o.comm);
}

// Whether the device hangs after this call, in whatever comes next, without an error.
bool hangs_after(const Meeting& meeting) {
  const std::string set = setting("SIMT_NCCL_HANGS_AFTER") ? setting("SIMT_NCCL_HANGS_AFTER") : "";
  const std::size_t at = set.find('@');
  return at != std::string::npos && n_done > std::strtoull(set.c_str(), nullptr, 10) &&
         std::stoi(set.substr(at + 1)) == meeting.rank();
}

std::size_t n_of(const ncclComm* comm) { return comm != nullptr ? comm->rank_of.size() : 0; }

bool is_whole(const void* memory, std::size_t bytes) { return bytes == 0 || simt::is_allocated(memory, bytes); }

void perform(const std::vector<Operation>& operations) {
  Meeting& meeting = *operations.front().comm->meeting;
  std::vector<Meeting::Outgoing> out;
  std::vector<Meeting::Incoming> in;
  std::vector<std::vector<std::byte>> pieces(operations.size());  // to add up
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const Operation& o = operations[i];
    check_alive(*o.comm);
    if (!is_whole(o.from, o.from_bytes) || !is_whole(o.to, o.to_bytes))
      meeting.fail(side(*o.comm) + ": device memory of call " + std::to_string(o.call.number) +
                   " is released before the call is done");
    Call call = o.call;
    call.turn = o.count->done++;
    const std::size_t bytes = call.bytes, n = o.comm->rank_of.size();
    if (call.kind == CallKind::message) {
      const int peer = o.comm->rank_of[static_cast<std::size_t>(o.peer)];
      if (o.sends) out.push_back({peer, call, o.from, bytes});
      if (!o.sends) in.push_back({peer, call, o.to, bytes});
      continue;
    }
    const bool scatters = call.kind == CallKind::all_to_all || call.kind == CallKind::reduce_scatter;
    const bool gathers = call.kind == CallKind::all_to_all || call.kind == CallKind::all_gather;
    const bool to_root = call.kind == CallKind::reduce;
    if (!gathers) pieces[i].resize(!to_root || call.root == o.comm->place ? n * bytes : 0);
    std::byte* const to = gathers ? o.to : pieces[i].data();
    for (std::size_t p = 0; p < n; ++p) {
      const bool goes = !to_root || call.root == static_cast<int>(p),
                 comes = !to_root || call.root == o.comm->place;
      out.push_back({o.comm->rank_of[p], call, scatters ? o.from + p * bytes : o.from, goes ? bytes : 0});
      in.push_back({o.comm->rank_of[p], call, comes ? to + p * bytes : nullptr, comes ? bytes : 0});
    }
  }
  nap(meeting);
  if (meets_remote_error(operations)) return;
  ++n_done;
  meeting.exchange(std::move(out), std::move(in), [&] {
    for (const Operation& o : operations) check_alive(*o.comm);
  });
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const Operation& o = operations[i];
    if (!pieces[i].empty()) add_up(o.call.type, o.to, pieces[i], o.comm->rank_of.size());
  }
  nap(meeting);
  if (hangs_after(meeting)) hang();
}

// What was collected since the group began becomes one piece of work.
ncclResult_t end_group() {
  std::vector<Operation> operations = std::exchange(group, {});
  if (const ncclResult_t error = std::exchange(group_error, ncclSuccess)) return error;
  if (operations.empty()) return ncclSuccess;
  for (const Operation& a : operations)
    for (const Operation& b : operations) {
      if (&a != &b &&
          (overlap(a.to, a.to_bytes, b.from, b.from_bytes) || overlap(a.to, a.to_bytes, b.to, b.to_bytes)))
        return refuse(ncclInvalidUsage,
                      side(*a.comm) + ": a call of a group writes memory of another one of it");
    }
  const std::string who = side(*operations.front().comm);
  if (!simt::may_exchange(group_stream))
    return refuse(ncclInvalidUsage,
                  who + ": a call that may overtake the one before, on another stream: no event makes it wait");
  for (Operation& o : operations) {
    o.call.number = o.count->made++;
    o.call.replayed = simt::is_recording(group_stream);
  }
  simt::enqueue_exchange(group_stream, [operations = std::move(operations)] {
    try {
      perform(operations);
    } catch (const std::exception& error) {
      last_error = error.what();
      throw;
    }
  });
  return ncclSuccess;
}

// Where memory of a call lies, if in a window: the same on all ranks.
void find_window(const ncclComm& comm, const std::byte* memory, std::size_t bytes, std::uint32_t& number,
                 std::uint64_t& offset) {
  for (const auto& window : windows()) {
    if (window->comm != &comm || memory < window->memory || memory + bytes > window->memory + window->bytes)
      continue;
    number = window->number;
    offset = static_cast<std::uint64_t>(memory - window->memory);
  }
}

ncclResult_t refuse_call(ncclResult_t error, const ncclComm& comm, const std::string& what) {
  if (group_depth > 0) group_error = error;
  return refuse(error, side(comm) + ": " + what);
}

// `place` is the root's of a reduce, the peer's of a message; memory holds so many pieces of `count` elements.
ncclResult_t add(CallKind kind, const void* from, std::size_t from_pieces, void* to, std::size_t to_pieces,
                 std::size_t count, ncclDataType_t type, int place, ncclComm* comm, cudaStream_t stream) {
  if (comm == nullptr) return refuse(ncclInvalidArgument, "a call without a communicator");
  if (const char* const death = death_of(comm->life.load()))
    return refuse_call(ncclInvalidUsage, *comm, std::string("a call, but the communicator is ") + death);
  const std::size_t bytes = count * bytes_of(type);
  const bool sums = kind >= CallKind::all_reduce;
  if (bytes_of(type) == 0 || (sums && type != ncclFloat32 && type != ncclFloat64 && type != ncclBfloat16))
    return refuse_call(ncclInvalidArgument, *comm, "elements of type " + std::to_string(type));
  if (place < 0 || place >= comm->size())
    return refuse_call(ncclInvalidArgument, *comm, "there is no place " + std::to_string(place));
  if (!group.empty() && group_stream != stream)
    return refuse_call(ncclInvalidUsage, *comm, "a call on another stream than the others of its group");
  group_stream = stream;

  const bool sends = kind == CallKind::message && to_pieces == 0;
  const auto peer = static_cast<std::size_t>(place);
  Operation o{comm,
              {},
              sends,
              place,
              kind != CallKind::message ? &comm->all : &(sends ? comm->sent : comm->received)[peer],
              static_cast<const std::byte*>(from),
              from_pieces * bytes,
              static_cast<std::byte*>(to),
              to_pieces * bytes};
  comm->name.copy(o.call.communicator, sizeof o.call.communicator - 1);
  o.call.kind = kind;
  o.call.type = type;
  o.call.root = kind == CallKind::reduce ? place : 0;
  o.call.bytes = bytes;
  for (const auto& [memory, size] :
       {std::pair<const std::byte*, std::size_t>{o.from, o.from_bytes}, {o.to, o.to_bytes}}) {
    if (size > 0 && !simt::is_allocated(memory, size))
      return refuse_call(ncclInvalidArgument, *comm,
                         "no live piece of device memory has these " + std::to_string(size) + " bytes");
  }
  // In place is where a rank's own piece lies where it comes to lie.
  const auto own = [&](std::size_t pieces) {
    return pieces > 1 ? static_cast<std::size_t>(comm->place) * bytes : 0;
  };
  const bool in_place = kind != CallKind::all_to_all && o.from + own(from_pieces) == o.to + own(to_pieces);
  if (!in_place && overlap(o.from, o.from_bytes, o.to, o.to_bytes))
    return refuse_call(ncclInvalidUsage, *comm, "what it reads overlaps what it writes");
  if (kind == CallKind::all_gather || kind == CallKind::all_to_all || kind == CallKind::all_reduce) {
    find_window(*comm, o.to, o.to_bytes, o.call.to_window, o.call.to_offset);
    find_window(*comm, o.from, o.from_bytes, o.call.from_window, o.call.from_offset);
    if (in_place && kind == CallKind::all_gather) o.call.from_offset = o.call.to_offset;
  }
  group.push_back(o);
  return group_depth > 0 ? ncclSuccess : end_group();
}

}  // namespace

ncclResult_t ncclGetVersion(int* to) {
  *to = version();
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) try {
  *id = {};
  Meeting::make_id().copy(id->internal, sizeof id->internal - 1);
  return ncclSuccess;
} catch (const std::runtime_error& error) {
  return refuse(ncclSystemError, error.what());
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) try {
  if (n_ranks < 1 || n_ranks > Meeting::kMaxRanks || rank < 0 || rank >= n_ranks)
    return refuse(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " + std::to_string(n_ranks) +
                                           "; at most " + std::to_string(Meeting::kMaxRanks) + " are emulated");
  if (config != nullptr && (config->magic != 0xcafebeef || config->blocking == 0))
    return refuse(ncclInvalidArgument, "a configuration that was not initialised or does not wait");
  if (config != nullptr && config->CTAPolicy == NCCL_CTA_POLICY_ZERO && version() < 22800)
    return refuse(ncclInvalidArgument, "CTAPolicy " + std::to_string(config->CTAPolicy) + " in version " +
                                           std::to_string(version()));
  if (setting("SIMT_NCCL_INIT_HANGS_ON") && std::atoi(setting("SIMT_NCCL_INIT_HANGS_ON")) == rank) hang();
  id.internal[sizeof id.internal - 1] = 0;
  std::vector<int> ranks(static_cast<std::size_t>(n_ranks));
  std::iota(ranks.begin(), ranks.end(), 0);
  cudaDeviceProp prop;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&prop, device) != cudaSuccess)
    return refuse(ncclUnhandledCudaError, "rank " + std::to_string(rank) + " has no device");
  const auto meeting = std::make_shared<Meeting>(id.internal, rank, n_ranks, prop.pciBusID);
  for (int a = 0; a < n_ranks && !setting("NCCL_MULTI_RANK_GPU_ENABLE"); ++a)
    for (int b = 0; b < a; ++b) {
      if (meeting->device_of(a) == meeting->device_of(b))
        return refuse(ncclInvalidUsage, "Duplicate GPU detected: rank " + std::to_string(b) + " and rank " +
                                            std::to_string(a) + " both on the device of PCI bus " +
                                            std::to_string(meeting->device_of(a)) +
                                            "; SIMT_DEVICES=N gives each process N devices to choose from");
    }
  *comm = communicators().emplace_back(std::make_unique<ncclComm>(meeting, "world", ranks, rank)).get();
  return ncclSuccess;
} catch (const std::runtime_error& error) {
  return refuse(ncclSystemError, error.what());
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part, ncclConfig_t*) try {
  *part = nullptr;
  check_alive(*comm);
  if (color < NCCL_SPLIT_NOCOLOR) return refuse(ncclInvalidArgument, side(*comm) + ": a colour below zero");
  if (group_depth > 0 || simt::is_recording())
    return refuse(ncclInvalidUsage, side(*comm) + ": a split within a group or a recording");
  struct Choice {
    int color, key, place;
  };
  const Choice mine{color, key, comm->place};
  std::vector<Choice> choices(comm->rank_of.size());
  Call call;
  comm->name.copy(call.communicator, sizeof call.communicator - 1);
  call.kind = CallKind::split;
  call.bytes = sizeof mine;
  call.number = call.turn = static_cast<std::uint64_t>(comm->n_splits++);
  std::vector<Meeting::Outgoing> out;
  std::vector<Meeting::Incoming> in;
  for (std::size_t p = 0; p < choices.size(); ++p) {
    out.push_back({comm->rank_of[p], call, reinterpret_cast<const std::byte*>(&mine), sizeof mine});
    in.push_back({comm->rank_of[p], call, reinterpret_cast<std::byte*>(&choices[p]), sizeof mine});
  }
  simt::finish_exchanges();  // that came before
  comm->meeting->exchange(std::move(out), std::move(in), [&] { check_alive(*comm); });
  if (color == NCCL_SPLIT_NOCOLOR) return ncclSuccess;
  std::erase_if(choices, [&](const Choice& choice) { return choice.color != color; });
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.key < b.key; });
  std::vector<int> ranks;
  int place = 0;
  for (const Choice& choice : choices) {
    if (choice.place == comm->place) place = static_cast<int>(ranks.size());
    ranks.push_back(comm->rank_of[static_cast<std::size_t>(choice.place)]);
  }
  // Of the parent, the split and the colour: the same on all ranks of this part, and on no other.
  const std::string name = comm->name + "." + std::to_string(call.number) + ":" + std::to_string(color);
  *part = communicators().emplace_back(std::make_unique<ncclComm>(comm->meeting, name, ranks, place)).get();
  return ncclSuccess;
} catch (const std::runtime_error& error) {
  return refuse(ncclSystemError, error.what());
}

namespace {
ncclResult_t end(ncclComm* comm, Life life) {
  if (comm == nullptr) return refuse(ncclInvalidArgument, "no communicator to end");
  Life before = comm->life.load();
  do {
    if (before == Life::destroyed || before == Life::aborted || before == life)
      return refuse(ncclInvalidArgument, side(*comm) + ": it is " + death_of(before));
  } while (!comm->life.compare_exchange_weak(before, life));
  return ncclSuccess;
}
}  // namespace

ncclResult_t ncclCommFinalize(ncclComm_t comm) { return end(comm, Life::finalized); }
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return end(comm, Life::destroyed); }
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (setting("SIMT_NCCL_ABORT_HANGS")) hang();
  return end(comm, Life::aborted);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (comm == nullptr) return refuse(ncclInvalidArgument, "no communicator");
  *error = comm->remote_error || comm->meeting->failed() ? ncclRemoteError : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  *count = comm->size();
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  *rank = comm->place;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  *device = comm->device;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t error) {
  switch (error) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}
const char* ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

ncclResult_t ncclMemAlloc(void** memory, std::size_t bytes) {
  if (cudaMalloc(memory, bytes) != cudaSuccess) return ncclUnhandledCudaError;
  lent()[static_cast<const std::byte*>(*memory)] = bytes;
  return ncclSuccess;
}
ncclResult_t ncclMemFree(void* memory) {
  const auto piece = lent().find(static_cast<const std::byte*>(memory));
  if (piece == lent().end())
    return refuse(ncclInvalidArgument, "ncclMemFree of what ncclMemAlloc did not give");
  for (const auto& window : windows())
    if (window->comm != nullptr && overlap(piece->first, piece->second, window->memory, window->bytes))
      return refuse(ncclInvalidUsage, side(*window->comm) + ": ncclMemFree of memory that is window " +
                                          std::to_string(window->number));
  lent().erase(piece);
  return cudaFree(memory) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommWindowRegister(ncclComm_t comm, void* memory, std::size_t bytes, ncclWindow_t* window,
                                    int flags) try {
  *window = nullptr;
  if (version() < 22700)
    return refuse(ncclInvalidUsage,
                  "ncclCommWindowRegister: there is none in version " + std::to_string(version()));
  check_alive(*comm);
  if (group_depth > 0 || simt::is_recording())
    return refuse(ncclInvalidUsage, side(*comm) + ": a window within a group or a recording");
  if (flags != NCCL_WIN_COLL_SYMMETRIC)
    return refuse(ncclInvalidArgument, side(*comm) + ": a window that is not symmetric is not emulated");
  const auto* const first = static_cast<const std::byte*>(memory);
  const auto after = lent().upper_bound(first);
  if (after == lent().begin() || first + bytes > std::prev(after)->first + std::prev(after)->second)
    return refuse(ncclInvalidArgument, side(*comm) + ": a window of memory that is not ncclMemAlloc's");
  for (const auto& other : windows())
    if (other->comm == comm && overlap(first, bytes, other->memory, other->bytes))
      return refuse(ncclInvalidUsage, side(*comm) + ": memory of window " + std::to_string(other->number) +
                                          " becomes a window again");
  Call call;
  comm->name.copy(call.communicator, sizeof call.communicator - 1);
  call.kind = CallKind::window;
  call.bytes = bytes;
  call.number = call.turn = comm->n_windows++;
  std::vector<Meeting::Outgoing> out;
  std::vector<Meeting::Incoming> in;
  for (const int rank : comm->rank_of) {
    out.push_back({rank, call, nullptr, 0});
    in.push_back({rank, call, nullptr, 0});
  }
  simt::finish_exchanges();  // that came before
  comm->meeting->exchange(std::move(out), std::move(in), [&] { check_alive(*comm); });
  if (setting("SIMT_NCCL_NO_WINDOWS")) return ncclSuccess;
  windows().push_back(
      std::make_unique<ncclWindow_vidmem>(ncclWindow_vidmem{comm, first, bytes, comm->n_windows}));
  *window = windows().back().get();
  return ncclSuccess;
} catch (const std::runtime_error& error) {
  return refuse(ncclSystemError, error.what());
}

ncclResult_t ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window) {
  for (const auto& each : windows())
    if (each.get() == window && each->comm == comm) {
      each->comm = nullptr;
      return ncclSuccess;
    }
  return refuse(ncclInvalidArgument, side(*comm) + ": the end of a window that it does not have");
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) return refuse(ncclInvalidUsage, "the end of a group that has not begun");
  return --group_depth > 0 ? ncclSuccess : end_group();
}

ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(CallKind::message, from, 1, nullptr, 0, count, type, peer, comm, stream);
}
ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(CallKind::message, nullptr, 0, to, 1, count, type, peer, comm, stream);
}
ncclResult_t ncclAllGather(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return add(CallKind::all_gather, from, 1, to, n_of(comm), count, type, 0, comm, stream);
}
ncclResult_t ncclAlltoAll(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclComm_t comm,
                          cudaStream_t stream) {
  if (version() < 22800)
    return refuse(ncclInvalidUsage, "ncclAlltoAll: there is none in version " + std::to_string(version()));
  return add(CallKind::all_to_all, from, n_of(comm), to, n_of(comm), count, type, 0, comm, stream);
}
ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t stream) {
  return add(CallKind::all_reduce, from, 1, to, 1, count, type, 0, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t,
                               ncclComm_t comm, cudaStream_t stream) {
  return add(CallKind::reduce_scatter, from, n_of(comm), to, 1, count, type, 0, comm, stream);
}
ncclResult_t ncclReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  return add(CallKind::reduce, from, 1, to, comm != nullptr && comm->place == root, count, type, root, comm,
             stream);
}
