// What a configuration is read from: files with comments that extend each other, and overrides.
#include <gtest/gtest.h>

#include "config_samples.h"
#include "core/file.h"

namespace switchyard::config {
namespace {

TEST(ConfigOverrides, ValuesAreJsonOrElseStrings) {
  Json text = minimal_run();
  text["data"]["train"].push_back(Json::Object{{"path", "b.bin"}});
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
            (Router{"softmax_topk",
                    0,
                    BalanceScope::global_batch,
                    0.5,
                    0.0,
                    0.0,
                    std::nullopt,
                    0.0,
                    0.0,
                    0,
                    {{"simbal_coef", 0.0}}}));
}

TEST(ConfigOverrides, TheLaterOneHolds) {
  EXPECT_EQ(run_of(minimal_run(), {"train.steps=5", "train.steps=6"}).train.steps, 6);
  EXPECT_CONTAINS(run_error(minimal_run(), {"train.steps=6", "train.steps=-5"}), "--set train.steps=-5: ");
}

TEST(ConfigOverrides, MessagesNameTheOverride) {
  const Json base = minimal_run();
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
  const Json base = minimal_run();
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

class ConfigExtends : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = directory_.path() / name;
    std::filesystem::create_directories(path.parent_path());
    write_text_file(path, text);
    return path.string();
  }
  static config::Run load(const std::string& path, const std::vector<std::string>& overrides = {}) {
    return load_run(path, overrides, router::router_schemas());
  }
  std::string error(const std::string& path, const std::vector<std::string>& overrides = {}) {
    std::string text = test::message_of<InputError>([&] { load(path, overrides); });
    const std::string directory = directory_.path().string() + "/";
    for (std::size_t at = text.find(directory); at != std::string::npos; at = text.find(directory))
      text.erase(at, directory.size());
    return text;
  }

 private:
  test::TempDir directory_;
};

TEST_F(ConfigExtends, PutsItsValuesOverThoseOfTheOther) {
  Json base = minimal_run();
  base["train"]["spike"] = Json::Object{{"window", 200}, {"patience", 3}};
  base["data"]["validation"] = Json::Array{"v.bin", "w.bin"};
  write("parts/base.json", to_line(base));
  write("parts/middle.json", R"({"extends": "base.json", "train": {"steps": 7, "lr": 0.5}})");
  const std::string path = write("run.json", R"({"extends": "parts/middle.json", "log": {"every": 4},
      "train": {"lr": 0.25, "spike": {"window": 100}}, "data": {"validation": ["x.bin"]}})");
  Json whole = base;
  whole["train"]["steps"] = 7;
  whole["train"]["lr"] = 0.25;
  whole["train"]["spike"]["window"] = 100;
  whole["data"]["validation"] = Json::Array{"x.bin"};
  whole["log"]["every"] = 4;
  EXPECT_EQ(load(path), run_of(whole));
  EXPECT_FALSE(parsed(load(path).resolved_json).contains("extends"));
  EXPECT_EQ(load(path, {"train.lr=2"}).train.lr, 2);
  EXPECT_TRUE(looks_like_run(read_text_file(path), path));
}

TEST_F(ConfigExtends, AnotherTypeTakesNoOptionOfTheOther) {
  Json base = minimal_run(minimal_deepseek());
  base["router"] = Json::Object{{"type", "sigmoid_group"}, {"bias_update_speed", 0.5}};
  base["model"]["rope_scaling"] = Json::Object{{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", 16}};
  write("base.json", to_line(base));
  const config::Run same =
      load(write("same.json", R"({"extends": "base.json", "router": {"balance_coef": 0.5}})"));
  EXPECT_EQ(same.router.own.number("bias_update_speed"), 0.5);
  EXPECT_EQ(same.router.balance_coef, 0.5);
  const config::Run other =
      load(write("other.json", R"({"extends": "base.json", "router": {"type": "softmax_topk"},
      "model": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}})"));
  EXPECT_EQ(other.router.type, "softmax_topk");
  EXPECT_EQ(other.model.rope.type, RopeType::linear);
  EXPECT_EQ(other.model.rope.factor, 2);
}

TEST_F(ConfigExtends, MessagesNameTheFileOfTheValue) {
  Json base = minimal_run();
  base["trian"] = Json(Json::Object{});
  write("base.json", to_line(base));
  const std::string path = write("run.json", R"({"extends": "base.json", "train": {"lr": -1, "steps": 3}})");
  EXPECT_TRUE(error(path).starts_with("base.json: trian: unknown key")) << error(path);
  erase(base, "trian");
  base["train"]["beta1"] = 2;
  base["data"]["train"] = Json::Array{"a.bin", 3};
  write("base.json", to_line(base));
  EXPECT_TRUE(error(path).starts_with("base.json: data.train.1: is 3, ")) << error(path);
  EXPECT_TRUE(error(path, {"data.train.1=4"}).starts_with("--set data.train.1=4: ")) << error(path);
  EXPECT_TRUE(error(path, {"data.train.1=b"}).starts_with("run.json: train.lr: ")) << error(path);
  EXPECT_TRUE(error(path, {"data.train.1=b", "train.lr=1"}).starts_with("base.json: train.beta1: "));
  base["train"] = Json::Object{{"steps", 3}};
  write("base.json", to_line(base));
  EXPECT_EQ(error(path, {"data.train.1=b"}), "run.json: train.seq_len: missing, and it has no default; add it");
}

TEST_F(ConfigExtends, RefusesWhatItCannotFollow) {
  EXPECT_EQ(error(write("run.json", R"({"extends": "no.json"})")),
            R"(run.json: extends: is "no.json", and there is no file no.json)");
  EXPECT_EQ(error(write("run.json", R"({"extends": 3})")),
            "run.json: extends: is 3, expected the path of a configuration, relative to this file's directory");
  const std::string itself = "; a configuration cannot extend itself";
  EXPECT_EQ(error(write("run.json", R"({"extends": "run.json"})")),
            R"(run.json: extends: is "run.json", which is this file or extends it)" + itself);
  write("b.json", R"({"extends": "run.json"})");
  EXPECT_EQ(error(write("run.json", R"({"extends": "./b.json"})")),
            R"(b.json: extends: is "run.json", which is this file or extends it)" + itself);
  write("b.json", "{\n?}");
  EXPECT_TRUE(error(write("run.json", R"({"extends": "b.json"})")).starts_with("b.json: line 2, column 1: "));
  write("b.json", "[]");
  EXPECT_EQ(error(write("run.json", R"({"extends": "b.json"})")), "b.json: is an array, expected an object");
  write("b.json", to_line(minimal_run()));
  EXPECT_EQ(error(write("run.json", R"({"extends": "b.json", "train": {"extends": "b.json"}})")),
            R"(run.json: train.extends: unknown key; did you mean "extends"?)");
  EXPECT_EQ(error(write("run.json", R"({"extends": "b.json"})"), {"extends=b.json"}),
            "--set extends=b.json: a configuration names what it extends itself; write it there");
}

TEST_F(ConfigExtends, CommentsGoToTheEndOfTheirLine) {
  Json base = minimal_run();
  base["data"]["train"] = Json::Array{"http://x//y\\\""};
  const std::string path = write("run.json", "// a run\n" + to_text(base) + "// \"the end\"");
  EXPECT_EQ(load(path).data.train[0].path, "http://x//y\\\"");
  EXPECT_TRUE(error(write("run.json", "{ // one\n  \"a\": // two\n  ?}"))
                  .starts_with("run.json: line 3, column 3: not JSON: "));
  const std::string block = error(write("run.json", "{} /* no */"));
  EXPECT_TRUE(block.starts_with("run.json: line 1, column 4: ") &&
              block.ends_with(" (a comment begins with //)"))
      << block;
  // A published file is JSON and nothing else.
  EXPECT_CONTAINS(test::message_of<InputError>([] { parse_model("{ // x\n}", "config.json"); }),
                  "JSON has no comments");
}

}  // namespace
}  // namespace switchyard::config
