// Causal grouped-query attention, computed in tiles with an online softmax (Dao et al., arXiv 2205.14135):
// memory is linear in the sequence length.
//   T = n_seq * seq_len tokens, H query heads, G key-value heads (H a multiple of G),
//   N width of a query or key head, M of a value head
// Forward, keys may begin before queries: with shape.n_past, k and v hold n_past + seq_len rows a sequence, and
// its queries are at the positions from n_past on.
#pragma once

#include <string>

#include "ops/operator.h"

namespace switchyard::ops {

// The sizes of one call.
struct AttentionShape {
  std::int64_t n_seq;
  std::int64_t seq_len;
  std::int64_t n_heads;
  std::int64_t n_kv_heads;
  std::int64_t head_dim;    // of queries and keys
  std::int64_t v_head_dim;  // of values and outputs
  double scale;             // of the scores, usually 1/sqrt(head_dim)
  std::int64_t n_past = 0;  // keys of a sequence before its first query
  // A token sees itself and the window - 1 before it; 0: all. Repeats kv_begin_T for backends that take a
  // window size instead (cuDNN).
  std::int64_t window = 0;
};

// Token t of a sequence sees the keys kv_begin_T[t] .. t of the same sequence (positions within the sequence,
// kv_begin_T[t] <= t): causal, sliding-window and document masks are all of this form.
//   out_THM[t,h] = sum_s softmax_s(scale * q[t,h].k[s,g]) v[s,g],  g = h / (H/G);   lse_TH = log sum exp.  Both
//   set. Where entropy_TH is given, it is set to the entropy of each row of the softmax.
//   q_THN, k_TGN: [T, heads*N] and v_TGM, out_THM: [T, heads*M] matrices whose rows may be strided;
//   kv_begin_T i32; f32|f64.
SY_OPERATOR(attention_forward, Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
            Tensor kv_begin_T, const AttentionShape& shape, Tensor entropy_TH, Context& ctx);

// entropy_T = mean over heads of entropy_TH, over the logarithm of the number of keys that the token sees; 0
// where it sees itself alone. Set. n_past: AttentionShape::n_past.
SY_OPERATOR(attention_row_entropy, Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
            std::int64_t n_past, Context& ctx);

// P = exp(scale q.k - lse), delta = rowsum(dout * out):
//   dv = P^T dout;  dS = P * (dout v^T - delta);  dq = scale dS k;  dk = scale dS^T q.   dq, dk, dv set.
SY_OPERATOR(attention_backward, Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
            Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
            const AttentionShape& shape, Context& ctx);

// Why cuDNN (Context::attention) cannot compute both, in bf16 and with these sizes: the device, a program built
// without it, or its own reason. Empty: it can, without entropy_TH, and with no mask but the one of
// shape.window.
std::string cudnn_attention_unavailable_reason(const AttentionShape& shape, Device device);

}  // namespace switchyard::ops
