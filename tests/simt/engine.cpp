#include "engine.h"

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "marked.h"
#include "watcher.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

namespace {

namespace context = boost::context;

constexpr std::size_t kStackBytes = 256 * 1024;
struct AsyncCopy {
  void* to;
  const void* from;
  unsigned bytes, zeros_after;
};

// Thrown into the threads of a block that failed.
struct Abandoned {};

enum class State { ready, at_barrier, in_warp, waiting, finished };

struct Thread {
  Dim3 index;
  unsigned number = 0;
  State state = State::finished;
  bool in_kernel = false;
  context::fiber fiber;
  const std::byte* end_of_stack = nullptr;
  const std::function<bool()>* awaited = nullptr;
  const std::string* awaited_name = nullptr;
  const void* barrier = nullptr;  // where in the kernel it has met the others
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
#endif
};

// In which order threads run between two barriers, and blocks of a grid: SIMT_ORDER in the environment. A
// number is the seed of an order drawn anew each time.
class Order {
 public:
  Order() {
    const char* const set = std::getenv("SIMT_ORDER");
    const std::string name = set ? set : "ascending";
    descending_ = name == "descending";
    drawn_ = !descending_ && name != "ascending";
    if (drawn_) random_.seed(static_cast<unsigned>(std::strtoul(name.c_str(), nullptr, 10)));
  }
  // The numbers below n.
  void draw(std::vector<unsigned>& numbers, std::size_t n) {
    if (numbers.size() == n && !drawn_) return;
    numbers.resize(n);
    std::iota(numbers.begin(), numbers.end(), 0u);
    if (descending_) std::reverse(numbers.begin(), numbers.end());
    if (drawn_) std::shuffle(numbers.begin(), numbers.end(), random_);
  }

 private:
  bool descending_, drawn_;
  std::mt19937 random_;
};

// Lanes of one warp on their way to meet.
struct Meeting {
  unsigned mask, arrived;
  const char* operation;
  void* args[kWarpSize];
};

class Engine {
 public:
  BlockOrder order = BlockOrder::ascending;
  std::size_t max_shared_bytes = kMaxSharedBytes;

  const char* kernel = "";
  Dim3 grid, block, block_index;
  Thread* current = nullptr;
  bool in_thread = false;  // or between two of them
  MemoryRange parameters{};
  std::unique_ptr<BlockState> block_state;

  struct Function {
    std::size_t static_bytes = 0, asked_bytes = 0;
  };
  std::map<const void*, Function> functions;

  void run_grid(std::size_t dynamic_bytes, const std::function<void()>& body, const void* function);
  void sync_block(const void* place);
  void wait_until(const std::function<bool()>& ready, const std::string& what);
  void meet_warp(unsigned mask, const char* operation, void* args, void (*complete)(void* const*));
  void* static_shared(const void* key, std::size_t bytes);
  void* dynamic_shared();
  std::size_t dynamic_bytes() const { return dynamic_bytes_; }
  bool is_of_launch(const void* memory) const;
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(std::string(kernel) + ", block (" + std::to_string(block_index.x) + ", " +
                             std::to_string(block_index.y) + ", " + std::to_string(block_index.z) +
                             "): " + what);
  }

 private:
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::vector<Meeting>> meetings_;  // of each warp
  std::map<const void*, Marked> static_pieces_;
  std::unique_ptr<Marked> dynamic_piece_;
  std::size_t dynamic_bytes_ = 0, static_bytes_ = 0;
  Function* function_ = nullptr;  // of the kernel that runs
  unsigned n_threads_ = 0, n_waiting_ = 0, n_finished_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  bool abandoned_ = false;
  Order orders_;
  std::vector<unsigned> thread_order_, block_order_;
  context::fiber scheduler_;
#if defined(__SANITIZE_ADDRESS__)
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  std::size_t scheduler_size_ = 0;
#endif

  void run_block();
  void resume(Thread& thread);
  void pause();  // back to the scheduler, until resumed
  void make_fiber(Thread& thread);
  void check_shared() const;
  void check_shared_bytes(std::size_t static_bytes) const;
  void tell_of_barrier() const;
  [[noreturn]] void fail_stuck() const;
};

Engine& engine() {
  // Never destroyed: its threads are parked, and have nothing to do when the process ends.
  static Engine& instance = *new Engine;
  return instance;
}

void Engine::make_fiber(Thread& thread) {
  context::protected_fixedsize_stack stacks(kStackBytes);
  const context::stack_context stack = stacks.allocate();
  thread.end_of_stack = static_cast<const std::byte*>(stack.sp);
#if defined(__SANITIZE_ADDRESS__)
  thread.stack_bottom = static_cast<const std::byte*>(stack.sp) - stack.size;
  thread.stack_size = stack.size;
#endif
  thread.fiber =
      context::fiber(std::allocator_arg, context::preallocated(stack.sp, stack.size, stack), stacks,
                     [this, &thread](context::fiber&& back) -> context::fiber {
                       scheduler_ = std::move(back);
#if defined(__SANITIZE_ADDRESS__)
                       __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler_bottom_, &scheduler_size_);
#endif
                       for (;;) {  // one turn for each block: stacks are made once
                         thread.in_kernel = true;
                         try {
                           (*body_)();
                         } catch (const Abandoned&) {
                         } catch (...) {
                           error_ = std::current_exception();
                         }
                         thread.in_kernel = false;
                         thread.state = State::finished;
                         ++n_finished_;
                         pause();
                       }
                     });
}

void Engine::resume(Thread& thread) {
  current = &thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, thread.stack_bottom, thread.stack_size);
#endif
  in_thread = true;
  thread.fiber = std::move(thread.fiber).resume();
  in_thread = false;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, &thread.stack_bottom, &thread.stack_size);
#endif
}

void Engine::pause() {
#if defined(__SANITIZE_ADDRESS__)
  Thread& thread = *current;
  __sanitizer_start_switch_fiber(&thread.fake_stack, scheduler_bottom_, scheduler_size_);
#endif
  scheduler_ = std::move(scheduler_).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler_bottom_, &scheduler_size_);
#endif
  if (abandoned_ && current->in_kernel) throw Abandoned();
}

void Engine::run_block() {
  n_waiting_ = n_finished_ = 0;
  static_pieces_.clear();
  static_bytes_ = 0;
  dynamic_piece_ = dynamic_bytes_ > 0 ? std::make_unique<Marked>(dynamic_bytes_) : nullptr;
  if (watcher) watcher->begin_block(n_threads_);
  if (watcher && dynamic_piece_) watcher->shared_piece(dynamic_piece_->data(), dynamic_bytes_);
  for (auto& meetings : meetings_) meetings.clear();
  block_state = nullptr;
  for (unsigned i = 0; i < n_threads_; ++i) {
    Thread& thread = *threads_[i];
    thread.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    thread.number = i;
    thread.state = State::ready;
    thread.open_group.clear();
    thread.groups.clear();
  }
  while (n_finished_ < n_threads_) {
    bool moved = false;
    orders_.draw(thread_order_, n_threads_);
    for (const unsigned i : thread_order_) {
      Thread& thread = *threads_[i];
      if (thread.state == State::waiting && (*thread.awaited)()) thread.state = State::ready;
      if (thread.state != State::ready) continue;
      resume(thread);
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
      moved = true;
    }
    if (moved) continue;
    if (n_waiting_ < n_threads_) fail_stuck();
    n_waiting_ = 0;
    for (unsigned i = 0; i < n_threads_; ++i) threads_[i]->state = State::ready;
    if (watcher) tell_of_barrier();
  }
  check_shared();
  if (block_state) block_state->check_end();
}

void Engine::tell_of_barrier() const {
  watcher->block_meets();
  for (unsigned i = 1; i < n_threads_; ++i) {
    if (threads_[i]->barrier != threads_[0]->barrier)
      return watcher->meet_elsewhere(threads_[0]->barrier, threads_[i]->barrier);
  }
}

void Engine::fail_stuck() const {
  for (const auto& thread : threads_) {
    if (thread->state == State::waiting)
      fail("thread " + std::to_string(thread->number) + " waits for " + *thread->awaited_name +
           ", which never comes");
  }
  for (unsigned warp = 0; warp < meetings_.size(); ++warp) {
    for (const Meeting& meeting : meetings_[warp]) {
      fail("warp " + std::to_string(warp) + " waits in " + meeting.operation + " for lanes " +
           std::to_string(meeting.mask & ~meeting.arrived) + " (a bit mask) that never come");
    }
  }
  fail(std::to_string(n_waiting_) + " of " + std::to_string(n_threads_) +
       " threads wait at a barrier that the others have left or never reach");
}

void Engine::check_shared() const {
  for (const auto& [key, piece] : static_pieces_) {
    if (!piece.whole())
      fail("writes outside a piece of shared memory of " + std::to_string(piece.bytes) + " bytes");
  }
  if (dynamic_piece_ && !dynamic_piece_->whole())
    fail("writes outside its " + std::to_string(dynamic_bytes_) + " bytes of dynamic shared memory");
}

void Engine::run_grid(std::size_t dynamic_bytes, const std::function<void()>& body, const void* function) {
  n_threads_ = block.x * block.y * block.z;
  if (n_threads_ == 0 || n_threads_ > 1024) fail("a block of " + std::to_string(n_threads_) + " threads");
  if (grid.x > kMostBlocks || grid.y > kMostBlocksAcross || grid.z > kMostBlocksAcross)
    fail("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
         std::to_string(grid.z) + " blocks");
  dynamic_bytes_ = dynamic_bytes;
  function_ = function ? &functions[function] : nullptr;
  check_shared_bytes(0);
  body_ = &body;
  meetings_.resize((n_threads_ + kWarpSize - 1) / kWarpSize);
  while (threads_.size() < n_threads_) {
    threads_.push_back(std::make_unique<Thread>());
    make_fiber(*threads_.back());
  }
  block_order_.clear();
  orders_.draw(block_order_, std::size_t{grid.x} * grid.y * grid.z);
  if (order == BlockOrder::descending) std::reverse(block_order_.begin(), block_order_.end());
  try {
    for (const unsigned i : block_order_) {
      block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
      run_block();
    }
  } catch (...) {
    abandoned_ = true;  // those that wait leave their kernel
    for (const auto& thread : threads_) {
      if (thread->in_kernel) resume(*thread);
    }
    abandoned_ = false;
    error_ = nullptr;
    throw;
  }
}

void Engine::sync_block(const void* place) {
  current->barrier = place;
  current->state = State::at_barrier;
  ++n_waiting_;
  pause();
}

void Engine::wait_until(const std::function<bool()>& ready, const std::string& what) {
  if (ready()) return;
  current->awaited = &ready;
  current->awaited_name = &what;
  current->state = State::waiting;
  pause();
}

void Engine::meet_warp(unsigned mask, const char* operation, void* args, void (*complete)(void* const*)) {
  const unsigned warp = current->number / kWarpSize, bit = 1u << (current->number % kWarpSize);
  if (!(mask & bit)) fail(std::string(operation) + ": a lane that is not in its own mask");
  const unsigned lanes = std::min(kWarpSize, n_threads_ - warp * kWarpSize);
  if (lanes < kWarpSize) mask &= (1u << lanes) - 1;  // the last warp of a block may be short
  auto& meetings = meetings_[warp];
  Meeting* meeting = nullptr;
  for (Meeting& m : meetings) {
    const bool same = m.operation == operation || std::strcmp(m.operation, operation) == 0;
    if (m.mask == mask && same) {
      meeting = &m;
    } else if (m.mask & mask) {
      fail("lanes of warp " + std::to_string(warp) + " meet in different operations: " + m.operation + " and " +
           operation);
    }
  }
  if (!meeting) {
    meetings.push_back({mask, 0, operation, {}});
    meeting = &meetings.back();
  }
  meeting->arrived |= bit;
  meeting->args[current->number % kWarpSize] = args;
  if (meeting->arrived != mask) {
    current->state = State::in_warp;
    pause();
    return;
  }
  void* handed[kWarpSize];  // on the thread's stack, where kernels' code may read
  std::copy(std::begin(meeting->args), std::end(meeting->args), handed);
  complete(handed);
  if (watcher && std::strcmp(operation, "__syncwarp") == 0) watcher->warp_meets(mask);
  meetings.erase(meetings.begin() + (meeting - meetings.data()));
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (mask >> l & 1) threads_[warp * kWarpSize + l]->state = State::ready;
  }
}

void* Engine::static_shared(const void* key, std::size_t bytes) {
  auto found = static_pieces_.find(key);
  if (found == static_pieces_.end()) {
    // Each piece where the next multiple of what the compiler aligns it to begins.
    const std::size_t alignment = dynamic_bytes_ > 0 ? 128 : 16;
    static_bytes_ += (bytes + alignment - 1) / alignment * alignment;
    check_shared_bytes(static_bytes_);
    if (function_) function_->static_bytes = std::max(function_->static_bytes, static_bytes_);
    found = static_pieces_.emplace(key, Marked(bytes)).first;
    if (watcher) watcher->shared_piece(found->second.data(), bytes);
  }
  return found->second.data();
}

void Engine::check_shared_bytes(std::size_t static_bytes) const {
  if (static_bytes > kUnaskedSharedBytes) fail("more than 48 KiB of static shared memory");
  const std::size_t asked = function_ ? function_->asked_bytes : kMaxSharedBytes;
  const std::size_t most = asked > 0 ? max_shared_bytes : kUnaskedSharedBytes;
  if (static_bytes + dynamic_bytes_ <= most && (asked == 0 || dynamic_bytes_ <= asked)) return;
  fail(std::to_string(static_bytes) + " bytes of static and " + std::to_string(dynamic_bytes_) +
       " of dynamic shared memory, of which " + std::to_string(asked) + " were asked for");
}

void* Engine::dynamic_shared() {
  if (!dynamic_piece_) fail("asks for dynamic shared memory, of which its launch has none");
  return dynamic_piece_->data();
}

bool is_within(const void* memory, const void* begin, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(memory) - reinterpret_cast<std::uintptr_t>(begin) < bytes;
}
bool is_of(const Thread& thread, const void* memory) {
  return is_within(memory, thread.end_of_stack - kStackBytes, kStackBytes) ||
         is_within(memory, &thread.index, sizeof thread.index);
}
bool Engine::is_of_launch(const void* memory) const {
  if (!in_thread || is_of(*current, memory) || is_within(memory, parameters.begin, parameters.bytes) ||
      is_within(memory, this, sizeof *this) || is_within(memory, body_, sizeof *body_))
    return true;
  const unsigned first = current->number / kWarpSize * kWarpSize;
  for (unsigned i = first; i < std::min(first + kWarpSize, n_threads_); ++i) {
    if (is_of(*threads_[i], memory)) return true;
  }
  return false;
}

void arrive(const std::vector<AsyncCopy>& group) {
  for (const AsyncCopy& copy : group) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<std::byte*>(copy.to) + copy.bytes, 0, copy.zeros_after);
  }
}

}  // namespace

void set_block_order(BlockOrder order) { engine().order = order; }
void set_max_shared_bytes(std::size_t bytes) { engine().max_shared_bytes = bytes; }
std::size_t max_shared_bytes() { return engine().max_shared_bytes; }

std::int64_t nanoseconds() {
  if (clock != nullptr) return clock();
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void launch(const char* kernel, Dim3 grid, Dim3 block, std::size_t dynamic_shared_bytes,
            const std::function<void()>& body, MemoryRange parameters, const void* function) {
  const DeviceAccess access;
  Engine& e = engine();
  e.kernel = kernel;
  e.grid = grid;
  e.block = block;
  e.block_index = {0, 0, 0};
  e.parameters = parameters;
  if (watcher) watcher->begin_launch();
  std::string found;
  try {
    e.run_grid(dynamic_shared_bytes, body, function);
  } catch (const std::runtime_error& error) {
    if (watcher) found = watcher->end_launch();
    if (found.empty()) throw;
    throw std::runtime_error(error.what() + ("\n" + found));
  }
  if (watcher) found = watcher->end_launch();
  if (!found.empty()) throw std::runtime_error(std::string(kernel) + ":\n" + found);
  check_memory(kernel);
}
std::size_t static_shared_bytes(const void* function) { return engine().functions[function].static_bytes; }
void ask_for_shared_bytes(const void* function, std::size_t dynamic_bytes) {
  engine().functions[function].asked_bytes = dynamic_bytes;
}

const Dim3& thread_index() { return engine().current->index; }
const Dim3& block_index() { return engine().block_index; }
const Dim3& block_dim() { return engine().block; }
const Dim3& grid_dim() { return engine().grid; }
unsigned lane() { return engine().current->number % kWarpSize; }

const std::byte* end_of_stack() { return engine().current->end_of_stack; }
bool is_of_launch(const void* memory) { return engine().is_of_launch(memory); }
unsigned thread_number() { return engine().current->number; }
void fail(const std::string& what) { engine().fail(what); }

void sync_block() { engine().sync_block(__builtin_return_address(0)); }
void note_atomic(const void* at, std::size_t bytes) {
  if (watcher) watcher->atomic(at, bytes, __builtin_return_address(0));
}
void wait_until(const std::function<bool()>& ready, const std::string& what) {
  engine().wait_until(ready, what);
}
void meet_warp(unsigned mask, const char* operation, void* args,
               void (*complete)(void* const args[kWarpSize])) {
  engine().meet_warp(mask, operation, args, complete);
}

void* static_shared(const void* key, std::size_t bytes) { return engine().static_shared(key, bytes); }
void* dynamic_shared() { return engine().dynamic_shared(); }
std::size_t dynamic_shared_bytes() { return engine().dynamic_bytes(); }
std::unique_ptr<BlockState>& block_state() { return engine().block_state; }

void async_copy(void* to, const void* from, unsigned bytes, unsigned zeros_after) {
  const unsigned size = bytes + zeros_after;
  const auto read = bytes > 0 ? reinterpret_cast<std::uintptr_t>(from) : 0;
  if ((reinterpret_cast<std::uintptr_t>(to) | read) % size != 0)
    fail("an asynchronous copy of " + std::to_string(size) +
         " bytes with an address that is no multiple of that");
  if (watcher) watcher->copy(to, from, bytes, zeros_after, __builtin_return_address(0));
  engine().current->open_group.push_back({to, from, bytes, zeros_after});
}
void async_commit() {
  if (watcher) watcher->commit_copies();
  Thread& thread = *engine().current;
  thread.groups.push_back(std::exchange(thread.open_group, {}));
}
void async_wait(unsigned groups_left) {
  if (watcher) watcher->wait_for_copies(groups_left);
  Thread& thread = *engine().current;
  while (thread.groups.size() > groups_left) {
    arrive(thread.groups.front());
    thread.groups.pop_front();
  }
}

}  // namespace simt
