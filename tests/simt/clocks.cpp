#include "clocks.h"

#include <algorithm>
#include <utility>

namespace simt {

void Clocks::begin_block(unsigned n_threads) {
  threads_.assign(n_threads, {});
  barriers_.clear();
  one_ = other_ = joined_ = nullptr;
}

Clocks::Barrier& Clocks::at(const void* barrier) {
  const auto [found, is_new] = barriers_.try_emplace(barrier);
  if (is_new) found->second.number = static_cast<unsigned>(barriers_.size() - 1);
  return found->second;
}
unsigned Clocks::bulk_copies_to(const void* barrier) {
  const unsigned number = at(barrier).number;
  if (number >= kMostBarriers) fail("more barriers than the checks can follow");
  return 2 * n_threads() + number;
}

unsigned Clocks::stores_of(unsigned thread, bool reading) {
  unsigned& actor = threads_[thread].storing[reading ? 0 : 1];
  if (actor == 0) actor = bulk_copies_to(&actor);
  return actor;
}

bool Clocks::knows(unsigned thread, unsigned actor, unsigned epoch) const {
  const Thread& t = threads_[thread];
  if (actor == thread) return true;
  if (actor == copies_of(thread) && epoch <= t.copies.done) return true;
  if (actor == products_of(thread / kWarpSize) && epoch <= t.products.done) return true;
  for (int i = 0; i < 2; ++i)
    if (actor == t.storing[i] && epoch <= t.stores[i].done) return true;
  return t.known && epoch <= (*t.known)[actor];
}

bool Clocks::published(const Known& known, unsigned reader, unsigned actor, unsigned epoch) const {
  if (actor >= 2 * n_threads()) return true;  // it was not written by a thread
  const bool copied = actor >= n_threads();
  const unsigned writer = copied ? actor - n_threads() : actor;
  const std::vector<Fence>& fences = threads_[writer].fences;
  const auto fence = std::find_if(fences.begin(), fences.end(),
                                  [&](const Fence& f) { return (copied ? f.copies_done : f.epoch) >= epoch; });
  return fence != fences.end() && (writer == reader || fence->epoch <= (*known)[writer]);
}

void Clocks::add_own(std::vector<unsigned>& to, unsigned thread) const {
  const Thread& t = threads_[thread];
  const auto raise = [&](unsigned actor, unsigned epoch) { to[actor] = std::max(to[actor], epoch); };
  raise(thread, t.epoch);
  raise(copies_of(thread), t.copies.done);
  raise(products_of(thread / kWarpSize), t.products.done);
  for (int i = 0; i < 2; ++i)
    if (t.storing[i] != 0) raise(t.storing[i], t.stores[i].done);
}
void Clocks::add(Gathering& to, unsigned thread) const {
  const Known& known = threads_[thread].known;
  if (!to.known) to.known = std::make_shared<std::vector<unsigned>>(n_actors());
  if (known && known != to.last) {
    for (std::size_t i = 0; i < known->size(); ++i) (*to.known)[i] = std::max((*to.known)[i], (*known)[i]);
    to.last = known;
  }
  add_own(*to.known, thread);
}
Known Clocks::known_to(unsigned thread) const {
  Gathering gathering;
  add(gathering, thread);
  return gathering.known;
}
Known Clocks::known_to_warp(unsigned thread) const {
  Gathering gathering;
  const unsigned first = thread / kWarpSize * kWarpSize;
  for (unsigned t = first; t < std::min(first + kWarpSize, n_threads()); ++t) add(gathering, t);
  return gathering.known;
}
Known Clocks::join(const Known& a, const Known& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  if (a == one_ && b == other_) return joined_;
  auto both = std::make_shared<std::vector<unsigned>>(*a);
  for (std::size_t i = 0; i < both->size(); ++i) (*both)[i] = std::max((*both)[i], (*b)[i]);
  one_ = a;
  other_ = b;
  return joined_ = both;
}

void Clocks::meet(const std::vector<unsigned>& threads) {
  Gathering gathering;
  for (const unsigned t : threads) add(gathering, t);
  for (const unsigned t : threads) {
    threads_[t].known = gathering.known;
    ++threads_[t].epoch;
  }
}
void Clocks::arrive(unsigned thread, const void* barrier) {
  add(at(barrier).arriving, thread);
  ++threads_[thread].epoch;
}
void Clocks::pass(const void* barrier) {
  Barrier& b = at(barrier);
  ++b.phase;
  Gathering arrived = std::exchange(b.arriving, {});
  if (!arrived.known) arrived.known = std::make_shared<std::vector<unsigned>>(n_actors());
  if (b.number < kMostBarriers) (*arrived.known)[2 * n_threads() + b.number] = b.phase;
  b.passed = arrived.known;
}
void Clocks::wait(unsigned thread, const void* barrier) {
  threads_[thread].known = join(threads_[thread].known, at(barrier).passed);
}
void Clocks::fence(unsigned thread) {
  Thread& t = threads_[thread];
  t.fences.push_back({t.epoch, t.copies.done});
  ++t.epoch;
}

}  // namespace simt
