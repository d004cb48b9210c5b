// Every value of every option with a few of them, in every layout: it trains, goes on from a checkpoint bit for
// bit and is evaluated, or is refused when it is read.
#include <gtest/gtest.h>

#include <set>
#include <sstream>

#include "config/layouts.h"
#include "config/names.h"
#include "core/rng.h"
#include "json_values.h"
#include "option_values.h"
#include "run_samples.h"
#include "shards.h"
#include "tensors.h"
#include "threads.h"
#include "train/evaluator.h"
#include "train/memory_plan.h"
#include "train/run.h"

namespace switchyard::train {
namespace {

using checkpoint::Checkpoint;
using checkpoint::checkpoint_path;
using namespace test;

using test::Option;
using test::Overrides;

constexpr std::int64_t kSteps = 3, kSaved = 2, kBatch = 2, kSeqLen = 8;

Json model_json(const config::Layout& layout) {
  Json model =
      test::parsed(R"({"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_experts_per_tok": 2, "intermediate_size": 8, "max_position_embeddings": 16, "initializer_range": 0.1})");
  model["model_type"] = layout.name;
  const char* own = "{}";
  if (layout == config::kMixtral) own = R"({"num_key_value_heads": 1, "num_local_experts": 4})";
  if (layout == config::kOlmoe) own = R"({"num_key_value_heads": 1, "num_experts": 4})";
  if (layout == config::kQwen3Moe)
    own = R"({"num_key_value_heads": 1, "num_experts": 4, "moe_intermediate_size": 6, "sliding_window": 4})";
  if (layout == config::kDeepseekV3)
    own = R"({"n_routed_experts": 8, "moe_intermediate_size": 6, "first_k_dense_replace": 1, "n_group": 4,
      "topk_group": 2, "q_lora_rank": 6, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
      "v_head_dim": 8})";
  return test::with_members(std::move(model), own);
}

std::string text_of(const Overrides& overrides) {
  std::string text;
  for (const std::string& each : overrides) text += " --set " + each;
  return text;
}

class Options : public ::testing::Test {
 protected:
  Options() {
    const Rng rng(7, RngPurpose::shuffle, 0);
    std::vector<std::uint32_t> tokens;
    for (std::uint64_t i = 0; i < 400; ++i) tokens.push_back(static_cast<std::uint32_t>(rng.bits(i) % 32));
    test::write_shard(dir_ / "train.bin", tokens);
    tokens.resize(21);  // the last window is short
    test::write_shard(dir_ / "val.bin", tokens);
  }

  Json base_of(const config::Layout& layout, std::string_view router = "softmax_topk") const {
    return Json::Object{{"model", model_json(layout)},
                        {"router", Json::Object{{"type", router}}},
                        {"data", Json::Object{{"train", Json::Array{(dir_ / "train.bin").string()}},
                                              {"validation", Json::Array{(dir_ / "val.bin").string()}},
                                              {"begin_token", 0}}},
                        {"train", Json::Object{{"steps", kSteps},
                                               {"seq_len", kSeqLen},
                                               {"micro_batch_size", kBatch},
                                               {"global_batch_size", 2 * kBatch},
                                               {"warmup_ratio", 0}}},
                        {"checkpoint", Json::Object{{"every", kSaved}, {"keep", 0}}},
                        {"log", Json::Object{{"every", 1000}}}};
  }

  // What a run leaves behind its last step.
  struct End {
    std::string weights, state;
    double loss, val_loss;
    bool operator==(const End&) const = default;
  };
  End train(const config::Run& run, const Resume& resume) {
    parallel::World world = parallel::make_lone_world();
    const volatile std::sig_atomic_t stop = 0;
    TrainingRun(run, dir_ / "run", resume, world).run(stop);
    const std::filesystem::path saved = checkpoint_path(dir_ / "run", kSteps);
    Json last;
    std::istringstream lines(slurp(dir_ / "run" / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) last = test::parsed(line);
    EXPECT_EQ(last["step"], kSteps);
    return {slurp(saved / "model.safetensors"), slurp(saved / "state.safetensors"), last["loss"].number(),
            last["val_loss"].number()};
  }

  // As `switchyard eval` does it, with a model that has no backward pass.
  double evaluated(const config::Run& run) {
    Context ctx;
    ctx.matmul = model::matmul_type_of(run.train.dtype);
    model::Transformer model(run.model, run.router, model::dtype_of(run.train.dtype, Device::cpu), false);
    model.allocate();
    Checkpoint(checkpoint_path(dir_ / "run", kSteps)).load_weights(model.parameters());
    model.round_weights(ctx);
    model.plan(run.train.micro_batch_size, kSeqLen, ctx);  // other shapes of products round otherwise
    const std::optional<std::int64_t> begin = run.data.document_mask ? run.data.begin_token : std::nullopt;
    return evaluate(
               model, open_domains(run.data.validation, run.model.vocab_size, parallel::lone_mesh().all),
               {.seq_len = kSeqLen,
                .batch = run.train.micro_batch_size,
                .max_tokens = run.train.eval_tokens,
                .begin_token = begin,
                .share_of_domain =
                    run.train.eval_mix == config::EvalMix::training ? std::vector{1.0} : std::vector<double>{}},
               ctx, parallel::lone_mesh().all)
        .loss;
  }

  // Trains, goes on from the step before the last in the same place, evaluates.
  void try_run(const config::Run& run) {
    std::filesystem::remove_all(dir_ / "run");
    // A team is not worth its start for a model as small as this.
    test::with_threads(1, [&] {
      const End whole = train(run, {});
      const End resumed =
          train(run, {.wanted = true, .named = true, .checkpoint = checkpoint_path(dir_ / "run", kSaved)});
      EXPECT_TRUE(resumed == whole) << "the resumed run ends elsewhere";
      EXPECT_EQ(evaluated(run), whole.val_loss);
      return 0;
    });
  }
  void try_run(const Json& base, const Overrides& overrides) {
    SCOPED_TRACE(text_of(overrides) + " in " + to_line(base));
    config::Run run = test::run_of(base, overrides);
    if (!tried_.insert(run.resolved_json).second) return;  // most options have their default among their values
    try {
      // As the command does it.
      if (parallel::World world = parallel::make_lone_world();
          run.train.micro_batch_size == config::Train::kAutoMicroBatch)
        choose_micro_batch(run, world, Device::cpu, std::nullopt);
      try_run(run);
    } catch (const std::logic_error& error) {
      ADD_FAILURE() << error.what();
    } catch (const RunError& error) {
      ADD_FAILURE() << error.what();
    } catch (const InputError& error) {
      // The one refusal that depends on more than the configuration: there is no device here.
      EXPECT_EQ(run.train.attention, config::AttentionBackend::cudnn) << error.what();
      EXPECT_CONTAINS(error.what(), "train.attention: is \"cudnn\"");
    }
  }
  void try_every_value(const Json& base, const Option& option) {
    for (const std::string& value : option.values)
      if (!refused_rightly(base, option, value)) try_run(base, option.set(base, value));
  }

  // A checkpoint syncs each of its files: hundreds of runs would wait for the disk.
  static std::filesystem::path in_memory() {
    const std::filesystem::path shared = "/dev/shm";
    return std::filesystem::is_directory(shared) ? shared : std::filesystem::temp_directory_path();
  }
  // What no companion helps, and the reason that the message must give.
  static bool refused_rightly(const Json& base, const Option& option, const std::string& value) {
    const config::RouterSchema& schema =
        config::schema_of(base["router"]["type"].text(), router::router_schemas());
    std::string reason;
    if (option.key == "z_loss_coef" && value != "0") reason = schema.no_z_loss;
    if (option.key == "logit_norm" && value != "0") reason = schema.no_logit_norm;
    if (option.key == "num_hash_layers" && value != "0") {
      const config::Run run = test::run_of(base, {});
      if (config::count_moe_layers(run.model) < std::stoll(value))
        reason = "more than the model has layers";
      else if (run.router.own.has("max_experts"))
        reason = "which no table knows";
    }
    if (reason.empty()) return false;
    EXPECT_CONTAINS(test::refusal_of(base, {option.path() + "=" + value}), reason);
    return true;
  }

  TempDir dir_{in_memory()};
  std::set<std::string> tried_;  // resolved configurations
};

std::vector<std::string> router_types() {
  std::vector<std::string> types;
  for (const config::RouterSchema& schema : router::router_schemas()) types.emplace_back(schema.type);
  return types;
}

class RouterOptions : public Options, public ::testing::WithParamInterface<std::string> {};
TEST_P(RouterOptions, EveryValueTrainsAndGoesOn) {
  for (const config::Layout* layout : config::kLayouts) {
    const Json base = base_of(*layout, GetParam());
    for (const Option& option : test::options_of(base, "router")) try_every_value(base, option);
  }
  EXPECT_GE(tried_.size(),
            3u * 9);  // a default; other coefficients, scopes, noises and capacities, which all have
}
INSTANTIATE_TEST_SUITE_P(Types, RouterOptions, ::testing::ValuesIn(router_types()),
                         [](const auto& test) { return test.param; });

// Each stands where it must: without it, or rather without any of what it adds, the option is refused.
TEST_F(Options, NoCompanionIsThereForNothing) {
  for (const test::Companion& companion : test::kCompanions) {
    bool needed = false;
    for (const std::string& type : router_types()) {
      const Json base = base_of(config::kQwen3Moe, type);
      for (const std::string& section : test::sections())
        for (const Option& option : test::options_of(base, section))
          for (const std::string& value : option.values)
            needed = needed || (option.key == companion.key && option.set(base, value).size() > 1 &&
                                (companion.value == "*" || companion.value == value));
      if (needed) break;
    }
    EXPECT_TRUE(needed) << companion.key << "=" << companion.value << ", for " << companion.why;
  }
}

class LayoutOptions : public Options, public ::testing::WithParamInterface<const config::Layout*> {
 protected:
  // What a model may be that makes some option useless or something in it vanish.
  static std::vector<Overrides> shapes(const config::Layout& layout) {
    if (layout == config::kMixtral)
      return {{"model.num_local_experts=1", "model.num_experts_per_tok=1"},
              {"model.num_experts_per_tok=4"},
              {"model.num_hidden_layers=1", "model.sliding_window=3"}};
    if (layout == config::kOlmoe)
      return {{"model.num_experts=1", "model.num_experts_per_tok=1"},
              {"model.num_experts_per_tok=4", "model.norm_topk_prob=true"},
              {"model.num_hidden_layers=1", "model.num_key_value_heads=2"}};
    if (layout == config::kQwen3Moe)
      return {{"model.num_experts=1", "model.num_experts_per_tok=1"},
              {"model.num_experts_per_tok=4", "model.norm_topk_prob=true"},
              {"model.mlp_only_layers=[0,1]"},
              {"model.mlp_only_layers=[1]"}};
    if (layout == config::kDeepseekV3)
      return {
          {"model.n_routed_experts=1", "model.num_experts_per_tok=1", "model.n_group=1", "model.topk_group=1"},
          {"model.num_experts_per_tok=8", "model.topk_group=4", "model.q_lora_rank=null"},
          {"model.first_k_dense_replace=2"},
          {"model.first_k_dense_replace=0", "model.n_shared_experts=0"},
          {"model.num_nextn_predict_layers=2", "train.mtp_loss_coef=0.3"}};
    ADD_FAILURE() << "no shapes of " << layout.name;
    return {};
  }
};

TEST_P(LayoutOptions, EveryWordAndSwitchTrainsAndGoesOn) {
  const Json base = base_of(*GetParam(), config::default_router(*GetParam(), router::router_schemas()).type);
  for (const std::string& section : test::sections()) {
    if (section == "router") continue;
    for (const Option& option : test::options_of(base, section))
      if (option.kind != Option::Kind::number) try_every_value(base, option);
  }
  EXPECT_GE(tried_.size(), 14u);
}

TEST_P(LayoutOptions, EveryRouterFitsEveryShape) {
  for (const std::string& type : router_types())
    for (const Overrides& shape : shapes(*GetParam())) try_run(base_of(*GetParam(), type), shape);
}

// Options that do not go together are refused when they are read; the others train.
TEST_P(LayoutOptions, AnyMixtureIsRefusedOrTrains) {
  constexpr int kMixtures = 40;
  std::vector<std::pair<Json, std::vector<Option>>> kinds;
  for (const std::string& type : router_types()) {
    const Json base = base_of(*GetParam(), type);
    kinds.emplace_back(base, std::vector<Option>());
    for (const std::string& section : test::sections())
      for (Option& option : test::options_of(base, section))
        if (section == "router" || option.kind != Option::Kind::number)
          kinds.back().second.push_back(std::move(option));
  }
  const std::vector<Overrides> shapes = LayoutOptions::shapes(*GetParam());
  int refused = 0;
  for (std::uint64_t i = 0; tried_.size() < kMixtures; ++i) {
    ASSERT_LT(refused, 50 * kMixtures) << "hardly any mixture is accepted";
    const Rng rng(11, RngPurpose::shuffle, i);
    const auto& [base, options] = kinds[rng.bits(0) % kinds.size()];
    Overrides mixture = shapes[rng.bits(1) % shapes.size()];
    if (rng.bits(2) % 2 == 0) mixture.clear();
    std::uint64_t draws = 3;
    for (const Option& option : options) {
      if (rng.bits(draws++) % 4 != 0) continue;
      for (const std::string& override_text :
           option.set(base, option.values[rng.bits(draws++) % option.values.size()]))
        mixture.push_back(override_text);
    }
    if (!test::refusal_of(base, mixture).empty()) {
      ++refused;
      continue;
    }
    try_run(base, mixture);
  }
}
INSTANTIATE_TEST_SUITE_P(Layouts, LayoutOptions, ::testing::ValuesIn(config::kLayouts),
                         [](const auto& test) { return std::string(test.param->name); });

}  // namespace
}  // namespace switchyard::train
