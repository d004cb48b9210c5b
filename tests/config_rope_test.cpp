#include <gtest/gtest.h>

#include <cmath>

#include "config_samples.h"

namespace switchyard::config {
namespace {

Json scaled(const Json& model, const std::string& rope) { return with(model, "/rope_scaling", rope); }
Rope rope_of(const Json& model) { return model_of(model).rope; }

TEST(ConfigRope, LinearInEitherForm) {
  const Rope expected{.theta = 1e4, .type = RopeType::linear, .factor = 3};
  EXPECT_EQ(rope_of(scaled(minimal_qwen(), R"({"type": "linear", "factor": 3})")), expected);
  EXPECT_EQ(rope_of(scaled(minimal_qwen(), R"({"rope_type": "linear", "type": "linear", "factor": 3.0})")),
            expected);
  EXPECT_EQ(rope_of(with(minimal_mixtral(), "/rope_parameters",
                         R"({"rope_type": "linear", "factor": 3, "rope_theta": 10000})")),
            expected);
}

TEST(ConfigRope, YarnsDefaultsAreThoseOfTransformers) {
  const Rope rope = rope_of(scaled(minimal_qwen(), R"({"rope_type": "yarn", "factor": 4})"));
  Rope expected{.theta = 1e4,
                .type = RopeType::yarn,
                .factor = 4,
                .original_max_position_embeddings = 32768,  // max_position_embeddings
                .beta_fast = 32,
                .beta_slow = 1,
                .truncate = true};
  expected.attention_factor = 0.1 * std::log(4.0) + 1;
  EXPECT_EQ(rope, expected);
  const Rope nulls = rope_of(scaled(minimal_qwen(), R"({"rope_type": "yarn", "factor": 4, "beta_fast": null,
      "beta_slow": null, "attention_factor": null, "mscale": null, "mscale_all_dim": null,
      "original_max_position_embeddings": null})"));
  EXPECT_EQ(nulls, expected);
}

TEST(ConfigRope, YarnAsGiven) {
  const Rope rope =
      rope_of(scaled(minimal_mixtral(), R"({"type": "yarn", "factor": 2.5, "beta_fast": 16, "beta_slow": 2,
      "original_max_position_embeddings": 512, "truncate": false, "attention_factor": 0.8})"));
  EXPECT_EQ(rope, (Rope{.theta = 1e6,
                        .type = RopeType::yarn,
                        .factor = 2.5,
                        .original_max_position_embeddings = 512,
                        .beta_fast = 16,
                        .beta_slow = 2,
                        .truncate = false,
                        .attention_factor = 0.8}));
  // A null factor is how much longer the context is than the original one.
  const Json stretched = scaled(minimal_qwen(), R"({"type": "yarn", "factor": null,
      "original_max_position_embeddings": 8192})");
  EXPECT_EQ(rope_of(stretched).factor, 4);
  EXPECT_CONTAINS(model_error(with(stretched, "/max_position_embeddings", "4096")),
                  "config.json: rope_scaling.factor: is null, which makes it max_position_embeddings (4096) / "
                  "original_max_position_embeddings (8192), and it must be at least 1");
}

double m(double factor, double k) { return 0.1 * k * std::log(factor) + 1; }

TEST(ConfigRope, AttentionFactorAndSoftmaxScale) {
  const char* both = R"({"type": "yarn", "factor": 40, "mscale": 0.7, "mscale_all_dim": 1.2})";
  for (const Json& model : {minimal_qwen(), minimal_deepseek()}) {
    const Rope rope = rope_of(scaled(model, both));
    EXPECT_EQ(rope.attention_factor, m(40, 0.7) / m(40, 1.2));
    EXPECT_EQ(rope.mscale, 0.7);
    EXPECT_EQ(rope.mscale_all_dim, 1.2);
  }
  // Only DeepSeek's softmax scale knows mscale_all_dim.
  EXPECT_EQ(model_of(scaled(minimal_qwen(), both)).softmax_scale_factor, 1);
  EXPECT_EQ(model_of(scaled(minimal_deepseek(), both)).softmax_scale_factor, m(40, 1.2) * m(40, 1.2));
  const Model given = model_of(scaled(minimal_deepseek(), R"({"type": "yarn", "factor": 40, "mscale": 0.7,
      "mscale_all_dim": 1.2, "attention_factor": 2})"));
  EXPECT_EQ(given.rope.attention_factor, 2);
  EXPECT_EQ(given.softmax_scale_factor, m(40, 1.2) * m(40, 1.2));
  const Model neither = model_of(scaled(minimal_deepseek(), R"({"type": "yarn", "factor": 40})"));
  EXPECT_EQ(neither.rope.attention_factor, m(40, 1));
  EXPECT_EQ(neither.softmax_scale_factor, 1);
  const Model linear = model_of(scaled(minimal_deepseek(), R"({"type": "linear", "factor": 4, "mscale": 0.7,
      "mscale_all_dim": 1.2})"));
  EXPECT_EQ(linear.rope.attention_factor, 1);
  EXPECT_EQ(linear.softmax_scale_factor, m(4, 1.2) * m(4, 1.2));
  // A factor of 1 stretches nothing.
  const Model one = model_of(scaled(minimal_deepseek(), R"({"type": "yarn", "factor": 1, "mscale": 0.7,
      "mscale_all_dim": 1.2})"));
  EXPECT_EQ(one.rope.attention_factor, 1);
  EXPECT_EQ(one.softmax_scale_factor, 1);
}

TEST(ConfigRope, KindsThatAreNotKnownAreNamed) {
  for (const char* kind : {"llama3", "dynamic", "longrope", "su", "mrope"}) {
    for (const char* key : {"rope_type", "type"}) {
      // A key that only that kind has does not hide what is wrong.
      const std::string rope = fmt::format(R"({{"{}": "{}", "factor": 8, "low_freq_factor": 1}})", key, kind);
      EXPECT_EQ(
          model_error(scaled(minimal_qwen(), rope)),
          fmt::format("config.json: rope_scaling.{}: is \"{}\"; only \"default\", \"linear\" and \"yarn\" are "
                      "supported",
                      key, kind));
    }
  }
  EXPECT_CONTAINS(model_error(scaled(minimal_qwen(), R"({"rope_type": null})")),
                  "rope_scaling.rope_type: is null");
  EXPECT_EQ(
      model_error(scaled(minimal_qwen(), R"({"rope_type": "yarn", "type": "linear", "factor": 2})")),
      "config.json: rope_scaling.type: is \"linear\", but rope_scaling.rope_type is \"yarn\"; remove one");
}

TEST(ConfigRope, KeysThatTheKindDoesNotHaveAreRefused) {
  EXPECT_EQ(model_error(scaled(minimal_qwen(), R"({"factor": 4.0})")),
            "config.json: rope_scaling.factor: is 4.0, but rope_type is \"default\", which has no such key; "
            "remove it");
  EXPECT_CONTAINS(
      model_error(scaled(minimal_qwen(), R"({"type": "linear", "factor": 2, "beta_fast": 32})")),
      "rope_scaling.beta_fast: is 32, but rope_type is \"linear\", which has no such key; remove it");
  EXPECT_CONTAINS(
      model_error(
          scaled(minimal_qwen(), R"({"type": "linear", "factor": 2, "mscale": 1, "mscale_all_dim": 1})")),
      "rope_scaling.mscale: is 1, but rope_type is \"linear\", which has no such key in this layout");
  EXPECT_CONTAINS(model_error(scaled(minimal_qwen(), R"({"type": "yarn", "factr": 2})")),
                  "rope_scaling.factr: unknown key; did you mean \"factor\"?");
}

TEST(ConfigRope, ValuesWithoutAMeaningAreRefused) {
  const auto error = [](const std::string& rope) { return model_error(scaled(minimal_deepseek(), rope)); };
  EXPECT_CONTAINS(error(R"({"type": "yarn"})"), "rope_scaling.factor: missing, and it has no default; add it");
  EXPECT_CONTAINS(error(R"({"type": "linear"})"), "rope_scaling.factor: missing");
  EXPECT_CONTAINS(error(R"({"type": "linear", "factor": null})"),
                  "rope_scaling.factor: is null, expected a number");
  EXPECT_CONTAINS(error(R"({"type": "linear", "factor": 0.5})"),
                  "is 0.5, expected a number in [1, 10000000000]");
  EXPECT_EQ(
      error(R"({"type": "yarn", "factor": 4, "mscale": 1})"),
      "config.json: rope_scaling.mscale_all_dim: missing, but mscale is given; transformers and DeepSeek's own "
      "code differ on what one alone means: give both or none");
  EXPECT_CONTAINS(error(R"({"type": "yarn", "factor": 4, "mscale_all_dim": 1, "mscale": null})"),
                  "rope_scaling.mscale: missing, but mscale_all_dim is given");
  EXPECT_CONTAINS(error(R"({"type": "yarn", "factor": 4, "mscale": 0, "mscale_all_dim": 1})"),
                  "rope_scaling.mscale: is 0, expected a number in (0, 1000000]");
  EXPECT_CONTAINS(error(R"({"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2})"),
                  "rope_scaling.beta_fast: is 1, less than beta_slow (2)");
  EXPECT_CONTAINS(
      model_error(with(scaled(minimal_qwen(), R"({"type": "yarn", "factor": 4})"), "/rope_theta", "1")),
      "rope_theta: is 1; with rope_type \"yarn\" it must be above 1");
  EXPECT_CONTAINS(
      model_error(
          with(minimal_qwen(), "/rope_parameters", R"({"rope_type": "yarn", "factor": 4, "rope_theta": 0.5})")),
      "config.json: rope_parameters.rope_theta: is 0.5; with rope_type \"yarn\" it must be above 1");
  EXPECT_CONTAINS(error("[]"), "rope_scaling: is an array, expected an object");
}

TEST(ConfigRope, OneFormAtATime) {
  Json both = scaled(minimal_qwen(), R"({"type": "linear", "factor": 2})");
  both["rope_parameters"] = Json::Object{{"rope_type", "default"}, {"rope_theta", 1e4}};
  EXPECT_EQ(
      model_error(both),
      "config.json: rope_scaling: is given, but rope_parameters, the same in another form, is too; remove one");
  both["rope_parameters"] = Json();
  EXPECT_EQ(rope_of(both).factor, 2);
}

TEST(ConfigRope, WrittenAndReadBack) {
  for (
      const char* rope :
      {R"({"type": "linear", "factor": 3})", R"({"type": "yarn", "factor": 4})",
       R"({"type": "yarn", "factor": 4, "attention_factor": 0.8, "truncate": false, "beta_fast": 16.5})",
       R"({"type": "yarn", "factor": 3.3, "mscale": 0.7, "mscale_all_dim": 1.2, "original_max_position_embeddings": 64})",
       R"({"type": "yarn", "factor": 40, "mscale": 0.7, "mscale_all_dim": 1.2, "attention_factor": 0.5})"}) {
    for (const Json& base : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()}) {
      const Model model = model_of(scaled(base, rope));
      EXPECT_EQ(parse_model(model_to_hf_json(model), "back"), model) << rope;
    }
  }
  const Json text = parsed(model_to_hf_json(model_of(
      scaled(minimal_deepseek(), R"({"type": "yarn", "factor": 40, "mscale": 1, "mscale_all_dim": 1})"))));
  EXPECT_EQ(text["rope_theta"], 1e4);
  // DeepSeek's own code reads type, and the attention factor that follows from the other keys is not one of
  // them.
  EXPECT_EQ(text["rope_scaling"], parsed(R"({"rope_type": "yarn", "type": "yarn", "factor": 40.0,
                            "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
                            "mscale_all_dim": 1.0})"));
  EXPECT_FALSE(parsed(model_to_hf_json(model_of(minimal_deepseek()))).contains("rope_scaling"));
}

}  // namespace
}  // namespace switchyard::config
