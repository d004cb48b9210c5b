// A small store, a small run and whole files, for the tests of checkpoints and of training.
#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "config/config.h"
#include "config/layouts.h"
#include "core/parameters.h"
#include "temp_dir.h"

namespace switchyard::test {

// What a line of metrics.jsonl says of the machine and the hour.
constexpr const char* kOfTheClock[] = {"tokens_per_second", "wall_time", "train_seconds", "memory_bytes",
                                       "product_rate_share"};

inline std::string slurp(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return std::move(text).str();
}

inline std::string bytes_of(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.raw()), static_cast<std::size_t>(tensor.nbytes())};
}

// Rows of odd sizes, in two groups; `wide` sets the size of the largest.
inline ParameterStore small_store(bool training = true, std::int64_t wide = 31, DType dtype = DType::f32) {
  ParameterStore store;
  store.begin_group();
  store.add({.name = "model.embed_tokens.weight", .shape = {wide, 8}, .init_std = 0.02});
  store.add({.name = "model.layers.0.mlp.experts.0.gate_proj.weight", .shape = {7, 9}, .init_std = 0.1});
  store.begin_group();
  store.add({.name = "model.norm.weight", .shape = {9}, .init = Init::ones, .weight_decay = false});
  store.allocate(dtype, training);
  store.initialise(5);
  return store;
}

// Fills gradients' neighbours, the moments, with values that no initialisation gives.
inline void fill_moments(ParameterStore& store, float salt) {
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    float* const m1 = store.moment1(i).as<float>();
    float* const m2 = store.moment2(i).as<float>();
    for (std::int64_t j = 0; j < store.moment1(i).numel(); ++j) {
      m1[j] = salt + 0.1f * static_cast<float>(j);
      m2[j] = salt * salt + 0.3f / static_cast<float>(j + 1);
    }
  }
}

inline config::Run small_run() {
  config::Run run;
  run.model.layout = &config::kQwen3Moe;
  run.model.vocab_size = 31;
  run.model.hidden_size = 8;
  run.model.num_hidden_layers = 1;
  run.model.num_attention_heads = 2;
  run.model.num_key_value_heads = 1;
  run.model.head_dim = 4;
  run.model.intermediate_size = 0;  // no layer is dense
  run.model.moe_intermediate_size = 7;
  run.model.num_experts = 4;
  run.model.num_experts_per_tok = 2;
  config::set_layers(run.model, {true});
  run.model.qk_norm = config::QkNorm::head;
  run.model.max_position_embeddings = 64;
  run.train.seed = 5;
  run.train.steps = 100;
  run.resolved_json = R"({"model": {"vocab_size": 31}, "train": {"seed": 5, "lr": 0.1}})";
  return run;
}

}  // namespace switchyard::test
