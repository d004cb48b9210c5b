// Gradients of all ranks are added up: what, when, and beside what else.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "model/transformer.h"
#include "ops/device.h"
#include "parallel/world.h"

namespace switchyard::train {

// A sum over ranks ends at the rank that owns the elements (ParameterStore::regions); with parallel.zero 0 it
// goes on to all of them. What is of no layer is added up after the last micro-batch (sum_rest), and so are the
// layers, but for two cases:
//   - with parallel.zero 2 each layer's are added up in each micro-batch, when its backward pass is done, and
//     then to the sums of earlier micro-batches: the same bits where a rank has one, else sums in another
//     order;
//   - `beside` the backward pass (parallel.overlap) each layer's are added up in that of the last micro-batch,
//     while the layers below make theirs: the same bits, since each element is added up as it was.
class GradientSums {
 public:
  // The store has been laid out for the mesh and `zero`; both outlive this.
  GradientSums(ParameterStore& store, const parallel::Mesh& mesh, std::int64_t zero, bool beside);

  // Whether layers are added up in the backward pass of a micro-batch: by LayerSums.
  bool in_backward(bool is_last_micro_batch) const {
    return store_.layers_share_gradients() || (beside_ && is_last_micro_batch);
  }
  // After the last micro-batch, all that is left. What this rank updates is complete on it then.
  void sum_rest(Context& ctx) const;

 private:
  friend class LayerSums;
  void sum_layer(std::int64_t layer, Context& ctx) const;
  void sum_range(std::size_t region, const FlatRange& range, Context& ctx) const;

  ParameterStore& store_;
  const parallel::Mesh& mesh_;
  bool to_all_, beside_;
};

// The sums of layers in one backward pass.
class LayerSums {
 public:
  LayerSums(const GradientSums& sums, Context& ctx) : sums_(sums), ctx_(ctx) {}
  model::BackwardCalls calls();
  // After the backward pass: what is started from here on waits for all sums.
  void join();

 private:
  void begin(std::int64_t layer);
  void end(std::int64_t layer);
  void start_ended();

  const GradientSums& sums_;
  Context& ctx_;
  std::vector<std::int64_t> ended_;  // layers whose sums have not been started
  // Of each memory of layers' gradients, the sums that were started last: earlier ones are done before them.
  std::array<std::unique_ptr<ops::Beside>, 2> under_way_W_;
};

}  // namespace switchyard::train
