#include "golden_support.h"

namespace switchyard::golden {

INSTANTIATE_TEST_SUITE_P(Mixtral, Golden,
                         ::testing::Values("mixtral", "mixtral_sliding_window", "mixtral_tied", "mixtral_yarn",
                                           "mixtral_one_expert_a_token", "mixtral_every_expert"),
                         case_name);

}  // namespace switchyard::golden
