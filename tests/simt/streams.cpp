#include "streams.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine.h"
#include "hang.h"
#include "include/cuda_runtime.h"

namespace simt {

namespace {

enum class Order { at_once, lazy, eager };
Order order() {
  const char* const set = std::getenv("SIMT_STREAMS");
  const std::string name = set ? set : "";
  return name == "lazy" ? Order::lazy : name == "eager" ? Order::eager : Order::at_once;
}

// Streams that are destroyed stay, so that their use is known for what it is. The first is the default stream.
std::vector<std::unique_ptr<Stream>>& streams() {
  static auto& all = *new std::vector<std::unique_ptr<Stream>>(1);
  if (!all[0]) all[0] = std::make_unique<Stream>();
  return all;
}
Stream* known(Stream* stream) { return stream ? stream : streams()[0].get(); }

std::set<const Stream*>& hung() {
  static auto& some = *new std::set<const Stream*>;
  return some;
}

std::unique_ptr<Recording> recording;
std::uint64_t n_recordings = 0;
Clock host_waited_for;
Place last_exchange;  // that was given, not recorded

void merge(Clock& clock, const Clock& other) {
  for (const auto& [stream, count] : other) clock[stream] = std::max(clock[stream], count);
}

// Does the first `count` items ever given to the stream.
void advance(Stream& stream, std::uint64_t count) {
  while (stream.given - stream.waiting.size() < count) {
    const Item item = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    for (const auto& [other, n] : item.after) {
      if (other != &stream) advance(*other, n);
    }
    if (item.work) item.work();
  }
}

void host_waits_for(Stream& stream) {
  merge(host_waited_for, {{&stream, stream.given}});
  merge(host_waited_for, stream.waited_for);
}

void give(Stream& stream, Item item) {
  if (stream.recorded) {
    item.after = stream.clock;
    recording->items[&stream].push_back(std::move(item));
    recording->order.push_back(&stream);
    stream.clock[&stream] = recording->items[&stream].size();
    return;
  }
  ++stream.given;
  stream.waiting.push_back(std::move(item));
  if (order() == Order::at_once) advance(stream, stream.given);
}

}  // namespace

void enqueue(Stream* stream, std::function<void()> work) {
  give(*known(stream), {[work = std::move(work)] {
                          const DeviceAccess access;
                          work();
                        },
                        {}});
}

void hang(Stream* stream, bool hangs) {
  if (hangs)
    hung().insert(known(stream));
  else
    hung().erase(known(stream));
}

void hang_all() {
  for (const auto& stream : streams()) hung().insert(stream.get());
}

void finish(Stream* stream) {
  if (hung().count(known(stream)) > 0)
    throw std::runtime_error("emulator: the host blocks on a stream that hangs");
  if (order() == Order::eager) finish_all();
  advance(*known(stream), known(stream)->given);
  host_waits_for(*known(stream));
}
void finish_all() {
  if (!hung().empty()) throw std::runtime_error("emulator: the host blocks on a stream that hangs");
  for (std::size_t i = streams().size(); i-- > 0;) advance(*streams()[i], streams()[i]->given);
  for (const auto& stream : streams()) host_waits_for(*stream);
}

void spoil_recording() {
  if (recording) recording->invalid = true;
}
namespace {

bool is_before(const Clock& clock, const Place& place) {
  const auto found = clock.find(place.stream);
  return found != clock.end() && found->second >= place.count;
}
Place& last_exchange_of(Stream& stream) { return stream.recorded ? recording->exchange : last_exchange; }
// What the stream is given next is an exchange.
void note_exchange(Stream& stream) {
  const std::uint64_t before = stream.recorded ? recording->items[&stream].size() : stream.given;
  last_exchange_of(stream) = {&stream, before + 1};
}

}  // namespace

bool may_exchange(Stream* to) {
  const Stream& stream = *known(to);
  const Place& last = last_exchange_of(*known(to));
  if (last.stream == nullptr || last.stream == &stream) return true;
  if (stream.recorded) return is_before(stream.clock, last);
  return is_before(stream.waited_for, last) || is_before(host_waited_for, last);
}
void enqueue_exchange(Stream* stream, std::function<void()> work) {
  note_exchange(*known(stream));
  enqueue(stream, std::move(work));
}
void finish_exchanges() {
  if (last_exchange.stream) finish(last_exchange.stream);
}

bool is_recording() { return recording != nullptr; }
bool is_recording(Stream* stream) { return known(stream)->recorded; }

std::size_t Recording::n_nodes() const {
  std::size_t n = 0;
  for (const auto& [stream, its] : items) {
    for (const Item& item : its) n += item.work != nullptr;
  }
  return n;
}

void Recording::replay() const {
  std::map<Stream*, std::size_t> done;
  const std::function<void(Stream*, std::size_t)> reach = [&](Stream* stream, std::size_t count) {
    while (done[stream] < count) {
      const Item& item = items.at(stream)[done[stream]];
      for (const auto& [other, n] : item.after) {
        if (other != stream) reach(other, n);
      }
      if (item.work) item.work();
      ++done[stream];
    }
  };
  if (simt::order() == Order::at_once) {
    for (Stream* const stream : order) reach(stream, done[stream] + 1);
    return;
  }
  if (simt::order() == Order::eager) {
    for (const auto& [stream, its] : items) {
      if (stream != origin) reach(stream, its.size());
    }
  }
  reach(origin, items.at(origin).size());
}

}  // namespace simt

using simt::recording;

namespace {
cudaError_t invalidate(cudaError_t error) {
  simt::spoil_recording();
  return simt::failed(error);
}
bool is_dead(cudaStream_t stream) { return stream != nullptr && stream->destroyed; }
}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags != cudaStreamNonBlocking)
    return simt::failed(cudaErrorInvalidValue);  // others wait for the default stream
  *stream = simt::streams().emplace_back(std::make_unique<simt::Stream>()).get();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr || is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  if (stream->recorded) return invalidate(cudaErrorStreamCaptureUnsupported);
  simt::finish(stream);
  stream->destroyed = true;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  if (recording) return invalidate(cudaErrorStreamCaptureUnsupported);
  simt::finish(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  if (recording) return invalidate(cudaErrorStreamCaptureUnsupported);
  if (simt::hung().count(simt::known(stream)) > 0) return simt::failed(cudaErrorNotReady);
  if (simt::known(stream)->waiting.empty()) {
    simt::host_waits_for(*simt::known(stream));
    return cudaSuccess;
  }
  simt::finish(stream);
  return simt::failed(cudaErrorNotReady);
}
cudaError_t cudaDeviceSynchronize() {
  if (recording) return invalidate(cudaErrorStreamCaptureUnsupported);
  simt::finish_all();
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  simt::Stream& from = *simt::known(stream);
  *event = {true, from.recorded ? recording->number : 0, from.recorded ? from.clock : from.waited_for};
  if (!from.recorded) event->clock[&from] = from.given;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  simt::Stream& to = *simt::known(stream);
  if (event->recording == 0) {
    if (to.recorded) return invalidate(cudaErrorStreamCaptureIsolation);
    simt::merge(to.waited_for, event->clock);
    if (event->set) simt::give(to, {nullptr, event->clock});
    return cudaSuccess;
  }
  if (!recording || recording->number != event->recording) return invalidate(cudaErrorCapturedEvent);
  if (stream == nullptr) return invalidate(cudaErrorStreamCaptureImplicit);
  to.recorded = true;
  simt::merge(to.clock, event->clock);
  simt::give(to, {});
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (recording) return invalidate(cudaErrorStreamCaptureUnsupported);
  if (event->recording != 0) return simt::failed(cudaErrorCapturedEvent);
  bool ready = true;
  for (const auto& [stream, count] : event->clock) {
    ready = ready && stream->given - stream->waiting.size() >= count;
    simt::advance(*stream, count);
  }
  simt::merge(simt::host_waited_for, event->clock);
  return ready ? cudaSuccess : simt::failed(cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const cudaError_t error = cudaEventQuery(event);
  if (error != cudaErrorNotReady) return error;
  (void)cudaGetLastError();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  if (stream == nullptr || recording) return simt::failed(cudaErrorStreamCaptureUnsupported);
  recording = std::make_unique<simt::Recording>();
  recording->number = ++simt::n_recordings;
  recording->origin = stream;
  recording->items[stream];
  stream->recorded = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!recording) return simt::failed(cudaErrorInvalidValue);
  if (stream != recording->origin) return invalidate(cudaErrorStreamCaptureUnmatched);
  std::unique_ptr<simt::Recording> done = std::move(recording);
  bool joined = true;
  for (const auto& [other, items] : done->items) joined = joined && stream->clock[other] >= items.size();
  for (const auto& [other, items] : done->items) {
    other->recorded = false;
    other->clock.clear();
  }
  if (done->invalid || std::getenv("SIMT_FAIL_CAPTURE")) return simt::failed(cudaErrorStreamCaptureInvalidated);
  if (!joined) return simt::failed(cudaErrorStreamCaptureUnjoined);
  *graph = done.release();
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = !simt::is_recording(stream) ? cudaStreamCaptureStatusNone
            : recording->invalid        ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new simt::Recording(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, std::size_t* n_nodes) {
  *n_nodes = graph->n_nodes();
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (is_dead(stream)) return simt::failed(cudaErrorInvalidResourceHandle);
  if (simt::is_recording(stream)) return invalidate(cudaErrorStreamCaptureUnsupported);
  if (exec->exchange.stream) {
    if (!simt::may_exchange(stream))
      throw std::runtime_error(
          "emulator: exchanges of a recording may overtake one that another stream was given: no event makes "
          "them wait");
    simt::note_exchange(*simt::known(stream));
  }
  simt::give(*simt::known(stream), {[recorded = *exec] { recorded.replay(); }, {}});
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
