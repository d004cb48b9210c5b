// What ranks do together. A group is an ordered set of ranks, this one among them; each has a place in it, from
// 0. All ranks of a group call the same verbs in the same order, with tensors of the same shapes and types.
//
// Libraries move bytes, we add: every sum over ranks is gathered and added by our own operators in one order,
// by halves of the places, so that its bits depend on neither library nor topology, and are the same on every
// rank.
//   N ranks of the group, X any shape
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "ops/device_group.h"
#include "parallel/transport.h"

namespace switchyard::parallel {

// What each of N neighbours has of a whole of `total` elements: whole blocks of `block` elements, as even as
// that allows.
FlatRange part_of(std::int64_t total, std::int64_t block, int n, int place);

// What sum_to_owners() takes of scratch space for each rank of the group, at most.
constexpr std::int64_t kSumPieceBytes = std::int64_t{4} << 20;

class Group {
 public:
  // `ranks` of the transport, ascending; its own is among them. `device`: the same ranks, where they compute on
  // devices. With library_sums tensors there are added by the library (parallel.sums), in an order of its own.
  Group(Transport& transport, std::vector<int> ranks, std::shared_ptr<ops::DeviceGroup> device = nullptr,
        bool library_sums = false);

  int place() const { return place_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  const std::vector<int>& ranks() const { return ranks_; }
  // What devices exchange is known to all of these (ops/device_group.h).
  void register_memory() const {
    if (device_ != nullptr) device_->register_memory();
  }

  // Tensors below are contiguous and lie where the run computes, or on the host. On a device everything is work
  // on the run's stream, which may be recorded, but for exchange_rows(), which is of the host alone.

  // Piece p of to_NX := from_X of place p; any type. from_X may be the own piece of to_NX.
  void all_gather(Tensor to_NX, Tensor from_X, Traffic kind, Context& ctx) const;
  // The same of pieces of different sizes: part p of to_P := what place p has there. Each rank's own part of
  // to_P is set already.
  void all_gather_parts(Tensor to_P, std::span<const FlatRange> part_N, Traffic kind, Context& ctx) const;
  // Nobody is behind this before all have come to it: on a device, what was started on the run's stream.
  void meet(Context& ctx) const;
  // Piece p of to_NX := piece (own place) of from_NX of place p; any type. The two do not overlap.
  void exchange(Tensor to_NX, Tensor from_NX, Traffic kind, Context& ctx) const;
  // Rows from_RX go to the places in turn, send_N[p] of them to place p; to_RX takes them likewise,
  // receive_N[p] from place p. The host knows both.
  void exchange_rows(Tensor to_RX, Tensor from_RX, std::span<const std::int64_t> receive_N,
                     std::span<const std::int64_t> send_N, Traffic kind, Context& ctx) const;

  // x := the sum over ranks, on every rank; f32 or f64. For small tensors: takes N times its size of scratch.
  void sum(Tensor x, Traffic kind, Context& ctx) const;
  // This rank's part of x_P := its sum over ranks; the other parts are left undefined. f32 or f64; takes
  // scratch of N pieces of at most 4 MiB, whatever P is.
  void sum_to_owners(Tensor x_P, std::span<const FlatRange> part_N, Traffic kind, Context& ctx) const;

  // Bytes of the host, from one place to another: these two ranks call, and no other.
  void send(int to_place, std::span<const std::byte> bytes, Traffic kind) const;
  void receive(int from_place, std::span<std::byte> bytes, Traffic kind) const;

  // Of the host, and small: what each place has said, on every rank.
  std::vector<std::string> gather_text(const std::string& mine) const;
  // The same of as many numbers on each rank, place after place; and their sums over ranks, number by number.
  std::vector<double> gather_numbers(std::span<const double> mine) const;
  void sum_numbers(std::span<double> numbers) const;
  // What place 0 has said, on every rank.
  std::string text_of_first(const std::string& mine) const;
  // True on every rank where it is true on one.
  bool any(bool flag) const;
  void barrier() const { any(false); }

 private:
  // mine goes to all others, and what place p has for all comes to place_of(p).
  template <class F>
  void tell_all(std::span<const std::byte> mine, F&& place_of, Traffic kind) const;
  // Bytes for and from places of the group, where the tensor lies that they are of.
  struct Piece {
    int place;
    std::span<std::byte> bytes;
  };
  void move(const Tensor& of, std::span<const Piece> out, std::span<const Piece> in, Traffic kind,
            Context& ctx) const;
  ops::DeviceGroup& device_of(const Tensor& x) const;
  void count(Traffic kind, std::int64_t bytes) const { transport_.count_sent(kind, bytes); }

  Transport& transport_;
  std::vector<int> ranks_;
  std::shared_ptr<ops::DeviceGroup> device_;
  bool library_sums_ = false;
  int place_ = 0;
};

// The N equal pieces of a contiguous tensor, as ops::sum_by_halves takes them: each all its elements in a row.
std::vector<Tensor> leaves(const Tensor& piece_NX, std::int64_t n);

}  // namespace switchyard::parallel
