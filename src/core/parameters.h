// All parameters of a model, by their Hugging Face names, in four flat arrays: value, gradient and AdamW's two
// moments; and a fifth where a run computes with values of another type. A parameter is one row of this table;
// optimizer, checkpoint and parallel code walk the rows and know no model. Rows of one group lie side by side,
// so that the experts of a layer, or q, k and v, are also one matrix.
//
// In memory the replicated rows come first, then the experts that this rank holds: two regions, each cut into
// the parts of the ranks that share it. A part ends at the end of a block; blocks begin anew with each row, so
// that they are the same ones on any number of ranks.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/tensor.h"

namespace switchyard {

// unit_rows: normal, then each row scaled to length 1. dealt: numbers of experts, below.
enum class Init { zeros, ones, normal, unit_rows, dealt };
enum class Sharding { replicated, by_expert };  // which parameters an expert-parallel rank may hold a part of

// Which of a run's ranks this one is, and who shares what: all ranks the replicated rows; an expert group the
// experts, of which each of its places holds a run of neighbours; replicas, which hold the same experts, those.
struct Placement {
  int place = 0, size = 1;                  // among all ranks
  int expert_place = 0, expert_size = 1;    // in its expert group
  int replica_place = 0, replica_size = 1;  // among the ranks that hold the same experts
  // ZeRO (arXiv 1910.02054): of the own part alone AdamW's moments; and the sums of the gradients of layers,
  // too.
  bool shard_moments = false, shard_gradients = false;
  // With shard_gradients: memories that layers use by turns. Two let the gradients of one be added up while the
  // next ones are made.
  int gradient_windows = 1;
};

struct Parameter {
  std::string name;  // "model.layers.0.mlp.experts.3.gate_proj.weight"
  Shape shape;
  Init init = Init::normal;  // normal: standard deviation init_std
  double init_std = 0.0;
  bool weight_decay = true;
  bool trained = true;     // false: has no gradient, and the optimizer leaves it alone (a router's bias)
  bool of_router = false;  // mark_router()'s, set by the store
  // What its numbers say, where rows of other models have this name and shape and say something else: only
  // between rows of one meaning are values handed on ("of sigmoid scores").
  std::string meaning = {};
  // Init::dealt, [tokens * dealt_slots]: the experts of each token. Tokens are put in a random order and taken
  // E = dealt_experts at a time; to each such round dealt_slots different offsets below E are drawn, and the
  // token of place r in the order has the experts (r + offset) mod E. So a token's experts differ, and a whole
  // round sends as many tokens to each expert.
  std::int64_t dealt_experts = 0, dealt_slots = 0;
  Sharding sharding = Sharding::replicated;
  std::int64_t expert = 0, n_experts = 1;  // by_expert: whose it is, and of how many in its layer
  std::int64_t layer = -1;                 // begin_layer()'s, set by the store; -1: of none
  // Elements from the start of the flat arrays, set by the store; -1: of an expert that another rank holds.
  std::int64_t offset = 0;
};

// Elements [first, first + count) of the flat arrays.
struct FlatRange {
  std::int64_t first = 0, count = 0;
};
FlatRange overlap(const FlatRange& a, const FlatRange& b);  // count 0: none

// Rows that the same ranks share, and what each of these ranks owns of them, in the order of their places.
struct Region {
  FlatRange all;
  std::vector<FlatRange> parts;
  int own = 0;
  const FlatRange& own_part() const { return parts[static_cast<std::size_t>(own)]; }
  std::vector<FlatRange> parts_in(
      const FlatRange& range) const;  // of each rank, counted from the range's start
};

// A block of a row: what one partial sum of the gradient's squares is over.
struct Block {
  FlatRange range;
  std::int64_t number = 0;  // among all blocks of the model, in the order of its rows
};

enum class RowArray { value, gradient, moment1, moment2 };
// Elements [first, first + N) of a row, where they lie.
struct RowPiece {
  std::size_t row = 0;
  std::int64_t first = 0;
  Tensor tensor_N;
};

class ParameterStore {
 public:
  // Starts a group: the next row is aligned to a cache line, the ones after it follow without gaps.
  void begin_group();
  // Adds a row and returns its index. Names are unique. Only before allocate().
  std::size_t add(Parameter parameter);
  // The rows added from here on, up to the next call or end_layers(), are those of a layer, whose number it
  // returns: rows whose gradients are done at the same time. With shard_gradients, and where several ranks
  // share the rows, the gradients of all layers are made in one memory, one layer after the other. Both calls
  // start a group.
  std::int64_t begin_layer();
  // The rows from this one on are of a router.
  void mark_router(std::size_t first);
  void end_layers();
  // Lays the rows out for this rank; without it, for the only one. Only before allocate().
  void place(const Placement& placement);

  // Allocates the flat arrays on the device: values and, if training, gradients and moments (zeroed). With
  // `compute` of bf16, weights are values rounded to it, which whoever changes values has to make (weights()).
  void allocate(DType dtype, bool training, Device device = Device::cpu) {
    allocate(dtype, dtype, training, device);
  }
  void allocate(DType dtype, DType compute, bool training, Device device);
  // Tensors as allocate() makes them, but without memory, until it is called: for Context::measuring().
  void pretend(DType dtype, DType compute, bool training);
  // The bytes that allocate() will take; and that it is to take so many at least, since ranks whose memory is
  // symmetric have as much. Once place() has laid the rows out.
  std::int64_t bytes(DType dtype, DType compute, bool training) const;
  void take_at_least(std::int64_t bytes) { least_bytes_ = bytes; }
  // Fills every value as its row says: a function of (seed, name, index).
  void initialise(std::uint64_t seed);
  void initialise(std::uint64_t seed, std::size_t row);  // one row alone, if it is here

  const std::vector<Parameter>& rows() const { return rows_; }
  std::int64_t count() const;  // elements of all rows, whoever holds them, without alignment gaps
  bool is_here(std::size_t row) const { return rows_[row].offset >= 0; }
  bool training() const { return training_; }

  // Below: once place() or allocate() has laid the rows out.
  std::int64_t flat_size() const { return size_; }                   // elements of a flat array, gaps included
  std::int64_t moments_size() const { return moments_size_; }        // the same of a moment's
  const std::array<Region, 2>& regions() const { return regions_; }  // replicated, experts
  // Of the own parts, ascending; and of all ranks together.
  const std::vector<Block>& own_blocks() const { return own_blocks_; }
  std::int64_t n_blocks() const { return n_blocks_; }
  // Elements of what gradients() and gradients of layers take.
  std::int64_t gradients_size() const;
  // What of a range of the flat arrays is updated here: all of it, or what lies in an own part; in pieces of
  // which each has its moments, and its sums of gradients, side by side.
  std::vector<FlatRange> updated(const FlatRange& range) const;
  Tensor moment1(const FlatRange& range) const { return moment(moment1_P_, range); }
  Tensor moment2(const FlatRange& range) const { return moment(moment2_P_, range); }

  // What a layer has of each region, gaps included; count 0: nothing. And what is of no layer.
  std::int64_t n_layers() const { return n_layers_; }
  const std::array<FlatRange, 2>& layer_ranges(std::int64_t layer) const;
  std::vector<FlatRange> ranges_of_no_layer(std::size_t region) const;
  // Gradients as the backward pass makes them lie in grads(), which a step zeroes, and of layers that share a
  // memory in layer_grads(). Sums over ranks and micro-batches, of an own part, are in sum_of_grads(): those of
  // grads() in their place, and behind them those of the layers; index_of_sum() is the position of an element.
  bool layers_share_gradients() const { return layer_grads_size_ > 0; }
  bool layers_share_gradients(std::size_t region) const;
  std::vector<FlatRange> ranges_in_grads(std::size_t region) const;
  Tensor grad(const FlatRange& range) const;  // of a layer, or of what lies in grads()
  Tensor layer_grads(std::int64_t layer) const;
  // In which memory a layer's gradients are made. That of its neighbours is another where there are two.
  std::size_t window_of(std::int64_t layer) const {
    return static_cast<std::size_t>(layer % placement_.gradient_windows);
  }
  Tensor sum_of_grads() const { return sum_S_; }
  Tensor sum_of_grads(const FlatRange& range) const;
  std::int64_t index_of_sum(const FlatRange& range) const;

  // Of an array, ascending: what this rank saves, so that every element of the model is saved by one rank; and
  // all that lies here, which is what it loads. All but values are of trained rows.
  std::vector<RowPiece> owned(RowArray array) const;
  std::vector<RowPiece> held(RowArray array) const;

  Tensor value(std::size_t row) const { return view(value_P_, row); }
  Tensor weight(std::size_t row) const { return view(weight_P_, row); }  // the value as a run computes with it
  Tensor grad(std::size_t row) const;
  Tensor moment1(std::size_t row) const;  // where moments are not sharded
  Tensor moment2(std::size_t row) const;

  // Rows [first, ...) of one group as one tensor of the given shape: fused weights.
  Tensor weight_block(std::size_t first, Shape shape) const;
  Tensor grad_block(std::size_t first, Shape shape) const;

  Tensor values() const { return value_P_; }    // flat, alignment gaps included (they stay zero)
  Tensor weights() const { return weight_P_; }  // values() itself where a run computes with values
  bool has_rounded_weights() const { return weight_P_.dtype() != value_P_.dtype(); }
  Tensor grads() const { return grad_P_; }        // flat; with shard_gradients of the rows of no layer
  Tensor moments1() const { return moment1_P_; }  // of moments_size() elements
  Tensor moments2() const { return moment2_P_; }

 private:
  void make_tensors(std::byte* memory, DType dtype, DType compute, bool training, Device device);
  void lay_out(Sharding sharding, Region& region, int size, int place);
  void find_layers();
  std::vector<Block> blocks_of(const FlatRange& range) const;
  std::int64_t index_of_own(const FlatRange& range) const;  // in an array of own parts
  // The layer in whose part of a region the range lies; -1: it is in grads().
  std::int64_t layer_of(std::size_t region, const FlatRange& range) const;
  std::size_t region_of(const FlatRange& range) const;
  std::int64_t size_in_window(std::int64_t layer) const;
  std::int64_t index_in_grads(const FlatRange& range) const;
  Tensor moment(const Tensor& moment_M, const FlatRange& range) const;
  FlatRange range_of(std::size_t row) const;
  FlatRange range_of_block(std::size_t first, const Shape& shape) const;
  Tensor array_part(RowArray array, const FlatRange& range) const;
  std::vector<RowPiece> pieces_of(RowArray array, const FlatRange& range) const;
  Tensor view(const Tensor& flat_P, std::size_t row) const;

  std::vector<Parameter> rows_;
  std::vector<bool> starts_group_;
  bool group_pending_ = true;
  std::int64_t layer_ = -1, n_layers_ = 0;
  Placement placement_;
  std::int64_t size_ = 0, own_size_ = 0, moments_size_ = 0, n_blocks_ = 0;
  std::int64_t grads_size_ = 0, layer_grads_size_ = 0, layer_sums_size_ = 0;
  std::vector<std::array<FlatRange, 2>> layer_ranges_;
  std::vector<std::int64_t> first_of_window_;           // in the memory of layers' gradients
  std::vector<std::array<std::int64_t, 2>> first_sum_;  // of what a layer has in an own part, in sum_of_grads()
  std::array<Region, 2> regions_;
  std::array<std::int64_t, 2> first_own_{};  // of each region's, in an array of own parts
  std::vector<Block> own_blocks_;
  bool training_ = false;
  std::int64_t least_bytes_ = 0;
  AlignedBuffer memory_;
  Tensor value_P_, weight_P_, grad_P_, layer_grad_W_, sum_S_, moment1_P_, moment2_P_;
};

}  // namespace switchyard
