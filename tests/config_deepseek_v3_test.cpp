#include <gtest/gtest.h>

#include "config/layouts.h"
#include "config_samples.h"

namespace switchyard::config {
namespace {

TEST(ConfigDeepseekV3, DefaultsAreThoseOfTransformers) {
  const Model m = model_of(minimal_deepseek());
  EXPECT_EQ(m.layout, &kDeepseekV3);
  EXPECT_EQ(m.mla, (Mla{1536, 512, 128, 64, 128}));
  EXPECT_EQ(m.head_dim, 192);
  EXPECT_EQ(m.num_key_value_heads, 8);
  EXPECT_EQ(m.rope, (Rope{.theta = 1e4, .interleaved = true}));
  EXPECT_EQ(m.softmax_scale_factor, 1);
  EXPECT_FALSE(m.attention_bias);
  EXPECT_EQ(m.qk_norm, QkNorm::none);
  EXPECT_EQ(m.intermediate_size, 128);
  EXPECT_EQ(m.moe_intermediate_size, 32);
  EXPECT_EQ(m.num_experts, 16);
  EXPECT_EQ(m.num_experts_per_tok, 4);
  EXPECT_EQ(m.n_shared_experts, 1);
  EXPECT_EQ(m.n_group, 8);
  EXPECT_EQ(m.topk_group, 4);
  EXPECT_TRUE(m.norm_topk_prob);
  EXPECT_EQ(m.routed_scaling_factor, 2.5);
  EXPECT_EQ(moe_layers(m), (std::vector<bool>{false, false, false, true}));
  EXPECT_EQ(m.num_nextn_predict_layers, 0);
  EXPECT_EQ(m.rms_norm_eps, 1e-6);
  EXPECT_EQ(m.max_position_embeddings, 4096);
}

TEST(ConfigDeepseekV3, EveryKeyIsRead) {
  Json text = minimal_deepseek();
  text = with_members(text,
                      R"({"q_lora_rank": null, "kv_lora_rank": 9, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4,
      "v_head_dim": 7, "head_dim": 4, "qk_head_dim": 9, "num_key_value_heads": 8, "attention_bias": true,
      "rope_interleave": false, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_shared_experts": 3, "n_group": 4,
      "topk_group": 2, "norm_topk_prob": false, "routed_scaling_factor": 1.5, "scoring_func": "sigmoid",
      "topk_method": "noaux_tc", "num_nextn_predict_layers": 2, "tie_word_embeddings": true, "rms_norm_eps": 0.001})");
  const Model m = model_of(text);
  EXPECT_EQ(m.mla, (Mla{0, 9, 5, 4, 7}));
  EXPECT_EQ(m.head_dim, 9);
  EXPECT_TRUE(m.attention_bias);
  EXPECT_FALSE(m.rope.interleaved);
  EXPECT_EQ(moe_layers(m), (std::vector<bool>{false, true, true, true}));
  EXPECT_EQ(m.n_shared_experts, 3);
  EXPECT_EQ(m.n_group, 4);
  EXPECT_EQ(m.topk_group, 2);
  EXPECT_FALSE(m.norm_topk_prob);
  EXPECT_EQ(m.routed_scaling_factor, 1.5);
  EXPECT_EQ(m.num_nextn_predict_layers, 2);
  EXPECT_TRUE(m.tie_word_embeddings);
  EXPECT_EQ(m.rms_norm_eps, 0.001);
}

// Public files have these; they change nothing.
TEST(ConfigDeepseekV3, NeutralKeys) {
  const Model plain = model_of(minimal_deepseek());
  for (const char* keys :
       {R"({"aux_loss_alpha": 0.001, "seq_aux": true, "ep_size": 8, "pretraining_tp": 1})",
        R"({"num_key_value_heads": 8, "head_dim": null, "qk_head_dim": null, "moe_layer_freq": 1.0})",
        R"({"head_dim": 64, "qk_head_dim": 192, "rope_scaling": null, "quantization_config": null})"}) {
    Json text = minimal_deepseek();
    text = with_members(text, keys);
    EXPECT_EQ(model_of(text), plain) << keys;
  }
  EXPECT_CONTAINS(model_error(with(minimal_deepseek(), "/ep_size", "\"8\"")),
                  "ep_size: is \"8\", expected an integer");
}

TEST(ConfigDeepseekV3, RefusesWhatItCannotCompute) {
  const auto error = [](const char* key, const char* value) {
    return model_error(with(minimal_deepseek(), std::string("/") + key, value));
  };
  EXPECT_EQ(error("moe_layer_freq", "2"), "config.json: moe_layer_freq: is 2; only 1 is supported");
  EXPECT_EQ(error("scoring_func", "\"softmax\""),
            "config.json: scoring_func: is \"softmax\"; only \"sigmoid\" is supported");
  EXPECT_EQ(error("topk_method", "\"group_limited_greedy\""),
            "config.json: topk_method: is \"group_limited_greedy\"; only \"noaux_tc\" is supported");
  EXPECT_EQ(error("num_key_value_heads", "4"),
            "config.json: num_key_value_heads: is 4, but every query head has its own key and value: "
            "num_attention_heads is 8; remove it");
  EXPECT_EQ(error("head_dim", "192"),
            "config.json: head_dim: is 192, but qk_rope_head_dim, which it stands for, is 64; remove it");
  EXPECT_EQ(error("qk_head_dim", "64"),
            "config.json: qk_head_dim: is 64, but qk_nope_head_dim + qk_rope_head_dim is 192; remove it");
  EXPECT_EQ(error("qk_rope_head_dim", "63"),
            "config.json: qk_rope_head_dim: is 63; rotary embedding needs an even number");
  EXPECT_EQ(error("routed_scaling_factor", "0"),
            "config.json: routed_scaling_factor: is 0, expected a number in (0, 1000000]");
  EXPECT_EQ(error("num_experts", "8"),
            "config.json: num_experts: unknown key; did you mean \"n_routed_experts\"?");
}

TEST(ConfigDeepseekV3, GroupsOfExperts) {
  const auto groups = [](int experts, int n_group, int topk_group, int top_k) {
    Json text = minimal_deepseek();
    text["n_routed_experts"] = experts;
    text["n_group"] = n_group;
    text["topk_group"] = topk_group;
    text["num_experts_per_tok"] = top_k;
    return text;
  };
  EXPECT_NO_THROW(model_of(groups(16, 8, 2, 4)));
  EXPECT_NO_THROW(model_of(groups(3, 1, 1, 3)));
  EXPECT_NO_THROW(model_of(groups(1, 1, 1, 1)));
  EXPECT_EQ(model_error(groups(16, 3, 2, 4)),
            "config.json: n_group: is 3, which does not divide n_routed_experts (16)");
  EXPECT_EQ(model_error(with(minimal_deepseek(), "/n_routed_experts", "12")),
            "config.json: n_group: is 8 by default, which does not divide n_routed_experts (12)");
  EXPECT_CONTAINS(model_error(groups(16, 16, 8, 4)),
                  "config.json: n_group: is 16, which makes groups of a single expert (16 in all)");
  EXPECT_EQ(model_error(groups(1024, 512, 4, 4)),
            "config.json: n_group: is 512, expected an integer in [1, 256]");
  EXPECT_EQ(model_error(groups(16, 4, 5, 4)), "config.json: topk_group: is 5, more than n_group (4)");
  EXPECT_EQ(model_error(with(minimal_deepseek(), "/n_group", "2")),
            "config.json: topk_group: is 4 by default, more than n_group (2)");
  EXPECT_EQ(model_error(groups(16, 8, 1, 3)),
            "config.json: num_experts_per_tok: is 3, more than the 2 experts of the groups that stay "
            "(topk_group 1, with "
            "2 experts each)");
  EXPECT_EQ(model_error(groups(16, 1, 1, 17)),
            "config.json: num_experts_per_tok: is 17, more than n_routed_experts (16)");
  Json wide = minimal_deepseek();
  wide = with_members(wide, R"({"n_shared_experts": 1000000, "moe_intermediate_size": 1000000})");
  EXPECT_CONTAINS(model_error(wide),
                  "config.json: n_shared_experts: is 1000000, which makes a width of 1000000000000");
}

TEST(ConfigDeepseekV3, SharedExpertsMayBeNone) {
  EXPECT_EQ(model_of(with(minimal_deepseek(), "/n_shared_experts", "null")).n_shared_experts, 0);
  EXPECT_EQ(model_of(with(minimal_deepseek(), "/n_shared_experts", "0")).n_shared_experts, 0);
}

TEST(ConfigDeepseekV3, SizesOfLayersThatAreNotThere) {
  const Json all_moe = with(without(minimal_deepseek(), "/intermediate_size"), "/first_k_dense_replace", "0");
  EXPECT_EQ(moe_layers(model_of(all_moe)), std::vector<bool>(4, true));
  EXPECT_EQ(model_of(with(all_moe, "/intermediate_size", "18432")), model_of(all_moe));
  EXPECT_EQ(model_error(with(all_moe, "/first_k_dense_replace", "1")),
            "config.json: intermediate_size: missing, and it has no default; add it");
  Json dense = with(minimal_deepseek(), "/first_k_dense_replace", "9");
  const Model with_experts = model_of(dense);
  EXPECT_EQ(moe_layers(with_experts), std::vector<bool>(4, false));
  for (const char* key : {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"})
    erase(dense, key);
  EXPECT_EQ(model_of(dense), with_experts);
  EXPECT_EQ(with_experts.num_experts, 0);
  EXPECT_EQ(with_experts.n_shared_experts, 0);
  EXPECT_EQ(model_error(without(minimal_deepseek(), "/n_routed_experts")),
            "config.json: n_routed_experts: missing, and it has no default; add it");
}

TEST(ConfigDeepseekV3, WrittenAndReadBack) {
  const Json base = minimal_deepseek();
  for (const Json& sample :
       {base, with(base, "/q_lora_rank", "null"), with(base, "/first_k_dense_replace", "0"),
        with(base, "/first_k_dense_replace", "4"), with(base, "/n_shared_experts", "0"),
        with(base, "/rope_interleave", "false"), with(base, "/attention_bias", "true"),
        with(base, "/num_nextn_predict_layers", "1"), with(base, "/norm_topk_prob", "false"),
        with(base, "/routed_scaling_factor", "0.3"), with(base, "/v_head_dim", "3"),
        with(base, "/qk_rope_head_dim", "6"), with(with(base, "/n_group", "2"), "/topk_group", "1")}) {
    const Model model = model_of(sample);
    EXPECT_EQ(parse_model(model_to_hf_json(model), "back"), model) << to_line(sample);
  }
}

TEST(ConfigDeepseekV3, WritesWhatTransformersReads) {
  const Json d = parsed(model_to_hf_json(model_of(with(minimal_deepseek(), "/q_lora_rank", "null"))));
  EXPECT_EQ(d["architectures"], parsed(R"(["DeepseekV3ForCausalLM"])"));
  EXPECT_TRUE(d["q_lora_rank"].is_null());
  EXPECT_EQ(d["n_routed_experts"], 16);
  EXPECT_EQ(d["num_key_value_heads"], 8);
  EXPECT_EQ(d["first_k_dense_replace"], 3);
  // transformers would take it for the size that rotates.
  EXPECT_FALSE(d.contains("head_dim"));
}

TEST(ConfigDeepseekV3, TooManyParameters) {
  Json huge = minimal_deepseek();
  huge = with_members(huge, R"({"num_attention_heads": 2147483647, "kv_lora_rank": 2147483647})");
  EXPECT_CONTAINS(model_error(huge), "parameters, more than 2.8e+14 can be addressed");
}

}  // namespace
}  // namespace switchyard::config
