// What each type of router can be configured with, and what it refuses.
#include <gtest/gtest.h>

#include "config/layouts.h"
#include "config_samples.h"

namespace switchyard::config {
namespace {

Json with_router(const std::string& router) { return with(minimal_run(), "/router", router); }

TEST(ConfigRouters, EveryTypeHasItsDefaultsAndReadsThemBack) {
  for (const Json& model : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()})
    for (const RouterSchema& schema : router::router_schemas()) {
      const config::Run run =
          run_of(with(minimal_run(model), "/router", fmt::format(R"({{"type": "{}"}})", schema.type)));
      EXPECT_EQ(run.router, default_of(schema, run.model)) << schema.type;
      EXPECT_EQ(run.router.own.all().size(), schema.options.size()) << schema.type;
      EXPECT_EQ(parse_run(run.resolved_json, "resolved", {}, router::router_schemas()), run) << schema.type;
    }
}

TEST(ConfigRouters, TheMostExpertsAreThoseOfAToken) {
  const config::Run run = run_of(with_router(R"({"type": "top_p"})"));
  EXPECT_EQ(run.router.own.integer("max_experts"), 4);
  EXPECT_EQ(slots_per_token(run.router, run.model), 4);
  const config::Run more = run_of(with_router(R"({"type": "top_p", "max_experts": 9})"));
  EXPECT_EQ(slots_per_token(more.router, more.model), 9);
  EXPECT_EQ(slots_per_token(run_of(minimal_run()).router, more.model), 4);
}

// Only what acts in the forward pass of a trained model counts.
TEST(ConfigRouters, WhatIsNotTheLayoutsOwn) {
  const auto clauses = [](const Json& model, const std::string& router) {
    const config::Run run = run_of(with(minimal_run(model), "/router", router));
    return beyond_layout(run.router, run.model, router::router_schemas());
  };
  const char* own[] = {R"({"jitter": 0.5, "balance_coef": 0.3, "balance_scope": "layer"})",
                       R"({"capacity_factor": 4.0})"};  // E/K: an expert has room for all tokens
  for (const char* router : own) EXPECT_TRUE(clauses(minimal_qwen(), router).empty()) << router;
  EXPECT_TRUE(clauses(minimal_mixtral(), R"({"z_loss_coef": 0.1})").empty());
  EXPECT_TRUE(clauses(minimal_deepseek(), R"({"bias_update_speed": 0.5})").empty());
  EXPECT_EQ(clauses(minimal_qwen(), R"({"capacity_factor": 3.9})").size(), 1u);
  for (const RouterSchema& schema : router::router_schemas()) {
    const std::string router = fmt::format(R"({{"type": "{}"}})", schema.type);
    EXPECT_EQ(clauses(minimal_mixtral(), router).empty(), schema.type == "softmax_topk") << router;
    EXPECT_EQ(clauses(minimal_deepseek(), router).empty(), schema.type == "sigmoid_group") << router;
  }
  EXPECT_TRUE(
      clauses(with(with(minimal_qwen(), "/mlp_only_layers", "[0, 1, 2, 3]"), "/intermediate_size", "32"),
              R"({"type": "lpr"})")
          .empty())
      << "no layer has a router";
}

TEST(ConfigRouters, AZLossFitsWhereverThereIsASoftmaxOverLogits) {
  for (const Json& minimal : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()})
    for (const RouterSchema& schema : router::router_schemas()) {
      Json text = with(minimal_run(minimal), "/router", fmt::format(R"({{"type": "{}"}})", schema.type));
      text["router"]["z_loss_coef"] = 0.004;
      const bool has_scores = default_of(schema, run_of(minimal_run(minimal)).model).own.has("score_function");
      if (has_scores) {
        EXPECT_CONTAINS(run_error(text), "has no normaliser") << schema.type;
        text["router"]["score_function"] = "sqrtsoftplus";
        EXPECT_CONTAINS(run_error(text), "score_function is \"sqrtsoftplus\"") << schema.type;
        text["router"]["score_function"] = "softmax";
      }
      if (schema.type == "kmeans") {
        EXPECT_CONTAINS(run_error(text), "router.z_loss_coef: is 0.004");
        continue;
      }
      EXPECT_EQ(run_of(text).router.z_loss_coef, 0.004) << schema.type;
    }
}

// What the chosen experts' weights sum to is a run's to say in every layout, with every router. Where
// transformers would compute another sum the config.json asks for our code, and keeps both keys.
TEST(ConfigRouters, EveryLayoutAndRouterTakesASumOfWeights) {
  for (const Json& minimal : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()})
    for (const RouterSchema& schema : router::router_schemas())
      for (const bool normalised : {false, true}) {
        Json model = with(minimal, "/routed_scaling_factor", "3.5");
        model["norm_topk_prob"] = normalised;
        const config::Run run =
            run_of(with(minimal_run(model), "/router", fmt::format(R"({{"type": "{}"}})", schema.type)));
        EXPECT_EQ(run.model.routed_scaling_factor, 3.5);
        EXPECT_EQ(run.model.norm_topk_prob, normalised);
        EXPECT_EQ(parse_run(run.resolved_json, "resolved", {}, router::router_schemas()), run) << schema.type;
        const std::string stated =
            state_router(model_to_hf_json(run.model), run.model, run.router, router::router_schemas());
        EXPECT_EQ(parse_model(stated, "x"), run.model) << stated;
        const bool plain = run.model.layout == &kDeepseekV3 && schema.type == "sigmoid_group";
        EXPECT_EQ(beyond_layout(run.router, run.model, router::router_schemas()).empty(), plain);
        EXPECT_EQ(parsed(stated).contains("router"), !plain);
        // As the layout's own again, it has no key that transformers does not read.
        const Model bare = with_weights_of_layout(run.model);
        const std::string own = state_router(
            stated, bare, default_router(*bare.layout, router::router_schemas()), router::router_schemas());
        EXPECT_EQ(parse_model(own, "x"), bare) << own;
        EXPECT_EQ(parsed(own).contains("routed_scaling_factor"), bare.layout == &kDeepseekV3);
        EXPECT_EQ(parsed(own).contains("norm_topk_prob"), bare.layout != &kMixtral);
      }
}

TEST(ConfigRouters, AConfigJsonStatesARouterThatIsNotItsLayouts) {
  for (const Json& model : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()})
    for (const RouterSchema& schema : router::router_schemas()) {
      const config::Run run =
          run_of(with(minimal_run(model), "/router",
                      fmt::format(R"({{"type": "{}", "capacity_factor": 0.5}})", schema.type)));
      const std::string plain = model_to_hf_json(run.model);
      const std::string stated = state_router(plain, run.model, run.router, router::router_schemas());
      const std::string layout = model["model_type"].text(),
                        architecture = parsed(plain)["architectures"].array()[0].text();
      EXPECT_EQ(parsed(stated)["model_type"], "switchyard_" + layout);
      EXPECT_EQ(parsed(stated)["architectures"].array()[0], "Switchyard" + architecture);
      EXPECT_EQ(parsed(stated)["auto_map"]["AutoModelForCausalLM"],
                "modeling_switchyard.Switchyard" + architecture);
      EXPECT_EQ(parse_model(stated, "x"), run.model);
      EXPECT_EQ(parse_model_router(stated, "x", router::router_schemas()), run.router);
      const Router own = default_router(*run.model.layout, router::router_schemas());
      EXPECT_EQ(sorted(parsed(state_router(stated, run.model, own, router::router_schemas()))),
                sorted(parsed(plain)));
      EXPECT_EQ(parse_model_router(plain, "x", router::router_schemas()), own);
      // Pasted into a run, or lent to one by its weights, the router comes along.
      Json text = minimal_run(model);
      text["model"] = parsed(stated);
      EXPECT_EQ(run_of(text).router, run.router);
      EXPECT_EQ(
          parse_run(to_line(without(minimal_run(model), "/model")), "x", {}, router::router_schemas(), stated)
              .router,
          run.router);
      text["router"] = parsed(R"({"type": "top_p"})");
      EXPECT_CONTAINS(run_error(text), "model.router: the run has a router of its own");
      erase(text["model"], "router");
      EXPECT_EQ(run_of(text).router.type, "top_p");
      erase(text, "router");
      EXPECT_CONTAINS(run_error(text), "router: missing");
    }
}

TEST(ConfigRouters, WhatMakesNoSenseIsRefusedWithItsPath) {
  struct Case {
    const char* router;
    const char* message;
  };
  const Case cases[] = {
      {R"({"type": "top_p", "p": 0})", "router.p: is 0, expected a number in (0, 1]"},
      {R"({"type": "top_p", "p": 1.5})", "router.p: is 1.5, expected a number in (0, 1]"},
      {R"({"type": "top_p", "max_experts": 17})",
       "router.max_experts: is 17, more than the model has experts (16)"},
      {R"({"type": "top_p", "max_experts": 0})",
       "router.max_experts: is 0, expected an integer in [1, 2147483647]"},
      {R"({"type": "top_p", "renormalise": 1})", "router.renormalise: is 1, expected true or false"},
      {R"({"type": "dynamic_k", "min_experts": 3, "max_experts": 2})",
       "router.min_experts: is 3, more than max_experts (2)"},
      {R"({"type": "dynamic_k", "flops_target": 0.5})",
       "router.flops_target: is 0.5, expected a number in [0, 0.5)"},
      {R"({"type": "dynamic_k", "flops_target": 0.3, "max_experts": 2})",
       "router.flops_target: is 0.3, but with max_experts 2 and at least one expert a token at most 0.25 of "
       "the "
       "experts' FLOPs can be saved; lower it or raise max_experts"},
      {R"({"type": "dynamic_k", "flops_target": 0.2, "min_experts": 2, "max_experts": 8})",
       "router.flops_target: is 0.2, from which min_experts follows, which is 2; remove one"},
      {R"({"type": "dynamic_k", "flops_target": 0.2, "max_experts": 8, "estimator": "threshold", "threshold": 2})",
       "router.flops_target: is 0.2, but how many tokens exceed a threshold is not known beforehand; use "
       "another "
       "estimator or remove it"},
      {R"({"type": "dynamic_k", "estimator": "guess"})",
       "router.estimator: is \"guess\", expected one of: activation_norm_l2, activation_norm_l1, "
       "attention_entropy, router_entropy, hidden_entropy, loss_gradient, threshold"},
      {R"({"type": "dynamic_k", "estimator": "threshold"})",
       "router.threshold: is 0 or missing, but estimator is \"threshold\", which needs a length to compare "
       "with; "
       "give one"},
      {R"({"type": "dynamic_k", "threshold": 2})",
       "router.threshold: is 2, but estimator is \"activation_norm_l2\", which is compared with no constant; "
       "remove it"},
      {R"({"type": "expert_threshold", "max_experts": 20})",
       "router.max_experts: is 20, more than the model has experts (16)"},
      {R"({"type": "expert_threshold", "threshold_decay": 1})",
       "router.threshold_decay: is 1, expected a number in [0, 1)"},
      {R"({"type": "quantile", "score_function": "tanh"})",
       "router.score_function: is \"tanh\", expected one of: sigmoid, softmax, sqrtsoftplus"},
      {R"({"type": "quantile", "z_loss_coef": 0.5})",
       "router.z_loss_coef: is 0.5, but score_function is \"sigmoid\", which has no normaliser that it could "
       "bound; set it to 0"},
      {R"({"type": "kmeans", "z_loss_coef": 0.5})",
       "router.z_loss_coef: is 0.5, but router.type is \"kmeans\", whose cosine similarities are bounded as "
       "they "
       "are; set it to 0"},
      {R"({"type": "softmax_topk", "p": 0.5})",
       "router.p: router.type is \"softmax_topk\", which has no such option (of: \"top_p\"); remove it"},
      {R"({"type": "kmeans", "max_experts": 2})",
       "router.max_experts: router.type is \"kmeans\", which has no such option (of: \"top_p\", \"dynamic_k\", "
       "\"expert_threshold\"); remove it"},
      {R"({"capacity_factor": 0})", "router.capacity_factor: is 0, expected a number in (0, 1000000]"},
      {R"({"jitter": -1})", "router.jitter: is -1, expected a number in [0, 1000]"},
      {R"({"type": 3})", "router.type: is 3, expected a string"},
      {R"({"type": "quantile", "bias_emma": 0.5})",
       "router.bias_emma: unknown key; did you mean \"bias_ema\"?"},
      {R"({"type": "lpr", "bias_solves": 2})",
       "router.bias_solves: is 2, but bias is \"none\", which does not read it; remove it"},
      {R"({"type": "lpr", "settle_tokens": 2048})",
       "router.settle_tokens: is 2048, but bias is \"none\", which does not read it; remove it"},
      {R"({"type": "quantile", "bias_solves": 17})",
       "router.bias_solves: is 17, expected an integer in [0, 16]"},
      {R"({"type": "softmax_topk", "settle_tokens": 2048})",
       "router.settle_tokens: router.type is \"softmax_topk\", which has no such option (of: \"quantile\", "
       "\"expert_threshold\", \"lpr\"); remove it"},
  };
  for (const Case& c : cases)
    EXPECT_EQ(run_error(with_router(c.router)), std::string("run.json: ") + c.message) << c.router;
  EXPECT_CONTAINS(run_error(with_router(R"({"type": "top_p"})"), {"router.p=2"}),
                  "--set router.p=2: router.p: ");
}

TEST(ConfigRouters, OptionsThatGoTogetherAreTaken) {
  EXPECT_NO_THROW(
      run_of(with_router(R"({"type": "quantile", "score_function": "softmax", "z_loss_coef": 0.5})")));
  EXPECT_NO_THROW(run_of(with_router(R"({"type": "dynamic_k", "estimator": "threshold", "threshold": 2})")));
  EXPECT_EQ(run_of(with_router(R"({"capacity_factor": 1.25})")).router.capacity_factor, 1.25);
  EXPECT_EQ(run_of(with_router(R"({"capacity_factor": null})")).router.capacity_factor, std::nullopt);
}

}  // namespace
}  // namespace switchyard::config
