#include <gtest/gtest.h>

#include <algorithm>

#include "config/layouts.h"
#include "config_samples.h"
#include "core/file.h"

namespace switchyard::config {
namespace {

TEST(ConfigModel, DefaultsOfQwen3MoeAreThoseOfTransformers) {
  const Model m = model_of(minimal_qwen());
  EXPECT_EQ(m.layout, &kQwen3Moe);
  EXPECT_EQ(m.num_key_value_heads, 4);
  EXPECT_EQ(m.head_dim, 8);
  EXPECT_EQ(m.num_experts, 16);
  EXPECT_EQ(m.num_experts_per_tok, 4);
  EXPECT_EQ(m.moe_intermediate_size, 32);
  EXPECT_FALSE(m.norm_topk_prob);
  EXPECT_EQ(m.qk_norm, QkNorm::head);
  EXPECT_FALSE(m.tie_word_embeddings);
  EXPECT_EQ(m.rms_norm_eps, 1e-6);
  EXPECT_EQ(m.rope, (Rope{.theta = 1e4}));
  EXPECT_FALSE(m.mla);
  EXPECT_FALSE(m.attention_bias);
  EXPECT_EQ(m.softmax_scale_factor, 1);
  EXPECT_EQ(m.sliding_window, 0);
  EXPECT_EQ(m.max_position_embeddings, 32768);
  EXPECT_EQ(m.initializer_range, 0.02);
  EXPECT_EQ(moe_layers(m), std::vector<bool>(4, true));
}

TEST(ConfigModel, DefaultsOfMixtralAreThoseOfTransformers) {
  const Model m = model_of(minimal_mixtral());
  EXPECT_EQ(m.layout, &kMixtral);
  EXPECT_EQ(m.num_key_value_heads, 8);
  EXPECT_EQ(m.head_dim, 8);
  EXPECT_EQ(m.num_experts, 16);
  EXPECT_EQ(m.moe_intermediate_size, 32);  // intermediate_size
  EXPECT_EQ(m.intermediate_size, 0);
  EXPECT_TRUE(m.norm_topk_prob);
  EXPECT_EQ(m.qk_norm, QkNorm::none);
  EXPECT_EQ(m.rms_norm_eps, 1e-5);
  EXPECT_EQ(m.rope, (Rope{.theta = 1e6}));
  EXPECT_FALSE(m.attention_bias);
  EXPECT_EQ(m.n_shared_experts, 0);
  EXPECT_EQ(m.n_group, 1);
  EXPECT_EQ(m.routed_scaling_factor, 1);
  EXPECT_EQ(m.sliding_window, 0);
  EXPECT_EQ(m.max_position_embeddings, 131072);
}

Model published(const char* name) {
  const std::filesystem::path path = source_dir() / "configs/hf" / name;
  return parse_model(read_text_file(path), path.string());
}

TEST(ConfigModel, ReadsAPublishedMixtral) {
  const Model m = published("mixtral_8x7b.json");
  EXPECT_EQ(m.head_dim, 128);
  EXPECT_EQ(m.moe_intermediate_size, 14336);
  EXPECT_EQ(m.max_position_embeddings, 32768);
}

TEST(ConfigModel, ReadsAPublishedQwen3Moe) {
  const Model m = published("qwen3_30b_a3b.json");
  EXPECT_EQ(m.head_dim, 128);         // not hidden_size / num_attention_heads = 64
  EXPECT_EQ(m.intermediate_size, 0);  // there is no dense layer
  EXPECT_TRUE(m.norm_topk_prob);
  EXPECT_EQ(moe_layers(m), std::vector<bool>(48, true));
}

TEST(ConfigModel, ReadsAPublishedDeepseekV3) {
  const Model m = published("deepseek_v3.json");
  EXPECT_EQ(m.mla, (Mla{1536, 512, 128, 64, 128}));
  EXPECT_EQ(m.head_dim, 192);
  EXPECT_EQ(m.n_group, 8);
  EXPECT_EQ(m.topk_group, 4);
  EXPECT_EQ(m.routed_scaling_factor, 2.5);
  EXPECT_EQ(m.num_nextn_predict_layers, 1);
  EXPECT_EQ(count_moe_layers(m), m.num_hidden_layers - 3);
  // mscale = mscale_all_dim = 1: the correction sits in the softmax scale, of which DeepSeek's inference code
  // has (0.1 ln 40 + 1)^2.
  EXPECT_EQ(m.rope.attention_factor, 1);
  EXPECT_DOUBLE_EQ(m.softmax_scale_factor, 1.8738542070926265);
}

TEST(ConfigModel, NewerTransformersKeys) {
  Json q = minimal_qwen();
  q["rope_parameters"] = Json::Object{{"rope_type", "default"}, {"rope_theta", 5000}};
  q["num_local_experts"] = q["num_experts"];
  erase(q, "num_experts");
  const Model m = model_of(q);
  EXPECT_EQ(m.rope.theta, 5000);
  EXPECT_EQ(m.num_experts, 16);
  q["num_experts"] = 8;
  EXPECT_EQ(model_error(q), "config.json: num_local_experts: is 16, but num_experts is 8; remove one");
  erase(q, "num_experts");
  q["rope_theta"] = 1e4;
  EXPECT_EQ(model_error(q),
            "config.json: rope_parameters.rope_theta: is 5000, but rope_theta is 10000; remove one");
}

TEST(ConfigModel, WhichLayersAreMoe) {
  Json q = minimal_qwen();
  q["intermediate_size"] = 128;
  q["decoder_sparse_step"] = 2;
  EXPECT_EQ(moe_layers(model_of(q)), (std::vector<bool>{false, true, false, true}));
  q["decoder_sparse_step"] = 3;
  EXPECT_EQ(moe_layers(model_of(q)), (std::vector<bool>{false, false, true, false}));
  q["decoder_sparse_step"] = 2;
  q["mlp_only_layers"] = Json::Array{3};
  EXPECT_EQ(moe_layers(model_of(q)), (std::vector<bool>{false, true, false, false}));
  q["decoder_sparse_step"] = 1;
  EXPECT_EQ(moe_layers(model_of(q)), (std::vector<bool>{true, true, true, false}));
  q["num_experts"] = 0;
  EXPECT_EQ(moe_layers(model_of(q)), std::vector<bool>(4, false));
}

TEST(ConfigModel, ADenseModelNeedsNoExperts) {
  Json q = minimal_qwen();
  for (const char* key : {"num_experts", "num_experts_per_tok", "moe_intermediate_size"}) erase(q, key);
  EXPECT_EQ(model_error(q), "config.json: num_experts: missing, and it has no default; add it");
  q["mlp_only_layers"] = Json::Array{0, 1, 2, 3};
  EXPECT_EQ(model_error(q), "config.json: intermediate_size: missing, and it has no default; add it");
  q["intermediate_size"] = 128;
  const Model m = model_of(q);
  EXPECT_EQ(m.intermediate_size, 128);
  EXPECT_EQ(m.num_experts, 0);
  EXPECT_EQ(moe_layers(m), std::vector<bool>(4, false));
}

// transformers writes its defaults for the sizes that a model does not use.
TEST(ConfigModel, SizesThatNoLayerHasDoNotMakeModelsDiffer) {
  const Json moe = minimal_qwen();
  EXPECT_EQ(model_of(with(moe, "/intermediate_size", "6144")), model_of(moe));
  Json dense = with(with(moe, "/mlp_only_layers", "[0, 1, 2, 3]"), "/intermediate_size", "128");
  const Model with_experts = model_of(dense);
  for (const char* key : {"num_experts", "num_experts_per_tok", "moe_intermediate_size"}) erase(dense, key);
  EXPECT_EQ(with_experts, model_of(dense));
  EXPECT_EQ(with_experts.num_experts, 0);
}

TEST(ConfigModel, SlidingWindow) {
  EXPECT_EQ(model_of(with(minimal_mixtral(), "/sliding_window", "64")).sliding_window, 64);
  EXPECT_EQ(model_of(with(minimal_mixtral(), "/sliding_window", "0")).sliding_window, 0);
  const Json q = with(minimal_qwen(), "/sliding_window", "64");
  EXPECT_EQ(model_of(q).sliding_window, 0);  // use_sliding_window is false
  const Json used = with(q, "/use_sliding_window", "true");
  EXPECT_EQ(model_of(used).sliding_window, 64);
  EXPECT_EQ(model_of(without(used, "/sliding_window")).sliding_window, 4096);
  EXPECT_EQ(model_of(with(used, "/sliding_window", "null")).sliding_window, 0);
  EXPECT_EQ(model_of(with(used, "/max_window_layers", "0")).sliding_window, 64);
  EXPECT_CONTAINS(model_error(with(used, "/max_window_layers", "2")),
                  "config.json: max_window_layers: is 2 with");
}

TEST(ConfigModel, AttentionBiasIsQwensAndNotMixtrals) {
  EXPECT_TRUE(model_of(with(minimal_qwen(), "/attention_bias", "true")).attention_bias);
  EXPECT_CONTAINS(model_error(with(minimal_mixtral(), "/attention_bias", "true")),
                  "attention_bias: is true: unknown key for model_type");
}

// A published file says how its weights are stored; a run trains.
TEST(ConfigModel, QuantizedWeightsCanBeInspectedButNotTrained) {
  for (const Json& model : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()}) {
    const Json quantized = with(model, "/quantization_config", R"({"quant_method": "fp8", "bits": 8})");
    EXPECT_EQ(model_of(quantized), model_of(model));
    EXPECT_EQ(run_error(minimal_run(quantized)),
              "run.json: model.quantization_config: quantised weights cannot be trained; remove it");
    EXPECT_NO_THROW(run_of(minimal_run(with(model, "/quantization_config", "null"))));
    EXPECT_CONTAINS(model_error(with(model, "/quantization_config", "8")), "is 8, expected an object or null");
  }
}

TEST(ConfigModel, NullKeyValueHeadsAreAsManyAsQueryHeads) {
  EXPECT_EQ(model_of(with(minimal_qwen(), "/num_key_value_heads", "null")).num_key_value_heads, 8);
}

TEST(ConfigModel, Olmoe) {
  const Model m = model_of(minimal_olmoe());
  EXPECT_EQ(m.layout, &kOlmoe);
  EXPECT_EQ(m.qk_norm, QkNorm::projection);
  EXPECT_EQ(m.num_key_value_heads, 8);  // as many as query heads
  EXPECT_EQ(m.head_dim, 8);
  EXPECT_EQ(m.moe_intermediate_size, 32);
  EXPECT_EQ(m.intermediate_size, 0);
  EXPECT_FALSE(m.norm_topk_prob);
  EXPECT_FALSE(m.attention_bias);
  EXPECT_EQ(m.max_position_embeddings, 4096);
  EXPECT_EQ(m.rms_norm_eps, 1e-5);
  EXPECT_EQ(m.rope.theta, 1e4);
  EXPECT_EQ(moe_layers(m), std::vector<bool>(4, true));
  EXPECT_EQ(parse_model(model_to_hf_json(m), "back"), m);
  EXPECT_NO_THROW(model_of(with(minimal_olmoe(), "/clip_qkv", "null")));
  EXPECT_EQ(model_error(with(minimal_olmoe(), "/clip_qkv", "8.0")),
            "config.json: clip_qkv: is 8.0; only null (queries, keys and values are not clipped) is supported");
  EXPECT_EQ(
      model_error(with(minimal_olmoe(), "/head_dim", "16")),
      "config.json: head_dim: is 16, but in this layout it is hidden_size / num_attention_heads (64 / 8); "
      "remove it");
  EXPECT_NO_THROW(model_of(with(minimal_olmoe(), "/head_dim", "8")));
  EXPECT_CONTAINS(model_error(with(minimal_olmoe(), "/num_experts_per_tok", "17")),
                  "more than num_experts (16)");
}

TEST(ConfigModel, UnknownLayouts) {
  EXPECT_EQ(model_error(with(minimal_qwen(), "/model_type", "\"llama\"")),
            "config.json: model_type: is \"llama\", a layout that is not known; known: mixtral, qwen3_moe, "
            "deepseek_v3, olmoe");
  EXPECT_EQ(model_error(without(minimal_qwen(), "/model_type")),
            "config.json: model_type: missing, and it has no default; add one of: mixtral, qwen3_moe, "
            "deepseek_v3, olmoe");
  EXPECT_EQ(model_error(Json(Json::Array{})), "config.json: is an array, expected an object");
}

TEST(ConfigModel, AKeyOfTheOtherFamilyIsUnknown) {
  EXPECT_EQ(model_error(with(minimal_mixtral(), "/mlp_only_layers", "[0]")),
            "config.json: mlp_only_layers: is an array: unknown key for model_type \"mixtral\" (\"qwen3_moe\" "
            "has it)");
}

// Each value would change the computation in a way that does not exist here.
TEST(ConfigModel, RefusesWhatItCannotCompute) {
  const Json q = minimal_qwen();
  const Json m = minimal_mixtral();
  EXPECT_EQ(model_error(with(q, "/hidden_act", "\"gelu\"")),
            "config.json: hidden_act: is \"gelu\"; only \"silu\" is supported");
  EXPECT_EQ(model_error(with(q, "/attention_dropout", "0.1")),
            "config.json: attention_dropout: is 0.1; only 0 is supported");
  EXPECT_EQ(model_error(with(m, "/router_jitter_noise", "0.1")),
            "config.json: router_jitter_noise: is 0.1; only 0 is supported");
  for (const char* neutral : {R"({"attention_dropout": 0, "hidden_act": "silu", "rope_scaling": null})",
                              R"({"attention_dropout": 0.0, "rope_scaling": {"rope_type": "default"}})"}) {
    Json base = q;
    base = with_members(base, neutral);
    EXPECT_EQ(model_of(base), model_of(q)) << neutral;
  }
}

TEST(ConfigModel, ImpossibleSizes) {
  const Json q = minimal_qwen();
  EXPECT_EQ(model_error(with(q, "/num_key_value_heads", "3")),
            "config.json: num_key_value_heads: is 3, which does not divide num_attention_heads (8)");
  EXPECT_EQ(model_error(with(q, "/num_attention_heads", "6")),
            "config.json: num_key_value_heads: is 4 by default, which does not divide num_attention_heads (6)");
  EXPECT_EQ(model_error(with(q, "/hidden_size", "63")),
            "config.json: num_attention_heads: is 8, which does not divide hidden_size (63); or give head_dim");
  EXPECT_NO_THROW(model_of(with(with(q, "/hidden_size", "63"), "/head_dim", "16")));
  EXPECT_EQ(model_error(with(q, "/head_dim", "7")),
            "config.json: head_dim: is 7; rotary embedding needs an even number");
  EXPECT_EQ(
      model_error(with(q, "/hidden_size", "72")),
      "config.json: head_dim: is 9 (hidden_size / num_attention_heads); rotary embedding needs an even number");
  EXPECT_EQ(model_error(with(q, "/num_experts_per_tok", "17")),
            "config.json: num_experts_per_tok: is 17, more than num_experts (16)");
  EXPECT_EQ(model_error(with(minimal_mixtral(), "/num_experts_per_tok", "17")),
            "config.json: num_experts_per_tok: is 17, more than num_local_experts (16)");
  EXPECT_EQ(model_error(with(q, "/num_experts_per_tok", "0")),
            "config.json: num_experts_per_tok: is 0, expected an integer in [1, 2147483647]");
  EXPECT_NO_THROW(model_of(with(q, "/num_experts_per_tok", "16")));
  EXPECT_EQ(model_error(with(q, "/mlp_only_layers", "[1, 4]")),
            "config.json: mlp_only_layers.1: is 4, expected a layer in [0, 3]");
  EXPECT_EQ(model_error(with(q, "/mlp_only_layers", "[1, 1]")),
            "config.json: mlp_only_layers.1: is 1, which is listed before; remove it");
  Json huge = q;
  for (const char* key : {"vocab_size", "hidden_size", "num_experts", "moe_intermediate_size"})
    huge[key] = 2147483632;
  EXPECT_CONTAINS(model_error(huge), "parameters, more than 2.8e+14 can be addressed");
}

TEST(ConfigModel, ToHuggingFaceAndBack) {
  std::vector<Json> samples{minimal_qwen(), minimal_mixtral()};
  samples.push_back(with(minimal_mixtral(), "/sliding_window", "64"));
  samples.push_back(with(with(minimal_qwen(), "/sliding_window", "64"), "/use_sliding_window", "true"));
  samples.push_back(with(with(minimal_qwen(), "/mlp_only_layers", "[0, 2]"), "/intermediate_size", "128"));
  samples.push_back(with(with(minimal_qwen(), "/num_experts", "0"), "/intermediate_size", "128"));
  samples.push_back(with(minimal_qwen(), "/attention_bias", "true"));
  samples.push_back(parsed(R"({
    "model_type": "qwen3_moe", "vocab_size": 257, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 32, "intermediate_size": 7, "moe_intermediate_size": 5, "num_experts": 9,
    "num_experts_per_tok": 2, "norm_topk_prob": true, "tie_word_embeddings": true, "rms_norm_eps": 3.3e-7,
    "rope_theta": 12345.678, "max_position_embeddings": 77, "initializer_range": 0.013})"));
  for (const Json& sample : samples) {
    const Model model = model_of(sample);
    EXPECT_EQ(parse_model(model_to_hf_json(model), "back"), model) << to_line(sample);
  }
}

TEST(ConfigModel, WritesWhatTransformersReads) {
  const Json q = parsed(model_to_hf_json(model_of(minimal_qwen())));
  EXPECT_EQ(q["architectures"], parsed(R"(["Qwen3MoeForCausalLM"])"));
  EXPECT_EQ(q["model_type"], "qwen3_moe");
  EXPECT_EQ(q["torch_dtype"], "float32");
  EXPECT_EQ(q["num_experts"], 16);
  EXPECT_EQ(q["moe_intermediate_size"], 32);
  EXPECT_EQ(q["mlp_only_layers"], Json(Json::Array{}));
  EXPECT_EQ(q["norm_topk_prob"], false);
  EXPECT_EQ(q["head_dim"], 8);
  const Json m = parsed(model_to_hf_json(model_of(minimal_mixtral())));
  EXPECT_EQ(m["architectures"], parsed(R"(["MixtralForCausalLM"])"));
  EXPECT_EQ(m["num_local_experts"], 16);
  EXPECT_EQ(m["intermediate_size"], 32);
  EXPECT_TRUE(m["sliding_window"].is_null());
  EXPECT_TRUE(m["bos_token_id"].is_null());
  EXPECT_FALSE(m.contains("num_experts"));
}

}  // namespace
}  // namespace switchyard::config
