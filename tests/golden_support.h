// Shared by the golden tests: a directory of tests/golden, which tools/make_golden.py writes with
// `transformers`, and the same model here.   B sequences of S tokens, T = B*S, V vocabulary, E experts, K slots
// a token
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "config/load.h"
#include "json_values.h"
#include "model/transformer.h"
#include "ops/elementwise.h"
#include "router/router.h"
#include "tensors.h"
#include "train/optimizer.h"
#include "train/token_data.h"

namespace switchyard::golden {

// An expected tensor, read as its file has it.
struct Expected {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};

inline std::vector<std::int64_t> dims(const Shape& shape) {
  std::vector<std::int64_t> list;
  for (int i = 0; i < shape.rank(); ++i) list.push_back(shape[i]);
  return list;
}

class GoldenCase {
 public:
  explicit GoldenCase(const std::string& name)
      : directory_(std::filesystem::path(SWITCHYARD_GOLDEN_DIR) / name),
        weights_(directory_ / "model.safetensors"),
        golden_(directory_ / "golden.safetensors"),
        config_(test::parsed_file(directory_ / "config.json")),
        record_(test::parsed_file(directory_ / "golden.json")) {}

  config::Model model() const {
    const std::filesystem::path path = directory_ / "config.json";
    return config::parse_model(read_text_file(path), path.string());
  }
  // What transformers calls router_aux_loss_coef; 0 in a layout without a balance loss.
  double balance_coef() const { return number_or_0(config_["router_aux_loss_coef"]); }
  double mtp_loss_coef() const { return number_or_0(record_["mtp_loss_coef"]); }
  const Json& optimizer() const { return record_["optimizer"]; }
  const checkpoint::SafetensorsFile& weights() const { return weights_; }

  bool has(const std::string& name) const { return golden_.find(name) != nullptr; }
  Expected expected(const std::string& name) const {
    const checkpoint::StoredTensor* stored = golden_.find(name);
    if (stored == nullptr) throw std::runtime_error(directory_.string() + " has no tensor " + name);
    std::int64_t count = 1;
    for (const std::int64_t dim : stored->shape) count *= dim;
    Expected out{stored->shape, {}};
    for (std::int64_t i = 0; i < count; ++i) {
      const std::byte* at = stored->bytes.data() + i * checkpoint::size_of(stored->type);
      out.values.push_back(stored->type == checkpoint::StoredType::i32 ? load<std::int32_t>(at)
                                                                       : load<float>(at));
    }
    return out;
  }
  // Names of the tensors that begin with `prefix`, without it.
  std::set<std::string> names(const std::string& prefix) const {
    std::set<std::string> out;
    for (const checkpoint::StoredTensor& stored : golden_.tensors())
      if (stored.name.starts_with(prefix)) out.insert(stored.name.substr(prefix.size()));
    return out;
  }

 private:
  template <class T>
  static double load(const std::byte* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return static_cast<double>(value);
  }
  static double number_or_0(const Json& value) { return value.is_null() ? 0 : value.number(); }

  std::filesystem::path directory_;
  checkpoint::SafetensorsFile weights_, golden_;
  Json config_, record_;
};

// |actual - expected| <= relative * |expected| + of_largest * (largest |expected|), element by element.
struct Tolerance {
  double relative;
  double of_largest;
};

inline ::testing::AssertionResult close_to(const Tensor& actual, const Expected& expected,
                                           Tolerance tolerance) {
  if (dims(actual.shape()) != expected.shape)
    return ::testing::AssertionFailure()
           << "shape " << actual.shape().to_string() << " is not that of the file";
  double largest = 0;
  for (const double value : expected.values) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < expected.values.size(); ++i) {
    const double want = expected.values[i], got = test::get(actual, static_cast<std::int64_t>(i));
    const double allowed = tolerance.relative * std::abs(want) + tolerance.of_largest * largest;
    if (!(std::abs(got - want) <= allowed))
      return ::testing::AssertionFailure()
             << "element " << i << " is " << got << ", transformers has " << want << ": "
             << std::abs(got - want) / allowed << " times what is allowed";
  }
  return ::testing::AssertionSuccess();
}

// The model of a case with its weights and its batch: every token predicts the next, the last of a sequence
// nothing.
class GoldenModel {
 public:
  explicit GoldenModel(const GoldenCase& golden)
      : golden_(golden),
        tokens_(golden.expected("tokens")),
        model_(golden.model(), router_of(golden), DType::f32, true),
        buffers_(n_seq(), seq_len(), std::nullopt, model_.config().sliding_window),
        target_T_({n_seq() * seq_len()}, DType::i32),
        loss_T_({n_seq() * seq_len()}, DType::f32),
        mtp_loss_KT_({std::max<std::int64_t>(1, model_.n_mtp_depths()), n_seq() * seq_len()}, DType::f32) {
    model_.allocate();
    model_.plan(n_seq(), seq_len(), ctx_);
    for (std::int64_t b = 0; b < n_seq(); ++b) {
      std::vector<std::int32_t> window;
      for (std::int64_t s = 0; s < seq_len(); ++s)
        window.push_back(
            static_cast<std::int32_t>(tokens_.values[static_cast<std::size_t>(b * seq_len() + s)]));
      window.push_back(window.back());  // stands for the target that there is not
      buffers_.set_sequence(b, window);
    }
    batch_ = buffers_.on_host();
    for (std::int64_t t = 0; t < n_seq() * seq_len(); ++t)
      test::set(target_T_, t, (t + 1) % seq_len() == 0 ? -1 : test::get(batch_.target_T, t));
    batch_.target_T = target_T_;
  }

  model::Transformer& model() { return model_; }
  Context& ctx() { return ctx_; }
  std::int64_t n_seq() const { return tokens_.shape[0]; }
  std::int64_t seq_len() const { return tokens_.shape[1]; }

  // Every parameter from the file, and nothing in the file that is not a parameter.
  void load_weights() {
    ParameterStore& store = model_.parameters();
    std::set<std::string> unused;
    for (const checkpoint::StoredTensor& stored : golden_.weights().tensors())
      if (!stored.bytes.empty()) unused.insert(stored.name);  // shared experts of width 0
    for (std::size_t i = 0; i < store.rows().size(); ++i) {
      const std::string& name = store.rows()[i].name;
      const checkpoint::StoredTensor* stored = golden_.weights().find(name);
      ASSERT_NE(stored, nullptr) << "the file has no " << name;
      golden_.weights().read(*stored, store.value(i));
      unused.erase(name);
    }
    EXPECT_TRUE(unused.empty()) << "not a parameter here: " << *unused.begin();
  }

  void forward() {
    model_.forward(batch_, ctx_);
    model_.forward_mtp(batch_, ctx_);
  }
  struct Loss {
    double cross_entropy, balance;
    double mtp;  // mean over depths
  };
  // Of the last forward pass; gradients are added to the store's.
  Loss loss_and_backward() {
    double auxiliary[3] = {};  // balance, z, the routers' own
    model_.routing().add_losses(Tensor(auxiliary, Shape{3}, DType::f64), batch_.tokens_B,
                                {.n_tokens = n_seq() * seq_len(), .n_sequences = n_seq()}, ctx_);
    const double targets = static_cast<double>(n_seq() * (seq_len() - 1));
    // At depth k all but the last k + 1 of a sequence have a target.
    std::vector<double> share_K, dloss_K;
    const std::int64_t depths = model_.n_mtp_depths();
    for (std::int64_t k = 1; k <= depths; ++k) {
      share_K.push_back(1.0 / static_cast<double>(depths * n_seq() * (seq_len() - 1 - k)));
      dloss_K.push_back(golden_.mtp_loss_coef() * share_K.back());
    }
    const model::MtpLoss mtp{mtp_loss_KT_, dloss_K};
    model_.loss_and_backward(loss_T_, batch_, 1.0 / targets, ctx_, &mtp);
    const auto sum = [](const Tensor& tensor) {
      const std::vector<double> losses = test::values(tensor);
      return std::accumulate(losses.begin(), losses.end(), 0.0);
    };
    double mtp_loss = 0;
    for (std::int64_t k = 0; k < depths; ++k)
      mtp_loss += share_K[static_cast<std::size_t>(k)] * sum(mtp_loss_KT_.view().slice(k, 1));
    return {sum(loss_T_) / targets, auxiliary[0], mtp_loss};
  }

  // [B,S,V], of the last forward pass.
  test::OwnedTensor logits() {
    const std::int64_t vocab = model_.config().vocab_size;
    test::OwnedTensor logits_BSV({n_seq(), seq_len(), vocab}, DType::f32);
    model_.logits(logits_BSV.view().reshape({n_seq() * seq_len(), vocab}), ctx_);
    return logits_BSV;
  }

 private:
  static config::Router router_of(const GoldenCase& golden) {
    config::Router router = config::default_router(*golden.model().layout, router::router_schemas());
    router.balance_coef = golden.balance_coef();
    router.balance_scope = config::BalanceScope::model;
    return router;
  }

  const GoldenCase& golden_;
  Expected tokens_;
  model::Transformer model_;
  train::BatchBuffers buffers_;
  test::OwnedTensor target_T_, loss_T_, mtp_loss_KT_;
  model::Batch batch_;
  Context ctx_;
};

class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  Golden() : golden_(GetParam()), here_(golden_) {}
  void SetUp() override { here_.load_weights(); }

  // Float32 sums of a few dozen terms in two orders differ by some 1e-7 of the largest term; the bound leaves
  // room for three layers. An element that nearly cancels is compared with the tensor's largest.
  static constexpr Tolerance kForward{.relative = 0, .of_largest = 1e-5};
  // The same, through the backward pass; elements far below the largest are small because large terms cancel,
  // and keep the rounding of those: a few 1e-6 of the largest.
  static constexpr Tolerance kGradient{.relative = 1e-4, .of_largest = 1e-5};
  // AdamW divides the gradient's mean by its own size, so that a gradient near zero moves its weight by up to
  // the learning rate with the rounding's sign. make_golden.py keeps only seeds where one bit of noise in the
  // weights costs at most a quarter of this.
  static constexpr Tolerance kAfterFiveSteps{.relative = 0, .of_largest = 1e-4};

  GoldenCase golden_;
  GoldenModel here_;
};

inline std::string case_name(const ::testing::TestParamInfo<const char*>& test) { return test.param; }

}  // namespace switchyard::golden
