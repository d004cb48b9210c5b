#include "golden_support.h"

namespace switchyard::golden {

INSTANTIATE_TEST_SUITE_P(Olmoe, Golden, ::testing::Values("olmoe", "olmoe_normalised", "olmoe_everything"),
                         case_name);

}  // namespace switchyard::golden
