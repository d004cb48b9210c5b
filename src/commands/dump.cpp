// One step on one batch, tensor by tensor, under the names of tests/golden's files. Targets are the next
// tokens; the last token of a sequence has none.   B sequences of S tokens, T = B*S, V vocabulary, K slots a
// token
#include <algorithm>
#include <numeric>

#include "checkpoint/model_directory.h"
#include "checkpoint/weights_files.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "config/layouts.h"
#include "config/load.h"
#include "core/error.h"
#include "core/json.h"
#include "model/transformer.h"
#include "router/router.h"
#include "train/token_data.h"

namespace switchyard::commands {

namespace {

// Everything of one step on one batch, for tools/compare_hf.py.
struct Options {
  std::string directory;  // config.json and model*.safetensors, as Hugging Face has them
  std::string tokens;     // safetensors: "tokens", I32 [sequences, length]
  std::string out;        // safetensors
};

void describe(CLI::App& app, Options& options) {
  app.add_option("DIR", options.directory, "A Hugging Face model directory: config.json and model*.safetensors")
      ->required();
  app.add_option("--tokens", options.tokens, "safetensors with 'tokens', I32 [sequences, length]")
      ->type_name("FILE")
      ->required();
  app.add_option("--out", options.out, "Where to write the tensors, as safetensors")
      ->type_name("FILE")
      ->required();
  app.footer(
      "Writes logits, cross_entropy, loss (with balance and z loss, a run's or what config.json has of them), "
      "experts.LAYER, weights.LAYER and grad.NAME of one\n"
      "batch in which every token predicts the next: what tools/compare_hf.py compares with transformers. What "
      "a router "
      "has of losses of its own it measures in training alone: their gradients are there, their value is not");
}

// [B, S] of the tokens file.
struct Tokens {
  std::int64_t n_seq = 0, seq_len = 0;
  std::vector<std::int32_t> values;
};

Tokens read_tokens(const std::string& path, std::int64_t vocab_size) {
  const checkpoint::SafetensorsFile file(path);
  const checkpoint::StoredTensor* stored = file.find("tokens");
  if (stored == nullptr || stored->type != checkpoint::StoredType::i32 || stored->shape.size() != 2)
    throw_input("{}: holds no tensor \"tokens\" of type I32 and shape [sequences, length]", path);
  Tokens tokens{stored->shape[0], stored->shape[1], {}};
  if (tokens.n_seq < 1 || tokens.seq_len < 2)
    throw_input("{}: tokens are {}; at least one sequence of two is needed", path, stored->shape_string());
  tokens.values.resize(static_cast<std::size_t>(tokens.n_seq * tokens.seq_len));
  file.read(*stored, Tensor(tokens.values.data(), Shape{tokens.n_seq, tokens.seq_len}, DType::i32));
  for (const std::int32_t token : tokens.values)
    if (token < 0 || token >= vocab_size)
      throw_input("{}: token {} is outside the vocabulary of {}", path, token, vocab_size);
  return tokens;
}

// Where a config.json does not say, what transformers takes.
double balance_coef(const std::string& config_json, const config::Layout& layout) {
  const Json config = parse_stored_json(config_json, "config.json");
  const Json* stated = config.find("router_aux_loss_coef");
  return stated != nullptr && stated->is_number() ? stated->number() : layout.router_aux_loss_coef.value_or(0);
}

int run(const Options& options) {
  const checkpoint::ModelDirectory directory(options.directory);
  const std::string& config_json = directory.config_json();
  const config::Model& config = directory.model();
  const Tokens tokens = read_tokens(options.tokens, config.vocab_size);
  const std::int64_t B = tokens.n_seq, S = tokens.seq_len, T = B * S;

  config::Router router = directory.router();
  if (!directory.run() && parse_stored_json(config_json, "config.json")["router"].is_null()) {
    router.balance_coef = balance_coef(config_json, *config.layout);
    router.balance_scope = config::BalanceScope::model;
  }
  Context ctx;
  const auto opened =
      checkpoint::open_model(directory, {.dtype = "float32", .router = router, .training = true}, ctx);
  model::Transformer& model = *opened;
  model.plan(B, S, ctx);

  train::BatchBuffers buffers(B, S, std::nullopt, config.sliding_window);
  std::vector<std::int32_t> target_T(static_cast<std::size_t>(T));
  for (std::int64_t b = 0; b < B; ++b) {
    const auto first = tokens.values.begin() + b * S;
    std::vector<std::int32_t> window(first, first + S);
    window.push_back(0);  // stands for the target that there is not
    buffers.set_sequence(b, window);
    std::copy(first + 1, first + S, target_T.begin() + b * S);
    target_T[static_cast<std::size_t>((b + 1) * S - 1)] = -1;
  }
  model::Batch batch = buffers.load(ctx);
  batch.target_T = Tensor(target_T.data(), Shape{T}, DType::i32);

  model.forward(batch, ctx);
  std::vector<float> logits(static_cast<std::size_t>(T * config.vocab_size));
  model.logits(Tensor(logits.data(), Shape{T, config.vocab_size}, DType::f32), ctx);
  double auxiliary[3] = {};  // balance, z, the routers' own
  model.routing().begin(ctx);
  model.routing().add_micro_batch(ctx);
  model.routing().add_losses(Tensor(auxiliary, Shape{3}, DType::f64), batch.tokens_B,
                             {.n_tokens = T, .n_sequences = B}, ctx);
  const double n_targets = static_cast<double>(B * (S - 1));
  std::vector<float> loss_T(static_cast<std::size_t>(T));
  model.loss_and_backward(Tensor(loss_T.data(), Shape{T}, DType::f32), batch, 1.0 / n_targets, ctx);
  const double mean = std::accumulate(loss_T.begin(), loss_T.end(), 0.0) / n_targets;
  float cross_entropy = static_cast<float>(mean);
  float loss = static_cast<float>(mean + auxiliary[0] + auxiliary[1]);

  std::vector<checkpoint::NamedTensor> out;
  out.push_back({"logits", Tensor(logits.data(), Shape{B, S, config.vocab_size}, DType::f32)});
  out.push_back({"cross_entropy", Tensor(&cross_entropy, Shape{1}, DType::f32)});
  out.push_back({"loss", Tensor(&loss, Shape{1}, DType::f32)});
  const std::vector<router::RoutingDecision> decisions = model.routing().decisions();
  for (std::size_t l = 0; l < decisions.size(); ++l) {
    const std::string layer = std::to_string(model.routing().layer(static_cast<std::int64_t>(l)).layer());
    out.push_back({"experts." + layer, decisions[l].expert_TK});
    out.push_back({"weights." + layer, decisions[l].weight_TK});
  }
  const ParameterStore& store = model.parameters();
  for (std::size_t i = 0; i < store.rows().size(); ++i)
    if (store.rows()[i].trained) out.push_back({"grad." + store.rows()[i].name, store.grad(i)});
  checkpoint::write_safetensors(options.out, out);
  return 0;
}

}  // namespace

const Command kDump = {"dump", "One step on one batch, tensor by tensor, to compare with others",
                       with_options<Options, describe, run>};

}  // namespace switchyard::commands
