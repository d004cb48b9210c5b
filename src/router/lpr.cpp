// Latent Prototype Routing: tokens are encoded into a small latent space and go to the experts whose keys are
// most similar there (arXiv 2506.21328; docs/router-mathematics.md, section 2).
//   T tokens, D hidden size, E experts, K slots a token, d latent width
//
//   a = SiLU(LayerNorm(x));  [mean, log_var] = a encoder^T + bias;  S = similarity(mean, keys)
//   V = what softmax_E(S) decodes to;  chosen = top-K of S;  weights = softmax over the chosen
//   expert input = x + V out_proj^T + bias
#include <fmt/core.h>

#include <optional>

#include "ops/elementwise.h"
#include "ops/latent.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"
#include "router/choice_bias.h"
#include "router/linear_gate.h"
#include "router/lpr_regularisation.h"
#include "router/lpr_similarity.h"

namespace switchyard::router {

namespace {

constexpr double kNormEps = 1e-5;
constexpr bool kMeanFree = true;  // no published run has a sign step here

class LatentPrototype final : public Router {
 public:
  LatentPrototype(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                  ParameterStore& store)
      : shape_(shape),
        width_(options.own.integer("latent_dim")),
        jitter_(options.jitter),
        ema_decay_(options.own.number("ema_decay")),
        ema_(options.own.word("key_update") == "ema"),
        has_addend_(options.own.boolean("prototype_addend")),
        routes_(options.own.boolean("prototype_routing")),
        store_(store),
        regularisation_(options, shape.n_experts) {
    const std::int64_t D = shape.hidden_size, E = shape.n_experts, d = width_;
    const auto add = [&](const char* name, Shape row_shape, Init init, bool trained = true) {
      store.begin_group();
      return store.add({.name = prefix + name,
                        .shape = row_shape,
                        .init = init,
                        .init_std = init == Init::normal ? shape.init_std : 1.0,
                        .weight_decay = init == Init::normal,
                        .trained = trained});
    };
    if (!routes_) gate_.emplace(options, shape, prefix, store);
    norm_weight_ = add("norm.weight", Shape{D}, Init::ones);
    norm_bias_ = add("norm.bias", Shape{D}, Init::zeros);
    encoder_weight_ = add("encoder.weight", Shape{2 * d, D}, Init::normal);
    encoder_bias_ = add("encoder.bias", Shape{2 * d}, Init::zeros);
    if (has_addend_) {
      out_weight_ = add("out_proj.weight", Shape{D, d}, Init::normal);
      out_bias_ = add("out_proj.bias", Shape{D}, Init::zeros);
    }
    store.begin_group();
    keys_ = store.add({.name = prefix + "expert_keys",
                       .shape = Shape{E, d},
                       .init = options.own.boolean("unit_ball") ? Init::unit_rows : Init::normal,
                       .init_std = 1,
                       .weight_decay = false,  // places, not strengths
                       .trained = !ema_});
    similarity_.emplace(options, shape, prefix, store);
    if (ema_) {
      ema_sums_ = add("ema_sums", Shape{E, d}, Init::zeros, false);
      ema_counts_ = add("ema_counts", Shape{E}, Init::zeros, false);
    }
    if (options.own.word("bias") != "none")
      bias_.emplace(options.own, shape, ExpertGroups{},
                    routes_ ? fmt::format("of {} similarities", options.own.word("similarity")) : "of logits",
                    prefix, store);
  }

  std::int64_t n_slots() const override { return shape_.n_slots; }
  bool needs_statistics_first() const override { return regularisation_.needs_statistics_first(); }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t T = n_seq * seq_len, D = shape_.hidden_size, E = shape_.n_experts, d = width_;
    const Shape slots{T, shape_.n_slots};
    norm_mean_T_ = arena.take(Shape{T}, dtype);
    norm_rstd_T_ = arena.take(Shape{T}, dtype);
    a_TD_ = arena.take(Shape{T, D}, dtype);
    latent_T2d_ = arena.take(Shape{T, 2 * d}, dtype);
    token_ = {latent_T2d_.columns(0, d), latent_T2d_.columns(d, d), arena.take(Shape{T, d}, dtype),
              arena.take(Shape{T}, dtype)};
    key_unit_Ed_ = arena.take(Shape{E, d}, dtype);
    key_norm_E_ = arena.take(Shape{E}, dtype);
    similarity_->plan(arena, T, dtype);
    score_TE_ = arena.take(Shape{T, E}, dtype);
    prob_TE_ = arena.take(Shape{T, E}, dtype);
    lse_T_ = arena.take(Shape{T}, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    V_Td_ = arena.take(Shape{T, d}, dtype);
    if (!routes_) {
      logit_TE_ = arena.take(Shape{T, E}, dtype);
      mixture_TE_ = arena.take(Shape{T, E}, dtype);
      gate_->plan(arena, T, dtype);
    }
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype),
                 has_addend_ ? arena.take(Shape{T, D}, dtype) : Tensor{}};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    ops::layernorm_silu_forward(a_TD_, norm_mean_T_, norm_rstd_T_, x_TD, store_.value(norm_weight_),
                                store_.value(norm_bias_), kNormEps, ctx);
    ops::linear_forward(latent_T2d_, a_TD_, store_.value(encoder_weight_), ops::Write::set, ctx);
    ops::bias_forward(latent_T2d_, store_.value(encoder_bias_), ctx);
    ops::unit_rows_forward(token_.unit, token_.norm, token_.mean, ctx);
    ops::unit_rows_forward(key_unit_Ed_, key_norm_E_, store_.value(keys_), ctx);
    const LatentRows key = keys();
    similarity_->forward(score_TE_, token_, key, ctx);

    // Jitter moves the choice and its weights; the similarities stay as they are for the backward pass.
    Tensor seen_TE = routes_ ? score_TE_ : logit_TE_;
    if (!routes_) {
      gate_->forward(logit_TE_, x_TD, batch, ctx);
      ops::softmax_forward(mixture_TE_, ctx.scratch.take(lse_T_.shape(), lse_T_.dtype()), score_TE_, ctx);
    } else if (batch.training && jitter_ != 0) {
      seen_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
      ops::copy(seen_TE, score_TE_, ctx);
      add_jitter(seen_TE, jitter_, batch, shape_.layer, ctx);
    }
    ops::softmax_forward(prob_TE_, lse_T_, seen_TE, ctx);
    if (bias_) {
      bias_->choose(decision_.expert_TK, bias_statistics(), seen_TE, batch, ctx);
      ops::gather_slots(chosen_TK_, seen_TE, decision_.expert_TK, ctx);  // the bias chooses, it does not weigh
    } else {
      ops::top_k(decision_.expert_TK, chosen_TK_, seen_TE, batch.token_T, ctx);
    }
    ops::slot_softmax_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, shape_.weight_scale, ctx);
    // What aligns keys are similarities, without jitter.
    if (seen_TE.raw() != score_TE_.raw()) ops::gather_slots(chosen_TK_, score_TE_, decision_.expert_TK, ctx);
    if (has_addend_) {
      similarity_->decode(V_Td_, mixture_TE(), key, ctx);
      ops::linear_forward(decision_.expert_input_addend_TD, V_Td_, store_.value(out_weight_), ops::Write::set,
                          ctx);
      ops::bias_forward(decision_.expert_input_addend_TD, store_.value(out_bias_), ctx);
      ops::clear_skipped_rows(decision_.expert_input_addend_TD, batch.token_T, ctx);
    }
    if (batch.training) observe(batch, ctx);
    return {decision_, prob_TE_, lse_T_};
  }

  void add_router_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const override {
    regularisation_.add_loss(loss_1, store_.value(keys_), own_statistics(), own_part(gradient.statistics_S),
                             gradient.token_share, ctx);
  }

  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const auto zeros_like = [&](const Tensor& tensor) {
      const Tensor zeros = ctx.scratch.take(tensor.shape(), tensor.dtype());
      ops::fill_zero(zeros, ctx);
      return zeros;
    };
    const Tensor dscore_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    const Tensor dprob_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    const Tensor dmixed_TE = routes_ ? Tensor{} : ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    const Tensor dV_Td = ctx.scratch.take(V_Td_.shape(), V_Td_.dtype());
    const Tensor dlatent_T2d = zeros_like(latent_T2d_);
    const LatentRows key = keys();
    const LatentRows dtoken{dlatent_T2d.columns(0, width_), dlatent_T2d.columns(width_, width_),
                            zeros_like(token_.unit)};
    // Keys that follow an average are not learned: their gradient goes nowhere.
    const LatentRows dkey{ema_ ? zeros_like(key.mean) : store_.grad(keys_), similarity_->key_log_var_grad(),
                          zeros_like(key.unit)};

    if (has_addend_) {
      ops::bias_backward(store_.grad(out_bias_), gradient.daddend_TD, ctx);
      ops::linear_backward_weight(store_.grad(out_weight_), gradient.daddend_TD, V_Td_, ctx);
      ops::linear_backward_input(dV_Td, gradient.daddend_TD, store_.value(out_weight_), ops::Write::set, ctx);
      similarity_->decode_backward(dprob_TE, dkey, dV_Td, mixture_TE(), key, ctx);
    } else {
      ops::fill_zero(dV_Td, ctx);
      ops::fill_zero(dprob_TE, ctx);
    }
    if (!routes_) {  // what mixes prototypes and what chooses are two things
      ops::softmax_backward(dmixed_TE, dprob_TE, mixture_TE_, ctx);
      ops::fill_zero(dprob_TE, ctx);
    }
    ops::add_sequence_gradient(dprob_TE, loss_gradient.dprob_BE, prob_TE_, loss_gradient.dprob2, batch.token_T,
                               ctx);
    ops::softmax_backward(dprob_TE, dprob_TE, prob_TE_, ctx);
    ops::slot_softmax_backward(dscore_TE, gradient.dweight_TK, decision_.weight_TK, decision_.expert_TK,
                               shape_.weight_scale, ctx);
    ops::add(dscore_TE, dscore_TE, dprob_TE, ctx);
    ops::z_loss_backward(dscore_TE, prob_TE_, lse_T_, batch.token_T, loss_gradient.dlse2, ctx);
    if (!routes_) gate_->backward(dx_TD, dscore_TE, x_TD, ctx);
    similarity_->backward(dtoken, dkey, routes_ ? dscore_TE : dmixed_TE, score_TE_, dV_Td, token_, key, ctx);
    regularisation_.backward(dtoken, dkey, token_, key, batch.token_T, own_statistics(),
                             own_part(loss_gradient.statistics_S), loss_gradient.token_share, ctx);
    ops::unit_rows_backward(dtoken.mean, dtoken.unit, token_.unit, token_.norm, ctx);
    ops::unit_rows_backward(dkey.mean, dkey.unit, key.unit, key.norm, ctx);

    const Tensor da_TD = ctx.scratch.take(a_TD_.shape(), a_TD_.dtype());
    ops::bias_backward(store_.grad(encoder_bias_), dlatent_T2d, ctx);
    ops::linear_backward_weight(store_.grad(encoder_weight_), dlatent_T2d, a_TD_, ctx);
    ops::linear_backward_input(da_TD, dlatent_T2d, store_.value(encoder_weight_), ops::Write::set, ctx);
    ops::layernorm_silu_backward(dx_TD, store_.grad(norm_weight_), store_.grad(norm_bias_), da_TD, x_TD,
                                 norm_mean_T_, norm_rstd_T_, store_.value(norm_weight_),
                                 store_.value(norm_bias_), ctx);
  }

  // The regularisation's, then the bias's.
  std::int64_t n_statistics() const override {
    return regularisation_.n_statistics() + (bias_ ? bias_->n_statistics() : 0);
  }

  void after_step(Tensor slots_E, Tensor statistics_S, Context& ctx) override {
    if (bias_) bias_->after_step(slots_E, bias_part(statistics_S), ctx);
    if (!ema_) return;
    const auto [sum_Ed, count_E] = regularisation_.routed_sums(own_part(statistics_S));
    ops::follow_ratios(store_.value(keys_), store_.value(ema_sums_), store_.value(ema_counts_), sum_Ed, count_E,
                       ema_decay_, ctx);
  }

  std::int64_t settle_tokens() const override { return bias_ ? bias_->settle_tokens() : 0; }
  void settle(Tensor, Tensor statistics_S, double keep, Context& ctx) override {
    if (bias_) bias_->settle(bias_part(statistics_S), keep, ctx);
  }

  // Of the matrices in the gate, the keys make S; V is a second product of that size, and ema_sums is none.
  // Without an addend there is no V.
  std::int64_t extra_multiply_adds() const override {
    const std::int64_t product = shape_.n_experts * width_;
    return (has_addend_ ? product : 0) - (ema_ ? product : 0);
  }

  void visit_saved(const TensorVisitor& visit) const override {
    visit("router latents", latent_T2d_);
    visit("router similarities", score_TE_);
    if (has_addend_) visit("router prototypes", V_Td_);
  }

 private:
  LatentRows keys() const {
    return {store_.value(keys_), similarity_->key_log_var(), key_unit_Ed_, key_norm_E_};
  }

  // What prototypes are mixed by.
  Tensor mixture_TE() const { return routes_ ? prob_TE_ : mixture_TE_; }

  Tensor own_part(const Tensor& statistics_S) const {
    return statistics_S.slice(0, regularisation_.n_statistics());
  }
  Tensor own_statistics() const { return own_part(statistics_S_); }
  Tensor bias_part(const Tensor& statistics_S) const {
    return statistics_S.slice(regularisation_.n_statistics(), bias_->n_statistics());
  }
  // Not defined where there are none: outside training.
  Tensor bias_statistics() const { return statistics_S_.defined() ? bias_part(statistics_S_) : Tensor{}; }

  void observe(const RouterBatch& batch, Context& ctx) {
    ScratchScope scope(ctx.scratch);
    Tensor z_Td;
    if (regularisation_.needs_routed_sums()) {
      Tensor epsilon_Td = batch.epsilon_Td;
      if (!epsilon_Td.defined()) {
        epsilon_Td = ctx.scratch.take(V_Td_.shape(), V_Td_.dtype());
        ops::fill_zero(epsilon_Td, ctx);
        add_noise(epsilon_Td, RngPurpose::router_noise, 1.0, batch, shape_.layer, ctx);
      }
      z_Td = ctx.scratch.take(V_Td_.shape(), V_Td_.dtype());
      ops::sample_latent(z_Td, token_.mean, token_.log_var, epsilon_Td, ctx);
    }
    regularisation_.observe(own_statistics(), token_, z_Td, chosen_TK_, decision_.expert_TK, batch.token_T,
                            ctx);
  }

  RouterShape shape_;
  std::int64_t width_;
  double jitter_, ema_decay_;
  bool ema_, has_addend_, routes_;
  ParameterStore& store_;
  std::size_t norm_weight_, norm_bias_, encoder_weight_, encoder_bias_, keys_;
  std::size_t out_weight_ = 0, out_bias_ = 0, ema_sums_ = 0, ema_counts_ = 0;
  std::optional<LatentSimilarity> similarity_;
  LatentRegularisation regularisation_;
  std::optional<ChoiceBias> bias_;
  std::optional<LinearGate> gate_;  // that chooses in the prototypes' place
  Tensor norm_mean_T_, norm_rstd_T_, a_TD_, latent_T2d_, key_unit_Ed_, key_norm_E_;
  Tensor score_TE_, prob_TE_, lse_T_, chosen_TK_, V_Td_;
  Tensor logit_TE_, mixture_TE_;  // with a gate: its logits, and the softmax of the similarities
  LatentRows token_;
  RoutingDecision decision_;
};

// Options that do nothing here are refused, as they were meant to do something.
void check(const config::Router& router, const config::Model&, const config::RouterSchema::Refuse& refuse) {
  const auto& own = router.own;
  const std::string& similarity = own.word("similarity");
  const std::int64_t width = own.integer("latent_dim"), heads = own.integer("num_heads");
  if (own.number("sigma") != 1 && similarity != "gaussian")
    refuse("sigma",
           fmt::format("is {}, but similarity \"{}\" has no width; remove it", own.number("sigma"), similarity),
           "similarity");
  if (heads != 1 && similarity != "cross_attention")
    refuse("num_heads", fmt::format("is {}, but similarity \"{}\" has no heads; remove it", heads, similarity),
           "similarity");
  if (width % heads != 0)
    refuse("num_heads", fmt::format("is {}, which does not divide latent_dim ({})", heads, width),
           "latent_dim");
  if (own.word("diversity") == "euclidean" && own.word("reg_scope") == "global_batch" &&
      own.number("reg_coef") * own.number("div_weight") * own.number("diversity_lambda") != 0)
    refuse(
        "reg_scope",
        "is \"global_batch\", but diversity \"euclidean\" compares all pairs of tokens and is no function of "
        "sums over tokens; set it to \"micro_batch\"",
        "diversity");
  if (own.number("ema_decay") != 0.8 && own.word("key_update") != "ema")
    refuse("ema_decay",
           fmt::format("is {}, but key_update is \"gradient\", which averages nothing; remove it",
                       own.number("ema_decay")),
           "key_update");
  if (!own.boolean("prototype_routing") && !own.boolean("prototype_addend"))
    refuse("prototype_routing",
           "is false, and so is prototype_addend: nothing is left of the prototypes; set one to true",
           "prototype_addend");
  check_choice_bias(router, kMeanFree, refuse);
}

}  // namespace

RouterType lpr_router() {
  const auto word = [](const char* value) { return config::OptionValue(std::string(value)); };
  const config::Interval share{0, 1, false, true};
  RouterType type = {
      .schema = {.type = "lpr",
                 .balance_coef = 0,  // keys that are spread out balance
                 .no_logit_norm = "which normalises no logits",
                 .weights_sum_to = "1",
                 .options = {{.key = "latent_dim", .fallback = std::int64_t{16}, .range = {1, 4096}},
                             {.key = "similarity", .fallback = word("cosine"), .choices = lpr_similarities()},
                             {.key = "sigma", .fallback = 1.0, .range = {1e-3, 1e3}},
                             {.key = "num_heads", .fallback = std::int64_t{1}, .range = {1, 4096}},
                             {.key = "unit_ball", .fallback = false, .in_training_alone = true},
                             {.key = "prototype_addend", .fallback = true},
                             {.key = "prototype_routing", .fallback = true},
                             {.key = "reg_coef",
                              .fallback = 0.01,
                              .range = config::kCoefficient,
                              .in_training_alone = true},
                             {.key = "div_weight",
                              .fallback = 1.0,
                              .range = config::kCoefficient,
                              .in_training_alone = true},
                             {.key = "diversity",
                              .fallback = word("orthogonal"),
                              .choices = {"orthogonal", "cosine", "euclidean"},
                              .in_training_alone = true},
                             {.key = "diversity_lambda",
                              .fallback = 1.0,
                              .range = config::kCoefficient,
                              .in_training_alone = true},
                             {.key = "kl_weight",
                              .fallback = 0.01,
                              .range = config::kCoefficient,
                              .in_training_alone = true},
                             {.key = "align_weight",
                              .fallback = 0.05,
                              .range = config::kCoefficient,
                              .in_training_alone = true},
                             {.key = "reg_scope",
                              .fallback = word("global_batch"),
                              .choices = {"global_batch", "micro_batch"},
                              .in_training_alone = true},
                             {.key = "key_update",
                              .fallback = word("gradient"),
                              .choices = {"gradient", "ema"},
                              .in_training_alone = true},
                             {.key = "ema_decay",
                              .fallback = 0.8,
                              .range = share,
                              .in_training_alone = true,
                              .kept_each_step = true}},
                 .check = check},
      .make = make_router_of<LatentPrototype>};
  type.schema.options =
      joined(type.schema.options,
             choice_bias_options({"none", "quantile", "sign", "smebu", "phi"}, "none", kMeanFree));
  return type;
}

}  // namespace switchyard::router
