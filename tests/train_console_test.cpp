#include "train/console.h"

#include <gtest/gtest.h>

namespace switchyard::train {
namespace {

StepReport report() {
  StepReport r;
  r.step = 120;
  r.steps = 4000;
  r.loss = 2.34567;
  r.lr = 1e-3;
  r.grad_norm = 0.834;
  r.tokens_per_second = 12345.2;
  return r;
}

TEST(Console, StepLine) {
  StepReport r = report();
  EXPECT_EQ(format_step(r), "step  120/4000    3.0%  loss 2.3457  lr 1.00e-03  norm 0.83  12,345 tok/s");
  r.val_loss = 2.5;
  r.gini = 0.1234;
  r.seconds_left = 185;
  EXPECT_EQ(format_step(r),
            "step  120/4000    3.0%  loss 2.3457  val 2.5000  lr 1.00e-03  norm 0.83  12,345 tok/s  gini 0.123"
            "  left 3m 05s");
  r.val_bits_per_byte = 1.234;
  EXPECT_NE(format_step(r).find("val 2.5000  1.23 bits/byte  lr"), std::string::npos) << format_step(r);
  r.mtp_loss = 3.25;
  EXPECT_NE(format_step(r).find("loss 2.3457  mtp 3.2500  val 2.5000"), std::string::npos) << format_step(r);
}

TEST(Console, BarKeepsItsWidthAndFillsUp) {
  StepReport r = report();
  r.step = 2000;
  EXPECT_EQ(format_bar(r, 33), "[=======>       ]  50%  2000/4000");
  r.step = 4000;
  EXPECT_EQ(format_bar(r, 33), "[===============] 100%  4000/4000");
  for (int columns = 0; columns < 120; ++columns)
    EXPECT_LE(format_bar(r, columns).size(), std::size_t(columns));
}

TEST(Console, PlainOutputHasLinesAndNothingElse) {
  testing::internal::CaptureStdout();
  {
    Console console(/*bar=*/false);
    console.step(report(), /*print_line=*/false);
    console.step(report(), /*print_line=*/true);
    console.line("done");
  }
  EXPECT_EQ(testing::internal::GetCapturedStdout(), format_step(report()) + "\ndone\n");
}

TEST(Console, BarIsErasedBeforeALineAndDrawnAgainBelowIt) {
  testing::internal::CaptureStdout();
  {
    Console console(/*bar=*/true);
    console.step(report(), /*print_line=*/false);
    console.step(report(), /*print_line=*/true);
  }
  const std::string out = testing::internal::GetCapturedStdout();
  const std::string erase = "\r\033[K";
  const std::size_t bar = out.find('[', erase.size());
  ASSERT_NE(bar, std::string::npos);
  EXPECT_EQ(out.substr(0, erase.size()), erase);
  EXPECT_NE(out.find(erase + format_step(report()) + "\n["), std::string::npos) << out;
  EXPECT_EQ(out.substr(out.size() - erase.size()), erase);  // nothing of it stays at the end
}

}  // namespace
}  // namespace switchyard::train
