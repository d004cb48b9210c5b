#include <gtest/gtest.h>

#include "config_samples.h"

namespace switchyard::config {
namespace {

TEST(ConfigOverrides, ValuesAreJsonOrElseStrings) {
  json text = minimal_run();
  text["data"]["train"].push_back({{"path", "b.bin"}});
  const config::Run run =
      run_of(text, {"train.lr=3e-4", "train.schedule=wsd", "data.document_mask=true", "data.train.0=x=y.bin",
                    "data.train.1.path=z.bin", "data.train.1.domain=\"7\"", "data.validation=[\"v.bin\"]",
                    "model.head_dim=null", "log={\"every\": 5}"});
  EXPECT_EQ(run.train.lr, 3e-4);
  EXPECT_EQ(run.train.schedule, Schedule::wsd);
  EXPECT_TRUE(run.data.document_mask);
  EXPECT_EQ(run.data.train[0].path, "x=y.bin");
  EXPECT_EQ(run.data.train[1].path, "z.bin");
  EXPECT_EQ(run.data.train[1].domain, "7");
  EXPECT_EQ(run.data.validation[0].path, "v.bin");
  EXPECT_EQ(run.model.head_dim, 8);
  EXPECT_EQ(run.log.every, 5);
}

TEST(ConfigOverrides, MakeSectionsThatTheTextDoesNotHave) {
  EXPECT_EQ(run_of(minimal_run(), {"router.z_loss_coef=0.5", "router.balance_coef=0"}).router,
            (Router{"softmax_topk", 0, BalanceScope::global_batch, 0.5}));
}

TEST(ConfigOverrides, TheLaterOneHolds) {
  EXPECT_EQ(run_of(minimal_run(), {"train.steps=5", "train.steps=6"}).train.steps, 6);
  EXPECT_CONTAINS(run_error(minimal_run(), {"train.steps=6", "train.steps=-5"}), "--set train.steps=-5: ");
}

TEST(ConfigOverrides, MessagesNameTheOverride) {
  const json base = minimal_run();
  EXPECT_EQ(run_error(base, {"train.stepz=5"}),
            "--set train.stepz=5: train.stepz: unknown key; did you mean \"steps\"?");
  EXPECT_EQ(run_error(base, {"trian.steps=5"}),
            "--set trian.steps=5: trian: unknown key; did you mean \"train\"?");
  EXPECT_EQ(run_error(base, {"train.lr=fast"}),
            "--set train.lr=fast: train.lr: is \"fast\", expected a number in (0, 1000]");
  EXPECT_EQ(run_error(base, {"train.micro_batch_size=3", "train.global_batch_size=4"}),
            "--set train.global_batch_size=4: train.global_batch_size: is 4, not a multiple of "
            "train.micro_batch_size (3)");
  // The value that the file gives is wrong only with the override's.
  EXPECT_EQ(run_error(with(base, "/train/global_batch_size", "4"), {"train.micro_batch_size=3"}),
            "--set train.micro_batch_size=3: train.global_batch_size: is 4, not a multiple of "
            "train.micro_batch_size (3)");
  EXPECT_EQ(run_error(base, {"data.train=[\"a\", 3]"}),
            "--set data.train=[\"a\", 3]: data.train.1: is 3, expected a path or an object");
}

TEST(ConfigOverrides, ErrorsOfTheFileStayTheFiles) {
  EXPECT_TRUE(run_error(with(minimal_run(), "/train/beta1", "2"), {"train.lr=1"})
                  .starts_with("run.json: train.beta1: "));
  EXPECT_TRUE(run_error(without(minimal_run(), "/train"), {"train.lr=1"})
                  .starts_with("run.json: train.steps: missing"));
}

TEST(ConfigOverrides, MalformedOnes) {
  const json base = minimal_run();
  EXPECT_EQ(run_error(base, {"train.lr"}), "--set train.lr: no '=' in it; expected section.key=value");
  for (const char* text : {"=1", ".lr=1", "train.=1", "train..lr=1"}) {
    EXPECT_EQ(run_error(base, {text}),
              std::string("--set ") + text + ": a part of the key is empty; expected section.key=value");
  }
  for (const char* index : {"1", "-1", "x", "0x0", "99999999999999999999999"}) {
    EXPECT_CONTAINS(
        run_error(base, {std::string("data.train.") + index + "=a"}),
        std::string("data.train is an array of 1, and \"") + index + "\" is not the index of an element");
  }
  EXPECT_EQ(run_error(base, {"data.train.0.path=b"}),
            "--set data.train.0.path=b: data.train.0 is \"a.bin\", which holds no key \"path\"");
  std::string deep = "train";
  for (int i = 0; i < 100000; ++i) deep += ".a";
  EXPECT_CONTAINS(run_error(base, {deep + "=1"}), "the key has more than 16 parts");
  EXPECT_CONTAINS(run_error(base, {"data.train.0=\xff"}), "not valid UTF-8");
  EXPECT_EQ(run_error(base, {"train.lr\n=1"}).find('\n'), std::string::npos);
}

}  // namespace
}  // namespace switchyard::config
