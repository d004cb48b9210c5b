#include "golden_support.h"

namespace switchyard::golden {

INSTANTIATE_TEST_SUITE_P(Qwen3Moe, Golden,
                         ::testing::Values("qwen3_moe", "qwen3_moe_unnormalised", "qwen3_moe_mlp_only_layers",
                                           "qwen3_moe_sparse_step", "qwen3_moe_tied",
                                           "qwen3_moe_sliding_window", "qwen3_moe_attention_bias",
                                           "qwen3_moe_linear", "qwen3_moe_yarn", "qwen3_moe_dense",
                                           "qwen3_moe_everything"),
                         case_name);

}  // namespace switchyard::golden
