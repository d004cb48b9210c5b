// Streams, events and recordings (CUDA graphs) of the emulator. Work is done at once, in the order in which it
// is given, but while its stream is recorded: then it is kept, and done whenever the recording is replayed.
//
// A device may do the work of several streams in any order that events leave open. So may the emulator, which
// makes a missing event a wrong result, the same each time. SIMT_STREAMS in the environment says which order:
//   lazy    work is not done before someone waits for it: the host for a stream, a stream for an event. Of a
//           recording, what the stream that began it does comes first wherever events let it.
//   eager   the same, but streams that no one waits for go first, as far as events let them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <vector>

struct CUstream_st;

namespace simt {

using Stream = CUstream_st;
// How much work of each stream comes before something.
using Clock = std::map<Stream*, std::uint64_t>;

struct Item {
  std::function<void()> work;  // none: it only waits
  Clock after;
};

// Some work: the first `count` items of a stream end with it.
struct Place {
  Stream* stream = nullptr;
  std::uint64_t count = 0;
};

struct Recording {
  std::uint64_t number = 0;
  Place exchange;  // the last one between ranks; no stream: there is none
  Stream* origin = nullptr;
  std::map<Stream*, std::vector<Item>> items;
  std::vector<Stream*> order;  // in which the items came
  bool invalid = false;        // something was asked for that cannot be recorded
  std::size_t n_nodes() const;
  void replay() const;
};

// Does the work in the stream's order, or records it. Null: the default stream.
void enqueue(Stream* stream, std::function<void()> work);
// Does what the stream was given before. All streams: null is the default stream, not they.
void finish(Stream* stream);
void finish_all();
bool is_recording();  // on some stream
bool is_recording(Stream* stream);
// Work in which ranks meet. On each rank one such follows the other, by the order of a stream, by events or
// because the host has waited: else two of them could meet in one order here and in another there. So
// may_exchange() comes first; a recording that is launched although there is an exchange that it may overtake
// is a std::runtime_error.
bool may_exchange(Stream* stream);
void enqueue_exchange(Stream* stream, std::function<void()> work);
void finish_exchanges();
void spoil_recording();  // something was asked for that cannot be recorded; nothing where nothing is recorded

}  // namespace simt

struct CUstream_st {
  bool recorded = false;           // its work goes to the recording
  simt::Clock clock;               // what comes before its next work, in the recording
  simt::Clock waited_for;          // the same of other streams, where none is under way
  std::deque<simt::Item> waiting;  // given, but not done
  std::uint64_t given = 0;
  bool destroyed = false;
};

struct CUevent_st {
  bool set = false;
  std::uint64_t recording = 0;  // 0: none was under way
  simt::Clock clock;            // what comes before it
};
