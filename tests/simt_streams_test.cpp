// Devices, streams, events and recordings of the emulator, and what it refuses as the CUDA runtime does.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace {

// Something in the environment, for a test.
class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

cudaStream_t new_stream() {
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  return stream;
}
cudaEvent_t new_event() {
  cudaEvent_t event = nullptr;
  EXPECT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  return event;
}

// Two streams, and what they do: each word is added when its turn comes.
struct SimtStreams : testing::Test {
  ~SimtStreams() override {
    cudaEventDestroy(event);
    cudaEventDestroy(back);
    cudaStreamDestroy(main);
    cudaStreamDestroy(side);
  }
  void add(cudaStream_t stream, const std::string& word) {
    simt::enqueue(stream, [this, word] { words += word + " "; });
  }
  // What the two do from `begin` of a step to its end; a missing event leaves its order open.
  void step(bool fork_again = true, bool join = true) {
    add(main, "a");
    record(event, main);
    wait(side, event);
    add(side, "x");
    add(main, "b");
    if (fork_again) {
      record(event, main);
      wait(side, event);
    }
    add(side, "y");
    record(back, side);
    if (join) wait(main, back);
    add(main, "c");
    if (!join) wait(main, back);
  }
  void record(cudaEvent_t what, cudaStream_t stream) { EXPECT_EQ(cudaEventRecord(what, stream), cudaSuccess); }
  void wait(cudaStream_t stream, cudaEvent_t what) {
    EXPECT_EQ(cudaStreamWaitEvent(stream, what), cudaSuccess);
  }
  void begin() { EXPECT_EQ(cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal), cudaSuccess); }
  cudaError_t end() { return cudaStreamEndCapture(main, &graph); }
  std::string take() { return std::exchange(words, ""); }
  // The words of a replay.
  std::string replay(bool fork_again, bool join) {
    begin();
    step(fork_again, join);
    EXPECT_EQ(end(), cudaSuccess);
    EXPECT_EQ(words, "");
    cudaGraphExec_t exec = nullptr;
    EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
    EXPECT_EQ(cudaGraphLaunch(exec, main), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(main), cudaSuccess);
    cudaGraphExecDestroy(exec);
    return take();
  }

  cudaStream_t main = new_stream(), side = new_stream();
  cudaEvent_t event = new_event(), back = new_event();
  cudaGraph_t graph = nullptr;
  std::string words;
};

TEST_F(SimtStreams, WorkIsDoneWhenItIsGiven) {
  EXPECT_NE(main, side);
  step();
  EXPECT_EQ(take(), "a x b y c ");
  EXPECT_EQ(cudaStreamQuery(side), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
}

TEST_F(SimtStreams, ARecordingTakesInAStreamThatWaitsForItsEvents) {
  begin();
  add(side, "before");
  EXPECT_EQ(take(), "before ");  // not of the recording, yet
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
  EXPECT_EQ(cudaStreamIsCapturing(side, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusNone);
  step();
  EXPECT_EQ(cudaStreamIsCapturing(side, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  EXPECT_EQ(take(), "");
  ASSERT_EQ(end(), cudaSuccess);
  std::size_t n_nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &n_nodes), cudaSuccess);
  EXPECT_EQ(n_nodes, 5u);
  cudaGraphDestroy(graph);
  add(side, "after");
  EXPECT_EQ(take(), "after ");
}

TEST_F(SimtStreams, AReplayDoesWhatWasRecordedInEachOrder) {
  EXPECT_EQ(replay(true, true), "a x b y c ");
  for (const char* const order : {"lazy", "eager"}) {
    const Setting setting("SIMT_STREAMS", order);
    const std::string got = replay(true, true);
    EXPECT_TRUE(got == "a b x y c " || got == "a x b y c ")
        << order << ": " << got;  // all that events leave open
  }
}

TEST_F(SimtStreams, AMissingEventChangesTheOrderOfAReplay) {
  {
    const Setting setting("SIMT_STREAMS", "lazy");
    EXPECT_EQ(replay(true, false), "a b c x y ");  // c does not wait for y
  }
  const Setting setting("SIMT_STREAMS", "eager");
  EXPECT_EQ(replay(false, true), "a x y b c ");  // y does not wait for b
}

// Points of one stream: whoever is held back by the first does not wait for what came behind it.
TEST_F(SimtStreams, APointHoldsBackForWhatCameBeforeIt) {
  using Point = switchyard::ops::cuda::StreamPoint;
  const auto two_points = [&] {
    const Point fork(main);
    fork.hold_back(side);
    add(side, "x");
    const Point first(side);
    add(side, "y");
    const Point second(side);
    first.hold_back(main);
    add(main, "a");
    second.hold_back(main);
    add(main, "b");
  };
  const Setting setting("SIMT_STREAMS", "lazy");
  for (int turn = 0; turn < 2; ++turn) {  // the second takes the events of the first
    two_points();
    EXPECT_EQ(take(), "");
    EXPECT_EQ(cudaStreamSynchronize(main), cudaSuccess);
    EXPECT_EQ(take(), "x a y b ");
  }
  begin();
  two_points();
  ASSERT_EQ(end(), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  cudaGraphDestroy(graph);
  EXPECT_EQ(cudaGraphLaunch(exec, main), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(main), cudaSuccess);
  EXPECT_EQ(take(), "x a y b ");
  cudaGraphExecDestroy(exec);
}

TEST_F(SimtStreams, LazyWorkIsDoneWhenSomeoneWaits) {
  const Setting setting("SIMT_STREAMS", "lazy");
  step();
  EXPECT_EQ(take(), "");
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(take(), "a b ");  // what the event was recorded behind
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(main), cudaErrorNotReady);
  EXPECT_EQ(take(), "x y c ");
  EXPECT_EQ(cudaStreamQuery(main), cudaSuccess);
  step(true, false);
  EXPECT_EQ(cudaStreamSynchronize(main), cudaSuccess);
  EXPECT_EQ(take(), "a b c x y ");  // c does not wait for y
}

TEST_F(SimtStreams, EagerWorkOfOtherStreamsGoesFirst) {
  const Setting setting("SIMT_STREAMS", "eager");
  step(false, true);
  EXPECT_EQ(take(), "");
  EXPECT_EQ(cudaStreamSynchronize(main), cudaSuccess);
  EXPECT_EQ(take(), "a x y b c ");
}

TEST_F(SimtStreams, LazyCopiesSeeWhatIsThereWhenTheyAreDone) {
  const Setting setting("SIMT_STREAMS", "lazy");
  void *locked = nullptr, *device = nullptr;
  ASSERT_EQ(cudaMallocHost(&locked, 1), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&device, 1), cudaSuccess);
  char pageable = 5, got = 0;
  char* const staged = static_cast<char*>(locked);
  *staged = 1;
  ASSERT_EQ(cudaMemcpyAsync(device, locked, 1, cudaMemcpyHostToDevice, main), cudaSuccess);
  *staged = 2;  // too early: the copy may not have begun
  ASSERT_EQ(cudaStreamSynchronize(main), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(&got, device, 1, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(got, 2);
  ASSERT_EQ(cudaMemcpyAsync(device, &pageable, 1, cudaMemcpyHostToDevice, main), cudaSuccess);
  pageable = 6;  // from pageable memory it has been read when the call returns
  ASSERT_EQ(cudaStreamSynchronize(main), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(&got, device, 1, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(got, 5);
  cudaFree(device);
  cudaFreeHost(locked);
}

TEST_F(SimtStreams, AStreamThatDoesNotComeBackSpoilsTheRecording) {
  begin();
  record(event, main);
  wait(side, event);
  add(side, "x");
  EXPECT_EQ(end(), cudaErrorStreamCaptureUnjoined);
  EXPECT_EQ(graph, nullptr);
  begin();
  record(event, main);
  wait(side, event);
  record(back, side);
  wait(main, back);
  add(side, "x");  // behind the event
  EXPECT_EQ(end(), cudaErrorStreamCaptureUnjoined);
  add(side, "x");
  EXPECT_EQ(take(), "x ");  // nothing is recorded any more
}

TEST_F(SimtStreams, EventsDoNotLeadIntoOrOutOfARecording) {
  record(event, side);
  begin();
  EXPECT_EQ(cudaStreamWaitEvent(main, event), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
  begin();
  record(event, main);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event), cudaErrorStreamCaptureImplicit);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
  begin();
  record(event, main);
  ASSERT_EQ(end(), cudaSuccess);
  cudaGraphDestroy(graph);
  EXPECT_EQ(cudaStreamWaitEvent(side, event), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorCapturedEvent);
}

TEST_F(SimtStreams, WhoWaitsWhileARecordingIsMadeSpoilsIt) {
  const std::vector<std::function<cudaError_t()>> waits = {
      [&] { return cudaStreamSynchronize(side); }, [&] { return cudaStreamQuery(main); },
      [&] { return cudaEventQuery(event); }, [] { return cudaDeviceSynchronize(); },
      [] {
        void* memory = nullptr;
        return cudaMalloc(&memory, 1);
      }};
  for (const auto& wait_somehow : waits) {
    begin();
    EXPECT_EQ(wait_somehow(), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
  }
}

TEST_F(SimtStreams, ARecordingEndsOnTheStreamOnWhichItBegan) {
  begin();
  record(event, main);
  wait(side, event);
  EXPECT_EQ(cudaStreamEndCapture(side, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(end(), cudaErrorInvalidValue);  // none is under way
}

TEST_F(SimtStreams, AStreamThatIsDestroyedIsNoStream) {
  EXPECT_EQ(cudaStreamDestroy(side), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(side), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, side), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(side), cudaErrorInvalidResourceHandle);
}

TEST(SimtDevices, AreAsManyAsAskedForAndDifferInWhatNamesThem) {
  int count = 0, device = -1;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  const Setting devices("SIMT_DEVICES", "3");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 3);
  EXPECT_EQ(cudaSetDevice(2), cudaSuccess);
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 2);
  cudaDeviceProp first, last;
  ASSERT_EQ(cudaGetDeviceProperties(&first, 0), cudaSuccess);
  ASSERT_EQ(cudaGetDeviceProperties(&last, 2), cudaSuccess);
  EXPECT_NE(std::memcmp(first.uuid.bytes, last.uuid.bytes, 16), 0);
  EXPECT_NE(first.pciBusID, last.pciBusID);
  char bus[16];
  EXPECT_EQ(cudaDeviceGetPCIBusId(bus, sizeof bus, 2), cudaSuccess);
  EXPECT_STREQ(bus, "0000:30:00.0");
  const Setting same("SIMT_SAME_UUID", "1");
  ASSERT_EQ(cudaGetDeviceProperties(&last, 2), cudaSuccess);
  EXPECT_EQ(std::memcmp(first.uuid.bytes, last.uuid.bytes, 16), 0);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
}

TEST(SimtDevices, AProcessSeesThoseThatAreVisible) {
  const Setting devices("SIMT_DEVICES", "4");
  cudaDeviceProp third, seen;
  ASSERT_EQ(cudaGetDeviceProperties(&third, 2), cudaSuccess);
  int count = 0;
  {
    const Setting visible("CUDA_VISIBLE_DEVICES", "2,0,4,1");
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
    EXPECT_EQ(count, 2);  // none behind the first that does not exist
    ASSERT_EQ(cudaGetDeviceProperties(&seen, 0), cudaSuccess);
    EXPECT_EQ(std::memcmp(third.uuid.bytes, seen.uuid.bytes, 16), 0);
  }
  const Setting visible("CUDA_VISIBLE_DEVICES", "");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
}

TEST(SimtDevices, ReachEachOthersMemoryUnlessTold) {
  const Setting devices("SIMT_DEVICES", "2");
  int can = -1;
  EXPECT_EQ(cudaDeviceCanAccessPeer(&can, 0, 1), cudaSuccess);
  EXPECT_EQ(can, 1);
  EXPECT_EQ(cudaDeviceCanAccessPeer(&can, 1, 1), cudaSuccess);
  EXPECT_EQ(can, 0);
  const Setting apart("SIMT_NO_PEERS", "1");
  EXPECT_EQ(cudaDeviceCanAccessPeer(&can, 0, 1), cudaSuccess);
  EXPECT_EQ(can, 0);
}

TEST(SimtDevices, AProcessThatHoldsMemoryKeepsItsDevice) {
  const Setting devices("SIMT_DEVICES", "2");
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 1), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_THROW(cudaSetDevice(1), std::runtime_error);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

TEST(SimtDevices, SeePageLockedMemoryOfTheHostAlone) {
  void *host = nullptr, *device = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, 8, cudaHostAllocMapped), cudaSuccess);
  EXPECT_EQ(cudaHostGetDevicePointer(&device, static_cast<std::byte*>(host) + 4, 0), cudaSuccess);
  EXPECT_EQ(device, static_cast<std::byte*>(host) + 4);
  int pageable = 0;
  EXPECT_EQ(cudaHostGetDevicePointer(&device, &pageable, 0), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
}

}  // namespace
