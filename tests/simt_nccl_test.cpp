// The stand-in for NCCL: what moves between ranks, and that it says what is wrong where ranks do not do the
// same. Each rank is a process that this one forks, with an emulated device of its own.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine.h"

namespace {

void ok(ncclResult_t result) {
  if (result != ncclSuccess) throw std::runtime_error(ncclGetLastError(nullptr));
}
void ok(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error("not so: " + what);
}

// Device memory of a rank.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::vector<T> values) : size_(values.size()) {
    void* memory = nullptr;
    ok(cudaMalloc(&memory, size_ * sizeof(T)));
    data_ = static_cast<T*>(memory);
    put(values);
  }
  explicit Buffer(std::size_t size) : Buffer(std::vector<T>(size)) {}
  ~Buffer() { (void)cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void put(const std::vector<T>& values) {
    ok(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> get() const {
    std::vector<T> values(size_);
    ok(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  T* data() const { return data_; }

 private:
  T* data_;
  std::size_t size_;
};

// A rank's own view of a test.
struct Rank {
  int rank, size;
  ncclUniqueId id;
  cudaStream_t stream = nullptr;
  ncclComm_t world = nullptr;

  void join() {
    ok(cudaSetDevice(rank));
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const Buffer<float> first(1);  // the emulator takes long for it under the sanitizers, and others would wait
    ok(ncclCommInitRankConfig(&world, size, id, rank, nullptr));
  }
  void all_gather(const Buffer<float>& to, const Buffer<float>& from, std::size_t count) const {
    ok(ncclAllGather(from.data(), to.data(), count, ncclFloat32, world, stream));
  }
  cudaGraphExec_t record(const std::function<void()>& body) const {
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    body();
    cudaGraph_t graph = nullptr;
    ok(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t exec = nullptr;
    ok(cudaGraphInstantiate(&exec, graph, 0));
    ok(cudaGraphDestroy(graph));
    return exec;
  }
};

constexpr unsigned kRankSeconds = 60;  // then a rank that hangs is killed, far beyond what any takes

// Runs body on each of n ranks; what each of them threw, "" if nothing.
std::vector<std::string> run_unjoined(int n, const std::function<void(Rank&)>& body) {
  ncclUniqueId id;
  ok(ncclGetUniqueId(&id));
  std::vector<int> read_end;
  std::vector<pid_t> process;
  for (int rank = 0; rank < n; ++rank) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("no pipe");
    const pid_t child = fork();
    if (child == 0) {
      alarm(kRankSeconds);
      setenv("SIMT_DEVICES", "4", 1);
      std::string error;
      try {
        Rank self{rank, n, id};
        body(self);
      } catch (const std::exception& thrown) {
        error = thrown.what();
      }
      const bool told = write(ends[1], error.data(), error.size()) == static_cast<ssize_t>(error.size());
      _exit(told ? 0 : 1);
    }
    close(ends[1]);
    read_end.push_back(ends[0]);
    process.push_back(child);
  }
  std::vector<std::string> errors;
  for (std::size_t r = 0; r < process.size(); ++r) {
    std::string error;
    char buffer[1024];
    for (ssize_t got; (got = read(read_end[r], buffer, sizeof buffer)) > 0;)
      error.append(buffer, static_cast<std::size_t>(got));
    close(read_end[r]);
    int status = 0;
    waitpid(process[r], &status, 0);
    errors.push_back(status == 0 ? error : "ended with status " + std::to_string(status));
  }
  return errors;
}
std::vector<std::string> run_ranks(int n, const std::function<void(Rank&)>& body) {
  return run_unjoined(n, [&](Rank& self) {
    self.join();
    body(self);
  });
}
void expect_fine(int n, const std::function<void(Rank&)>& body) {
  EXPECT_EQ(run_ranks(n, body), std::vector<std::string>(static_cast<std::size_t>(n)));
}
void expect_words(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    EXPECT_NE(text.find(word), std::string::npos) << word << "\n  in: " << text;
}
// Each rank fails with a message that names all of `words`.
void expect_refused(const std::vector<std::string>& errors, const std::vector<std::string>& words) {
  for (const std::string& error : errors) expect_words(error, words);
}

std::vector<float> numbers(std::size_t count, float first) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(SimtNccl, AllGatherBringsThePieceOfEachRankAlsoInPlace) {
  expect_fine(3, [](Rank& self) {
    const Buffer<float> from(numbers(5, 10.0f * static_cast<float>(self.rank))), to(15);
    self.all_gather(to, from, 5);
    const std::vector<float> want{0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24};
    expect(to.get() == want, "all-gather");
    std::vector<float> own(15, -1.0f);
    for (std::size_t i = 0; i < 5; ++i) own[static_cast<std::size_t>(self.rank) * 5 + i] = want[i];
    Buffer<float> both(own);
    ok(ncclAllGather(both.data() + 5 * self.rank, both.data(), 5, ncclFloat32, self.world, self.stream));
    expect(both.get() == std::vector<float>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4}, "in place");
  });
}

TEST(SimtNccl, AllToAllSendsAPieceToEachRank) {
  expect_fine(3, [](Rank& self) {
    std::vector<std::int8_t> mine;
    for (int p = 0; p < 3; ++p) mine.insert(mine.end(), 2, static_cast<std::int8_t>(10 * self.rank + p));
    const Buffer<std::int8_t> from(mine), to(6);
    ok(ncclAlltoAll(from.data(), to.data(), 2, ncclUint8, self.world, self.stream));
    const auto r = static_cast<std::int8_t>(self.rank), r10 = static_cast<std::int8_t>(10 + r),
               r20 = static_cast<std::int8_t>(20 + r);
    expect(to.get() == std::vector<std::int8_t>{r, r, r10, r10, r20, r20}, "all-to-all");
  });
}

TEST(SimtNccl, MessagesOfAGroupMoveAtOnceHoweverLongTheyAre) {
  constexpr std::size_t kLong = 300'000;  // floats: several times what lies between two ranks at once
  expect_fine(3, [](Rank& self) {
    const int next = (self.rank + 1) % 3, previous = (self.rank + 2) % 3;
    const auto count = [](int rank) { return kLong / 3 * static_cast<std::size_t>(rank) + 7; };
    const Buffer<float> from(numbers(kLong, static_cast<float>(self.rank)));
    const Buffer<float> to(count(previous)), tail(3), own(2);
    ok(ncclGroupStart());
    ok(ncclSend(from.data(), count(self.rank), ncclFloat32, next, self.world, self.stream));
    ok(ncclSend(from.data() + 1, 3, ncclFloat32, next, self.world, self.stream));
    ok(ncclSend(from.data(), 2, ncclFloat32, self.rank, self.world, self.stream));
    ok(ncclSend(nullptr, 0, ncclFloat32, previous, self.world, self.stream));
    ok(ncclRecv(nullptr, 0, ncclFloat32, next, self.world, self.stream));
    ok(ncclRecv(own.data(), 2, ncclFloat32, self.rank, self.world, self.stream));
    ok(ncclRecv(to.data(), count(previous), ncclFloat32, previous, self.world, self.stream));
    ok(ncclRecv(tail.data(), 3, ncclFloat32, previous, self.world, self.stream));
    expect(to.get() == std::vector<float>(count(previous)), "nothing moves before the group ends");
    ok(ncclGroupEnd());
    expect(to.get() == numbers(count(previous), static_cast<float>(previous)), "the long message");
    expect(tail.get() == numbers(3, static_cast<float>(previous + 1)), "the second message");
    expect(own.get() == numbers(2, static_cast<float>(self.rank)), "the message to itself");
  });
}

// Small whole numbers: all sums are exact.
TEST(SimtNccl, SumsOfThreeTypes) {
  expect_fine(3, [](Rank& self) {
    const auto r = static_cast<float>(self.rank);
    const Buffer<float> x(std::vector<float>{r, 10 * r, 1, 2, 3, 4});
    ok(ncclAllReduce(x.data(), x.data(), 6, ncclFloat32, ncclSum, self.world, self.stream));
    expect(x.get() == std::vector<float>{3, 30, 3, 6, 9, 12}, "all-reduce of f32");

    const Buffer<double> d(std::vector<double>{r, 1 + r, 2 * r, 3 * r, 1, 1}), part(2);
    ok(ncclReduceScatter(d.data(), part.data(), 2, ncclFloat64, ncclSum, self.world, self.stream));
    const std::vector<std::vector<double>> want{{3, 6}, {6, 9}, {3, 3}};
    expect(part.get() == want[static_cast<std::size_t>(self.rank)], "reduce-scatter of f64");

    const Buffer<__nv_bfloat16> b({__float2bfloat16_rn(1 + r), __float2bfloat16_rn(0.5f)});
    ok(ncclAllReduce(b.data(), b.data(), 2, ncclBfloat16, ncclSum, self.world, self.stream));
    const std::vector<__nv_bfloat16> got = b.get();
    expect(__bfloat162float(got[0]) == 6 && __bfloat162float(got[1]) == 1.5f, "all-reduce of bf16");

    const Buffer<float> parts(numbers(5, r));
    ok(ncclGroupStart());
    ok(ncclReduce(parts.data(), parts.data(), 2, ncclFloat32, ncclSum, 1, self.world, self.stream));
    ok(ncclReduce(parts.data() + 2, parts.data() + 2, 3, ncclFloat32, ncclSum, 2, self.world, self.stream));
    ok(ncclGroupEnd());
    std::vector<float> reduced = numbers(5, r);
    if (self.rank == 1) reduced = {3, 6, 3, 4, 5};
    if (self.rank == 2) reduced = {2, 3, 9, 12, 15};
    expect(parts.get() == reduced, "two reduces, each to its root alone");
  });
}

TEST(SimtNccl, SplitMakesCommunicatorsInTheOrderOfKeys) {
  expect_fine(4, [](Rank& self) {
    ncclComm_t pair = nullptr, some = nullptr;
    ok(ncclCommSplit(self.world, self.rank % 2, -self.rank, &pair, nullptr));
    ok(ncclCommSplit(self.world, self.rank == 3 ? NCCL_SPLIT_NOCOLOR : 7, 0, &some, nullptr));
    expect((some == nullptr) == (self.rank == 3), "a rank without a colour has no communicator");
    int count = 0, place = -1;
    ok(ncclCommCount(pair, &count));
    ok(ncclCommUserRank(pair, &place));
    expect(count == 2 && place == (self.rank < 2 ? 1 : 0), "the greater rank has the lesser key");
    const auto r = static_cast<float>(self.rank);
    const Buffer<float> from(std::vector<float>{r}), two(2), three(3), four(4);
    ok(ncclAllGather(from.data(), two.data(), 1, ncclFloat32, pair, self.stream));
    if (some != nullptr) ok(ncclAllGather(from.data(), three.data(), 1, ncclFloat32, some, self.stream));
    self.all_gather(four, from, 1);
    const float other = self.rank < 2 ? r + 2 : r - 2;
    expect(two.get() == std::vector<float>{std::max(r, other), std::min(r, other)}, "of a pair");
    if (some != nullptr) expect(three.get() == std::vector<float>{0, 1, 2}, "of three");
    expect(four.get() == std::vector<float>{0, 1, 2, 3}, "of all");
  });
}

TEST(SimtNccl, ARecordingMovesWhatIsThereWhenItIsReplayed) {
  expect_fine(2, [](Rank& self) {
    const auto r = static_cast<float>(self.rank);
    Buffer<float> from(1);
    const Buffer<float> to(2), sum(1);
    const cudaGraphExec_t exec = self.record([&] {
      self.all_gather(to, from, 1);
      ok(ncclAllReduce(from.data(), sum.data(), 1, ncclFloat32, ncclSum, self.world, self.stream));
    });
    expect(to.get() == std::vector<float>(2), "nothing moves while it is recorded");
    for (float turn = 1; turn <= 3; ++turn) {
      from.put({10 * turn + r});
      ok(cudaGraphLaunch(exec, self.stream));
      expect(to.get() == std::vector<float>{10 * turn, 10 * turn + 1}, "all-gather of a replay");
      expect(sum.get() == std::vector<float>{20 * turn + 1}, "all-reduce of a replay");
    }
    ok(cudaGraphExecDestroy(exec));
  });
}

// The last element that a rank copies out of what it was sent, turn after turn, where the exchange has a stream
// of its own between two copies of the main stream. With `joined` the second copy waits for it.
std::vector<float> turns_beside(Rank& self, bool joined) {
  const cudaStream_t main = self.stream;
  ok(cudaStreamCreateWithFlags(&self.stream, cudaStreamNonBlocking));
  cudaEvent_t there = nullptr, back = nullptr;
  ok(cudaEventCreateWithFlags(&there, cudaEventDisableTiming));
  ok(cudaEventCreateWithFlags(&back, cudaEventDisableTiming));
  Buffer<float> source(1);
  const Buffer<float> from(1), to(2), out(1);
  const auto copy = [&](float* target, const float* data) {
    ok(cudaMemcpyAsync(target, data, sizeof(float), cudaMemcpyDeviceToDevice, main));
  };
  ok(cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal));
  copy(from.data(), source.data());
  ok(cudaEventRecord(there, main));
  ok(cudaStreamWaitEvent(self.stream, there));
  self.all_gather(to, from, 1);
  ok(cudaEventRecord(back, self.stream));
  if (joined) ok(cudaStreamWaitEvent(main, back));
  copy(out.data(), to.data() + 1);
  if (!joined) ok(cudaStreamWaitEvent(main, back));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ok(cudaStreamEndCapture(main, &graph));
  ok(cudaGraphInstantiate(&exec, graph, 0));
  ok(cudaGraphDestroy(graph));
  std::vector<float> turns;
  for (int turn = 1; turn <= 2; ++turn) {
    source.put({static_cast<float>(10 * turn + self.rank)});
    ok(cudaGraphLaunch(exec, main));
    ok(cudaStreamSynchronize(main));
    turns.push_back(out.get()[0]);
  }
  ok(cudaGraphExecDestroy(exec));
  return turns;
}

TEST(SimtNccl, AnExchangeBesideOtherWorkNeedsItsEvents) {
  for (const char* const order : {"", "lazy", "eager"}) {
    expect_fine(2, [order](Rank& self) {
      setenv("SIMT_STREAMS", order, 1);
      expect(turns_beside(self, true) == std::vector<float>{11, 21}, std::string("joined ") + order);
    });
  }
  expect_fine(2, [](Rank& self) {
    setenv("SIMT_STREAMS", "lazy", 1);
    expect(turns_beside(self, false) == std::vector<float>{0, 11},
           "without its event the copy comes too early");
  });
}

TEST(SimtNccl, NapsChangeNothing) {
  expect_fine(4, [](Rank& self) {
    setenv("SIMT_NCCL_DELAY", "3", 1);
    const Buffer<float> from(std::vector<float>{static_cast<float>(self.rank)}), to(4);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) self.all_gather(to, from, 1);
    expect(to.get() == std::vector<float>{0, 1, 2, 3}, "all-gather");
    // 20 naps below 3 ms of each of four ranks, the longest of which counts.
    expect(std::chrono::steady_clock::now() - start > std::chrono::milliseconds(10), "ranks nap");
  });
}

// Calls drawn at random, the same on all ranks, of two communicators, some recorded: each rank's value says who
// it is and which call this is, and all of them must come through.
TEST(SimtNccl, RandomCallsComeThrough) {
  expect_fine(4, [](Rank& self) {
    setenv("SIMT_NCCL_DELAY", "11", 1);
    std::minstd_rand random(5);
    const auto below = [&](unsigned n) { return static_cast<std::size_t>(random() % n); };
    ncclComm_t pair = nullptr;
    ok(ncclCommSplit(self.world, self.rank / 2, 0, &pair, nullptr));
    constexpr std::size_t kMost = 100'000;
    Buffer<float> from(4 * kMost);
    const Buffer<float> to(4 * kMost);
    for (int turn = 0; turn < 40; ++turn) {
      const bool in_pair = below(2) == 0, records = below(3) == 0;
      const std::size_t kind = below(3), count = below(2) == 0 ? below(kMost) + 1 : below(9) + 1;
      const ncclComm_t comm = in_pair ? pair : self.world;
      const int n = in_pair ? 2 : 4, first = in_pair ? self.rank / 2 * 2 : 0, place = self.rank - first;
      const auto value = [&](int rank, int piece) {
        return static_cast<float>(100 * turn + 10 * rank + piece);
      };
      std::vector<float> mine;
      for (int p = 0; p < n; ++p) mine.insert(mine.end(), count, value(self.rank, kind == 0 ? 0 : p));
      mine.resize(4 * kMost);
      from.put(mine);
      const auto call = [&] {
        if (kind == 0) ok(ncclAllGather(from.data(), to.data(), count, ncclFloat32, comm, self.stream));
        if (kind == 1) ok(ncclAlltoAll(from.data(), to.data(), count, ncclFloat32, comm, self.stream));
        if (kind != 2) return;
        ok(ncclGroupStart());
        for (int p = n - 1; p >= 0; --p) {
          const std::size_t at = static_cast<std::size_t>(p) * count;
          ok(ncclSend(from.data() + at, count, ncclFloat32, p, comm, self.stream));
          ok(ncclRecv(to.data() + at, count, ncclFloat32, p, comm, self.stream));
        }
        ok(ncclGroupEnd());
      };
      if (records) {
        const cudaGraphExec_t exec = self.record(call);
        ok(cudaGraphLaunch(exec, self.stream));
        ok(cudaGraphExecDestroy(exec));
      } else {
        call();
      }
      const std::vector<float> got = to.get();
      for (int p = 0; p < n; ++p) {
        const auto piece = got.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(p) * count);
        const std::vector<float> want(count, value(first + p, kind == 0 ? 0 : place));
        expect(std::equal(want.begin(), want.end(), piece),
               "turn " + std::to_string(turn) + ", piece " + std::to_string(p));
      }
    }
  });
}

TEST(SimtNccl, CallsThatDifferAreRefusedOnBothSides) {
  expect_refused(
      run_ranks(2,
                [](Rank& self) {
                  const Buffer<float> a(8), b(8);
                  if (self.rank == 0) self.all_gather(a, b, 4);
                  ok(ncclAlltoAll(a.data(), b.data(), 4, ncclFloat32, self.world, self.stream));
                }),
      {"rank 0", "rank 1", "all-gather of 16 bytes", "all-to-all of 16 bytes", "call 0", "communicator world"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<float> a(8), b(8);
                             self.all_gather(a, b, self.rank == 0 ? 4 : 3);
                           }),
                 {"rank 0", "rank 1", "all-gather of 16 bytes", "all-gather of 12 bytes"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<double> a(2);
                             const std::size_t n = self.rank == 0 ? 2 : 1;
                             ok(ncclAllReduce(a.data(), a.data(), n, self.rank == 0 ? ncclFloat32 : ncclFloat64,
                                              ncclSum, self.world, self.stream));
                           }),
                 {"rank 0", "rank 1", "all-reduce of 8 bytes of type 7", "all-reduce of 8 bytes of type 8"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<float> a(8);
                             if (self.rank == 0) {
                               ok(ncclSend(a.data(), 4, ncclFloat32, 1, self.world, self.stream));
                             } else {
                               ok(ncclRecv(a.data(), 8, ncclFloat32, 0, self.world, self.stream));
                             }
                           }),
                 {"rank 0", "rank 1", "message of 16 bytes", "message of 32 bytes"});
}

TEST(SimtNccl, CallsOfOtherCommunicatorsAreRefused) {
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             ncclComm_t copy = nullptr;
                             ok(ncclCommSplit(self.world, 0, 0, &copy, nullptr));
                             const Buffer<float> a(2), b(2);
                             ok(ncclAllGather(a.data(), b.data(), 1, ncclFloat32,
                                              self.rank == 0 ? copy : self.world, self.stream));
                           }),
                 {"rank 0", "rank 1", "communicator world,", "communicator world.0:0,"});
}

TEST(SimtNccl, RecordingsReplayedInAnotherOrderAreRefused) {
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<float> a(2), b(2);
                             const cudaGraphExec_t first = self.record([&] { self.all_gather(a, b, 1); });
                             const cudaGraphExec_t second = self.record([&] { self.all_gather(a, b, 1); });
                             ok(cudaGraphLaunch(self.rank == 0 ? first : second, self.stream));
                           }),
                 {"rank 0", "rank 1", "call 0 of", "call 1 of", "turn 0"});
}

TEST(SimtNccl, ACallThatIsRecordedOnOneRankAloneIsRefused) {
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<float> a(2), b(2);
                             if (self.rank == 0) self.all_gather(a, b, 1);
                             ok(cudaGraphLaunch(self.record([&] { self.all_gather(a, b, 1); }), self.stream));
                           }),
                 {"rank 0", "rank 1", "world, recorded", "world, not recorded"});
}

TEST(SimtNccl, ARankThatNeverComesIsNamed) {
  const auto errors = run_ranks(3, [](Rank& self) {
    setenv("SIMT_NCCL_PATIENCE", "0.3", 1);
    const Buffer<float> a(3), b(1);
    if (self.rank != 1) self.all_gather(a, b, 1);
  });
  EXPECT_EQ(errors[1], "");
  expect_refused({errors[0], errors[2]},
                 {"rank 1 did not come to all-gather of 4 bytes", "call 0 of communicator world"});

  // Two messages that wait for each other, each to be taken.
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             setenv("SIMT_NCCL_PATIENCE", "0.3", 1);
                             const Buffer<float> a(1), b(1);
                             ok(ncclSend(a.data(), 1, ncclFloat32, 1 - self.rank, self.world, self.stream));
                             ok(ncclRecv(b.data(), 1, ncclFloat32, 1 - self.rank, self.world, self.stream));
                           }),
                 {"did not come to message of 4 bytes"});
}

TEST(SimtNccl, MemoryThatIsNotALivePieceOfTheDeviceIsRefused) {
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             const std::vector<float> host(4);
                             const Buffer<float> to(4);
                             ok(ncclAllGather(host.data(), to.data(), 4, ncclFloat32, self.world, self.stream));
                           }),
                 {"rank 0", "no live piece of device memory has these 16 bytes"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<float> to(7), from(4);
                             self.all_gather(to, from, 4);
                           }),
                 {"no live piece of device memory has these 32 bytes"});
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             cudaGraphExec_t exec = nullptr;
                             const Buffer<float> to(4);
                             {
                               const Buffer<float> from(4);
                               exec = self.record([&] { self.all_gather(to, from, 4); });
                             }
                             ok(cudaGraphLaunch(exec, self.stream));
                           }),
                 {"device memory of call 0 is released"});
  expect_refused(
      run_ranks(2,
                [](Rank& self) {
                  const Buffer<float> both(8);
                  ok(ncclAllGather(both.data() + 1, both.data(), 4, ncclFloat32, self.world, self.stream));
                }),
      {"what it reads overlaps what it writes"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Buffer<float> a(4);
                             ok(ncclGroupStart());
                             ok(ncclSend(a.data(), 2, ncclFloat32, 1 - self.rank, self.world, self.stream));
                             ok(ncclRecv(a.data() + 1, 2, ncclFloat32, 1 - self.rank, self.world, self.stream));
                             ok(ncclGroupEnd());
                           }),
                 {"a call of a group writes memory of another one"});
}

// A call on one stream, and what comes next on another; `wait` makes it follow, or does not.
std::vector<std::string> run_on_two_streams(
    const std::function<void(Rank&, cudaStream_t first, const std::function<void()>& call)>& next) {
  return run_ranks(2, [&](Rank& self) {
    const Buffer<float> a(2), b(1);
    const std::function<void()> call = [&] { self.all_gather(a, b, 1); };
    call();
    const cudaStream_t first = self.stream;
    ok(cudaStreamCreateWithFlags(&self.stream, cudaStreamNonBlocking));
    next(self, first, call);
  });
}
void follow(cudaStream_t stream, cudaStream_t other) {
  cudaEvent_t event = nullptr;
  ok(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  ok(cudaEventRecord(event, other));
  ok(cudaStreamWaitEvent(stream, event));
  ok(cudaEventDestroy(event));
}

TEST(SimtNccl, CallsOnTwoStreamsFollowEachOther) {
  using Call = std::function<void()>;
  const std::vector<std::string> fine(2);
  const std::string refusal = "a call that may overtake the one before";
  expect_refused(run_on_two_streams([](Rank&, cudaStream_t, const Call& call) { call(); }),
                 {"of communicator world", refusal});
  EXPECT_EQ(run_on_two_streams([](Rank& self, cudaStream_t first, const Call& call) {
              follow(self.stream, first);
              call();
            }),
            fine);
  EXPECT_EQ(run_on_two_streams([](Rank&, cudaStream_t first, const Call& call) {
              ok(cudaStreamSynchronize(first));
              call();
            }),
            fine);
  // An event from before the call is none behind it.
  expect_refused(run_on_two_streams([](Rank& self, cudaStream_t first, const Call& call) {
                   follow(self.stream, first);
                   std::swap(self.stream, first);
                   call();
                   std::swap(self.stream, first);
                   call();
                 }),
                 {refusal});
}

TEST(SimtNccl, CallsOfARecordingFollowThoseOfOtherStreams) {
  using Call = std::function<void()>;
  const std::vector<std::string> fine(2);
  const auto launched = [](const std::function<void(Rank&, cudaStream_t)>& wait) {
    return run_on_two_streams([&](Rank& self, cudaStream_t first, const Call& call) {
      const cudaGraphExec_t exec = self.record(call);
      wait(self, first);
      ok(cudaGraphLaunch(exec, self.stream));
      std::swap(self.stream, first);
      follow(self.stream, first);
      call();
    });
  };
  expect_refused(launched([](Rank&, cudaStream_t) {}), {"exchanges of a recording may overtake one"});
  EXPECT_EQ(launched([](Rank& self, cudaStream_t first) { follow(self.stream, first); }), fine);
  // What comes next does not wait for the recording.
  expect_refused(run_on_two_streams([](Rank& self, cudaStream_t first, const Call& call) {
                   const cudaGraphExec_t exec = self.record(call);
                   follow(self.stream, first);
                   ok(cudaGraphLaunch(exec, self.stream));
                   self.stream = first;
                   call();
                 }),
                 {"a call that may overtake the one before"});
  // Within one: the first call comes behind the fork.
  const auto recorded = [](bool waits) {
    return run_on_two_streams([waits](Rank& self, cudaStream_t other, const Call& call) {
      const cudaStream_t own = self.stream;
      ok(cudaStreamSynchronize(other));
      (void)self.record([&] {
        follow(other, own);
        call();
        if (waits) follow(other, own);
        self.stream = other;
        call();
        self.stream = own;
        follow(own, other);
      });
    });
  };
  EXPECT_EQ(recorded(true), fine);
  expect_refused(recorded(false), {"a call that may overtake the one before"});
}

TEST(SimtNccl, CallsOfAGroupAreOnOneStream) {
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             const Buffer<float> a(1), b(1);
                             ok(ncclGroupStart());
                             self.all_gather(a, b, 1);
                             ok(cudaStreamCreateWithFlags(&self.stream, cudaStreamNonBlocking));
                             self.all_gather(a, b, 1);
                           }),
                 {"rank 0", "another stream than the others of its group"});
}

TEST(SimtNccl, ACallThatIsRefusedWithinAGroupRefusesTheGroup) {
  expect_refused(
      run_ranks(1,
                [](Rank& self) {
                  const Buffer<float> a(4);
                  ok(ncclGroupStart());
                  expect(ncclSend(a.data(), 4, ncclFloat32, 1, self.world, self.stream) == ncclInvalidArgument,
                         "there is no second rank");
                  ok(ncclGroupEnd());
                }),
      {"there is no place 1"});
}

TEST(SimtNccl, ACommunicatorThatIsNoMoreIsRefused) {
  const std::pair<ncclResult_t (*)(ncclComm_t), const char*> ends[] = {
      {ncclCommFinalize, "finalized"}, {ncclCommDestroy, "destroyed"}, {ncclCommAbort, "aborted"}};
  for (const auto& [end, word] : ends) {
    expect_refused(run_ranks(1,
                             [end = end](Rank& self) {
                               const Buffer<float> a(1), b(1);
                               self.all_gather(a, b, 1);
                               ok(end(self.world));
                               self.all_gather(a, b, 1);
                             }),
                   {std::string("the communicator is ") + word});
    expect_refused(run_ranks(1,
                             [end = end](Rank& self) {
                               const Buffer<float> a(1), b(1);
                               const cudaGraphExec_t exec = self.record([&] { self.all_gather(a, b, 1); });
                               ok(end(self.world));
                               ok(cudaGraphLaunch(exec, self.stream));
                             }),
                   {std::string("the communicator is ") + word});
  }
}

// Eight floats that are a window of the world.
struct Window {
  const Rank& rank;
  float* data = nullptr;
  ncclWindow_t window = nullptr;
  explicit Window(const Rank& self, std::size_t bytes = 8 * sizeof(float)) : rank(self) {
    void* memory = nullptr;
    ok(ncclMemAlloc(&memory, bytes));
    data = static_cast<float*>(memory);
    ok(ncclCommWindowRegister(self.world, data, bytes, &window, NCCL_WIN_COLL_SYMMETRIC));
  }
  void all_gather(int to, int from) const {
    ok(ncclAllGather(data + from, data + to, 1, ncclFloat32, rank.world, rank.stream));
  }
};

TEST(SimtNccl, WindowsAreOfTheSameSizesInTheSameOrder) {
  expect_fine(2, [](Rank& self) {
    const Window a(self), b(self, 100);
    const std::vector<float> mine(8, static_cast<float>(self.rank + 1));
    ok(cudaMemcpy(a.data, mine.data(), sizeof(float) * 8, cudaMemcpyHostToDevice));
    a.all_gather(4, 0);
    a.all_gather(4, 4 + self.rank);  // in place
    std::vector<float> there(2);
    ok(cudaMemcpy(there.data(), a.data + 4, sizeof(float) * 2, cudaMemcpyDeviceToHost));
    expect(there == std::vector<float>{1, 2}, "all-gather");
    ok(ncclCommWindowDeregister(self.world, a.window));
    ok(ncclMemFree(a.data));
  });
  expect_refused(run_ranks(2, [](Rank& self) { const Window a(self, self.rank == 0 ? 32 : 36); }),
                 {"rank 0", "rank 1", "window of 32 bytes, number 0", "window of 36 bytes, number 0"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Window a(self, self.rank == 0 ? 32 : 64), b(self, self.rank == 0 ? 64 : 32);
                           }),
                 {"rank 0", "rank 1", "window of 32 bytes, number 0", "window of 64 bytes, number 0"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             if (self.rank == 0) const Window a(self);
                             const Buffer<float> to(2), from(1);
                             self.all_gather(to, from, 1);
                           }),
                 {"rank 0", "rank 1", "window of 32 bytes", "all-gather of 4 bytes"});
}

TEST(SimtNccl, WhatLiesInWindowsLiesInTheSamePlaceOfThem) {
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Window a(self);
                             a.all_gather(4 + self.rank, 0);
                           }),
                 {"rank 0", "rank 1", "to byte 16 of window 1", "to byte 20 of window 1"});
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             const Window a(self);
                             const Buffer<float> outside(2);
                             ok(ncclAllGather(a.data, self.rank == 0 ? a.data + 4 : outside.data(), 1,
                                              ncclFloat32, self.world, self.stream));
                           }),
                 {"rank 0", "rank 1", "from byte 0 of window 1 to byte 16 of window 1",
                  "from byte 0 of window 1 of 4 bytes"});
}

TEST(SimtNccl, MemoryThatCannotBeAWindowOrIsOneIsRefused) {
  expect_refused(
      run_ranks(1,
                [](Rank& self) {
                  const Buffer<float> plain(8);
                  ncclWindow_t window = nullptr;
                  ok(ncclCommWindowRegister(self.world, plain.data(), 32, &window, NCCL_WIN_COLL_SYMMETRIC));
                }),
      {"rank 0", "memory that is not ncclMemAlloc's"});
  expect_refused(
      run_ranks(1,
                [](Rank& self) {
                  const Window a(self);
                  ncclWindow_t window = nullptr;
                  ok(ncclCommWindowRegister(self.world, a.data + 1, 4, &window, NCCL_WIN_COLL_SYMMETRIC));
                }),
      {"rank 0", "memory of window 1 becomes a window again"});
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             const Window a(self);
                             ok(ncclMemFree(a.data));
                           }),
                 {"rank 0 of communicator world", "ncclMemFree of memory that is window 1"});
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             const Window a(self);
                             ok(ncclCommWindowDeregister(self.world, a.window));
                             ok(ncclCommWindowDeregister(self.world, a.window));
                           }),
                 {"rank 0", "the end of a window that it does not have"});
  expect_refused(
      run_ranks(1,
                [](Rank& self) {
                  Window a(self);
                  ok(ncclCommWindowDeregister(self.world, a.window));
                  (void)self.record([&] {
                    ok(ncclCommWindowRegister(self.world, a.data, 32, &a.window, NCCL_WIN_COLL_SYMMETRIC));
                  });
                }),
      {"rank 0", "a window within a group or a recording"});
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             setenv("SIMT_NCCL_VERSION", "22605", 1);
                             const Window a(self);
                           }),
                 {"none in version 22605"});
  expect_fine(2, [](Rank& self) {
    setenv("SIMT_NCCL_NO_WINDOWS", "1", 1);
    expect(Window(self).window == nullptr, "no window");
  });
}

TEST(SimtNccl, ThereIsNoAllToAllInOlderVersions) {
  expect_refused(run_ranks(1,
                           [](Rank& self) {
                             setenv("SIMT_NCCL_VERSION", "21805", 1);
                             int version = 0;
                             ok(ncclGetVersion(&version));
                             expect(version == 21805, "the version");
                             const Buffer<float> a(1), b(1);
                             ok(ncclAlltoAll(a.data(), b.data(), 1, ncclFloat32, self.world, self.stream));
                           }),
                 {"none in version 21805"});
}

// The call returns when the communicator is aborted, from another thread; the error is seen before.
TEST(SimtNccl, AnErrorOfAnotherRankStopsACallUntilAbort) {
  expect_refused(run_ranks(2,
                           [](Rank& self) {
                             setenv("SIMT_NCCL_REMOTE_ERROR_AFTER", "2", 1);
                             const Buffer<float> a(2), b(1);
                             self.all_gather(a, b, 1);
                             self.all_gather(a, b, 1);
                             ncclResult_t error = ncclRemoteError;
                             ok(ncclCommGetAsyncError(self.world, &error));
                             expect(error == ncclSuccess, "no error yet");
                             std::atomic<bool> seen = false;
                             std::thread other([&] {
                               for (ncclResult_t now = ncclSuccess; now != ncclRemoteError;)
                                 (void)ncclCommGetAsyncError(self.world, &now);
                               seen = true;
                               (void)ncclCommAbort(self.world);
                             });
                             std::string words;
                             try {
                               self.all_gather(a, b, 1);
                             } catch (const std::runtime_error& stopped) {
                               words = stopped.what();
                             }
                             other.join();
                             expect(seen, "the error is seen before the call returns");
                             throw std::runtime_error(words);
                           }),
                 {"communicator world", "aborted"});
}

TEST(SimtNccl, AnAbortMayHang) {
  expect_fine(1, [](Rank& self) {
    setenv("SIMT_NCCL_ABORT_HANGS", "1", 1);
    static std::atomic<bool> returned = false;
    std::thread([&] {
      (void)ncclCommAbort(self.world);
      returned = true;
    }).detach();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // an abort takes less than a microsecond
    expect(!returned, "the abort hangs");
  });
}

TEST(SimtNccl, RanksThatDoNotComeToInitAreNamed) {
  const auto errors = run_unjoined(2, [](Rank& self) {
    setenv("SIMT_NCCL_PATIENCE", "0.3", 1);
    setenv("SIMT_NCCL_INIT_HANGS_ON", "1", 1);
    if (self.rank == 1) alarm(1);  // ends what hangs
    self.join();
  });
  expect_words(errors[0], {"rank 1 has not come to the unique id"});
  EXPECT_EQ(errors[1], "ended with status " + std::to_string(SIGALRM));

  expect_refused(run_unjoined(2,
                              [](Rank& self) {
                                self.size += self.rank;
                                self.join();
                              }),
                 {"rank 0", "as one of 2", "rank 1", "as one of 3"});
  const std::function<void(Rank&)> on_one_device = [](Rank& self) {
    setenv("SIMT_DEVICES", "1", 1);
    ok(ncclCommInitRankConfig(&self.world, self.size, self.id, self.rank, nullptr));
  };
  expect_refused(run_unjoined(2, on_one_device), {"Duplicate GPU detected: rank 0 and rank 1"});
  EXPECT_EQ(run_unjoined(2,
                         [&](Rank& self) {
                           setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
                           on_one_device(self);
                         }),
            std::vector<std::string>(2));
  const auto twice = run_unjoined(2, [](Rank& self) {
    self.rank = 0;
    self.join();
  });
  expect_refused(twice, {"two processes", "rank 0"});
}

// Device memory of the other rank of two, opened here.
template <class T>
class Opened {
 public:
  Opened(const Rank& self, const Buffer<T>& mine) {
    cudaIpcMemHandle_t handle;
    ok(cudaIpcGetMemHandle(&handle, mine.data()));
    const std::vector<char> bytes(handle.reserved, handle.reserved + sizeof handle.reserved);
    const Buffer<char> from(bytes), to(2 * bytes.size());
    ok(ncclAllGather(from.data(), to.data(), bytes.size(), ncclUint8, self.world, self.stream));
    const std::vector<char> both = to.get();
    std::copy_n(both.begin() + (1 - self.rank) * static_cast<std::ptrdiff_t>(bytes.size()), bytes.size(),
                other.reserved);
    ok(cudaIpcOpenMemHandle(&memory, other, cudaIpcMemLazyEnablePeerAccess));
  }
  T* data() const { return static_cast<T*>(memory); }
  void put(T value) const { ok(cudaMemcpy(memory, &value, sizeof value, cudaMemcpyHostToDevice)); }
  cudaIpcMemHandle_t other;
  void* memory = nullptr;
};

// A rank writes to the other's window turn by turn, which reads what came, and they meet between writing and
// reading.
void write_in_turns(const Rank& self, bool meet_before_writing) {
  setenv("SIMT_NCCL_DELAY", "1", 1);
  const Buffer<float> window(1), here(1), there(2);
  const Opened<float> other(self, window);
  for (int turn = 0; turn < 30; ++turn) {
    if (meet_before_writing) self.all_gather(there, here, 1);
    other.put(static_cast<float>(turn));
    self.all_gather(there, here, 1);
    expect(window.get() == std::vector<float>{static_cast<float>(turn)}, "what came in this turn");
  }
  self.all_gather(there, here, 1);
}

TEST(SimtPeerMemory, OthersWriteToItAndAnExchangeOrdersThat) {
  expect_fine(2, [](Rank& self) { write_in_turns(self, true); });
}

TEST(SimtPeerMemory, AWindowThatIsWrittenBeforeItIsReadIsSeen) {
  std::string all;
  for (const std::string& error : run_ranks(2, [](Rank& self) {
         setenv("SIMT_NCCL_PATIENCE", "2", 1);  // the other one gives up
         write_in_turns(self, false);
       }))
    all += error;
  expect_words(all, {"not so: what came in this turn"});
}

TEST(SimtPeerMemory, WhatIsNotAllowedIsRefused) {
  expect_fine(2, [](Rank& self) {
    const Buffer<float> mine(4), here(1), there(2);
    const auto meet = [&] { self.all_gather(there, here, 1); };
    cudaIpcMemHandle_t own;
    expect(cudaIpcGetMemHandle(&own, mine.data() + 1) == cudaErrorInvalidValue,
           "the inside of a piece has no name");
    ok(cudaIpcGetMemHandle(&own, mine.data()));
    void* memory = nullptr;
    const auto open = [&](const cudaIpcMemHandle_t& handle) {
      return cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
    };
    expect(open(own) == cudaErrorDeviceUninitialized, "one's own is not opened");
    const std::size_t allocated = simt::allocated_bytes();
    const Opened<float> other(self, mine);
    expect(open(other.other) == cudaErrorAlreadyMapped, "it is opened once");
    expect(simt::allocated_bytes() == allocated, "others' memory is not taken here");
    expect(simt::is_allocated(other.data(), 4 * sizeof(float)), "it is device memory");
    expect(cudaIpcCloseMemHandle(mine.data()) == cudaErrorInvalidValue, "one's own is not closed");
    std::string words;
    try {
      simt::launch("beyond", {1}, {1}, 0, [&] { other.data()[4] = 1; });
    } catch (const std::runtime_error& error) {
      words = error.what();
    }
    expect(words.find("beyond: writes outside a piece of device memory of 16 bytes") == 0, words);
    meet();
    ok(cudaIpcCloseMemHandle(other.memory));
    expect(cudaIpcCloseMemHandle(other.memory) == cudaErrorInvalidValue, "it is closed once");
    expect(!simt::is_allocated(other.data(), 1), "it is closed");
    cudaIpcMemHandle_t gone = own;
    {
      const Buffer<float> brief(4);
      const Opened<float> of_other(self, brief);
      ok(cudaIpcCloseMemHandle(of_other.memory));
      gone = of_other.other;
      meet();
    }
    meet();
    expect(open(gone) == cudaErrorInvalidResourceHandle, "it is gone");
    setenv("SIMT_NO_PEERS", "1", 1);
    expect(open(other.other) == cudaErrorPeerAccessUnsupported, "devices are apart");
  });
}

}  // namespace
