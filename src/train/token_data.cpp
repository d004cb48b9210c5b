#include "train/token_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "core/file.h"
#include "core/log.h"
#include "core/progress.h"
#include "ops/device.h"

namespace switchyard::train {

namespace {

std::vector<data::Sampler::Domain> sampler_domains(const std::vector<Domain>& domains) {
  std::vector<data::Sampler::Domain> list;
  for (const Domain& domain : domains) list.push_back({domain.name, domain.stream.size(), domain.weight});
  return list;
}

}  // namespace

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

namespace {

// Each number is one rank's and 0 on the others: as doubles, they add up exactly.
void add_over_ranks(std::vector<std::uint32_t>& numbers, const parallel::Group& all) {
  std::vector<double> sums(numbers.begin(), numbers.end());
  all.sum_numbers(sums);
  std::transform(sums.begin(), sums.end(), numbers.begin(),
                 [](double sum) { return static_cast<std::uint32_t>(sum); });
}

// Throws InputError on all ranks where one of them sees other shards than the first: another number of them,
// another size, other tokens at the beginning. The rest of a shard is read by one rank alone.
void expect_same_view(const Domain& domain, const parallel::Group& all) {
  std::string view;
  for (const data::Shard& shard : domain.stream.shards()) {
    const auto head = shard.tokens().first(std::min<std::size_t>(shard.tokens().size(), 64 << 10));
    view += fmt::format("{} {} {:08x}\n", shard.path().filename().string(), shard.size(), crc32(head));
  }
  const std::vector<std::string> views = all.gather_text(view);
  for (std::size_t rank = 1; rank < views.size(); ++rank)
    if (views[rank] != views[0])
      throw_input(
          "rank {} does not see the shards of domain {} that rank 0 sees, {} from {} on; give all machines the "
          "same "
          "files under the same paths",
          rank, domain.name, domain.stream.shards().size(), domain.stream.shards().front().path().string());
}

}  // namespace

std::vector<Domain> open_domains(const std::vector<config::DataEntry>& entries, std::int64_t vocab_size,
                                 const parallel::Group& all) {
  std::vector<Domain> domains;
  for (const DomainFiles& files : find_files(entries)) {
    domains.push_back({files.name, files.weight, data::TokenStream(files.paths, vocab_size), {}, {}});
    Domain& domain = domains.back();
    mark("opening of domain", std::ssize(domains) - 1);
    expect_same_view(domain, all);
    for (std::size_t shard = 0; shard < domain.stream.shards().size(); ++shard) {
      const bool mine = shard % static_cast<std::size_t>(all.size()) == static_cast<std::size_t>(all.place());
      domain.crc_of_shard.push_back(mine ? domain.stream.verify(shard) : 0);
    }
    add_over_ranks(domain.crc_of_shard, all);
    domain.text = data::text_size_beside(domain.stream.shards());
  }
  return domains;
}

std::int64_t find_begin_token(const config::Data& data, std::int64_t vocab_size) {
  std::optional<std::int64_t> begin = data.begin_token ? data.begin_token : data.eot_token;
  const bool given = begin.has_value();
  for (const auto* entries : {&data.train, &data.validation}) {
    if (given) break;
    for (const DomainFiles& files : find_files(*entries)) {
      const auto found = data::special_tokens_beside(files.paths).begin;
      if (found && begin && *found != *begin)
        throw_input(
            "data.document_mask: by the meta.json files beside the shards documents begin with token {} and "
            "with token {}; prepare all data with one tokenizer, or set data.begin_token",
            *begin, *found);
      if (found) begin = found;
    }
  }
  if (!begin)
    throw_input(
        "data.document_mask needs the token that documents begin with, and no meta.json beside the shards "
        "names it; set data.begin_token, or data.eot_token where it is that");
  if (*begin < 0 || *begin >= vocab_size)
    throw_input("data.begin_token: {} is not a token of a vocabulary of {}", *begin, vocab_size);
  return *begin;
}

data::SpecialTokens special_tokens_of(const config::Data& data) {
  try {
    std::vector<std::filesystem::path> paths;
    for (const DomainFiles& files : find_files(data.train))
      paths.insert(paths.end(), files.paths.begin(), files.paths.end());
    return data::special_tokens_beside(paths);
  } catch (const InputError&) {
    return {};
  }
}

TrainingData::TrainingData(const config::Run& run, const parallel::Group& all)
    : begin_token(run.data.document_mask ? std::optional(find_begin_token(run.data, run.model.vocab_size))
                                         : std::nullopt),
      train(open_domains(run.data.train, run.model.vocab_size, all)),
      validation(open_domains(run.data.validation, run.model.vocab_size, all)),
      sampler(sampler_domains(train), run.train.seq_len, run.train.seed) {
  if (run.train.eval_mix == config::EvalMix::training) {
    const std::vector<double> shares = training_shares();  // refused before anything else
    if (all.place() == 0) warn_of_short_validation(run.train, shares);
  }
  if (all.place() == 0) warn_of_equal_shards();
}

// Of each domain as many windows are evaluated as its share asks for, and no more than there are.
void TrainingData::warn_of_short_validation(const config::Train& options,
                                            const std::vector<double>& share_V) const {
  double most =
      std::numeric_limits<double>::infinity();  // train.eval_tokens for which every text is long enough
  std::string short_of;
  for (std::size_t d = 0; d < validation.size(); ++d) {
    const auto tokens =
        static_cast<double>((validation[d].stream.size() - 1) / options.seq_len * options.seq_len);
    const double share = share_V[d] * static_cast<double>(validation.size());
    if (share <= 0) continue;
    if (tokens + 0.5 * static_cast<double>(options.seq_len) < share * static_cast<double>(options.eval_tokens))
      short_of += fmt::format("{}{}", short_of.empty() ? "" : ", ", validation[d].name);
    most = std::min(most, tokens / share);
  }
  if (!short_of.empty())
    log_warning(fmt::format(
        "train.eval_mix \"training\": the validation text of domain {} is too short for its share of "
        "train.eval_tokens {}, so that the loss is of another mixture than training's; give more of it{}",
        short_of, options.eval_tokens,
        most >= 1 ? fmt::format(", or lower train.eval_tokens to {:.0f}", std::floor(most)) : ""));
}

// A text that is trained on says nothing as validation; one that is given twice is read twice.
void TrainingData::warn_of_equal_shards() const {
  std::map<std::pair<std::uint32_t, std::int64_t>, std::string> shard_of;  // of data.train, by sum and size
  for (const bool trains : {true, false}) {
    std::int64_t count = 0;
    std::string first;
    for (const Domain& domain : trains ? train : validation) {
      for (std::size_t i = 0; i < domain.stream.shards().size(); ++i) {
        const data::Shard& shard = domain.stream.shards()[i];
        const std::pair<std::uint32_t, std::int64_t> key(domain.crc_of_shard[i], shard.size());
        const auto found = shard_of.find(key);
        if (found == shard_of.end()) {
          if (trains) shard_of.emplace(key, shard.path().string());
        } else if (count++ == 0) {
          first =
              fmt::format("{} holds the same tokens as {} of data.train", shard.path().string(), found->second);
        }
      }
    }
    if (count > 0)
      log_warning(
          fmt::format("data.{}: {}{}; {}", trains ? "train" : "validation", first,
                      count > 1 ? fmt::format(", and so do {} more", count - 1) : "",
                      trains ? "they are read as often" : "a text that is trained on is no validation"));
  }
}

std::vector<double> TrainingData::training_shares() const {
  std::vector<double> shares;
  for (const Domain& domain : validation) {
    const auto trained =
        std::find_if(train.begin(), train.end(), [&](const Domain& each) { return each.name == domain.name; });
    if (trained == train.end())
      throw_input(
          "data.validation: domain \"{}\" is not one of data.train, and train.eval_mix is \"training\"; name "
          "it as "
          "there, or set train.eval_mix to \"equal\"",
          domain.name);
    shares.push_back(
        static_cast<double>(sampler.samples_per_block()[static_cast<std::size_t>(trained - train.begin())]));
  }
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

BatchBuffers::BatchBuffers(std::int64_t n_seq, std::int64_t seq_len, std::optional<std::int64_t> begin_token,
                           std::int64_t sliding_window, Device device, std::int64_t n_micro_batches)
    : begin_token_(begin_token), sliding_window_(sliding_window), micro_size_(3 * n_seq * seq_len + 2 + n_seq) {
  const std::int64_t T = n_seq * seq_len, bytes = micro_size_ * size_of(DType::i32);
  const auto batch_at = [&](std::byte* memory, Device where) {
    auto* const first = reinterpret_cast<std::int32_t*>(memory);
    const auto part = [&](std::int64_t offset, std::int64_t n) {
      return Tensor(first + offset, Shape{n}, DType::i32, where);
    };
    return model::Batch{.token_T = part(0, T),
                        .target_T = part(T, T),
                        .kv_begin_T = part(2 * T, T),
                        .n_seq = n_seq,
                        .seq_len = seq_len,
                        .rng_offset_2 = part(3 * T, 2),
                        .tokens_B = part(3 * T + 2, n_seq)};
  };
  staging_ = allocate_staging(n_micro_batches * bytes, "the tokens of a step", device);
  for (std::int64_t micro = 0; micro < n_micro_batches; ++micro) {
    host_.push_back(batch_at(staging_.get() + micro * bytes, Device::cpu));
    for (std::int64_t b = 0; b < n_seq; ++b) set_sequence(b, {}, micro);
    set_rng_offset(0, 0, micro);
  }
  if (device == Device::cpu) return;
  memory_ = allocate_aligned(bytes, "the tokens of a micro-batch", device);
  device_ = batch_at(memory_.get(), device);
}

model::Batch BatchBuffers::load(Context& ctx, std::int64_t micro) const {
  const model::Batch& host = on_host(micro);
  if (!memory_) return host;
  const auto all = [&](const Tensor& first) {
    return Tensor(first.raw(), Shape{micro_size_}, DType::i32, first.device());
  };
  ops::upload(all(device_.token_T), all(host.token_T), ctx);
  return device_;
}

void BatchBuffers::set_rng_offset(std::int64_t step, std::int64_t first_sequence, std::int64_t micro) {
  auto* const offset = on_host(micro).rng_offset_2.as<std::int32_t>();
  offset[0] = static_cast<std::int32_t>(step);
  offset[1] = static_cast<std::int32_t>(first_sequence);
}

void BatchBuffers::set_sequence(std::int64_t b, std::span<const std::int32_t> window, std::int64_t micro) {
  const model::Batch& host = on_host(micro);
  const auto seq_len = static_cast<std::size_t>(host.seq_len);
  const std::size_t inputs = window.empty() ? 0 : window.size() - 1;
  SY_CHECK(inputs <= seq_len && b < host.n_seq, "a window of {} tokens for sequences of {}", window.size(),
           seq_len);
  const auto sequence = [&](const Tensor& all_T) { return all_T.as<std::int32_t>() + b * host.seq_len; };
  std::int32_t *const token = sequence(host.token_T), *const target = sequence(host.target_T),
                      *const kv_begin = sequence(host.kv_begin_T);
  std::int64_t document = 0;
  for (std::size_t i = 0; i < seq_len; ++i) {
    const auto position = static_cast<std::int64_t>(i);
    const bool real = i < inputs;
    if (real && begin_token_ && window[i] == *begin_token_) document = position;
    token[i] = real ? window[i] : -1;
    target[i] = real ? window[i + 1] : -1;
    const std::int64_t window_begin = sliding_window_ > 0 ? position - sliding_window_ + 1 : 0;
    kv_begin[i] = static_cast<std::int32_t>(std::max(document, window_begin));
  }
  host.tokens_B.as<std::int32_t>()[b] = static_cast<std::int32_t>(inputs);
}

}  // namespace switchyard::train
