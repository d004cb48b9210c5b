// All parameters of a model, by their Hugging Face names, in four flat arrays: value, gradient and AdamW's two
// moments; and a fifth where a run computes with values of another type. A parameter is one row of this table;
// optimizer, checkpoint and parallel code walk the rows and know no model. Rows of one group lie side by side,
// so that the experts of a layer, or q, k and v, are also one matrix.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/tensor.h"

namespace switchyard {

enum class Init { zeros, ones, normal, unit_rows };  // unit_rows: normal, then each row scaled to length 1
enum class Sharding { replicated, by_expert };  // which parameters an expert-parallel rank may hold a part of

// Which of a run's ranks this one is, and who shares what: all ranks the replicated rows; an expert group the
// experts, of which each of its places holds a run of neighbours; replicas, which hold the same experts, those.
struct Placement {
  int place = 0, size = 1;                  // among all ranks
  int expert_place = 0, expert_size = 1;    // in its expert group
  int replica_place = 0, replica_size = 1;  // among the ranks that hold the same experts
  bool shard_moments = false;               // AdamW's moments of the own part alone (ZeRO, arXiv 1910.02054)
};

struct Parameter {
  std::string name;  // "model.layers.0.mlp.experts.3.gate_proj.weight"
  Shape shape;
  Init init = Init::normal;  // normal: standard deviation init_std
  double init_std = 0.0;
  bool weight_decay = true;
  bool trained = true;  // false: has no gradient, and the optimizer leaves it alone (a router's bias)
  Sharding sharding = Sharding::replicated;
  std::int64_t offset = 0;  // elements from the start of the flat arrays; set by the store
};

class ParameterStore {
 public:
  // Starts a group: the next row is aligned to a cache line, the ones after it follow without gaps.
  void begin_group();
  // Adds a row and returns its index. Names are unique. Only before allocate().
  std::size_t add(Parameter parameter);

  // Allocates the flat arrays on the device: values and, if training, gradients and moments (zeroed). With
  // `compute` of bf16, weights are values rounded to it, which whoever changes values has to make (weights()).
  void allocate(DType dtype, bool training, Device device = Device::cpu) {
    allocate(dtype, dtype, training, device);
  }
  void allocate(DType dtype, DType compute, bool training, Device device);
  // Fills every value as its row says: a function of (seed, name, index).
  void initialise(std::uint64_t seed);

  const std::vector<Parameter>& rows() const { return rows_; }
  std::int64_t count() const;      // elements of all rows, without alignment gaps
  std::int64_t flat_size() const;  // elements of a flat array, with them
  bool training() const { return training_; }

  Tensor value(std::size_t row) const { return view(value_P_, row); }
  Tensor weight(std::size_t row) const { return view(weight_P_, row); }  // the value as a run computes with it
  Tensor grad(std::size_t row) const { return view(grad_P_, row); }
  Tensor moment1(std::size_t row) const { return view(moment1_P_, row); }
  Tensor moment2(std::size_t row) const { return view(moment2_P_, row); }

  // Rows [first, ...) of one group as one tensor of the given shape: fused weights.
  Tensor weight_block(std::size_t first, Shape shape) const { return block(weight_P_, first, shape); }
  Tensor grad_block(std::size_t first, Shape shape) const { return block(grad_P_, first, shape); }

  Tensor values() const { return value_P_; }    // flat, alignment gaps included (they stay zero)
  Tensor weights() const { return weight_P_; }  // values() itself where a run computes with values
  bool has_rounded_weights() const { return weight_P_.dtype() != value_P_.dtype(); }
  Tensor grads() const { return grad_P_; }
  Tensor moments1() const { return moment1_P_; }
  Tensor moments2() const { return moment2_P_; }

 private:
  Tensor view(const Tensor& flat_P, std::size_t row) const;
  Tensor block(const Tensor& flat_P, std::size_t first, Shape shape) const;

  std::vector<Parameter> rows_;
  std::vector<bool> starts_group_;
  bool group_pending_ = true;
  std::int64_t size_ = 0;
  bool training_ = false;
  AlignedBuffer memory_;
  Tensor value_P_, weight_P_, grad_P_, moment1_P_, moment2_P_;
};

}  // namespace switchyard
