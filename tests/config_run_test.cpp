#include <gtest/gtest.h>

#include "config/layouts.h"
#include "config_samples.h"

namespace switchyard::config {
namespace {

TEST(ConfigRun, EverySectionIsRead) {
  Json text = minimal_run();
  text["router"] = parsed(R"({"type": "softmax_topk", "balance_coef": 0.5, "balance_scope": "sequence",
                                   "z_loss_coef": 0.25, "variance_coef": 0.125, "orthogonality_coef": 0.75})");
  text["data"] = parsed(R"({"train": [{"path": "a.bin", "domain": "x", "weight": 3}, {"path": "b.bin",
      "domain": "x"}, {"path": "c.bin", "weight": 1.5}], "validation": ["v.bin"], "document_mask": true,
      "eot_token": 99})");
  text["train"] = parsed(R"({"seed": 18446744073709551615, "steps": 10, "seq_len": 32, "micro_batch_size": 2,
      "global_batch_size": 8, "dtype": "bfloat16", "recompute": "block", "lr": 1, "min_lr_ratio": 0, "router_lr_ratio": 0.5, "schedule": "wsd", "warmup_ratio": 0.25,
      "decay_ratio": 0.75, "weight_decay": 0, "beta1": 0, "beta2": 0.5, "eps": 1e-6, "clip_norm": 0, "eval_every": 3,
      "eval_tokens": 64, "eval_mix": "training"})");
  text["parallel"]["threads"] = 2;
  text["train"]["spike"] =
      Json::Object{{"deviations", 4.5}, {"grad_norm_factor", 8}, {"window", 64}, {"patience", 3}};
  text["data"]["begin_token"] = 1;
  text["checkpoint"] = Json::Object{{"every", 5},       {"every_minutes", 1.5}, {"keep", 0},
                                    {"keep_every", 50}, {"keep_best", false},   {"verify", false}};
  text["eval"] = parsed(R"({"tasks": ["a.jsonl", "b.jsonl"], "shots": 2, "limit": 9})");
  text["log"] = Json::Object{{"every", 7}, {"tensorboard", true}};
  const config::Run r = run_of(text);
  EXPECT_EQ(r.model, model_of(minimal_qwen()));
  EXPECT_EQ(r.router, (Router{"softmax_topk",
                              0.5,
                              BalanceScope::sequence,
                              0.25,
                              0.125,
                              0.75,
                              std::nullopt,
                              0.0,
                              0.0,
                              0,
                              {{"simbal_coef", 0.0}}}));
  const std::vector<DataEntry> train{{"a.bin", "x", 3.0}, {"b.bin", "x", 3.0}, {"c.bin", "default", 1.5}};
  EXPECT_EQ(r.data, (Data{train, {{"v.bin", "default", std::nullopt}}, true, 99, 1}));
  const Train expected{.seed = 18446744073709551615u,
                       .steps = 10,
                       .seq_len = 32,
                       .micro_batch_size = 2,
                       .global_batch_size = 8,
                       .dtype = ComputeType::bfloat16,
                       .recompute = Recompute::block,
                       .lr = 1,
                       .min_lr_ratio = 0,
                       .router_lr_ratio = 0.5,
                       .schedule = Schedule::wsd,
                       .warmup_ratio = 0.25,
                       .decay_ratio = 0.75,
                       .weight_decay = 0,
                       .beta1 = 0,
                       .beta2 = 0.5,
                       .eps = 1e-6,
                       .clip_norm = 0,
                       .spike = {4.5, 8, 64, 3},
                       .eval_every = 3,
                       .eval_tokens = 64,
                       .eval_mix = EvalMix::training};
  EXPECT_EQ(r.train, expected);
  EXPECT_EQ(r.parallel, Parallel{2});
  EXPECT_EQ(
      r.checkpoint,
      (Checkpoint{
          .every = 5, .every_minutes = 1.5, .keep = 0, .keep_every = 50, .keep_best = false, .verify = false}));
  EXPECT_EQ(r.eval, (Eval{{"a.jsonl", "b.jsonl"}, 2, 9}));
  EXPECT_EQ(r.log, (Log{7, true}));
}

TEST(ConfigRun, DefaultsAreThoseOfTheStructs) {
  const config::Run r = run_of(minimal_run());
  Train train;
  train.steps = 10;
  train.seq_len = 32;
  train.micro_batch_size = 2;
  train.global_batch_size = 2;  // micro_batch_size
  EXPECT_EQ(r.train, train);
  EXPECT_EQ(r.router, default_router(kQwen3Moe, router::router_schemas()));
  EXPECT_EQ(r.parallel, Parallel{});
  EXPECT_EQ(r.checkpoint, Checkpoint{});
  EXPECT_EQ(r.log, Log{});
  EXPECT_EQ(r.data, (Data{{{"a.bin", "default", std::nullopt}}, {}, false, std::nullopt}));
}

TEST(ConfigRun, SpikesAreNotLookedForWhereFalseSaysSo) {
  const Json base = minimal_run();
  EXPECT_EQ(run_of(with(base, "/train/spike", "true")).train.spike, Spike{});
  const Spike off = run_of(with(base, "/train/spike", "false")).train.spike;
  EXPECT_EQ(off.deviations, 0);
  EXPECT_EQ(off.grad_norm_factor, 0);
  EXPECT_CONTAINS(run_error(with(base, "/train/spike", R"({"grad_norm_factor": 0.5})")),
                  "train.spike.grad_norm_factor: is 0.5, expected above 1");
  EXPECT_CONTAINS(run_error(with(base, "/train/spike", R"({"windw": 30})")), "train.spike.windw: unknown key");
  EXPECT_CONTAINS(run_error(with(base, "/train/spike", "3")), "train.spike");
}

TEST(ConfigRun, UnknownKeysNameTheNearestOne) {
  const Json base = minimal_run();
  EXPECT_EQ(run_error(with(base, "/train/warmup_ration", "0.1")),
            "run.json: train.warmup_ration: unknown key; did you mean \"warmup_ratio\"?");
  EXPECT_EQ(run_error(with(base, "/chekpoint", "{}")),
            "run.json: chekpoint: unknown key; did you mean \"checkpoint\"?");
  EXPECT_EQ(run_error(with(base, "/model/num_expert", "4")),
            "run.json: model.num_expert: unknown key; did you mean \"num_experts\"?");
  EXPECT_EQ(run_error(with(base, "/data/train/0", R"({"pth": "x"})")),
            "run.json: data.train.0.pth: unknown key; did you mean \"path\"?");
  EXPECT_EQ(run_error(with(base, "/train/balance_coef", "1")),
            "run.json: train.balance_coef: unknown key; did you mean \"router.balance_coef\"?");
  EXPECT_EQ(run_error(with(base, "/log/bananas", "1")),
            "run.json: log.bananas: unknown key; known here: every, tensorboard, "
            "check_replicas, profile");
  EXPECT_EQ(run_error(with(base, "/data/validation", R"([{"path": "v.bin", "weight": 1}])")),
            "run.json: data.validation.0.weight: unknown key; known here: path, domain");
}

TEST(ConfigRun, WrongTypesAndRanges) {
  struct Case {
    const char* pointer;
    const char* value;
    const char* message;
  };
  const Case cases[] = {
      {"/train/steps", "4.5", "train.steps: is 4.5, expected an integer in [1, 2147483647]"},
      {"/train/steps", "0", "train.steps: is 0, expected an integer in [1, 2147483647]"},
      {"/train/steps", "2147483648", "train.steps: is 2147483648, expected an integer in [1, 2147483647]"},
      {"/train/steps", "10000000000000000000000",
       "train.steps: is 1e+22, expected an integer in [1, 2147483647]"},
      {"/train/steps", "18446744073709551615",
       "train.steps: is 18446744073709551615, expected an integer in [1, 2147483647]"},
      {"/train/steps", "\"10\"", "train.steps: is \"10\", expected an integer in [1, 2147483647]"},
      {"/train/steps", "null", "train.steps: is null, expected an integer in [1, 2147483647]"},
      {"/train/steps", "true", "train.steps: is true, expected an integer in [1, 2147483647]"},
      {"/train/seed", "-1", "train.seed: is -1, expected an integer in [0, 18446744073709551615]"},
      {"/train/lr", "0", "train.lr: is 0, expected a number in (0, 1000]"},
      {"/train/lr", "true", "train.lr: is true, expected a number in (0, 1000]"},
      {"/train/eps", "0", "train.eps: is 0, expected a number in [1e-30, 1]"},
      {"/train/beta1", "1", "train.beta1: is 1, expected a number in [0, 1)"},
      {"/train/beta2", "-0.1", "train.beta2: is -0.1, expected a number in [0, 1)"},
      {"/train/warmup_ratio", "1.5", "train.warmup_ratio: is 1.5, expected a number in [0, 1]"},
      {"/train/schedule", "\"cosin\"",
       "train.schedule: is \"cosin\", expected one of: constant, linear, cosine, wsd (did you mean "
       "\"cosine\"?)"},
      {"/train/dtype", "\"float16\"",
       "train.dtype: is \"float16\", expected one of: float32, bfloat16, fp8 (did you mean \"bfloat16\"?)"},
      {"/train/dtype", "16", "train.dtype: is 16, expected a string"},
      {"/train/attention", "\"cuDNN\"",
       "train.attention: is \"cuDNN\", expected one of: flash, cudnn (did you mean \"cudnn\"?)"},
      {"/train", "[]", "train: is an array, expected an object"},
      {"/router", "null", "router: is null, expected an object"},
      {"/router/type", "\"top_k\"",
       "router.type: is \"top_k\", expected one of: softmax_topk, sigmoid_group, quantile, top_p, dynamic_k, "
       "expert_threshold, kmeans, lpr (did you mean \"softmax_topk\"?)"},
      {"/router/balance_coef", "-1", "router.balance_coef: is -1, expected a number in [0, 1000000]"},
      {"/data/train", "\"a.bin\"",
       "data.train: is \"a.bin\", expected an array of paths or of {\"path\", \"domain\", \"weight\"}"},
      {"/data/train", "[]", "data.train: is an empty array; name at least one file or glob"},
      {"/data/train/0", "3", "data.train.0: is 3, expected a path or an object"},
      {"/data/train/0", "\"\"", "data.train.0.path: is empty, expected a string with something in it"},
      {"/data/train/0", "\"a\\u0000b\"",
       "data.train.0.path: is \"a\\u0000b\", expected valid UTF-8 without control characters"},
      {"/data/train/0", "{\"domain\": \"x\"}", "data.train.0.path: missing, and it has no default; add it"},
      {"/data/train/0", "{\"path\": \"x\", \"weight\": 0}",
       "data.train.0.weight: is 0, expected a number in (0, 1000000000]"},
      {"/data/document_mask", "1", "data.document_mask: is 1, expected true or false"},
      {"/data/eot_token", "100", "data.eot_token: is 100, not below model.vocab_size (100)"},
      {"/log/every", "0", "log.every: is 0, expected an integer in [1, 2147483647]"},
      {"/checkpoint/keep", "-1", "checkpoint.keep: is -1, expected an integer in [0, 2147483647]"},
      {"/parallel/threads", "5000", "parallel.threads: is 5000, expected an integer in [0, 4096]"},
      {"/model", "null", "model: is null, expected an object"},
  };
  for (const Case& c : cases) {
    const std::string found = run_error(with(minimal_run(), c.pointer, c.value));
    EXPECT_EQ(found, std::string("run.json: ") + c.message);
  }
}

TEST(ConfigRun, RoomIsANumberOrAWord) {
  const Json base = minimal_run();
  EXPECT_EQ(run_of(base).parallel.expert_room, Parallel::kAutoRoom);
  for (const char* value : {"1", "1.5", "\"worst\"", "\"auto\""}) {
    const auto run = run_of(with(base, "/parallel", fmt::format(R"({{"expert_room": {}}})", value)));
    EXPECT_NE(run.resolved_json.find(fmt::format("\"expert_room\": {}", value)), std::string::npos) << value;
    EXPECT_EQ(run_of(parsed(run.resolved_json)), run) << value;
  }
  EXPECT_EQ(run_error(with(base, "/parallel", R"({"expert_room": 0.5})")),
            "run.json: parallel.expert_room: 0.5 is less than an even load, 1; raise it or set \"auto\"");
}

TEST(ConfigRun, RequiredKeys) {
  for (const char* pointer :
       {"/model", "/model/model_type", "/model/vocab_size", "/model/hidden_size", "/model/num_hidden_layers",
        "/model/num_attention_heads", "/model/num_experts", "/model/num_experts_per_tok",
        "/model/moe_intermediate_size", "/data", "/data/train", "/train", "/train/steps", "/train/seq_len",
        "/train/micro_batch_size"}) {
    EXPECT_CONTAINS(run_error(without(minimal_run(), pointer)), ": missing, and it has no default");
  }
  EXPECT_EQ(run_error(without(minimal_run(), "/data")),
            "run.json: data.train: missing, and it has no default; add it");
}

TEST(ConfigRun, TheVocabularyMayComeFromTheData) {
  const auto vocab_size_of = [](const std::vector<DataEntry>& train) {
    EXPECT_EQ(train.size(), 1u);
    EXPECT_EQ(train[0].path, "a.bin");
    return std::int64_t{4032};
  };
  const auto parse = [&](const Json& text) {
    return parse_run(to_line(text), "run.json", {}, router::router_schemas(), std::nullopt, vocab_size_of);
  };
  const config::Run run = parse(without(minimal_run(), "/model/vocab_size"));
  EXPECT_EQ(run.model.vocab_size, 4032);
  EXPECT_EQ(parsed(run.resolved_json)["model"]["vocab_size"], 4032);
  EXPECT_EQ(parse(minimal_run()).model.vocab_size, 100);
  const auto unknown = [](const std::vector<DataEntry>&) { return std::optional<std::int64_t>(); };
  EXPECT_EQ(test::message_of<InputError>([&] {
              parse_run(to_line(without(minimal_run(), "/model/vocab_size")), "run.json", {},
                        router::router_schemas(), std::nullopt, unknown);
            }),
            "run.json: model.vocab_size: missing, and no meta.json beside the shards of data.train states one; "
            "add it, or make the shards with tools/prepare_data.py");
}

TEST(ConfigRun, CrossChecks) {
  const Json base = minimal_run();
  EXPECT_EQ(run_error(with(base, "/train/global_batch_size", "3")),
            "run.json: train.global_batch_size: is 3, not a multiple of train.micro_batch_size (2)");
  EXPECT_EQ(run_error(with(base, "/model/max_position_embeddings", "31")),
            "run.json: train.seq_len: is 32, more than model.max_position_embeddings (31)");
  EXPECT_NO_THROW(run_of(with(base, "/model/max_position_embeddings", "32")));
  Json wsd = with(base, "/train/schedule", "\"wsd\"");
  wsd["train"]["warmup_ratio"] = 0.5;
  wsd["train"]["decay_ratio"] = 0.75;
  EXPECT_EQ(run_error(wsd),
            "run.json: train.decay_ratio: is 0.75, and train.warmup_ratio is 0.5: together more than the whole "
            "run (1)");
  EXPECT_NO_THROW(run_of(with(wsd, "/train/schedule", "\"cosine\"")));
  EXPECT_CONTAINS(
      run_error(with(base, "/train/eval_mix", R"("training")")),
      "train.eval_mix: is \"training\", which divides train.eval_tokens among the domains, and that is 0");
  EXPECT_CONTAINS(run_error(with(base, "/train/eval_every", "5")),
                  "train.eval_every: is 5, but data.validation is empty");
  EXPECT_CONTAINS(
      run_error(with(base, "/train/micro_batch_size", "2147483647")),
      "run.json: train.micro_batch_size: 2147483647 sequences of 32 tokens, each on 4 experts, are 2.7e+11 "
      "slots; at most 2147483647 can be numbered");
  Json wide = with(base, "/train/micro_batch_size", "8192");
  wide["train"]["seq_len"] = 32768;
  EXPECT_NO_THROW(run_of(wide));
  wide["model"]["hidden_size"] = 4194304;  // 2^28 tokens of 2^22: more than 2^48 elements
  wide["model"]["head_dim"] = 8;
  EXPECT_CONTAINS(run_error(wide),
                  "run.json: train.micro_batch_size: 8192 sequences of 32768 tokens make a tensor of");
  Json long_run = with(base, "/train/steps", "2147483647");
  long_run["train"]["global_batch_size"] = 2147483646;
  EXPECT_CONTAINS(run_error(long_run), "train.steps: ");
  EXPECT_NO_THROW(
      run_of(with(base, "/data/document_mask", "true")));  // meta.json may know the end-of-text token
}

TEST(ConfigRun, CudnnsAttentionIsRefusedWhereItDoesNotServe) {
  Json text = minimal_run();
  text["train"]["dtype"] = "bfloat16";
  text["train"]["attention"] = "cudnn";
  EXPECT_EQ(run_of(text).train.attention, AttentionBackend::cudnn);
  EXPECT_EQ(run_of(with(text, "/model/head_dim", "256")).model.head_dim, 256);
  const std::string begin = "run.json: train.attention: is \"cudnn\", which ", end = "; or set it to \"flash\"";
  EXPECT_EQ(run_error(with(text, "/train/dtype", "\"float32\"")),
            begin + "needs train.dtype \"bfloat16\" or \"fp8\"" + end);
  EXPECT_EQ(run_error(with(with(text, "/data/document_mask", "true"), "/data/eot_token", "3")),
            begin + "does not stop at document borders; set data.document_mask to false" + end);
  EXPECT_EQ(run_error(with(text, "/train/seq_len", "1")), begin + "needs a train.seq_len of 2 or more" + end);
  for (const char* width : {"12", "264"})
    EXPECT_EQ(run_error(with(text, "/model/head_dim", width)),
              begin + "does heads of a multiple of 8 up to 256; model.head_dim is " + width + end);
  text["model"] = minimal_deepseek();
  EXPECT_EQ(run_of(text).train.attention, AttentionBackend::cudnn);  // heads of 192 and 128
  EXPECT_EQ(run_error(with(text, "/model/v_head_dim", "20")),
            begin + "does heads of a multiple of 8 up to 256; model.v_head_dim is 20" + end);
  EXPECT_EQ(
      run_error(with(text, "/model/qk_nope_head_dim", "20")),
      begin + "does heads of a multiple of 8 up to 256; model.qk_nope_head_dim + qk_rope_head_dim is 84" + end);
}

TEST(ConfigRun, AllDomainsHaveAWeightOrNoneHas) {
  const Json base = minimal_run();
  EXPECT_EQ(run_error(with(base, "/data/train", R"([{"path": "a", "domain": "x", "weight": 1}, "b"])")),
            "run.json: data.train.1.weight: missing for domain \"default\": all domains have a weight or none "
            "has, and "
            "\"x\" has one");
  EXPECT_EQ(run_error(with(base, "/data/train", R"([{"path": "a", "weight": 1}, {"path": "b", "weight": 2}])")),
            "run.json: data.train.1.weight: is 2, but domain \"default\" has weight 1 in data.train.0.weight; "
            "a domain "
            "has one weight");
}

TEST(ConfigRun, TheAuxLossOfTheModelIsTheBalanceCoefficient) {
  const Json aux = with(minimal_run(), "/model/router_aux_loss_coef", "0.02");
  EXPECT_EQ(run_of(aux).router, (Router{"softmax_topk",
                                        0.02,
                                        BalanceScope::global_batch,
                                        0.0,
                                        0.0,
                                        0.0,
                                        std::nullopt,
                                        0.0,
                                        0.0,
                                        0,
                                        {{"simbal_coef", 0.0}}}));
  EXPECT_EQ(run_of(with(aux, "/router/balance_coef", "0.02")).router.balance_coef, 0.02);
  EXPECT_EQ(
      run_error(with(aux, "/router/balance_coef", "0.03")),
      "run.json: router.balance_coef: is 0.03, but model.router_aux_loss_coef, the same quantity, is 0.02; "
      "remove one");
}

// transformers' coefficient is of the layout's own router: another one has its own default.
TEST(ConfigRun, TheAuxLossOfTheModelIsNotThatOfAnotherRouter) {
  const Json lpr = with(with(minimal_run(), "/model/router_aux_loss_coef", "0.02"), "/router/type", "\"lpr\"");
  EXPECT_EQ(run_of(lpr).router.balance_coef, 0.0);
  EXPECT_EQ(run_of(with(lpr, "/router/balance_coef", "0.03")).router.balance_coef, 0.03);
  const Json same =
      with(with(minimal_run(), "/model/router_aux_loss_coef", "0.02"), "/router/type", "\"softmax_topk\"");
  EXPECT_EQ(run_of(same).router.balance_coef, 0.02);
}

TEST(ConfigRun, TheRouterOfAFamily) {
  const RouterOptions own = {{"score_function", "sigmoid"}, {"bias", "sign"},    {"bias_update_speed", 1e-3},
                             {"bias_mean_free", false},     {"bias_kappa", 2.0}, {"bias_momentum", 0.5},
                             {"phi_strength", 1.0},         {"phi_decay", 0.99}, {"simbal_coef", 0.0}};
  Router softmax;
  softmax.own.set("simbal_coef", 0.0);
  const Router sigmoid{
      "sigmoid_group", 1e-4, BalanceScope::sequence, 0.0, 0.0, 0.0, std::nullopt, 0.0, 0.0, 0, own};
  const Json deepseek = minimal_run(minimal_deepseek());
  EXPECT_EQ(run_of(deepseek).router, sigmoid);
  EXPECT_EQ(default_router(kDeepseekV3, router::router_schemas()), sigmoid);
  EXPECT_EQ(default_router(kQwen3Moe, router::router_schemas()), softmax);
  EXPECT_EQ(default_router(kMixtral, router::router_schemas()), softmax);
  // Each router fits every layout.
  EXPECT_EQ(run_of(with(deepseek, "/router/type", "\"softmax_topk\"")).router, softmax);
  EXPECT_EQ(run_of(with(minimal_run(), "/router/type", "\"sigmoid_group\"")).router, sigmoid);
  EXPECT_EQ(run_of(with(minimal_run(minimal_mixtral()), "/router/type", "\"sigmoid_group\"")).router, sigmoid);
  const Json still = with(deepseek, "/router", R"({"balance_coef": 0, "bias_update_speed": 0})");
  Router unmoved = sigmoid;
  unmoved.balance_coef = 0;
  unmoved.own.set("bias_update_speed", 0.0);
  EXPECT_EQ(run_of(still).router, unmoved);
}

TEST(ConfigRun, WhatARouterDoesNotHaveIsRefused) {
  const Json deepseek = minimal_run(minimal_deepseek());
  EXPECT_EQ(run_error(with(deepseek, "/router/z_loss_coef", "0.1")),
            "run.json: router.z_loss_coef: is 0.1, but score_function is \"sigmoid\", which has no normaliser "
            "that it could bound; set it to 0");
  EXPECT_NO_THROW(run_of(with(deepseek, "/router/z_loss_coef", "0")));
  EXPECT_EQ(run_error(with(minimal_run(), "/router/bias_update_speed", "0.001")),
            "run.json: router.bias_update_speed: router.type is \"softmax_topk\", which has no such option "
            "(of: \"sigmoid_group\", \"quantile\", \"lpr\"); remove it");
  EXPECT_EQ(run_error(with(deepseek, "/router/bias_update_speed", "1.5")),
            "run.json: router.bias_update_speed: is 1.5, expected a number in [0, 1]");
  EXPECT_CONTAINS(run_error(with(deepseek, "/router/bias_update_speed", "0.01"), {"router.type=softmax_topk"}),
                  "--set router.type=softmax_topk: router.bias_update_speed: ");
}

TEST(ConfigRun, ARuleOfTheBiasReadsItsOwnOptions) {
  const Json deepseek = minimal_run(minimal_deepseek());
  const auto error = [](const char* router) { return run_error(with(minimal_run(), "/router", router)); };
  EXPECT_EQ(error(R"({"type": "sigmoid_group", "bias": "quantile"})"),
            "run.json: router.bias: is \"quantile\", expected one of: sign, smebu, phi");
  EXPECT_EQ(error(R"({"type": "sigmoid_group", "bias_momentum": 0.9})"),
            "run.json: router.bias_momentum: is 0.9, but bias is \"sign\", which does not read it; remove it");
  EXPECT_CONTAINS(error(R"({"type": "sigmoid_group", "bias": "phi", "bias_update_speed": 0.5})"),
                  "bias is \"phi\", which does not read it");
  EXPECT_CONTAINS(error(R"({"type": "sigmoid_group", "bias": "smebu", "bias_mean_free": true})"),
                  "router.bias_mean_free: is true, but bias is \"smebu\"");
  EXPECT_CONTAINS(error(R"({"type": "quantile", "bias": "smebu", "bias_ema": 0.5})"),
                  "router.bias_ema: is 0.5");
  EXPECT_CONTAINS(error(R"({"type": "quantile", "bias_mean_free": false})"), "router.bias_mean_free: is false");
  EXPECT_CONTAINS(error(R"({"type": "lpr", "phi_decay": 0.5})"), "bias is \"none\", which does not read it");
  EXPECT_CONTAINS(error(R"({"type": "kmeans", "simbal_coef": 0.5})"),
                  "router.simbal_coef: router.type is \"kmeans\", which has no such option");
  for (const char* router : {R"({"type": "sigmoid_group", "bias": "smebu", "bias_update_speed": 5e-4})",
                             R"({"type": "quantile", "bias": "sign", "bias_mean_free": false})",
                             R"({"type": "lpr", "bias": "phi", "phi_decay": 0, "phi_strength": 0.01})"})
    EXPECT_NO_THROW(run_of(with(deepseek, "/router", router))) << router;
}

TEST(ConfigRun, MultiTokenPredictionHasLayersAndALossOrNeither) {
  const Json run = minimal_run(minimal_deepseek());
  const Json two = with(run, "/model/num_nextn_predict_layers", "2");
  EXPECT_EQ(run_of(with(two, "/train/mtp_loss_coef", "0.3")).model.num_nextn_predict_layers, 2);
  // What is not trained is not made, and what is written says so.
  const config::Run off = run_of(with(two, "/train/mtp_loss_coef", "0"));
  EXPECT_EQ(off.model.num_nextn_predict_layers, 0);
  EXPECT_CONTAINS(off.resolved_json, "\"num_nextn_predict_layers\": 0");

  EXPECT_EQ(
      run_error(with(run, "/train/mtp_loss_coef", "0.3")),
      "run.json: train.mtp_loss_coef: is 0.3, but model.num_nextn_predict_layers is 0: there is no layer to "
      "train; set it to 1 or more, or mtp_loss_coef to 0");
  EXPECT_CONTAINS(run_error(with(minimal_run(), "/train/mtp_loss_coef", "0.3")),
                  "has no multi-token prediction; set it to 0");
  EXPECT_CONTAINS(run_error(with(two, "/train/mtp_loss_coef", "-0.1")), "train.mtp_loss_coef: is -0.1");
  EXPECT_CONTAINS(run_error(with(run, "/model/num_nextn_predict_layers", "65")),
                  "model.num_nextn_predict_layers: is 65");
  EXPECT_CONTAINS(run_error(with(with(two, "/train/mtp_loss_coef", "0.3"), "/train/seq_len", "2")),
                  "train.seq_len: is 2; 2 depths of multi-token prediction");
}

TEST(ConfigRun, TheResolvedTextGivesTheSameRun) {
  Json text = minimal_run();
  text["model"]["router_aux_loss_coef"] = 0.02;
  text["data"]["train"] =
      parsed(R"([{"path": "a", "domain": "x", "weight": 0.1}, {"path": "b", "domain": "x"}])");
  text["train"]["seed"] = 18446744073709551615u;
  text["train"]["lr"] = 0.1 + 0.2;
  const config::Run run = run_of(text, {"train.beta2=0.99"});
  EXPECT_EQ(parse_run(run.resolved_json, "resolved", {}, router::router_schemas()), run);
  for (const Json& deepseek : {minimal_run(minimal_deepseek()),
                               with(minimal_run(minimal_deepseek()), "/router/bias_update_speed", "0.5"),
                               with(minimal_run(minimal_deepseek()), "/router/type", "\"softmax_topk\"")}) {
    const config::Run other = run_of(deepseek);
    EXPECT_EQ(parse_run(other.resolved_json, "resolved", {}, router::router_schemas()), other);
  }
  const Json resolved = parsed(run.resolved_json);
  EXPECT_FALSE(resolved["router"].contains("bias_update_speed"));  // softmax_topk has none
  EXPECT_EQ(resolved["train"]["beta2"], 0.99);
  EXPECT_EQ(resolved["train"]["weight_decay"], 0.1);
  EXPECT_EQ(resolved["model"]["head_dim"], 8);
  EXPECT_EQ(resolved["router"]["balance_coef"], 0.02);
}

TEST(ConfigRun, TellsARunFromAModel) {
  EXPECT_TRUE(looks_like_run(to_line(minimal_run()), "run.json"));
  EXPECT_FALSE(looks_like_run(to_line(minimal_qwen()), "run.json"));
  EXPECT_FALSE(looks_like_run("[\"model\"]", "run.json"));
  EXPECT_FALSE(looks_like_run("not JSON", "run.json"));
}

TEST(ConfigRun, AMissingFileIsNamed) {
  EXPECT_CONTAINS(
      test::message_of<InputError>([] { load_run("/no/such/run.json", {}, router::router_schemas()); }),
      "/no/such/run.json");
}

}  // namespace
}  // namespace switchyard::config
