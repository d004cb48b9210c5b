// Judges every access of kernels to shared and device memory: compiled with -fsanitize=thread, kernels call
// the functions at the end of this file before each. Told are
//   - two accesses of which one writes and neither comes before the other (clocks.h): races within a block,
//     also where only the lockstep of a warp hides them, and between blocks of a launch;
//   - accesses beside a piece of memory, and addresses that are no multiple of the type's alignment;
//   - reads of what was never written;
//   - accesses to the host's memory that no device reaches: what is not page-locked (host_memory.h);
//   - bulk copies and products that meet what no fence has published to them;
//   - threads that meet in a barrier at different places of the code.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <sys/mman.h>

#include "clocks.h"
#include "engine.h"
#include "host_memory.h"
#include "marked.h"
#include "watcher.h"

extern "C" const char __executable_start;  // where the program begins in memory

namespace simt {

namespace {

// An access: in which interval between two barriers of a block, by whom, from where in the code. Intervals are
// counted over all blocks and launches.
struct Stamp {
  std::uint32_t interval = 0;  // 0: there was none
  std::uint32_t epoch = 0, place = 0;
  std::uint16_t actor = 0;
  bool atomic = false;
};
// Of one byte.
struct Cell {
  Stamp write, read;                             // the last ones
  std::uint32_t more_readers = 0;                // since the last write: which of readers_, from 1 on
  std::uint32_t earlier_block = 0, earlier = 0;  // an interval of an earlier block that has read; where
};
constexpr std::uint32_t kByHost = 1;

enum class Kind { read, write, atomic };
struct Access {
  Stamp stamp;
  Kind kind;
  unsigned thread;      // that does it or has begun it
  const Known* known;   // null: what the thread knows
  bool by_async_proxy;  // by bulk copies and products
};

const std::string& source_of(std::uint32_t place);
constexpr std::string_view kOfHost = " memory of the host that is not page-locked";

class Checks : public Watcher {
 public:
  static inline bool active = false;  // a kernel is running
  Checks();

  void begin_launch() override {
    first_of_launch_ = ++interval_;
    findings_.clear();
  }
  void begin_block(unsigned n_threads) override {
    first_of_block_ = ++interval_;
    clocks_.begin_block(n_threads);
    everybody_.clear();
    for (unsigned t = 0; t < n_threads; ++t) everybody_.push_back(t);
    n_pieces_ = n_readers_ = 0;
    active = true;
  }
  void shared_piece(const void* data, std::size_t bytes) override {
    if (n_pieces_ == pieces_.size()) pieces_.emplace_back();
    Piece& piece = pieces_[n_pieces_++];
    piece.begin = reinterpret_cast<std::uintptr_t>(data);
    piece.end = piece.begin + bytes;
    piece.cells.resize(std::max(piece.cells.size(), bytes));
  }
  std::string end_launch() override;

  void hook(const void* at, std::size_t bytes, Kind kind, const void* place) {
    if (is_of_device(at) || piece_near(at) || !is_reached(at, bytes)) access(at, bytes, kind, place);
  }
  void misaligned(const void* at, const void* place) {
    if (is_of_device(at) || piece_near(at)) tell("an address that is misaligned for its type", place);
  }

  void read(const void* from, std::size_t bytes, const void* place) override {
    access(from, bytes, Kind::read, place);
  }
  void write(const void* to, std::size_t bytes, const void* place) override {
    access(to, bytes, Kind::write, place);
  }
  void atomic(const void* at, std::size_t bytes, const void* place) override {
    hook(at, bytes, Kind::atomic, place);
  }
  void written_by_host(const void* to, std::size_t bytes) override;
  void emptied(const void* data, std::size_t bytes) override;

  void block_meets() override {
    clocks_.meet(everybody_);
    ++interval_;
  }
  void warp_meets(unsigned mask) override {
    std::vector<unsigned> lanes;
    const unsigned first = thread_number() / kWarpSize * kWarpSize;
    for (unsigned l = 0; l < kWarpSize; ++l) {
      if (mask >> l & 1) lanes.push_back(first + l);
    }
    clocks_.meet(lanes);
  }
  void arrive(const void* barrier) override { clocks_.arrive(thread_number(), barrier); }
  void pass(const void* barrier) override { clocks_.pass(barrier); }
  void wait(const void* barrier) override { clocks_.wait(thread_number(), barrier); }
  void meet_elsewhere(const void* place, const void* other) override {
    const Stamp of_other{interval_, 0, place_of(other)};
    if (source_of(place_of(place)) == source_of(of_other.place)) return;  // the compiler has doubled the code
    tell("meets others in a barrier, who are at another place",
         {{interval_, 0, place_of(place)}, Kind::read, 0, nullptr, false}, &of_other);
  }

  void copy(void* to, const void* from, unsigned bytes, unsigned zeros, const void* place) override {
    const unsigned t = thread_number();
    Access a{{interval_, clocks_.epoch_of_copies(t), place_of(place), actor(clocks_.copies_of(t))},
             Kind::read,
             t,
             nullptr,
             false};
    if (bytes > 0) touch(from, bytes, a);
    a.kind = Kind::write;
    touch(to, bytes + zeros, a);
  }
  void commit_copies() override { clocks_.commit_copies(thread_number()); }
  void wait_for_copies(unsigned groups_left) override { clocks_.wait_for_copies(thread_number(), groups_left); }
  void bulk_read(const void* barrier, const void* from, std::size_t bytes, const void* place) override {
    bulk(barrier, from, bytes, Kind::read, place);
  }
  void bulk_write(const void* barrier, void* to, std::size_t bytes, const void* place) override {
    bulk(barrier, to, bytes, Kind::write, place);
  }

  void store_read(const void* from, std::size_t bytes, const void* place) override {
    store(from, bytes, true, Kind::read, place);
  }
  void store_write(void* to, std::size_t bytes, const void* place) override {
    store(to, bytes, false, Kind::write, place);
  }
  void commit_stores() override { clocks_.commit_stores(thread_number()); }
  void wait_for_stores(unsigned groups_left, bool read_only) override {
    clocks_.wait_for_stores(thread_number(), groups_left, read_only);
  }

  void begin_product() override { known_to_warp_ = clocks_.known_to_warp(thread_number()); }
  void product_read(const void* from, std::size_t bytes, const void* place) override {
    const unsigned t = thread_number(), products = clocks_.products_of(t / kWarpSize);
    touch(from, bytes,
          {{interval_, clocks_.epoch_of_products(t), place_of(place), actor(products)},
           Kind::read,
           t,
           &known_to_warp_,
           true});
  }
  void commit_products() override { clocks_.commit_products(thread_number()); }
  void wait_for_products(unsigned groups_left) override {
    clocks_.wait_for_products(thread_number(), groups_left);
  }
  void fence_proxy_async() override { clocks_.fence(thread_number()); }

 private:
  struct Piece {  // of shared memory
    std::uintptr_t begin, end;
    std::vector<Cell> cells;
  };
  struct Readers {  // of a cell, but the last one; by actor
    const Cell* cell;
    std::vector<Stamp> stamps;
  };
  struct Finding {
    std::string text;
    std::uint64_t times = 0;
  };
  using FindingKey = std::tuple<std::string, std::uint32_t, std::uint32_t>;  // and its places

  std::uint32_t interval_ = kByHost, first_of_launch_ = 0, first_of_block_ = 0;
  std::uintptr_t device_ = 0;  // where device memory begins
  std::size_t device_bytes_ = 0;
  Cell* device_cells_ = nullptr;  // of all of it; pages that no one touches cost nothing
  Clocks clocks_;
  Known known_to_warp_;
  std::vector<unsigned> everybody_;
  std::vector<Piece> pieces_;  // the first n_pieces_ are the block's
  std::size_t n_pieces_ = 0;
  std::vector<Readers> readers_;  // the first n_readers_ are the block's
  std::uint32_t n_readers_ = 0;
  std::map<FindingKey, Finding> findings_;

  static std::uint16_t actor(unsigned number) { return static_cast<std::uint16_t>(number); }
  static std::uint32_t place_of(const void* place) {
    return static_cast<std::uint32_t>(static_cast<const char*>(place) - &__executable_start);
  }
  // The piece that the address lies in, or in whose marks.
  Piece* piece_near(const void* p) {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    for (std::size_t i = 0; i < n_pieces_; ++i) {
      if (at + kMarkBytes >= pieces_[i].begin && at < pieces_[i].end + kMarkBytes) return &pieces_[i];
    }
    return nullptr;
  }
  bool is_of_device(const void* p) const {
    return reinterpret_cast<std::uintptr_t>(p) - device_ < device_bytes_;
  }
  Cell* device_cell(const void* p) const {
    return device_cells_ + (reinterpret_cast<std::uintptr_t>(p) - device_);
  }

  // Of what is neither device memory nor the block's shared memory.
  static bool is_reached(const void* at, std::size_t bytes) {
    return is_of_launch(at) || is_of_program(at) || is_page_locked(at, bytes);
  }

  void access(const void* at, std::size_t bytes, Kind kind, const void* place) {
    const unsigned t = thread_number();
    touch(at, bytes,
          {{interval_, clocks_.epoch(t), place_of(place), actor(t), kind == Kind::atomic},
           kind,
           t,
           nullptr,
           false});
  }
  void bulk(const void* barrier, const void* at, std::size_t bytes, Kind kind, const void* place) {
    const unsigned t = thread_number(), copies = clocks_.bulk_copies_to(barrier);
    touch(at, bytes,
          {{interval_, clocks_.epoch_of_bulk_copies(barrier), place_of(place), actor(copies)},
           kind,
           t,
           nullptr,
           true});
  }
  void store(const void* at, std::size_t bytes, bool reading, Kind kind, const void* place) {
    const unsigned t = thread_number(), stores = clocks_.stores_of(t, reading);
    touch(at, bytes,
          {{interval_, clocks_.epoch_of_stores(t), place_of(place), actor(stores)}, kind, t, nullptr, true});
  }
  void touch(const void* at, std::size_t bytes, const Access& a);
  void touch(Cell& cell, const Access& a, bool is_shared, const void* at);
  void note_read(Cell& cell, const Access& a, bool is_shared);
  Readers* readers_of(const Cell& cell);
  Readers& new_readers(Cell& cell);
  bool knows(const Access& a, const Stamp& stamp) const {
    if (a.known) return stamp.epoch <= (**a.known)[stamp.actor];
    return clocks_.knows(a.thread, stamp.actor, stamp.epoch);
  }
  // Of an access of this launch: whether it may be under way at the same time.
  bool meets(const Access& a, const Stamp& stamp) const {
    if (stamp.interval < first_of_block_) return true;  // another block's
    if (stamp.actor < clocks_.n_threads() && stamp.interval < interval_) return false;
    return !knows(a, stamp);
  }
  void tell(const std::string& what, const Access& a, const Stamp* other = nullptr, const void* at = nullptr);
  void tell(const char* what, const void* place) {
    const unsigned t = thread_number();
    tell(what, {{interval_, 0, place_of(place), actor(t)}, Kind::read, t, nullptr, false});
  }
  std::string name_of(unsigned actor) const;
};

// ---- memory ----

Checks::Checks() {
  const MemoryRange range = device_memory_range();
  device_ = reinterpret_cast<std::uintptr_t>(range.begin);
  device_bytes_ = range.bytes;
  void* const cells = mmap(nullptr, range.bytes * sizeof(Cell), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (cells == MAP_FAILED) throw std::runtime_error("no addresses for the checks of device memory");
  device_cells_ = static_cast<Cell*>(cells);
  watcher = this;
}

bool is_poison(const void* at) { return *static_cast<const unsigned char*>(at) == kPoison; }

// What holds anything but poison was written, so that only poison need be looked for.
void Checks::written_by_host(const void* to, std::size_t bytes) {
  if (!is_of_device(to)) return;
  const auto* const data = static_cast<const std::byte*>(to);
  for (std::size_t i = 0; i < bytes; ++i) {
    if (is_poison(data + i)) device_cell(data + i)->write = {kByHost};
  }
}
void Checks::emptied(const void* data, std::size_t bytes) {
  if (!is_of_device(data) || bytes == 0) return;
  Cell* const first = device_cell(data);
  Cell* const last = device_cell(static_cast<const std::byte*>(data) + bytes - 1) + 1;
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<std::uintptr_t>(first), end = reinterpret_cast<std::uintptr_t>(last);
  const std::uintptr_t whole = (begin + kPage - 1) / kPage * kPage, whole_end = end / kPage * kPage;
  const auto clear = [](std::uintptr_t from, std::uintptr_t to) {
    std::memset(reinterpret_cast<void*>(from), 0, to - from);
  };
  if (whole + 64 * kPage >= whole_end) return clear(begin, end);
  clear(begin, whole);
  madvise(reinterpret_cast<void*>(whole), whole_end - whole, MADV_DONTNEED);
  clear(whole_end, end);
}

void Checks::touch(const void* at, std::size_t bytes, const Access& a) {
  const auto begin = reinterpret_cast<std::uintptr_t>(at), end = begin + bytes;
  Piece* const piece = is_of_device(at) ? nullptr : piece_near(at);
  if (piece) {
    if (begin < piece->begin || end > piece->end)
      return tell(std::string(a.kind == Kind::read ? "reads" : "writes") + " beside a piece of shared memory",
                  a);
    Cell* const cells = piece->cells.data();
    const std::size_t first = begin - piece->begin, last = end - 1 - piece->begin;
    for (std::size_t i = first; i <= last; ++i)
      touch(cells[i], a, true, reinterpret_cast<const void*>(piece->begin + i));
  } else if (is_of_device(at)) {
    Cell* const first = device_cell(at);
    Cell* const last = device_cell(reinterpret_cast<const void*>(end - 1));
    if ((first->write.interval == 0 || last->write.interval == 0) && !is_allocated(at, bytes))
      return tell(std::string(a.kind == Kind::read ? "reads" : "writes") + " beside a piece of device memory",
                  a);
    for (Cell* cell = first; cell <= last; ++cell)
      touch(*cell, a, false, reinterpret_cast<const void*>(begin + static_cast<std::uintptr_t>(cell - first)));
  } else if (!is_reached(at, bytes)) {
    tell((a.kind == Kind::read ? "reads" : "writes") + std::string(kOfHost), a, nullptr, at);
  }
}

// ---- races ----

void Checks::touch(Cell& cell, const Access& a, bool is_shared, const void* at) {
  const std::uint32_t first = is_shared ? first_of_block_ : first_of_launch_;  // what is older is over
  Stamp& write = cell.write;
  // Boxes and tiles reach beyond the rows that count: products may be of anything there.
  const bool empty = write.interval < (is_shared ? first_of_block_ : kByHost) && is_poison(at);
  if (a.kind != Kind::write && empty && !a.by_async_proxy) tell("reads what was never written", a);
  if (write.interval >= first && !(write.atomic && a.stamp.atomic)) {
    if (meets(a, write))
      tell(a.kind == Kind::read ? "reads what another writes" : "writes where another writes", a, &write);
    else if (a.by_async_proxy && is_shared &&
             !clocks_.published(a.known ? *a.known : clocks_.known_to(a.thread), a.thread, write.actor,
                                write.epoch))
      tell("meets what no fence has published to bulk copies and products", a, &write);
  }
  if (a.kind == Kind::read) return note_read(cell, a, is_shared);
  const auto check = [&](const Stamp& reader) {
    if (meets(a, reader)) tell("writes what another reads", a, &reader);
  };
  if (cell.read.interval >= first) check(cell.read);
  if (!is_shared && cell.earlier_block >= first) check({cell.earlier_block, 0, cell.earlier});
  if (Readers* const readers = readers_of(cell)) {
    for (const Stamp& reader : readers->stamps) check(reader);
    readers->stamps.clear();
  }
  cell.read.interval = 0;
  write = a.stamp;
}

void Checks::note_read(Cell& cell, const Access& a, bool is_shared) {
  Stamp& last = cell.read;
  if (!is_shared && last.interval >= first_of_launch_ && last.interval < first_of_block_) {
    cell.earlier_block = last.interval;
    cell.earlier = last.place;
  }
  Readers* readers = readers_of(cell);
  // Whoever comes before this one is of no interest any more: whoever waits for this one waits for that.
  const bool keeps = last.interval >= first_of_block_ && last.actor != a.stamp.actor && meets(a, last);
  if (readers && last.interval < interval_)
    std::erase_if(readers->stamps, [&](const Stamp& stamp) { return !meets(a, stamp); });
  if (keeps) {
    if (!readers) readers = &new_readers(cell);
    auto& stamps = readers->stamps;
    const auto place = std::lower_bound(stamps.begin(), stamps.end(), last.actor,
                                        [](const Stamp& stamp, unsigned actor) { return stamp.actor < actor; });
    if (place != stamps.end() && place->actor == last.actor)
      *place = last;
    else
      stamps.insert(place, last);
  }
  last = a.stamp;
}

Checks::Readers* Checks::readers_of(const Cell& cell) {
  if (cell.more_readers == 0 || cell.more_readers > n_readers_) return nullptr;
  Readers& readers = readers_[cell.more_readers - 1];
  return readers.cell == &cell ? &readers : nullptr;
}
Checks::Readers& Checks::new_readers(Cell& cell) {
  if (n_readers_ == readers_.size()) readers_.emplace_back();
  Readers& readers = readers_[n_readers_++];
  cell.more_readers = n_readers_;
  readers.cell = &cell;
  readers.stamps.clear();
  return readers;
}

// ---- what is told ----

std::string Checks::name_of(unsigned actor) const {
  const unsigned n = clocks_.n_threads();
  const auto numbered = [](std::string name, unsigned number) { return name += std::to_string(number); };
  if (actor < n) return numbered("thread ", actor);
  if (actor < 2 * n) return numbered("a copy of thread ", actor - n);
  if (actor < clocks_.products_of(0)) return "a bulk copy";
  return numbered("a product of warp ", actor - clocks_.products_of(0));
}

void Checks::tell(const std::string& what, const Access& a, const Stamp* other, const void* at) {
  Finding& finding = findings_[{what, a.stamp.place, other ? other->place : 0}];
  if (finding.times++ > 0) return;
  const Dim3& block = block_index();
  finding.text = "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
                 std::to_string(block.z) + "): " + name_of(a.stamp.actor) + " " + what;
  if (other && other->interval < first_of_block_)
    finding.text += ": another block";
  else if (other)
    (finding.text += ": ") += name_of(other->actor);
  char address[32];
  std::snprintf(address, sizeof address, ": %p", at);
  if (at) finding.text += address;
}

// Where in the sources: each function that was inlined there, the innermost first.
const std::string& source_of(std::uint32_t place) {
  static auto& known = *new std::map<std::uint32_t, std::string>;
  std::string& sources = known[place];
  if (!sources.empty()) return sources;
  std::string emulator;  // told where there is nothing else
  char command[100];
  // A place is where a call returns to.
  std::snprintf(command, sizeof command, "addr2line -i -e /proc/%d/exe 0x%x 2>/dev/null", getpid(), place - 1);
  if (std::FILE* const lines = popen(command, "r")) {
    char line[1024];
    while (std::fgets(line, sizeof line, lines)) {
      std::string source(line, std::strcspn(line, " \n"));
      if (source.compare(0, 5, "/usr/") == 0) continue;
      if (const std::size_t root = source.rfind("../"); root != std::string::npos) source.erase(0, root + 3);
      if (source.find("simt/") != std::string::npos) {
        if (emulator.empty()) emulator = source;
        continue;
      }
      if (!sources.empty()) sources += " < ";
      sources += source;
    }
    pclose(lines);
  }
  if (sources.empty()) sources = emulator;
  if (sources.empty()) sources.push_back('?');
  return sources;
}

std::string Checks::end_launch() {
  active = false;
  // The library's templates, which the emulator shares with the kernels' sources, may be compiled with hooks:
  // what they do is no kernel's.
  std::erase_if(findings_, [](const auto& finding) {
    const auto& [what, place, other] = finding.first;
    return what.ends_with(kOfHost) && source_of(place) == "?";
  });
  std::string all;
  std::size_t n = 0;
  for (const auto& [key, finding] : findings_) {
    if (++n > 8) {
      all.append("  and ").append(std::to_string(findings_.size() - 8)).append(" more\n");
      break;
    }
    const auto& [what, place, other] = key;
    all.append("  ")
        .append(finding.text)
        .append(" (")
        .append(std::to_string(finding.times))
        .append(" times)\n");
    all.append("    at ").append(source_of(place)).append("\n");
    if (other != 0) all.append("    and ").append(source_of(other)).append("\n");
  }
  findings_.clear();
  return all;
}

Checks& checks = *new Checks;  // to the end of the program

// Most are of registers; some come before `checks` does.
void hook(const void* at, std::size_t bytes, Kind kind, const void* place) {
  if (Checks::active) checks.hook(at, bytes, kind, place);
}

}  // namespace

}  // namespace simt

// ---- hooks ----

using simt::hook;
using simt::Kind;

#define SIMT_HOOK(name, bytes)                                                                          \
  void __tsan_##name##read##bytes(void* p) { hook(p, bytes, Kind::read, __builtin_return_address(0)); } \
  void __tsan_##name##write##bytes(void* p) { hook(p, bytes, Kind::write, __builtin_return_address(0)); }
#define SIMT_HOOKS(bytes) SIMT_HOOK(, bytes) SIMT_HOOK(unaligned_, bytes)

extern "C" {
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
void __tsan_read_range(void* p, std::size_t bytes) { hook(p, bytes, Kind::read, __builtin_return_address(0)); }
void __tsan_write_range(void* p, std::size_t bytes) {
  hook(p, bytes, Kind::write, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
// Whether a static variable is initialised.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
// -fsanitize=alignment
void __ubsan_handle_type_mismatch_v1(void*, void* p) {
  if (simt::Checks::active) simt::checks.misaligned(p, __builtin_return_address(0));
}
}
