// The sizes of one attention call, shared by the operator's contract and its backends.
#pragma once

#include <cstdint>

namespace switchyard {

struct AttentionShape {
  std::int64_t n_seq;
  std::int64_t seq_len;
  std::int64_t n_heads;
  std::int64_t n_kv_heads;
  std::int64_t head_dim;    // of queries and keys
  std::int64_t v_head_dim;  // of values and outputs
  double scale;             // of the scores, usually 1/sqrt(head_dim)
  std::int64_t first = 0;   // position of a sequence's first query: so many keys come before it
  // A token sees itself and the window - 1 before it; 0: all. What kv_begin_T says too, to who does not read
  // it.
  std::int64_t window = 0;
};

}  // namespace switchyard
