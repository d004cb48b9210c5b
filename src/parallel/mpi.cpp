#include "parallel/mpi.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/cores.h"
#include "core/error.h"
#include "core/log.h"
#include "machine/findings.h"
#include "machine/read.h"
#include "parallel/run_end.h"

#ifdef SWITCHYARD_HAS_MPI
#include <mpi.h>
#endif

namespace switchyard::parallel {

namespace {

// A whole number from the environment, or -1.
int number_in_environment(const char* variable) {
  const char* const text = std::getenv(variable);
  if (!text || *text == '\0') return -1;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  return *end == '\0' && number >= 0 && number <= INT_MAX ? static_cast<int>(number) : -1;
}

}  // namespace

LaunchedCopies launched_copies() {
  // Open MPI; MPICH, Intel MPI and their like; MVAPICH; Slurm's srun, whose variable for a whole job also shows
  // in the job's script, which is started once.
  constexpr std::pair<const char*, const char*> kVariables[] = {
      {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
      {"PMI_SIZE", "PMI_RANK"},
      {"MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"},
      {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}};
  for (const auto& [size, rank] : kVariables) {
    const int count = number_in_environment(size);
    if (count >= 1) return {count, std::max(0, number_in_environment(rank)), size};
  }
  return {};
}

#ifndef SWITCHYARD_HAS_MPI

bool built_with_mpi() { return false; }

std::string mpi_library() { return ""; }

World make_mpi_world(std::size_t) {
  const LaunchedCopies copies = launched_copies();
  throw_input(
      "{0} copies were started ({1}), but they do not know each other: this build has no MPI; use one copy "
      "with --nproc {0}, or install MPI (scripts/setup.sh) and build again",
      copies.count, copies.variable ? copies.variable : "nothing says so");
}

void finish_mpi() {}

#else

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kLongestNap = std::chrono::microseconds(1000);
constexpr auto kShortestNap = std::chrono::microseconds(10);
// Asking MPI takes the processor for less where nothing moves; where it takes more, it has copied something. By
// the clock it may take longer all the same, where other programs want the core.
constexpr auto kIdleCall = std::chrono::microseconds(4);
constexpr auto kIdleRequest = std::chrono::nanoseconds(20);
constexpr int kHeaderTag = 1, kBytesTag = 2;

std::chrono::nanoseconds processor_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw_run("MPI failed in {}: {}", what, std::string(text, static_cast<std::size_t>(length)));
}

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, int rank, int size, std::size_t piece_bytes)
      : Transport(rank, size),
        comm_(comm),
        piece_bytes_(piece_bytes),
        sent_(static_cast<std::size_t>(size)),
        received_(static_cast<std::size_t>(size)) {}

 protected:
  void do_move(std::span<const Outgoing> out, std::span<const Incoming> in, Traffic kind) override {
    // Before each message goes its header, so that ranks that disagree end in an error instead of waiting.
    // Receives are posted before anything is sent: what arrives has a place to go.
    std::vector<Message> sent_header(out.size()), header(in.size()), expected(in.size());
    requests_.clear();
    for (std::size_t i = 0; i < in.size(); ++i) {
      expected[i] = {in[i].bytes.size(), received_[static_cast<std::size_t>(in[i].from)]++,
                     static_cast<std::uint64_t>(kind)};
      receive(std::as_writable_bytes(std::span(&header[i], 1)), in[i].from, kHeaderTag);
    }
    for (const Incoming& message : in)
      for_pieces(message.bytes, [&](auto piece) { receive(piece, message.from, kBytesTag); });
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::uint64_t number = sent_[static_cast<std::size_t>(out[i].to)]++;
      sent_header[i] = {out[i].bytes.size(), number, static_cast<std::uint64_t>(kind)};
      send(std::as_bytes(std::span(&sent_header[i], 1)), out[i].to, kHeaderTag);
      for_pieces(out[i].bytes, [&](auto piece) { send(piece, out[i].to, kBytesTag); });
    }
    finish(in, expected, header);
  }

 private:
  template <class Byte, class F>
  void for_pieces(std::span<Byte> bytes, F&& f) const {
    for (; bytes.size() > piece_bytes_; bytes = bytes.subspan(piece_bytes_)) f(bytes.first(piece_bytes_));
    f(bytes);
  }
  void receive(std::span<std::byte> bytes, int from, int tag) {
    check(MPI_Irecv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, from, tag, comm_,
                    &requests_.emplace_back()),
          "receiving");
  }
  void send(std::span<const std::byte> bytes, int to, int tag) {
    check(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, tag, comm_,
                    &requests_.emplace_back()),
          "sending");
  }

  // Polls until all requests, of which the headers' are the first, are done. MPI's own waiting would spin, and
  // ranks that spin take the cores from those that compute.
  void finish(std::span<const Incoming> in, std::span<const Message> expected,
              std::span<const Message> header) {
    std::vector<int> index(requests_.size());
    std::vector<MPI_Status> status(requests_.size());
    std::size_t left = requests_.size();
    const auto idle_call = kIdleCall + kIdleRequest * requests_.size();
    Clock::time_point now = Clock::now(), moved = now;
    for (;;) {
      const auto before = processor_time();
      int done = 0;
      const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &done, index.data(),
                                    status.data());
      done = std::max(done, 0);  // MPI_UNDEFINED: none was left
      for (int i = 0; i < done; ++i) {
        const auto request = static_cast<std::size_t>(index[static_cast<std::size_t>(i)]);
        if (request < in.size()) check_agreement(in[request].from, expected[request], header[request]);
      }
      // A message longer than its place is such an error: its header, which says more, has been looked at.
      if (code == MPI_ERR_IN_STATUS)
        for (int i = 0; i < done; ++i) check(status[static_cast<std::size_t>(i)].MPI_ERROR, "moving bytes");
      check(code, "moving bytes");
      left -= static_cast<std::size_t>(done);
      if (left == 0) return;
      if (run_is_over()) throw RunIsOver();
      const Clock::time_point asked = std::exchange(now, Clock::now());
      if (done > 0 || processor_time() - before > idle_call) {
        moved = now;
        continue;
      }
      // Naps that grow with the time waited cost a small share of it.
      if (now - moved > kSpin) {
        look_while_waiting();
        std::this_thread::sleep_for(std::clamp<Clock::duration>((now - moved) / 16, kShortestNap, kLongestNap));
        now = Clock::now();
      }
      counts_.wait_seconds += std::chrono::duration<double>(now - asked).count();
    }
  }

  MPI_Comm comm_;
  std::size_t piece_bytes_;
  std::vector<MPI_Request> requests_;
  std::vector<std::uint64_t> sent_, received_;  // messages to and from each rank
};

cpu_set_t own_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof(cores), &cores);
  return cores;
}
// Sets the rank's place on its machine and its share of the cores, which it shares with ranks of the same mask.
void look_at_machine(World& world, MPI_Comm comm) {
  MPI_Comm node;
  check(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, world.rank(), MPI_INFO_NULL, &node),
        "MPI_Comm_split_type");
  check(MPI_Comm_rank(node, &world.node_rank), "MPI_Comm_rank");
  check(MPI_Comm_size(node, &world.node_size), "MPI_Comm_size");
  const cpu_set_t own = own_cores();
  std::vector<cpu_set_t> cores_R(static_cast<std::size_t>(world.node_size));
  check(MPI_Allgather(&own, sizeof(own), MPI_BYTE, cores_R.data(), sizeof(own), MPI_BYTE, node),
        "MPI_Allgather");
  check(MPI_Comm_free(&node), "MPI_Comm_free");
  int sharing = 0;
  cpu_set_t together;
  CPU_ZERO(&together);
  for (const cpu_set_t& cores : cores_R) {
    sharing += CPU_EQUAL(&cores, &own);
    CPU_OR(&together, &together, &cores);
  }
  world.cores = std::max(1, CPU_COUNT(&own) / sharing);
  const auto warning = machine::binding_finding(world.node_size, CPU_COUNT(&together), unbound_cores());
  if (world.rank() == 0 && warning) log_warning(machine::sentence_of(*warning));
}

}  // namespace

bool built_with_mpi() { return true; }

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string name(text, static_cast<std::size_t>(length));
  return name.substr(0, name.find_first_of(",\n"));  // "Open MPI v4.1.4"
}

World make_mpi_world(std::size_t piece_bytes) {
  SY_CHECK(piece_bytes >= 1 && piece_bytes <= INT_MAX, "pieces of {} bytes", piece_bytes);
  if (!machine::may_read_memory()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
  // With more ranks than cores, Open MPI would let others run each time that it is asked, and the time that
  // they take would look like its own. Ranks that wait sleep here.
  setenv("OMPI_MCA_mpi_yield_when_idle", "0", 0);
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  MPI_Comm comm;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  if (provided < MPI_THREAD_FUNNELED) throw_run("{} does not allow for threads beside it", mpi_library());
  int rank = 0, size = 1;
  check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  const LaunchedCopies copies = launched_copies();
  if (copies.variable && copies.count != size) {
    const std::string library = mpi_library();
    if (size == 1) finish_mpi();
    throw_input(
        "{0} copies were started ({1}), but they do not know each other: this build's MPI, {2}, counts {3}; "
        "start them with its own mpirun (srun needs --mpi=pmix), or use one copy with --nproc {0}",
        copies.count, copies.variable, library, size);
  }
  World world;
  world.transport = std::make_unique<MpiTransport>(comm, rank, size, piece_bytes);
  world.launcher = "mpirun";
  look_at_machine(world, comm);
  return world;
}

void finish_mpi() { MPI_Finalize(); }

#endif

}  // namespace switchyard::parallel
