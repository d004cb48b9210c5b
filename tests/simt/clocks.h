// Vector clocks of a block: which of its accesses come before which, whatever order its threads run in.
//   An actor is a thread, its asynchronous copies, the bulk copies that arrive at one barrier, those of a
//   thread from shared memory, as readers and as writers, or the tensor cores that work for one warp. Each
//   counts its epochs; an access is known by its actor and epoch. A thread knows of every actor up to which
//   epoch all that it did is done.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "engine.h"

namespace simt {

using Known = std::shared_ptr<const std::vector<unsigned>>;  // the epoch of each actor; null: none of any

class Clocks {
 public:
  void begin_block(unsigned n_threads);

  unsigned n_threads() const { return static_cast<unsigned>(threads_.size()); }
  unsigned copies_of(unsigned thread) const { return n_threads() + thread; }
  unsigned bulk_copies_to(const void* barrier);
  unsigned stores_of(unsigned thread, bool reading);
  unsigned products_of(unsigned warp) const { return 2 * n_threads() + kMostBarriers + warp; }

  // The epoch of what is begun at this moment.
  unsigned epoch(unsigned thread) const { return threads_[thread].epoch; }
  unsigned epoch_of_copies(unsigned thread) const { return threads_[thread].copies.begun + 1; }
  unsigned epoch_of_bulk_copies(const void* barrier) { return at(barrier).phase + 1; }
  unsigned epoch_of_stores(unsigned thread) const { return threads_[thread].stores[0].begun + 1; }
  unsigned epoch_of_products(unsigned thread) const { return threads_[thread].products.begun + 1; }

  // Whether what the actor did in that epoch is done for the thread, or for all that its warp knows together.
  bool knows(unsigned thread, unsigned actor, unsigned epoch) const;
  // Whether a fence of the thread that wrote lies between the write and `known`, which is what `reader` knows.
  bool published(const Known& known, unsigned reader, unsigned actor, unsigned epoch) const;
  Known known_to(unsigned thread) const;  // with what it did itself
  Known known_to_warp(unsigned thread) const;

  void meet(const std::vector<unsigned>& threads);
  void arrive(unsigned thread, const void* barrier);
  void pass(const void* barrier);
  void wait(unsigned thread, const void* barrier);

  // Copies, stores and products are begun in groups, which end one after the other.
  void commit_copies(unsigned thread) { ++threads_[thread].copies.begun; }
  void commit_products(unsigned thread) { ++threads_[thread].products.begun; }
  void commit_stores(unsigned thread) {
    for (Groups& groups : threads_[thread].stores) ++groups.begun;
  }
  void wait_for_stores(unsigned thread, unsigned groups_left, bool read_only) {
    threads_[thread].stores[0].wait(groups_left);
    if (!read_only) threads_[thread].stores[1].wait(groups_left);
  }
  void wait_for_copies(unsigned thread, unsigned groups_left) { threads_[thread].copies.wait(groups_left); }
  void wait_for_products(unsigned thread, unsigned groups_left) { threads_[thread].products.wait(groups_left); }
  void fence(unsigned thread);

 private:
  static constexpr unsigned kMostBarriers = 64;

  struct Groups {
    unsigned begun = 0, done = 0;
    void wait(unsigned left) {
      if (begun > left && done < begun - left) done = begun - left;
    }
  };
  struct Fence {
    unsigned epoch, copies_done;
  };
  struct Thread {
    Known known;
    unsigned epoch = 1;
    Groups copies, products;
    Groups stores[2];          // as readers; as writers
    unsigned storing[2] = {};  // the actors; 0: it has begun none
    std::vector<Fence> fences;
  };
  struct Gathering {  // of what several threads know
    std::shared_ptr<std::vector<unsigned>> known;
    Known last;  // that was added
  };
  struct Barrier {
    unsigned number = 0, phase = 0;
    Gathering arriving;
    Known passed;
  };

  std::vector<Thread> threads_;
  std::map<const void*, Barrier> barriers_;
  Known one_, other_, joined_;  // what was joined last: neighbours join the same

  std::size_t n_actors() const { return 2 * threads_.size() + kMostBarriers + kWarpSize; }
  Barrier& at(const void* barrier);
  void add(Gathering& to, unsigned thread) const;
  void add_own(std::vector<unsigned>& to, unsigned thread) const;
  Known join(const Known& a, const Known& b);
};

}  // namespace simt
