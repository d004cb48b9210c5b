// What routers do with scores. All float32; T tokens, E experts, K slots a token.
#include <fmt/core.h>

#include "cuda_bench.h"
#include "ops/complexity.h"
#include "ops/cosine.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"

namespace switchyard::bench {

namespace {

constexpr DType f32 = DType::f32;

// Scores of all tokens and the K experts that are best by them.
struct Choice {
  Tensor score_TE, prob_TE, lse_T, expert_TK, chosen_TK, weight_TK, token_T;
  Choice(Workspace& w, const Sizes& s) {
    const Shape scores{s.router_tokens, s.experts}, slots{s.router_tokens, s.slots};
    score_TE = w.normal(scores, f32);
    prob_TE = w.take(scores, f32);
    lse_T = w.take({s.router_tokens}, f32);
    expert_TK = w.take(slots, DType::i32);
    chosen_TK = w.take(slots, f32);
    weight_TK = w.take(slots, f32);
    token_T = w.zeros({s.router_tokens}, DType::i32);
    Context& ctx = w.ctx();
    ops::cuda::softmax_forward(prob_TE, lse_T, score_TE, ctx);
    ops::cuda::top_k(expert_TK, chosen_TK, prob_TE, token_T, ctx);
    ops::cuda::slot_weights_forward(weight_TK, chosen_TK, expert_TK, ops::SlotWeighting{.normalise = true},
                                    ctx);
  }
};

// A case whose tensors are a Choice and one [T, E] matrix more.
using Bytes = std::function<double(const Choice&, const Tensor& other_TE)>;
using Call = std::function<void(const Choice&, const Tensor& other_TE, Context&)>;
Case on_choice(const Sizes& s, const char* kernel, const Bytes& bytes, const Call& call) {
  return {kernel, 0, [=](Workspace& w) {
            const Choice c(w, s);
            const Tensor other = w.normal(c.score_TE.shape(), f32);
            return Work{.shape = fmt::format("{}, {} slots", text(c.score_TE), s.slots),
                        .bytes = bytes(c, other),
                        .call = [=](Context& ctx) { call(c, other, ctx); }};
          }};
}

std::vector<Case> scores(const Sizes& s) {
  return {
      on_choice(
          s, "softmax_forward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, x, c.lse_T});
          },
          [](auto& c, auto& x, Context& ctx) { ops::cuda::softmax_forward(x, c.lse_T, c.score_TE, ctx); }),
      on_choice(
          s, "softmax_backward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, c.prob_TE, x});
          },
          [](auto& c, auto& x, Context& ctx) { ops::cuda::softmax_backward(x, c.score_TE, c.prob_TE, ctx); }),
      on_choice(
          s, "top_k",
          [](auto& c, auto&) {
            return bytes_of({c.score_TE, c.expert_TK, c.chosen_TK});
          },
          [](auto& c, auto&, Context& ctx) {
            ops::cuda::top_k(c.expert_TK, c.chosen_TK, c.score_TE, c.token_T, ctx);
          }),
      on_choice(
          s, "normalise_logits_forward",
          [](auto& c, auto& x) {
            return bytes_of({x, x, c.prob_TE, c.lse_T});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::normalise_logits_forward(x, c.prob_TE, c.lse_T, 1, ctx);
          }),
      on_choice(
          s, "normalise_logits_backward",
          [](auto& c, auto& x) {
            return bytes_of({x, x, c.prob_TE, c.lse_T});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::normalise_logits_backward(x, c.prob_TE, c.lse_T, 1e-6, ctx);
          }),
      {"experts_of_tokens", 0,
       [=](Workspace& w) {
         const Choice c(w, s);
         const Tensor table = w.zeros({s.experts * s.slots}, f32);  // all tokens are its first
         return Work{
             .shape = fmt::format("{}, of a table", text(c.expert_TK)),
             .bytes = 2 * bytes_of({c.expert_TK}),
             .call = [=](Context& ctx) { ops::cuda::experts_of_tokens(c.expert_TK, table, c.token_T, ctx); }};
       }},
      on_choice(
          s, "z_loss_backward",
          [](auto& c, auto& x) {
            return bytes_of({c.prob_TE, c.lse_T, x, x});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::z_loss_backward(x, c.prob_TE, c.lse_T, c.token_T, 1e-6, ctx);
          }),
  };
}

std::vector<Case> sigmoid_group(const Sizes& s) {
  return {
      on_choice(
          s, "sigmoid_forward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, x});
          },
          [](auto& c, auto& x, Context& ctx) { ops::cuda::sigmoid_forward(x, c.score_TE, ctx); }),
      on_choice(
          s, "sigmoid_backward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, c.prob_TE, x});
          },
          [](auto& c, auto& x, Context& ctx) { ops::cuda::sigmoid_backward(x, c.score_TE, c.prob_TE, ctx); }),
      on_choice(
          s, "sqrt_softplus_forward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, x});
          },
          [](auto& c, auto& x, Context& ctx) { ops::cuda::sqrt_softplus_forward(x, c.score_TE, ctx); }),
      on_choice(
          s, "sqrt_softplus_backward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, c.prob_TE, x});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::sqrt_softplus_backward(x, c.score_TE, c.prob_TE, ctx);
          }),
      {"group_choice", 0,
       [=](Workspace& w) {
         const Tensor score = w.normal({s.router_tokens, s.experts}, f32), choice = w.take(score.shape(), f32),
                      bias = w.normal({s.experts}, f32, 0.02);
         return Work{.shape = fmt::format("{}, 4 of 8 groups", text(score)),
                     .bytes = bytes_of({score, choice}),
                     .call = [=](Context& ctx) { ops::cuda::group_choice(choice, score, bias, 8, 4, ctx); }};
       }},
      on_choice(
          s, "gather_slots", [](auto& c, auto&) { return 3 * bytes_of({c.expert_TK}); },
          [](auto& c, auto&, Context& ctx) {
            ops::cuda::gather_slots(c.chosen_TK, c.score_TE, c.expert_TK, ctx);
          }),
      on_choice(
          s, "row_share_forward",
          [](auto& c, auto& x) {
            return bytes_of({c.prob_TE, x});
          },
          [](auto& c, auto& x, Context& ctx) { ops::cuda::row_share_forward(x, c.prob_TE, ctx); }),
      on_choice(
          s, "row_share_backward",
          [](auto& c, auto& x) {
            return bytes_of({c.score_TE, c.prob_TE, c.prob_TE, x, x});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::row_share_backward(x, c.score_TE, c.prob_TE, c.prob_TE, ctx);
          }),
  };
}

std::vector<Case> slots(const Sizes& s) {
  return {
      on_choice(
          s, "slot_weights_forward",
          [](auto& c, auto&) {
            return bytes_of({c.weight_TK, c.chosen_TK, c.expert_TK});
          },
          [](auto& c, auto&, Context& ctx) {
            ops::cuda::slot_weights_forward(c.weight_TK, c.chosen_TK, c.expert_TK, {.normalise = true}, ctx);
          }),
      on_choice(
          s, "slot_weights_backward",
          [](auto& c, auto& x) {
            return bytes_of({x, c.weight_TK, c.weight_TK, c.chosen_TK, c.expert_TK});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::slot_weights_backward(x, c.weight_TK, c.weight_TK, c.chosen_TK, c.expert_TK,
                                             {.normalise = true}, ctx);
          }),
      on_choice(
          s, "slot_softmax_forward",
          [](auto& c, auto&) {
            return bytes_of({c.weight_TK, c.chosen_TK, c.expert_TK});
          },
          [](auto& c, auto&, Context& ctx) {
            ops::cuda::slot_softmax_forward(c.weight_TK, c.chosen_TK, c.expert_TK, 1.0, ctx);
          }),
      on_choice(
          s, "slot_softmax_backward",
          [](auto& c, auto& x) {
            return bytes_of({x, c.weight_TK, c.weight_TK, c.expert_TK});
          },
          [](auto& c, auto& x, Context& ctx) {
            ops::cuda::slot_softmax_backward(x, c.weight_TK, c.weight_TK, c.expert_TK, 1.0, ctx);
          }),
      on_choice(
          s, "keep_prefix_sum",
          [](auto& c, auto&) {
            return 2 * bytes_of({c.expert_TK, c.chosen_TK});
          },
          [](auto& c, auto&, Context& ctx) { ops::cuda::keep_prefix_sum(c.expert_TK, c.chosen_TK, 0.9, ctx); }),
      on_choice(
          s, "keep_finite",
          [](auto& c, auto&) {
            return 2 * bytes_of({c.expert_TK, c.chosen_TK});
          },
          [](auto& c, auto&, Context& ctx) { ops::cuda::keep_finite(c.expert_TK, c.chosen_TK, ctx); }),
      {"threshold_choice", 0, [=](Workspace& w) {
         const Tensor score = w.normal({s.router_tokens, s.experts}, f32), choice = w.take(score.shape(), f32),
                      threshold = w.normal({s.experts}, f32);
         return Work{.shape = text(score), .bytes = bytes_of({score, choice}), .call = [=](Context& ctx) {
                       ops::cuda::threshold_choice(choice, score, threshold, ctx);
                     }};
       }}};
}

std::vector<Case> sums(const Sizes& s) {
  const auto sums_of_sequences = [=](Workspace& w) {
    const Choice c(w, s);
    const Tensor count = w.take({s.n_seq, s.experts}, DType::i32),
                 prob_sum = w.take({s.n_seq, s.experts}, DType::f64), prob2 = w.take({s.n_seq}, DType::f64),
                 lse2 = w.take({s.n_seq}, DType::f64);
    return Work{.shape = text(c.prob_TE),
                .bytes = bytes_of({c.expert_TK, c.prob_TE, c.lse_T, c.token_T}),
                .call = [=](Context& ctx) {
                  ops::cuda::routing_sums(count, prob_sum, prob2, lse2, c.expert_TK, c.prob_TE, c.lse_T,
                                          c.token_T, ctx);
                }};
  };
  const auto gradient_of_sums = [=](Workspace& w) {
    const Tensor dprob = w.normal({s.router_tokens, s.experts}, f32),
                 of_sequence = w.zeros({s.n_seq, s.experts}, DType::f64),
                 token = w.zeros({s.router_tokens}, DType::i32);
    return Work{.shape = text(dprob), .bytes = bytes_of({dprob, dprob}), .call = [=](Context& ctx) {
                  ops::cuda::add_sequence_gradient(dprob, of_sequence, dprob, 0, token, ctx);
                }};
  };
  const auto gaps = [=](Workspace& w) {
    const Choice c(w, s);
    const Tensor count = w.take({s.experts, 2 * ops::kGapBins}, DType::f64), value = w.normal({s.experts}, f32);
    return Work{.shape = text(c.score_TE), .bytes = bytes_of({c.score_TE}), .call = [=](Context& ctx) {
                  ops::cuda::score_gap_histogram(count, c.score_TE, value, c.token_T, ctx);
                }};
  };
  return {{"routing_sums", 0, sums_of_sequences},
          {"add_sequence_gradient", 0, gradient_of_sums},
          {"score_gap_histogram", 0, gaps}};
}

std::vector<Case> entropy(const Sizes& s) {
  const auto forward = [=](Workspace& w) {
    const Choice c(w, s);
    const Tensor entropy_T = w.take({s.router_tokens}, f32);
    return Work{.shape = text(c.score_TE),
                .bytes = bytes_of({c.score_TE, c.prob_TE, c.lse_T, entropy_T}),
                .call = [=](Context& ctx) {
                  ops::cuda::softmax_entropy_forward(entropy_T, c.score_TE, c.prob_TE, c.lse_T, ctx);
                }};
  };
  const auto backward = [=](Workspace& w) {
    const Choice c(w, s);
    const Tensor entropy_T = w.normal({s.router_tokens}, f32), dlogit = w.normal(c.score_TE.shape(), f32);
    return Work{.shape = text(c.score_TE),
                .bytes = bytes_of({dlogit, dlogit, c.score_TE, c.prob_TE, c.lse_T, entropy_T}),
                .call = [=](Context& ctx) {
                  ops::cuda::softmax_entropy_backward(dlogit, entropy_T, c.score_TE, c.prob_TE, c.lse_T,
                                                      c.token_T, 1e-6, ctx);
                }};
  };
  const auto moments = [=](Workspace& w) {
    const Tensor raw = w.normal({s.router_tokens}, f32), skip = w.zeros({s.router_tokens}, DType::i32),
                 sums = w.take({3}, DType::f64);
    return Work{.shape = text(raw), .bytes = bytes_of({raw, skip}), .call = [=](Context& ctx) {
                  ops::cuda::token_moments(sums, raw, skip, ctx);
                }};
  };
  return {{"softmax_entropy_forward", 0, forward},
          {"softmax_entropy_backward", 0, backward},
          {"token_moments", 0, moments}};
}

// The k-means router's: tokens of the hidden size beside the experts' means.
std::vector<Case> cosine(const Sizes& s) {
  const std::int64_t T = s.tokens, D = s.hidden, E = s.experts;
  const auto forward = [=](Workspace& w) {
    const Tensor score = w.normal({T, E}, f32), x_norm = w.normal({T}, f32), mean_norm = w.normal({E}, f32);
    return Work{.shape = text(score), .bytes = bytes_of({score, score}), .call = [=](Context& ctx) {
                  ops::cuda::cosine_forward(score, x_norm, mean_norm, ctx);
                }};
  };
  const auto norms = [=](Workspace& w) {
    const Tensor x = w.normal({T, D}, f32), norm = w.take({T}, f32);
    return Work{.shape = text(x), .bytes = bytes_of({x}), .call = [=](Context& ctx) {
                  ops::cuda::row_norm_l2(norm, x, ctx);
                }};
  };
  const auto sums_of_experts = [=](Workspace& w) {
    std::vector<std::int32_t> choice;
    for (std::int64_t i = 0; i < T * s.slots; ++i) choice.push_back(static_cast<std::int32_t>(i * 7 % E));
    const Tensor x = w.normal({T, D}, f32), expert = w.ints({T, s.slots}, choice),
                 sum = w.take({E, D}, DType::f64), count = w.take({E}, DType::f64);
    return Work{.shape = fmt::format("{}, {} slots", text(x), s.slots),
                .bytes = bytes_of({x}),
                .call = [=](Context& ctx) { ops::cuda::expert_sums(sum, count, x, expert, ctx); }};
  };
  return {{"cosine_forward", 0, forward}, {"row_norm_l2", 0, norms}, {"expert_sums", 0, sums_of_experts}};
}

// Once a step and layer: a few numbers for each expert.
std::vector<Case> states(const Sizes& s) {
  const std::int64_t D = s.hidden, E = s.experts;
  const auto quantiles = [=](Workspace& w) {
    const Tensor bias = w.normal({E}, f32), count = w.zeros({E, 2 * ops::kGapBins}, DType::f64);
    return Work{.shape = text(count), .bytes = bytes_of({count}), .call = [=](Context& ctx) {
                  ops::cuda::follow_quantile_bias(bias, count, 0.1, 0, ctx);
                }};
  };
  const auto means = [=](Workspace& w) {
    const Tensor mean = w.normal({E, D}, f32), sum = w.zeros({E, D}, DType::f64),
                 count = w.zeros({E}, DType::f64);
    return Work{.shape = text(mean), .bytes = bytes_of({mean, mean, sum}), .call = [=](Context& ctx) {
                  ops::cuda::follow_means(mean, sum, count, 0.99, ctx);
                }};
  };
  const auto biases = [=](Workspace& w) {
    const Tensor bias = w.normal({E}, f32), count = w.zeros({E}, DType::f64);
    return Work{.shape = text(bias), .bytes = bytes_of({bias, bias, count}), .call = [=](Context& ctx) {
                  ops::cuda::balance_bias(bias, count, 1e-3, false, ctx);
                }};
  };
  return {{"follow_quantile_bias", 0, quantiles}, {"follow_means", 0, means}, {"balance_bias", 0, biases}};
}

}  // namespace

std::vector<Case> router_cases(const Sizes& s) {
  std::vector<Case> all;
  for (const auto& family : {scores(s), sigmoid_group(s), slots(s), sums(s), entropy(s), cosine(s), states(s)})
    all.insert(all.end(), family.begin(), family.end());
  return all;
}

}  // namespace switchyard::bench
