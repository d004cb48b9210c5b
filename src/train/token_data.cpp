#include "train/token_data.h"

#include <algorithm>

namespace switchyard::train {

namespace {

struct DomainFiles {
  std::string name;
  std::optional<double> weight;
  std::vector<std::filesystem::path> paths;
};

Tensor view(std::vector<std::int32_t>& values) {
  return Tensor(values.data(), Shape{static_cast<std::int64_t>(values.size())}, DType::i32);
}

std::vector<DomainFiles> find_files(const std::vector<config::DataEntry>& entries) {
  std::vector<DomainFiles> domains;
  for (const config::DataEntry& entry : entries) {
    auto at =
        std::find_if(domains.begin(), domains.end(), [&](const auto& d) { return d.name == entry.domain; });
    if (at == domains.end()) at = domains.insert(at, DomainFiles{entry.domain, std::nullopt, {}});
    for (const auto& path : data::expand_shards(entry.path)) at->paths.push_back(path);
    at->weight = entry.weight;  // the domain's: the same in all its entries
  }
  return domains;
}

}  // namespace

std::vector<Domain> open_domains(const std::vector<config::DataEntry>& entries, std::int64_t vocab_size) {
  std::vector<Domain> domains;
  for (const DomainFiles& files : find_files(entries)) {
    domains.push_back({files.name, files.weight, data::TokenStream(files.paths, vocab_size)});
    domains.back().stream.verify();
  }
  return domains;
}

std::int64_t find_eot_token(const config::Data& data, std::int64_t vocab_size) {
  std::optional<std::int64_t> eot = data.eot_token;
  for (const auto* entries : {&data.train, &data.validation}) {
    if (data.eot_token) break;
    for (const DomainFiles& files : find_files(*entries)) {
      const auto found = data::eot_token_beside(files.paths);
      if (found && eot && *found != *eot)
        throw_input(
            "data.document_mask: the meta.json files beside the shards name end-of-text tokens {} and {}; "
            "prepare all data with one tokenizer, or set data.eot_token",
            *eot, *found);
      if (found) eot = found;
    }
  }
  if (!eot)
    throw_input(
        "data.document_mask needs the end-of-text token, and no meta.json beside the shards names it; set "
        "data.eot_token");
  if (*eot < 0 || *eot >= vocab_size)
    throw_input("data.eot_token: {} is not a token of a vocabulary of {}", *eot, vocab_size);
  return *eot;
}

BatchBuffers::BatchBuffers(std::int64_t n_seq, std::int64_t seq_len, std::optional<std::int64_t> eot_token,
                           std::int64_t sliding_window, Device device)
    : token_T_(static_cast<std::size_t>(n_seq * seq_len), -1),
      target_T_(token_T_.size(), -1),
      kv_begin_T_(token_T_.size(), 0),
      tokens_B_(static_cast<std::size_t>(n_seq), 0),
      eot_token_(eot_token),
      sliding_window_(sliding_window),
      token_copy_T_(device, view(token_T_)),
      target_copy_T_(device, view(target_T_)),
      kv_begin_copy_T_(device, view(kv_begin_T_)),
      batch_{token_copy_T_.tensor(), target_copy_T_.tensor(), kv_begin_copy_T_.tensor(), n_seq, seq_len} {}

const model::Batch& BatchBuffers::batch() const {
  if (stale_) {
    for (const CopyOn* each : {&token_copy_T_, &target_copy_T_, &kv_begin_copy_T_}) each->refresh();
    stale_ = false;
  }
  return batch_;
}

void BatchBuffers::set_sequence(std::int64_t b, std::span<const std::int32_t> window) {
  const auto seq_len = static_cast<std::size_t>(batch_.seq_len);
  const std::size_t first = static_cast<std::size_t>(b) * seq_len;
  const std::size_t inputs = window.empty() ? 0 : window.size() - 1;
  SY_CHECK(inputs <= seq_len && b < batch_.n_seq, "a window of {} tokens for sequences of {}", window.size(),
           seq_len);
  stale_ = true;
  std::int64_t document = 0;
  for (std::size_t i = 0; i < seq_len; ++i) {
    const auto position = static_cast<std::int64_t>(i);
    const bool real = i < inputs;
    if (real && eot_token_ && window[i] == *eot_token_) document = position;
    token_T_[first + i] = real ? window[i] : -1;
    target_T_[first + i] = real ? window[i + 1] : -1;
    const std::int64_t window_begin = sliding_window_ > 0 ? position - sliding_window_ + 1 : 0;
    kv_begin_T_[first + i] = static_cast<std::int32_t>(std::max(document, window_begin));
  }
  tokens_B_[static_cast<std::size_t>(b)] = static_cast<std::int64_t>(inputs);
}

}  // namespace switchyard::train
