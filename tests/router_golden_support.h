// One router against the plain PyTorch version of tools/router_reference.py: a directory tests/golden/router_*.
//   T tokens, D hidden size, E experts, K slots a token
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/load.h"
#include "golden_support.h"
#include "ops/latent.h"
#include "router/router.h"
#include "router/routing_step.h"

namespace switchyard::golden {

class RouterCase {
 public:
  explicit RouterCase(const std::string& name)
      : directory_(std::filesystem::path(SWITCHYARD_GOLDEN_DIR) / name),
        json_(test::parsed_file(directory_ / "case.json")),
        file_(directory_ / "tensors.safetensors") {}

  std::int64_t n_seq() const { return json_["n_seq"].integer(); }
  std::int64_t seq_len() const { return json_["seq_len"].integer(); }
  const Json& shape() const { return json_["shape"]; }
  std::string type() const { return json_["router"]["type"].text(); }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  const checkpoint::SafetensorsFile& file() const { return file_; }

  // Router section and model, read as those of a run.
  config::Router options() const { return run().router; }
  config::Model model() const { return run().model; }
  config::Run run() const {
    Json sections = test::parsed(R"({
      "model": {"model_type": "qwen3_moe", "vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
                "moe_intermediate_size": 4},
      "data": {"train": ["a"]}, "train": {"steps": 1}})");
    sections["model"]["hidden_size"] = shape()["hidden_size"];
    sections["model"]["num_experts"] = shape()["n_experts"];
    sections["model"]["num_experts_per_tok"] = shape()["n_slots"];
    sections["router"] = json_["router"];
    sections["train"]["seq_len"] = seq_len();
    sections["train"]["micro_batch_size"] = n_seq();
    return config::parse_run(to_line(sections), (directory_ / "case.json").string(), {},
                             router::router_schemas());
  }
  router::RouterShape router_shape() const {
    return {.hidden_size = shape()["hidden_size"].integer(),
            .n_experts = shape()["n_experts"].integer(),
            .n_slots = shape()["n_slots"].integer(),
            .n_group = shape()["n_group"].integer(),
            .topk_group = shape()["topk_group"].integer(),
            .normalise_weights = shape()["norm_topk_prob"].boolean(),
            .weight_scale = shape()["routed_scaling_factor"].number(),
            .init_std = 0.02,
            .vocab_size = kVocabulary,
            .hashed = options().num_hash_layers > 0};
  }

  static constexpr std::int64_t kVocabulary = 100;  // of tools/make_router_golden.py

  // A stored tensor in the memory of a new one of the same type.
  test::OwnedTensor tensor(const std::string& name) const {
    const checkpoint::StoredTensor& stored = find(name);
    Shape shape = stored.shape.size() == 1 ? Shape{stored.shape[0]} : Shape{stored.shape[0], stored.shape[1]};
    test::OwnedTensor tensor(shape, stored.type == checkpoint::StoredType::i32 ? DType::i32 : DType::f32);
    file_.read(stored, tensor);
    return tensor;
  }
  Expected expected(const std::string& name) const { return {find(name).shape, test::values(tensor(name))}; }

 private:
  const checkpoint::StoredTensor& find(const std::string& name) const {
    const checkpoint::StoredTensor* stored = file_.find(name);
    if (stored == nullptr) throw std::runtime_error(directory_.string() + " has no tensor " + name);
    return *stored;
  }
  std::filesystem::path directory_;
  Json json_;
  checkpoint::SafetensorsFile file_;
};

// Of the largest value of a tensor: float32 has some 1e-7 relative for each of a few hundred terms; a formula
// that is wrong is off by order one. Gradients pass through one more product.
constexpr Tolerance kRouterForward{0, 1e-5};
constexpr Tolerance kRouterGradient{0, 1e-4};

// The slots of a token as expert -> value; free ones are left out.
inline std::map<int, double> slots_of(const std::vector<double>& expert_TK, const std::vector<double>& value_TK,
                                      std::size_t t, std::size_t K) {
  std::map<int, double> slots;
  for (std::size_t i = t * K; i < (t + 1) * K; ++i)
    if (expert_TK[i] >= 0) slots[static_cast<int>(expert_TK[i])] = value_TK[i];
  return slots;
}

// The router of a case with its parameters, run forward, backward and over the end of a step, everything
// compared. `change`: what a router needs beside what is in every case, before it runs.
class RouterComparison {
 public:
  explicit RouterComparison(const RouterCase& golden)
      : golden_(golden),
        options_(golden.options()),
        layer_(options_, golden.router_shape(), "", store_),
        step_({&layer_}, options_, golden.model()),
        x_TD_(golden.tensor("x")),
        token_T_(golden.tensor("token")) {
    // Measured before there are parameters, as a run does it: a plan may not read them.
    Arena measure = Arena::measuring();
    plan(measure);
    store_.allocate(DType::f32, true);
    for (std::size_t i = 0; i < store_.rows().size(); ++i)
      golden.file().read(*golden.file().find("param." + store_.rows()[i].name), store_.value(i));
    arena_.emplace(measure.peak(), "test");
    plan(*arena_);
    arena_->poison();
    ctx_.scratch.set_poison(true);
    batch_ = {.token_T = token_T_, .n_seq = golden.n_seq(), .seq_len = golden.seq_len(), .training = true};
    if (golden.has("attention_entropy")) {
      attention_entropy_T_.emplace(golden.tensor("attention_entropy"));
      batch_.attention_entropy_T = *attention_entropy_T_;
    }
    if (golden.has("epsilon")) batch_.epsilon_Td = epsilon_Td_.emplace(golden.tensor("epsilon"));
  }
  router::RouterBatch& batch() { return batch_; }

  void compare_all() {
    const router::RoutingDecision decision = layer_.forward(x_TD_, batch_, ctx_);
    compare_decision(decision);
    backward(decision);
    for (std::size_t i = 0; i < store_.rows().size(); ++i) {
      const Parameter& row = store_.rows()[i];
      if (row.trained) {
        EXPECT_TRUE(close_to(store_.grad(i), golden_.expected("grad." + row.name), kRouterGradient))
            << "grad." << row.name;
      }
    }
    step_.after_step(ctx_);
    for (std::size_t i = 0; i < store_.rows().size(); ++i) {
      const Parameter& row = store_.rows()[i];
      if (row.trained) continue;
      EXPECT_TRUE(close_to(store_.value(i), golden_.expected("after." + row.name), kRouterForward))
          << "after." << row.name;
    }
  }

 private:
  void plan(Arena& arena) {
    step_.plan(arena, golden_.n_seq(), true);
    layer_.plan(arena, golden_.n_seq(), golden_.seq_len(), DType::f32);
    tokens_B_ = arena.take(Shape{golden_.n_seq()}, DType::i32);
  }

  void compare_decision(const router::RoutingDecision& decision) {
    const auto K = static_cast<std::size_t>(layer_.router().n_slots());
    const std::vector<double> want_expert = golden_.expected("expert").values,
                              want_weight = golden_.expected("weight").values,
                              got_expert = test::values(decision.expert_TK),
                              got_weight = test::values(decision.weight_TK);
    ASSERT_EQ(got_expert.size(), want_expert.size());
    const double largest = *std::max_element(want_weight.begin(), want_weight.end());
    for (std::size_t t = 0; t < want_expert.size() / K; ++t) {
      const auto want = slots_of(want_expert, want_weight, t, K), got = slots_of(got_expert, got_weight, t, K);
      ASSERT_EQ(got.size(), want.size()) << "slots of token " << t;
      for (const auto& [expert, weight] : want) {
        ASSERT_TRUE(got.contains(expert)) << "token " << t << " is not sent to expert " << expert;
        EXPECT_NEAR(got.at(expert), weight, kRouterForward.of_largest * largest) << "token " << t;
      }
    }
    ASSERT_EQ(decision.expert_input_addend_TD.defined(), golden_.has("addend"));
    if (golden_.has("addend")) {
      EXPECT_TRUE(close_to(decision.expert_input_addend_TD, golden_.expected("addend"), kRouterForward));
    }
  }

  void backward(const router::RoutingDecision& decision) {
    // Our slots may have another order than the file's: the weights' gradients follow their experts.
    const auto K = static_cast<std::size_t>(layer_.router().n_slots());
    const std::vector<double> want_expert = golden_.expected("expert").values,
                              dweight = golden_.expected("dweight").values,
                              got_expert = test::values(decision.expert_TK);
    const test::OwnedTensor dweight_TK(decision.weight_TK.shape(), DType::f32);
    for (std::size_t i = 0; i < got_expert.size(); ++i) {
      const auto slots = slots_of(want_expert, dweight, i / K, K);
      const auto slot = slots.find(static_cast<int>(got_expert[i]));
      test::set(dweight_TK, static_cast<std::int64_t>(i), slot == slots.end() ? 0 : slot->second);
    }
    std::int64_t tokens = 0, sequences = 0;
    for (std::int64_t b = 0; b < golden_.n_seq(); ++b) {
      std::int64_t real = 0;
      for (std::int64_t s = 0; s < golden_.seq_len(); ++s) real += token_T_[b * golden_.seq_len() + s] >= 0;
      test::set(tokens_B_, b, static_cast<double>(real));
      tokens += real;
      sequences += real > 0;
    }
    double losses[3] = {};  // balance, z, the router's own
    step_.begin(ctx_);
    step_.add_micro_batch(ctx_);
    step_.add_losses(Tensor(losses, Shape{3}, DType::f64), tokens_B_,
                     {.n_tokens = tokens, .n_sequences = sequences}, ctx_);
    const auto near = [&](const char* name, double got) {
      const double want = golden_.expected(name).values.at(0);
      EXPECT_NEAR(got, want, kRouterForward.of_largest * std::max(std::abs(want), 1e-6)) << name;
    };
    near("balance_loss", losses[0]);
    near("z_loss", losses[1]);
    near("router_loss", losses[2]);

    const test::OwnedTensor dx_TD(x_TD_.view().shape(), DType::f32);
    for (std::int64_t i = 0; i < dx_TD.numel(); ++i) test::set(dx_TD, i, 0);
    router::RoutingGradient routing{.dweight_TK = dweight_TK};
    std::optional<test::OwnedTensor> daddend_TD;
    if (golden_.has("daddend")) {  // the file has noise where padding is, which no expert sees
      routing.daddend_TD = daddend_TD.emplace(golden_.tensor("daddend"));
      ops::clear_skipped_rows(*daddend_TD, token_T_, ctx_);
    }
    layer_.backward(dx_TD, routing, x_TD_, batch_, ctx_);
    if (layer_.observes_gradient()) layer_.observe_gradient(dx_TD, batch_, ctx_);
    EXPECT_TRUE(close_to(dx_TD, golden_.expected("dx"), kRouterGradient)) << "dx";
  }

  const RouterCase& golden_;
  config::Router options_;
  ParameterStore store_;
  router::RoutedLayer layer_;
  router::RoutingStep step_;
  test::OwnedTensor x_TD_, token_T_;
  std::optional<test::OwnedTensor> attention_entropy_T_, epsilon_Td_;
  std::optional<Arena> arena_;
  Tensor tokens_B_;
  router::RouterBatch batch_;
  Context ctx_;
};

}  // namespace switchyard::golden
