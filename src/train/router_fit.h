// Routers that begin with what they see over some batches: a latent prototype router where a linear gate ends,
// its encoder and keys fitted to the gate's logits in closed form (docs/other-routers.md); a linear gate with
// the clusters of its inputs (docs/upcycling.md).
//   T tokens, D hidden size, E experts, d latent width, C clusters
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"
#include "model/transformer.h"
#include "train/calibration.h"

namespace switchyard::train {

// Of one layer: what its fit is made of, added up over tokens.
class GateSums {
 public:
  GateSums(std::int64_t hidden, std::int64_t n_experts);
  // x_TD: what the gate sees; token_T negative: padding; f32, on the host.
  void add(Tensor x_TD, Tensor token_T, Tensor gate_ED);

  // Set: the encoder's rows of means, encoder_dD and bias_d, and the keys key_Ed (unit rows times sqrt(d)), so
  // that the cosine of mean and key follows the gate's logits, less their mean over experts, as closely as
  // least squares let it. Of more latent columns than experts those beyond stay as they are, with keys of 0.
  void fit(Tensor encoder_dD, Tensor bias_d, Tensor key_Ed) const;

 private:
  std::int64_t D_, E_;
  double tokens_ = 0;
  std::vector<double> a_D_, y_E_, aa_DD_, ya_ED_;
};

// Fits every router of `store`, rows of a model with routers of type lpr, to the gates of `own`, the same model
// with linear gates, made for training, so that it keeps what each layer sees, and planned here. Out_proj
// becomes 0, so that the experts see at first what they were trained with. Of several ranks each does all of
// it. Returns the tokens that were read.
std::int64_t fit_to_gates(model::Transformer& own, const std::vector<Domain>& domains,
                          const CalibrationSettings& settings, ParameterStore& store, Context& ctx);

// Of rows x_TD (f32, on the host): the centres [C, D] of C clusters of their directions from the mean, at right
// angles to the mean, and scaled so that the products with the rows, less their mean over clusters, have a mean
// square of 1. Lloyd's iterations on the sphere, from rows that k-means++ draws; a function of x_TD alone.
// Throws std::logic_error where there are fewer rows than clusters.
void cluster_directions(Tensor centre_CD, Tensor x_TD);

// Sets the linear gate of every layer of `store`, rows of a model of the same layout, to clusters of what its
// router sees in `own`, made for training and planned here: the same one for each `n_together` neighbours. Of
// several ranks each does all of it. Returns the tokens that were read. Throws InputError where they are fewer
// than the clusters.
std::int64_t cluster_gates(model::Transformer& own, const std::vector<Domain>& domains,
                           const CalibrationSettings& settings, std::int64_t n_together, ParameterStore& store,
                           Context& ctx);

}  // namespace switchyard::train
