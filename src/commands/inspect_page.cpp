#include "commands/inspect_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "checkpoint/tokenizer_record.h"
#include "config/byte_size.h"
#include "config/layouts.h"
#include "config/names.h"
#include "core/json.h"
#include "core/log.h"
#include "model/cost.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;
using Pieces = std::vector<std::string>;  // a value; a line is broken between two pieces only

constexpr std::size_t kNameWidth = 13;
constexpr std::size_t kValueWidth = 100;
constexpr std::size_t kMostDomains = 6;

class Page {
 public:
  void add(std::string_view name, const Pieces& pieces) {
    std::string line;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::string piece = pieces[i] + (i + 1 < pieces.size() ? ", " : "");
      if (!line.empty() && line.size() + pieces[i].size() > kValueWidth) {
        put(std::exchange(name, ""), line);
        line.clear();
      }
      line += piece;
    }
    put(name, line);
  }
  const std::string& text() const { return text_; }

 private:
  void put(std::string_view name, std::string_view line) {
    while (line.ends_with(' ')) line.remove_suffix(1);
    text_ += fmt::format("{:<{}}{}\n", name, kNameWidth, line);
  }
  std::string text_;
};

std::string count(std::int64_t value) { return format_count(static_cast<double>(value)); }

void add_weights(Page& page, const checkpoint::ModelDirectory& directory) {
  const auto& files = directory.weights().files();
  std::map<std::string, std::int64_t> tensors_of;
  for (const checkpoint::SafetensorsFile& file : files)
    for (const checkpoint::StoredTensor& tensor : file.tensors())
      ++tensors_of[checkpoint::name_of(tensor.type)];
  Pieces pieces;
  for (const auto& [type, tensors] : tensors_of)
    pieces.push_back(fmt::format("{} tensor{} of {}", tensors, tensors == 1 ? "" : "s", type));
  const auto name = [](const checkpoint::SafetensorsFile& file) {
    return printable(file.path().filename().string());
  };
  pieces.push_back(files.size() == 1 ? "file " + name(files.front())
                                     : fmt::format("{} files from {} to {}", files.size(), name(files.front()),
                                                   name(files.back())));
  page.add("weights", pieces);
}

void add_parameters(Page& page, const config::Model& model, const config::Router& router) {
  const model::ParameterCount found = model::count_parameters(model, router);
  Pieces pieces{count(found.total) + " in total", count(found.active) + " active per token"};
  if (model.num_nextn_predict_layers > 0)
    pieces.push_back(count(found.mtp) + " besides for multi-token prediction");
  page.add("parameters", pieces);
  Pieces parts;
  for (const auto& [part, values] : found.parts) parts.push_back(fmt::format("{} {}", part, count(values)));
  page.add("", parts);
}

void add_progress(Page& page, const checkpoint::RunState& state, const config::Run& run) {
  Pieces pieces{fmt::format("step {} of {}", state.step, run.train.steps), count(state.tokens) + " tokens",
                fmt::format("{:.2f} hours of training ({})", state.train_seconds / 3600,
                            format_duration(state.train_seconds))};
  page.add("progress", pieces);
  Pieces updates{fmt::format("{} of the weights", state.updates)};
  if (state.spikes.skipped > 0) updates.push_back(fmt::format("skipped {}", state.spikes.skipped));
  if (state.spikes.rollbacks > 0) updates.push_back(fmt::format("rollbacks {}", state.spikes.rollbacks));
  if (state.updates != 0 || updates.size() > 1) page.add("updates", updates);
  Pieces losses;
  if (!state.spikes.losses.empty()) {
    losses.push_back(fmt::format("training {:.4f}", state.spikes.losses.back()));
    losses.push_back(fmt::format("median of the newest {} steps {:.4f}",
                                 std::min(state.spikes.losses.size(), checkpoint::kRecent),
                                 checkpoint::recent_loss(state.spikes)));
  }
  losses.push_back(state.val_loss ? fmt::format("validation {:.4f}", *state.val_loss)
                                  : "not validated at this step");
  page.add("loss", losses);
}

Pieces attention_of(const config::Model& model) {
  Pieces pieces{fmt::format("num_attention_heads {}", model.num_attention_heads)};
  if (model.mla) {
    pieces.insert(pieces.end(), {fmt::format("q_lora_rank {}", model.mla->q_lora_rank),
                                 fmt::format("kv_lora_rank {}", model.mla->kv_lora_rank),
                                 fmt::format("qk_nope_head_dim {}", model.mla->qk_nope_head_dim),
                                 fmt::format("qk_rope_head_dim {}", model.mla->qk_rope_head_dim),
                                 fmt::format("v_head_dim {}", model.mla->v_head_dim)});
  } else {
    pieces.insert(pieces.end(), {fmt::format("num_key_value_heads {}", model.num_key_value_heads),
                                 fmt::format("head_dim {}", model.head_dim)});
  }
  if (model.sliding_window > 0) pieces.push_back(fmt::format("sliding_window {}", model.sliding_window));
  pieces.push_back(fmt::format("rope_theta {}", model.rope.theta));
  if (model.rope.type != config::RopeType::unscaled)
    pieces.push_back(fmt::format("rope {} factor {}", name_of(model.rope.type), model.rope.factor));
  return pieces;
}

// "0-2, 7"
std::string ranges_of(const std::vector<config::LayerSpec>& layers, bool moe) {
  std::string text;
  for (std::size_t first = 0; first < layers.size(); ++first) {
    if (layers[first].moe != moe) continue;
    std::size_t last = first;
    while (last + 1 < layers.size() && layers[last + 1].moe == moe) ++last;
    text += text.empty() ? "" : ", ";
    text += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
    first = last;
  }
  return text;
}

void add_layers(Page& page, const config::Model& model, const config::Router& router) {
  std::string experts =
      fmt::format("{} experts x {}, {}{} a token", model.num_experts, model.moe_intermediate_size,
                  router.own.has("max_experts") ? "up to " : "", config::slots_per_token(router, model));
  if (model.n_shared_experts > 0) experts += fmt::format(", {} shared", model.n_shared_experts);
  for (const bool moe : {false, true}) {
    const std::string layers = ranges_of(model.layers, moe);
    if (layers.empty()) continue;
    page.add("layers",
             {fmt::format("{}: {}", layers, moe ? experts : fmt::format("dense {}", model.intermediate_size))});
  }
  if (model.num_nextn_predict_layers > 0)
    page.add("", {fmt::format("{} more for multi-token prediction", model.num_nextn_predict_layers)});
}

void add_layout(Page& page, const config::Model& model, const config::Router& router) {
  page.add("layout", {std::string(model.layout->name), fmt::format("hidden_size {}", model.hidden_size),
                      fmt::format("num_hidden_layers {}", model.num_hidden_layers),
                      fmt::format("vocab_size {}", model.vocab_size),
                      fmt::format("max_position_embeddings {}", model.max_position_embeddings),
                      fmt::format("tie_word_embeddings {}", model.tie_word_embeddings)});
  page.add("attention", attention_of(model));
  add_layers(page, model, router);
  if (model.num_experts == 0) return;
  Pieces experts{fmt::format("num_experts {}", model.num_experts),
                 fmt::format("num_experts_per_tok {}", model.num_experts_per_tok),
                 fmt::format("moe_intermediate_size {}", model.moe_intermediate_size)};
  if (model.n_shared_experts > 0) experts.push_back(fmt::format("n_shared_experts {}", model.n_shared_experts));
  if (model.n_group > 1) {
    experts.push_back(fmt::format("n_group {}", model.n_group));
    experts.push_back(fmt::format("topk_group {}", model.topk_group));
  }
  page.add("experts", experts);
  Pieces options{router.type, fmt::format("balance_coef {}", router.balance_coef),
                 fmt::format("balance_scope {}", config::name_of(router.balance_scope)),
                 fmt::format("z_loss_coef {}", router.z_loss_coef)};
  if (router.variance_coef > 0) options.push_back(fmt::format("variance_coef {}", router.variance_coef));
  if (router.orthogonality_coef > 0)
    options.push_back(fmt::format("orthogonality_coef {}", router.orthogonality_coef));
  if (router.capacity_factor) options.push_back(fmt::format("capacity_factor {}", *router.capacity_factor));
  if (router.jitter > 0) options.push_back(fmt::format("jitter {}", router.jitter));
  if (router.logit_norm > 0) options.push_back(fmt::format("logit_norm {}", router.logit_norm));
  if (router.num_hash_layers > 0) options.push_back(fmt::format("num_hash_layers {}", router.num_hash_layers));
  for (const auto& [key, value] : router.own.all())
    options.push_back(std::visit([&key = key](const auto& v) { return fmt::format("{} {}", key, v); }, value));
  page.add("router", options);
}

// A line a domain: its name, its first path and how many more it has.
void add_data(Page& page, std::string_view name, const std::vector<config::DataEntry>& entries) {
  std::vector<std::string> domains;
  std::map<std::string, std::vector<const config::DataEntry*>> entries_of;
  for (const config::DataEntry& entry : entries) {
    auto& list = entries_of[entry.domain];
    if (list.empty()) domains.push_back(entry.domain);
    list.push_back(&entry);
  }
  for (std::size_t i = 0; i < std::min(domains.size(), kMostDomains); ++i) {
    const auto& list = entries_of[domains[i]];
    std::string line = fmt::format("{}: {}", printable(domains[i]), printable(list.front()->path));
    if (list.size() > 1) line += fmt::format(" and {} more", list.size() - 1);
    if (list.front()->weight) line += fmt::format(", weight {}", *list.front()->weight);
    page.add(std::exchange(name, ""), {line});
  }
  if (domains.size() > kMostDomains)
    page.add("", {fmt::format("and {} more domains", domains.size() - kMostDomains)});
}

void add_run(Page& page, const config::Run& run) {
  page.add("training",
           {fmt::format("seq_len {}", run.train.seq_len),
            fmt::format("global_batch_size {}", run.train.global_batch_size),
            fmt::format("dtype {}", name_of(run.train.dtype)), fmt::format("lr {}", run.train.lr),
            fmt::format("schedule {}", name_of(run.train.schedule)), fmt::format("seed {}", run.train.seed)});
  add_data(page, "data", run.data.train);
  add_data(page, "validation", run.data.validation);
}

void add_tokenizer(Page& page, const fs::path& directory) {
  Pieces pieces;
  if (const auto record = checkpoint::tokenizer_record_in(directory)) {
    pieces.push_back(printable(record->tokenizer));
  } else {
    pieces.emplace_back(fs::exists(directory / checkpoint::kTokenizer) ? checkpoint::kTokenizer
                                                                       : "none recorded");
  }
  const data::SpecialTokens around = checkpoint::special_tokens_of_model(directory);
  if (around.begin) pieces.push_back(fmt::format("begin token {}", *around.begin));
  if (around.eot) pieces.push_back(fmt::format("end token {}", *around.eot));
  page.add("tokenizer", pieces);
}

}  // namespace

std::uint64_t bytes_of(const checkpoint::ModelDirectory& directory) {
  if (directory.checkpoint()) return directory.checkpoint()->total_bytes();
  std::uint64_t bytes = 0;
  for (const checkpoint::SafetensorsFile& file : directory.weights().files())
    bytes += fs::file_size(file.path());
  return bytes;
}

std::string model_page(const checkpoint::ModelDirectory& directory) {
  const config::Model& model = directory.model();
  const config::Router router = directory.router();
  const std::optional<config::Run> run = directory.run();
  Page page;
  page.add("path", {printable(directory.path().string())});
  page.add("kind", {run ? "checkpoint of a run" : "Hugging Face model directory"});
  page.add("size", {config::format_byte_size(bytes_of(directory)) + (run ? "" : " of weights")});
  add_weights(page, directory);
  add_parameters(page, model, router);
  if (run) add_progress(page, directory.checkpoint()->state(), *run);
  add_layout(page, model, router);
  if (run) add_run(page, *run);
  add_tokenizer(page, directory.path());
  return page.text();
}

}  // namespace switchyard::commands
