// The planner's closed forms against figures that were published and counts by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "config/layouts.h"
#include "core/error.h"
#include "model/cost.h"
#include "model_test_support.h"
#include "plan/device.h"
#include "plan/memory.h"
#include "plan/search.h"
#include "plan/time.h"
#include "temp_dir.h"

namespace switchyard::plan {
namespace {

config::Model grouped(std::int64_t layers, std::int64_t hidden, std::int64_t heads, std::int64_t kv_heads,
                      std::int64_t vocab) {
  config::Model model;
  model.layout = &config::kQwen3Moe;
  model.num_hidden_layers = layers;
  model.hidden_size = hidden;
  model.num_attention_heads = heads;
  model.num_key_value_heads = kv_heads;
  model.head_dim = 128;
  model.vocab_size = vocab;
  return model;
}

config::Model dense(config::Model model, std::int64_t width) {
  model.intermediate_size = width;
  config::set_layers(model, std::vector<bool>(static_cast<std::size_t>(model.num_hidden_layers), false));
  return model;
}

config::Model mixture(config::Model model, std::int64_t experts, std::int64_t top_k, std::int64_t width,
                      std::int64_t n_dense = 0) {
  model.num_experts = experts;
  model.num_experts_per_tok = top_k;
  model.moe_intermediate_size = width;
  std::vector<bool> moe(static_cast<std::size_t>(model.num_hidden_layers), true);
  std::fill_n(moe.begin(), n_dense, false);
  config::set_layers(model, moe);
  return model;
}

config::Model qwen3_30b() { return mixture(grouped(48, 2048, 32, 4, 151936), 128, 8, 768); }

config::Model deepseek_v3(std::int64_t heads, std::int64_t experts, std::int64_t n_dense, std::int64_t vocab) {
  config::Model model = grouped(61, 7168, heads, heads, vocab);
  model.layout = &config::kDeepseekV3;
  model.head_dim = 192;
  model.mla = config::Mla{.q_lora_rank = 1536,
                          .kv_lora_rank = 512,
                          .qk_nope_head_dim = 128,
                          .qk_rope_head_dim = 64,
                          .v_head_dim = 128};
  model.n_shared_experts = 1;
  model.intermediate_size = 18432;
  model.num_nextn_predict_layers = 1;
  return mixture(model, experts, 8, 2048, n_dense);
}

double giga_flops(const config::Model& model, std::int64_t seq_len, bool mtp = false) {
  return flops_of(shape_of(model, model.num_experts_per_tok, mtp), seq_len).total() * 1e-9;
}

// 0.5 %: the published counts leave out routers' products, or have them, and round.
TEST(Flops, OfPublishedModels) {
  const auto near = [](double found, double published) {
    EXPECT_NEAR(found / published, 1, 0.005) << published;
  };
  near(giga_flops(qwen3_30b(), 4096), 23.1);
  near(giga_flops(mixture(grouped(94, 4096, 64, 4, 151936), 128, 8, 1536), 4096), 148.0);
  near(giga_flops(deepseek_v3(128, 256, 3, 129280), 4096), 249.8);
  near(giga_flops(deepseek_v3(128, 256, 3, 129280), 4096, true), 260.1);
  near(giga_flops(deepseek_v3(64, 384, 1, 163840), 4096), 204.5);
  near(giga_flops(dense(grouped(80, 8192, 64, 8, 128256), 28672), 8192), 449.2);
}

TEST(Flops, AWindowCountsTheKeysThatItLeaves) {
  config::Model model = qwen3_30b();
  model.sliding_window = 2;
  // Of four tokens: 1, 2, 2, 2 keys, of each half of the last one, as the whole triangle's half is counted.
  EXPECT_DOUBLE_EQ(shape_of(model, 8, false).mean_keys(4), 2 - 4.0 / 8);
  model.sliding_window = 0;
  EXPECT_DOUBLE_EQ(shape_of(model, 8, false).mean_keys(4), 2);
}

// The closed form is what the program counts from its parameter rows, to the last value; a sigmoid router's
// bias is no parameter.
TEST(Shape, HasTheProgramsOwnCounts) {
  for (const config::Layout* layout :
       {&config::kQwen3Moe, &config::kMixtral, &config::kOlmoe, &config::kDeepseekV3}) {
    for (const bool tied : {false, true}) {
      config::Model model = model::tiny_model(*layout);
      model.tie_word_embeddings = tied;
      if (layout == &config::kDeepseekV3) model.num_nextn_predict_layers = 2;
      config::Router router;
      const model::ParameterCount count = model::count_parameters(model, router);
      const Shape shape = shape_of(model, model.num_experts_per_tok, true);
      EXPECT_EQ(shape.total(), static_cast<double>(count.total)) << layout->name;
      EXPECT_EQ(shape.active(), static_cast<double>(count.active)) << layout->name;
      EXPECT_EQ(shape.active_matmul(), static_cast<double>(count.active_matmul)) << layout->name;
      EXPECT_EQ(shape.mtp_values(), static_cast<double>(count.mtp)) << layout->name;
    }
  }
}

Layout layout_of(Scheme scheme, std::int64_t ranks) {
  Layout layout;
  layout.scheme = scheme;
  layout.ranks = ranks;
  layout.global_batch = ranks;
  layout.seq_len = 4096;
  return layout;
}

double steady_gb(const config::Model& model, const Layout& layout, std::size_t stage) {
  const Shape shape = shape_of(model, model.num_experts_per_tok, false);
  return memory_of(shape, layout, Calibration{})[stage].steady() * 1e-9;
}

// mem-allocated-bytes of Megatron-LM's golden values
// (tests/functional_tests/test_cases/*/golden_values_dev_dgx_h100.json): of the last pipeline stage. 3 %: the
// one constant of libraries' buffers stands for 0.3 to 1.5 GB.
TEST(Memory, SteadyUnderMegatronsDistributedOptimizer) {
  // A network of two matrices has two thirds of a SwiGLU's of the same width.
  Layout layout = layout_of(Scheme::megatron, 8);
  layout.tensor = 4;
  const config::Model gpt_7b = dense(grouped(32, 4096, 32, 8, 131073), 16384 * 2 / 3);
  EXPECT_NEAR(steady_gb(gpt_7b, layout, 0) / 20.66, 1, 0.03);
  layout.tensor = 1;
  layout.pipeline = 4;
  layout.chunks = 8;
  EXPECT_NEAR(steady_gb(gpt_7b, layout, 3) / 24.81, 1, 0.03);

  Layout mixtral = layout_of(Scheme::megatron, 128);
  mixtral.tensor = 2;
  mixtral.pipeline = 8;
  mixtral.expert = 8;
  mixtral.expert_tensor = 2;
  EXPECT_NEAR(steady_gb(mixture(grouped(56, 6144, 48, 8, 32000), 8, 2, 16384), mixtral, 7) / 23.00, 1, 0.03);
  mixtral.pipeline = mixtral.expert = 4;
  EXPECT_NEAR(steady_gb(mixture(grouped(32, 4096, 32, 8, 256000), 8, 2, 14336), mixtral, 3) / 17.70, 1, 0.03);
}

// 16 bytes a parameter, divided (NousResearch/torchtitan pull request 19: 454.9 GiB over all ranks); libraries'
// buffers besides.
TEST(Memory, FsdpDividesSixteenBytesAParameter) {
  const Shape shape = shape_of(qwen3_30b(), 8, false);
  for (const std::int64_t ranks : {8, 32, 128}) {
    Layout layout = layout_of(Scheme::fsdp, ranks);
    layout.expert = 8;
    const StageMemory memory = memory_of(shape, layout, Calibration{}).front();
    EXPECT_NEAR(memory.steady() - memory.buffers, 16 * shape.total() / static_cast<double>(ranks), 1);
  }
}

// What docs/parallel.md says of parallel.zero: float32 parameters on every rank; moments divided from 1 on,
// gradients from 2 on.
TEST(Memory, OfSwitchyardsOwnLevels) {
  config::Model model = qwen3_30b();
  const Shape shape = shape_of(model, 8, false);
  Layout layout = layout_of(Scheme::switchyard, 8);
  layout.expert = 4;
  const double P = shape.total() - shape.expert_values(), X = shape.expert_values() / 4;
  for (const std::int64_t zero : {0, 1, 2}) {
    layout.zero = zero;
    const StageMemory memory = memory_of(shape, layout, Calibration{}).front();
    EXPECT_NEAR(memory.parameters, 4 * (P + X), 1);
    EXPECT_NEAR(memory.weights, 2 * (P + X), 1);
    EXPECT_NEAR(memory.moments, 8 * (zero == 0 ? P + X : P / 8 + X / 2), 1);
    if (zero < 2) {
      EXPECT_NEAR(memory.gradients, 4 * (P + X), 1);
    } else {
      EXPECT_GT(memory.gradients, 4 * (P / 8 + X / 2));
      EXPECT_LT(memory.gradients,
                0.6 * 4 * (P + X));  // a half of the experts', little of the rest, and one layer
    }
  }
  layout.precision = Precision::float32;
  EXPECT_EQ(memory_of(shape, layout, Calibration{}).front().weights, 0);
}

// By hand: D 2, one head of 128, experts of width 3, two a token; bf16. Into attention and the network 2 x 2 D,
// their norms 2 x 2 D, q, k, v 2 x 3 x 128, attention's output 2 x 128; experts 2 (2 x 2 + 2 x 3 x 3); 8 bytes
// of routing an expert.
TEST(Memory, WhatATokenKeepsByHand) {
  const config::Model model = mixture(grouped(1, 2, 1, 1, 7), 4, 2, 3);
  const Shape shape = shape_of(model, 2, false);
  Layout layout = layout_of(Scheme::megatron, 1);
  const double all = 16 + 2 * 4 * 128 + 2 * (2 * 2 + 2 * 3 * 3) + 8 * 4;
  EXPECT_EQ(kept_bytes(shape, shape.layer[0], layout), all);
  layout.recompute = parse_recompute("norm,act");
  EXPECT_EQ(kept_bytes(shape, shape.layer[0], layout), all - 8 - 2 * 2 * 3);
  layout.recompute = parse_recompute("moe");
  EXPECT_EQ(kept_bytes(shape, shape.layer[0], layout), 16 + 2 * 4 * 128);
  layout.recompute = parse_recompute("full");
  EXPECT_EQ(kept_bytes(shape, shape.layer[0], layout), 4);
  EXPECT_THROW(parse_recompute("norm,nothing"), InputError);
  EXPECT_THROW(parse_recompute(""), InputError);
}

// One forward, one backward, in turn: the first of four stages has four micro-batches in flight, the last one.
TEST(Memory, StagesKeepWhatIsInFlight) {
  const config::Model model = dense(grouped(8, 256, 2, 2, 512), 1024);
  const Shape shape = shape_of(model, 0, false);
  Layout layout = layout_of(Scheme::megatron, 4);
  layout.pipeline = 4;
  layout.global_batch = 16;
  const std::vector<StageMemory> stages = memory_of(shape, layout, Calibration{});
  ASSERT_EQ(stages.size(), 4u);
  EXPECT_DOUBLE_EQ(stages[0].activations, 4 * stages[3].activations);
  layout.global_batch = 2;  // never more than there are
  EXPECT_DOUBLE_EQ(memory_of(shape, layout, Calibration{})[0].activations, 2 * stages[3].activations);
  EXPECT_EQ(layers_of_stages(shape, layout), (std::vector<std::int64_t>{2, 2, 2, 2}));
}

double speed(const config::Model& model, const Layout& layout, const char* device) {
  return step_of(shape_of(model, model.num_experts_per_tok, false), layout, parse_device(device), Calibration{})
      .tokens_per_second_per_device;
}

TEST(Time, PartsAddUpAndMoveTheRightWay) {
  Layout layout = layout_of(Scheme::megatron, 16);
  layout.expert = 16;
  layout.global_batch = 1024;
  const Shape shape = shape_of(qwen3_30b(), 8, false);
  const StepPlan step = step_of(shape, layout, parse_device("H100"), Calibration{});
  double sum = 0;
  for (const auto& [name, seconds] : step.time.parts()) {
    EXPECT_GE(seconds, 0) << name;
    sum += seconds;
  }
  EXPECT_DOUBLE_EQ(sum, step.time.total());
  EXPECT_DOUBLE_EQ(step.tokens, 1024.0 * 4096);
  EXPECT_NEAR(step.tokens_per_second_per_device * 16 * step.time.total(), step.tokens, 1e-3);
  EXPECT_GT(step.sent.experts, step.sent.sums);

  const double base = speed(qwen3_30b(), layout, "H100");
  Layout other = layout;
  other.overlap = true;
  EXPECT_GT(speed(qwen3_30b(), other, "H100"), base);
  other = layout;
  other.real_routing = true;
  layout.real_routing = false;
  EXPECT_GT(speed(qwen3_30b(), layout, "H100"), speed(qwen3_30b(), other, "H100"));
  other.recompute = parse_recompute("full");
  EXPECT_LT(speed(qwen3_30b(), other, "H100"), base);
  EXPECT_GT(speed(qwen3_30b(), layout, "B200"), speed(qwen3_30b(), layout, "H100"));
  EXPECT_GT(speed(qwen3_30b(), layout, "H100,network=400"), speed(qwen3_30b(), layout, "H100"));
}

// Stages wait for each other for (stages - 1) / (pieces x micro-batches) of what they compute.
TEST(Time, BubblesShrinkWithMicroBatchesAndPieces) {
  const config::Model model = dense(grouped(80, 8192, 64, 8, 128256), 28672);
  Layout layout = layout_of(Scheme::megatron, 8);
  layout.pipeline = 8;
  layout.global_batch = 8;
  const auto bubble = [&] {
    const StepPlan step = step_of(shape_of(model, 0, false), layout, parse_device("H100"), Calibration{});
    return step.time.bubble /
           (step.time.products + step.time.attention + step.time.elementwise + step.time.launch);
  };
  EXPECT_NEAR(bubble(), 7.0 / 8, 1e-12);
  layout.global_batch = 64;
  EXPECT_NEAR(bubble(), 7.0 / 64, 1e-12);
  layout.chunks = 5;
  EXPECT_NEAR(bubble(), 7.0 / 64 / 5, 1e-12);
}

TEST(Layout, RunsHereOnAsManyRanksAsSumsAreWrittenFor) {
  EXPECT_TRUE(layout_of(Scheme::switchyard, 256).runs_here());
  EXPECT_FALSE(layout_of(Scheme::switchyard, 257).runs_here());
}

TEST(Layout, SizesThatDoNotDivideAreRefusedByName) {
  const Shape shape = shape_of(qwen3_30b(), 8, false);
  const auto refused = [&](auto change, const char* option) {
    Layout layout = layout_of(Scheme::megatron, 16);
    change(layout);
    try {
      check_layout(layout, shape);
      ADD_FAILURE() << option;
    } catch (const InputError& error) {
      EXPECT_TRUE(std::string_view(error.what()).starts_with(option)) << error.what();
    }
  };
  check_layout(layout_of(Scheme::megatron, 16), shape);
  refused([](Layout& l) { l.expert = 3; }, "--ranks");
  refused([](Layout& l) { l.ranks = 96, l.global_batch = 96, l.expert = 48; }, "--expert");
  refused([](Layout& l) { l.tensor = 3; }, "--ranks");
  refused([](Layout& l) { l.ranks = l.global_batch = 48, l.tensor = 48; }, "--tensor");
  refused([](Layout& l) { l.pipeline = 16, l.chunks = 4; }, "--pipeline");
  refused([](Layout& l) { l.chunks = 2; }, "--chunks");
  refused([](Layout& l) { l.context = 16, l.seq_len = 1000; }, "--context");
  refused([](Layout& l) { l.global_batch = 24; }, "--global-batch");
}

TEST(Device, NamesAndChanges) {
  EXPECT_EQ(parse_device("h100").name, "H100");
  const Device device = parse_device("H100,memory=96,bandwidth=2.4,domain=4,bf16=800");
  EXPECT_DOUBLE_EQ(device.memory, 96e9);
  EXPECT_DOUBLE_EQ(device.bandwidth, 2.4e12);
  EXPECT_DOUBLE_EQ(device.bfloat16, 800e12);
  EXPECT_EQ(device.domain, 4);
  EXPECT_DOUBLE_EQ(device.fp8, parse_device("H100").fp8);
  for (const char* bad : {"", "H9", "H100,", "H100,memory", "H100,memory=", "H100,memory=-1", "H100,speed=3",
                          "H100,domain=1.5", "H100,memory=1e999"})
    EXPECT_THROW(parse_device(bad), InputError) << bad;
  EXPECT_THROW(peak_of(parse_device("A100"), Precision::fp8), InputError);
  for (const Device& each : known_devices()) EXPECT_FALSE(each.source.empty()) << each.name;
}

TEST(Search, BestFirstAndWhatFitsBeforeWhatDoesNot) {
  Layout layout = layout_of(Scheme::switchyard, 16);
  layout.global_batch = 64;
  const Shape shape = shape_of(qwen3_30b(), 8, false);
  const std::vector<Candidate> found = search(shape, layout, parse_device("H200"), Calibration{}, true);
  ASSERT_GT(found.size(), 10u);
  EXPECT_TRUE(found.front().fits);
  for (std::size_t i = 1; i < found.size(); ++i) {
    EXPECT_TRUE(found[i].layout.runs_here());
    EXPECT_GE(found[i - 1].fits, found[i].fits);
    if (found[i].fits) {
      EXPECT_GE(found[i - 1].step.tokens_per_second_per_device, found[i].step.tokens_per_second_per_device);
    }
  }
  const std::vector<Candidate> front = pareto(found);
  for (std::size_t i = 1; i < front.size(); ++i) {
    EXPECT_GE(front[i].peak, front[i - 1].peak);
    EXPECT_GT(front[i].step.tokens_per_second_per_device, front[i - 1].step.tokens_per_second_per_device);
  }
}

TEST(Calibration, ComesFromAFileByName) {
  const test::TempDir dir;
  const auto write = [&](const char* text) {
    std::ofstream(dir / "c.json") << text;
    return (dir / "c.json").string();
  };
  EXPECT_EQ(read_calibrations(write(R"({"link": 0.5})")).front().link, 0.5);
  const std::vector<Calibration> sets = read_calibrations(write(R"([{"link": 0.5}, {}])"));
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[1].link, Calibration{}.link);
  for (const char* bad : {R"({"lynk": 0.5})", R"({"link": "x"})", R"({"link": -1})", "3", "[]", "[1]"})
    EXPECT_THROW(read_calibrations(write(bad)), InputError) << bad;
}

}  // namespace
}  // namespace switchyard::plan
