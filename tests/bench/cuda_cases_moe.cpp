// Tokens to experts, the experts' products, and back.
#include <fmt/core.h>

#include <cmath>
#include <set>

#include "core/rng.h"
#include "cuda_bench.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/slots.h"
#include "ops/token_rows.h"

namespace switchyard::bench {

namespace {

enum class Load { zipf, even };

// offset_Ep: the n-th expert has 1/n as many rows as the first, all together `rows`; or all have as many.
std::vector<std::int32_t> expert_offsets(std::int64_t experts, std::int64_t rows, Load load) {
  double all = 0, until = 0;
  const auto weight = [=](std::int64_t e) {
    return load == Load::zipf ? 1.0 / static_cast<double>(e + 1) : 1.0;
  };
  for (std::int64_t e = 0; e < experts; ++e) all += weight(e);
  std::vector<std::int32_t> offsets{0};
  for (std::int64_t e = 0; e < experts; ++e) {
    until += weight(e);
    offsets.push_back(static_cast<std::int32_t>(std::llround(until / all * static_cast<double>(rows))));
  }
  return offsets;
}

std::vector<Case> grouped(const Sizes& s, std::int64_t N, std::int64_t K, Load load,
                          MatmulType matmul = MatmulType::bf16) {
  const std::int64_t R = s.gemm_rows, E = s.experts;
  const double flop = 2.0 * static_cast<double>(R) * static_cast<double>(N) * static_cast<double>(K);
  const double bar = load == Load::zipf && matmul == MatmulType::bf16 ? kGroupedBar : 0;
  const std::string shape =
      fmt::format("{} rows, {} experts of {} x {} bf16{}, {}", R, E, N, K,
                  matmul == MatmulType::e4m3 ? " in e4m3" : "", load == Load::zipf ? "Zipf" : "even");
  const auto offsets = [=](Workspace& w) { return w.ints({E + 1}, expert_offsets(E, R, load)); };
  return {
      {"grouped_linear_forward", bar,
       [=](Workspace& w) {
         const Tensor in = w.normal({R, K}, DType::bf16), weight = w.normal({E, N, K}, DType::bf16, 0.02),
                      out = w.take({R, N}, DType::bf16), offset = offsets(w);
         return Work{
             .shape = shape, .bytes = bytes_of({in, weight, out}), .flop = flop, .call = [=](Context& ctx) {
               ctx.matmul = matmul;
               ops::cuda::grouped_linear_forward(out, in, weight, offset, ctx);
             }};
       }},
      {"grouped_linear_backward_input", bar,
       [=](Workspace& w) {
         const Tensor dout = w.normal({R, N}, DType::bf16), weight = w.normal({E, N, K}, DType::bf16, 0.02),
                      din = w.take({R, K}, DType::bf16), offset = offsets(w);
         return Work{
             .shape = shape, .bytes = bytes_of({dout, weight, din}), .flop = flop, .call = [=](Context& ctx) {
               ctx.matmul = matmul;
               ops::cuda::grouped_linear_backward_input(din, dout, weight, offset, ctx);
             }};
       }},
      {"grouped_linear_backward_weight", bar, [=](Workspace& w) {
         const Tensor dout = w.normal({R, N}, DType::bf16), in = w.normal({R, K}, DType::bf16),
                      dweight = w.zeros({E, N, K}, DType::f32), offset = offsets(w);
         return Work{.shape = shape,
                     .bytes = bytes_of({dout, in, dweight, dweight}),
                     .flop = flop,
                     .call = [=](Context& ctx) {
                       ctx.matmul = matmul;
                       ops::cuda::grouped_linear_backward_weight(dweight, dout, in, offset, ctx);
                     }};
       }}};
}

// Distinct experts for each token, low ones more often.
std::vector<std::int32_t> uneven_choice(std::int64_t tokens, std::int64_t slots, std::int64_t experts) {
  const Rng rng(3, RngPurpose::init, 1);
  std::vector<std::int32_t> choice;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<bool> taken(static_cast<std::size_t>(experts));
    for (std::int64_t k = 0; k < slots; ++k) {
      const double u = rng.uniform(static_cast<std::uint64_t>(t * slots + k));
      auto e = static_cast<std::size_t>(u * u * static_cast<double>(experts));
      while (taken[e]) e = (e + 1) % taken.size();
      taken[e] = true;
      choice.push_back(static_cast<std::int32_t>(e));
    }
  }
  return choice;
}

// A micro-batch's choice and where its slots go.
struct Slots {
  Tensor expert_TK, count_E, offset_Ep, slot_row_TK, weight_TK;
  Slots(Workspace& w, const Sizes& s) {
    const Shape slots{s.routed_tokens, s.slots};
    expert_TK = w.ints(slots, uneven_choice(s.routed_tokens, s.slots, s.experts));
    count_E = w.take({s.experts}, DType::i32);
    offset_Ep = w.take({s.experts + 1}, DType::i32);
    slot_row_TK = w.take(slots, DType::i32);
    weight_TK = w.normal(slots, DType::f32);
    permute(w.ctx());
  }
  void permute(Context& ctx) const {
    ops::cuda::moe_permutation(count_E, offset_Ep, slot_row_TK, expert_TK, ctx);
  }
};

std::vector<Case> permutation(const Sizes& s) {
  return {{"moe_permutation", 0,
           [=](Workspace& w) {
             const Slots slots(w, s);
             return Work{.shape = fmt::format("{}, {} experts", text(slots.expert_TK), s.experts),
                         .bytes = bytes_of({slots.expert_TK, slots.slot_row_TK}),
                         .call = [=](Context& ctx) { slots.permute(ctx); }};
           }},
          {"limit_capacity", 0, [=](Workspace& w) {
             const Slots slots(w, s);
             const Tensor kept_expert = w.take(slots.expert_TK.shape(), DType::i32),
                          kept_weight = w.take(slots.expert_TK.shape(), DType::f32),
                          skip = w.zeros({s.routed_tokens}, DType::i32), dropped = w.take({1}, DType::i32);
             return Work{.shape = fmt::format("{}, {} experts", text(slots.expert_TK), s.experts),
                         .bytes = bytes_of({slots.expert_TK, slots.weight_TK, kept_expert, kept_weight}),
                         .call = [=](Context& ctx) {
                           ops::cuda::limit_capacity(kept_expert, kept_weight, dropped, slots.expert_TK,
                                                     slots.weight_TK, skip, s.experts, 1.25, ctx);
                         }};
           }}};
}

std::vector<Case> dispatch(const Sizes& s) {
  const std::int64_t T = s.routed_tokens, R = T * s.slots;
  return {{"moe_dispatch_forward", kMoveBar,
           [=](Workspace& w) {
             const Slots slots(w, s);
             const Tensor x = w.normal({T, s.hidden}, DType::bf16), row = w.take({R, s.hidden}, DType::bf16),
                          weight = w.take({R}, DType::f32);
             return Work{.shape = fmt::format("{} to {} rows", text(x), R),
                         .bytes = bytes_of({x, row, slots.slot_row_TK}),
                         .call = [=](Context& ctx) {
                           ops::cuda::moe_dispatch_forward(row, weight, x, slots.weight_TK, slots.slot_row_TK,
                                                           ctx);
                         }};
           }},
          {"moe_dispatch_backward", kMoveBar, [=](Workspace& w) {
             const Slots slots(w, s);
             const Tensor dx = w.zeros({T, s.hidden}, DType::bf16), drow = w.normal({R, s.hidden}, DType::bf16),
                          dweight = w.normal({R}, DType::f32), dslot = w.take({T, s.slots}, DType::f32);
             return Work{.shape = fmt::format("{} from {} rows", text(dx), R),
                         .bytes = bytes_of({dx, dx, drow, slots.slot_row_TK}),
                         .call = [=](Context& ctx) {
                           ops::cuda::moe_dispatch_backward(dx, dslot, drow, dweight, slots.slot_row_TK, ctx);
                         }};
           }}};
}

std::vector<Case> combine(const Sizes& s) {
  const std::int64_t T = s.routed_tokens, R = T * s.slots;
  return {
      {"moe_combine_forward", kMoveBar,
       [=](Workspace& w) {
         const Slots slots(w, s);
         const Tensor out = w.zeros({T, s.hidden}, DType::bf16), row = w.normal({R, s.hidden}, DType::bf16);
         return Work{.shape = fmt::format("{} from {} rows", text(out), R),
                     .bytes = bytes_of({out, out, row, slots.slot_row_TK}),
                     .call = [=](Context& ctx) {
                       ops::cuda::moe_combine_forward(out, out, row, slots.slot_row_TK, ctx);
                     }};
       }},
      {"moe_combine_backward", kMoveBar, [=](Workspace& w) {
         const Slots slots(w, s);
         const Tensor dout = w.normal({T, s.hidden}, DType::bf16), drow = w.take({R, s.hidden}, DType::bf16);
         return Work{.shape = fmt::format("{} to {} rows", text(dout), R),
                     .bytes = bytes_of({dout, drow, slots.slot_row_TK}),
                     .call = [=](Context& ctx) {
                       ops::cuda::moe_combine_backward(drow, dout, slots.slot_row_TK, ctx);
                     }};
       }}};
}

// Rows to the ranks of a group and back, all in this device's memory: what links between devices add is not in
// it.
std::vector<Case> token_rows(const Sizes& s) {
  constexpr int kPlaces = 4;
  const std::int64_t T = s.routed_tokens / kPlaces, each = s.experts / kPlaces;
  struct Group {
    std::vector<Tensor> window_N;
    Tensor x_TD, expert_TK, bytes_1;
    std::int64_t rows = 0;  // that go to a place
  };
  const auto group = [=](Workspace& w) {
    Group g;
    for (int p = 0; p < kPlaces; ++p) g.window_N.push_back(w.normal({kPlaces * T, s.hidden}, DType::bf16));
    g.x_TD = w.normal({T, s.hidden}, DType::bf16);
    const std::vector<std::int32_t> choice = uneven_choice(T, s.slots, s.experts);
    for (std::int64_t t = 0; t < T; ++t) {
      std::set<std::int64_t> places;
      for (std::int64_t k = 0; k < s.slots; ++k)
        places.insert(choice[static_cast<std::size_t>(t * s.slots + k)] / each);
      g.rows += static_cast<std::int64_t>(places.size());
    }
    g.expert_TK = w.ints({T, s.slots}, choice);
    g.bytes_1 = w.zeros({1}, DType::f64);
    return g;
  };
  const auto work = [=](const Group& g, const std::function<void(Context&)>& call) {
    return Work{.shape = fmt::format("{}, {} rows of {} places", text(g.x_TD), g.rows, kPlaces),
                .bytes = bytes_of({g.x_TD, g.expert_TK}) + static_cast<double>(g.rows * s.hidden * 2),
                .call = call};
  };
  return {{"spread_rows", 0,
           [=](Workspace& w) {
             const Group g = group(w);
             return work(g, [=](Context& ctx) {
               ops::cuda::spread_rows(g.window_N, g.bytes_1, g.x_TD, g.expert_TK, {1, each}, ctx);
             });
           }},
          {"collect_rows", 0, [=](Workspace& w) {
             const Group g = group(w);
             return work(g, [=](Context& ctx) {
               ops::cuda::collect_rows(g.x_TD, g.bytes_1, {}, g.window_N, g.expert_TK, {1, each}, ctx);
             });
           }}};
}

}  // namespace

std::vector<Case> moe_cases(const Sizes& s) {
  std::vector<Case> all;
  for (const auto& family :
       {grouped(s, s.hidden, s.expert_width, Load::zipf), grouped(s, 2 * s.expert_width, s.hidden, Load::zipf),
        grouped(s, s.hidden, s.expert_width, Load::even), permutation(s), dispatch(s), combine(s),
        token_rows(s)})
    all.insert(all.end(), family.begin(), family.end());
  if (ops::e4m3_unavailable_reason(Device::cuda).empty()) {
    const std::vector<Case> e4m3 = grouped(s, 2 * s.expert_width, s.hidden, Load::zipf, MatmulType::e4m3);
    all.insert(all.end(), e4m3.begin(), e4m3.end());
  }
  return all;
}

}  // namespace switchyard::bench
