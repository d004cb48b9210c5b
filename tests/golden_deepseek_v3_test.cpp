#include "golden_support.h"

namespace switchyard::golden {

INSTANTIATE_TEST_SUITE_P(DeepseekV3, Golden,
                         ::testing::Values("deepseek_v3", "deepseek_v3_plain", "deepseek_v3_negative_bias",
                                           "deepseek_v3_half_rope", "deepseek_v3_attention_bias",
                                           "deepseek_v3_yarn", "deepseek_v3_yarn_mscale", "deepseek_v3_mtp",
                                           "deepseek_v3_mtp2", "deepseek_v3_dense",
                                           "deepseek_v3_one_expert_a_token", "deepseek_v3_no_shared_experts",
                                           "deepseek_v3_everything"),
                         case_name);

}  // namespace switchyard::golden
