#include "ops/embedding.h"

#include <gtest/gtest.h>

#include "poisoned_context.h"
#include "tensors.h"

namespace switchyard::test {
namespace {

struct Shifted {
  std::vector<double> token, target;
};

// Two sequences of five.
Shifted shifted(const std::vector<double>& token, const std::vector<double>& target,
                const std::vector<double>& kv_begin, std::int64_t ahead) {
  PoisonedContext ctx;
  const auto tensor = [](const std::vector<double>& from) {
    OwnedTensor out({10}, DType::i32);
    fill(out, from);
    return out;
  };
  const OwnedTensor token_T = tensor(token), target_T = tensor(target), kv_begin_T = tensor(kv_begin);
  const OwnedTensor next_T({10}, DType::i32), next_target_T({10}, DType::i32);
  ops::shift_tokens(next_T, next_target_T, token_T, target_T, kv_begin_T, 5, ahead, ctx);
  return {values(next_T), values(next_target_T)};
}

const std::vector<double> kOneDocument(10, 0.0);

TEST(ShiftTokens, StaysInItsSequenceAndLeavesPaddingOut) {
  const std::vector<double> token = {1, 2, 3, 4, 5, 6, 7, 8, -1, -1};
  const std::vector<double> target = {2, 3, 4, 5, 9, 7, 8, 9, -1, -1};
  const Shifted one = shifted(token, target, kOneDocument, 1);
  EXPECT_EQ(one.token, (std::vector<double>{2, 3, 4, 5, -1, 7, 8, -1, -1, -1}));
  EXPECT_EQ(one.target, (std::vector<double>{3, 4, 5, 9, -1, 8, 9, -1, -1, -1}));
  const Shifted three = shifted(token, target, kOneDocument, 3);
  EXPECT_EQ(three.token, (std::vector<double>{4, 5, -1, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(three.target, (std::vector<double>{5, 9, -1, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(shifted(token, target, kOneDocument, 5).token, std::vector<double>(10, -1));
}

// The token that is read is of the same document; the one that is predicted may begin the next.
TEST(ShiftTokens, StaysInItsDocument) {
  const std::vector<double> token = {1, 2, 0, 4, 5, 6, 7, 8, 9, 10};
  const std::vector<double> target = {2, 0, 4, 5, 6, 7, 8, 9, 10, 11};
  const Shifted one = shifted(token, target, {0, 0, 2, 2, 2, 0, 0, 0, 0, 0}, 1);
  EXPECT_EQ(one.token, (std::vector<double>{2, -1, 4, 5, -1, 7, 8, 9, 10, -1}));
  EXPECT_EQ(one.target, (std::vector<double>{0, -1, 5, 6, -1, 8, 9, 10, 11, -1}));
}

TEST(ShiftTokens, APositionWithoutATargetHasNoToken) {
  const std::vector<double> token = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const std::vector<double> target = {2, 3, 4, 5, -1, 7, 8, 9, 10, -1};
  const Shifted one = shifted(token, target, kOneDocument, 1);
  EXPECT_EQ(one.token, (std::vector<double>{2, 3, 4, -1, -1, 7, 8, 9, -1, -1}));
}

}  // namespace
}  // namespace switchyard::test
