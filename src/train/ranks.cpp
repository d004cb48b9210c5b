#include "train/ranks.h"

#include <fmt/format.h>
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/process_memory.h"
#include "ops/device_group.h"
#include "ops/elementwise.h"
#include "ops/token_rows.h"

namespace switchyard::train {

MicroBatches micro_batches_of(const config::Train& train, int rank, int size) {
  const std::int64_t all = train.global_batch_size / train.micro_batch_size;
  const std::int64_t first = all * rank / size;
  return {.first = first, .count = all * (rank + 1) / size - first, .run = (all + size - 1) / size};
}

void check_ranks(const config::Run& run, int size, Device device) {
  const config::Parallel& p = run.parallel;
  const std::int64_t micro_batches = run.train.global_batch_size / run.train.micro_batch_size;
  if (p.ranks != 0 && p.ranks != size)
    throw_input("parallel.ranks: is {}, but {} rank{} started; use mpirun -n {} or --nproc {}, or leave it out",
                p.ranks, size, size == 1 ? " was" : "s were", p.ranks, p.ranks);
  if (size % p.expert != 0)
    throw_input(
        "parallel.expert: {} does not divide the {} rank{}; start a multiple of {} with --nproc or mpirun -n, "
        "or "
        "set it to 1",
        p.expert, size, size == 1 ? "" : "s", p.expert);
  if (p.expert > 1 && run.model.num_experts == 0)
    throw_input("parallel.expert: is {}, but the model has no experts; leave it out", p.expert);
  if (run.model.num_experts % p.expert != 0)
    throw_input("parallel.expert: {} does not divide model.num_experts, {}; choose a number that does",
                p.expert, run.model.num_experts);
  if (p.expert > 1 && run.router.orthogonality_coef > 0)
    throw_input(
        "router.orthogonality_coef: is {}, but parallel.expert is {}: the outputs that a token has of its "
        "experts are "
        "on several ranks, and none compares them; set router.orthogonality_coef to 0 or parallel.expert to 1",
        run.router.orthogonality_coef, p.expert);
  if (micro_batches < size)
    throw_input(
        "train.global_batch_size: {} micro-batch{} for {} ranks: {} would have nothing to do; use at most {}, "
        "or a "
        "smaller micro_batch_size",
        micro_batches, micro_batches == 1 ? "" : "es", size, size - micro_batches, micro_batches);
  if (run.train.same_bits) {
    if (p.expert > 1)
      throw_input("train.same_bits: needs parallel.expert 1, which is {}: experts add up in another order",
                  p.expert);
    if (!std::has_single_bit(static_cast<unsigned>(size)) || micro_batches % size != 0)
      throw_input(
          "train.same_bits: needs a number of ranks that is a power of two and divides the {} micro-batches of "
          "a "
          "step; {} ranks were started",
          micro_batches, size);
  }
  if (run.train.same_bits && p.zero == 2 && micro_batches > size)
    throw_input(
        "train.same_bits: not with parallel.zero 2, which adds the {} micro-batches of a rank in another "
        "order; set "
        "parallel.zero to 1",
        micro_batches / size);
  if (size > 1 && device == Device::cpu && p.sums == config::Sums::library)
    throw_input(
        "parallel.sums: \"library\" is of ranks on CUDA devices, and these compute on the CPU; set it to "
        "\"ordered\"");
  if (size > 1 && p.symmetric_memory) {
    const std::string reason = device == Device::cpu
                                   ? "is of ranks on CUDA devices, and these compute on the CPU"
                                   : ops::no_symmetric_memory_reason();
    if (!reason.empty()) throw_input("parallel.symmetric_memory: {}; set it to false", reason);
  }
  if (run.train.same_bits && p.sums == config::Sums::library)
    throw_input(
        "train.same_bits: not with parallel.sums \"library\", which adds in an order of its own; set it to "
        "\"ordered\"");
}

namespace {

// Why the devices of an expert group do not all reach each other's memory; empty: they do.
std::string reason_against_windows(std::int64_t expert, const parallel::DeviceChoice& devices) {
  if (expert > ops::kMostPlaces) return fmt::format("it is for at most {} ranks", ops::kMostPlaces);
  const auto e = static_cast<std::size_t>(expert);
  for (std::size_t rank = 0; rank < devices.host_R.size(); ++rank) {
    const std::size_t first = rank / e * e;
    if (devices.host_R[rank] != devices.host_R[first])
      return fmt::format("ranks {} and {} are on machines of their own, {} and {}", first, rank,
                         devices.host_R[first], devices.host_R[rank]);
  }
  for (const auto& [a, b] : devices.apart)
    if (a / expert == b / expert)
      return fmt::format("the devices of ranks {} and {} do not reach each other's memory", a, b);
  return "";
}

}  // namespace

void check_windows(const config::Run& run, const parallel::DeviceChoice& devices) {
  const config::Parallel& p = run.parallel;
  if (devices.device == Device::cpu || p.token_exchange != config::TokenExchange::rows || p.expert == 1) return;
  const std::string reason = reason_against_windows(p.expert, devices);
  if (!reason.empty())
    throw_input(
        "parallel.token_exchange: \"rows\" writes to the memory of the other devices of an expert group, and "
        "{}; "
        "set it to \"all\"",
        reason);
}

void advise_on_rows(const config::Run& run, const parallel::DeviceChoice& devices) {
  const config::Parallel& p = run.parallel;
  if (devices.device == Device::cpu || p.token_exchange == config::TokenExchange::rows || p.expert == 1) return;
  const auto others = static_cast<double>(p.expert - 1);
  const auto slots = static_cast<double>(config::slots_per_token(run.router, run.model));
  // Where slots go anywhere alike.
  const double needed = others * (1 - std::pow(others / static_cast<double>(p.expert), slots));
  if (others <= 2 * needed || !reason_against_windows(p.expert, devices).empty()) return;
  log_info(fmt::format(
      "parallel.token_exchange \"all\" sends each token to {:.0f} other ranks, of which some {:.1f} "
      "have one of its experts; \"rows\" sends it to these alone, but has not run on real GPUs yet",
      others, needed));
}

void warn_of_idle_ranks(const config::Train& train, int size) {
  const std::int64_t micro_batches = train.global_batch_size / train.micro_batch_size;
  const std::int64_t places = micro_batches_of(train, 0, size).run * size;
  if (places != micro_batches)
    log_warning(fmt::format(
        "{} micro-batches do not divide among {} ranks: {:.0f} % of their time is idle; a "
        "train.global_batch_size of {} would use all of it",
        micro_batches, size, 100 * (1 - static_cast<double>(micro_batches) / static_cast<double>(places)),
        places * train.micro_batch_size));
}

bool sums_beside_backward(const config::Run& run, int size, Device device) {
  if (!run.parallel.overlap || size == 1 || device == Device::cpu) return false;
  // Halves of micro-batches are added to each other when the last backward pass is done.
  return !run.train.same_bits || micro_batches_of(run.train, 0, size).run == 1;
}

Placement placement_of(const parallel::Mesh& mesh, std::int64_t zero, bool sums_beside) {
  return {.place = mesh.all.place(),
          .size = mesh.all.size(),
          .expert_place = mesh.expert.place(),
          .expert_size = mesh.expert.size(),
          .replica_place = mesh.replicas.place(),
          .replica_size = mesh.replicas.size(),
          .shard_moments = zero > 0 && mesh.all.size() > 1,
          .shard_gradients = zero > 1 && mesh.all.size() > 1,
          .gradient_windows = sums_beside ? 2 : 1};
}

void expect_same_everywhere(const parallel::Group& all, const std::string& what, const std::string& mine,
                            const std::string& advice) {
  const std::vector<std::string> texts = all.gather_text(mine);
  for (std::size_t rank = 1; rank < texts.size(); ++rank)
    if (texts[rank] != texts[0]) throw_input("{} of rank {} is not that of rank 0; {}", what, rank, advice);
}

void share_experts(model::Transformer& model, const config::Parallel& parallel, const parallel::Mesh& mesh,
                   double room, Device device) {
  if (mesh.expert.size() == 1) return;
  using Way = parallel::TokenExchange::Way;
  const bool on_device = device != Device::cpu;
  bool all = parallel.token_exchange == config::TokenExchange::all;
  if (parallel.token_exchange == config::TokenExchange::automatic) all = on_device;
  const Way rows = on_device ? Way::windows : Way::rows;
  model.share_experts(mesh.expert, all ? Way::all : rows, room, parallel.overlap && on_device);
}

double largest_room(const parallel::Mesh& mesh, const std::function<bool(double)>& fits) {
  constexpr int kTries = 16;
  const double most = mesh.expert.size();
  for (int i = 0; i < kTries; ++i) {
    const double room = most - (most - 1) * i / kTries;
    if (!mesh.all.any(!fits(room))) return room;
  }
  return 1;
}

ExpertNeed in_rounds(model::Transformer& model, std::int64_t n_tokens, const parallel::Group& all, Context& ctx,
                     const std::function<void()>& work) {
  ExpertNeed need;
  if (!model.largest_need_1().defined()) {
    work();
    return need;
  }
  for (;;) {
    model.set_rounds(need.rounds);
    ops::fill_zero(model.largest_need_1(), ctx);
    work();
    const double mine = HostCopy(model.largest_need_1())->as<std::int32_t>()[0];
    const std::vector<double> rows_N = all.gather_numbers(std::span(&mine, 1));
    const auto rows = static_cast<std::int64_t>(*std::max_element(rows_N.begin(), rows_N.end()));
    if (need.rounds == 1) need.rows = rows;
    if (rows <= model.expert_room()) break;
    SY_CHECK(need.rounds < n_tokens, "{} rows do not fit into {} in {} rounds", rows, model.expert_room(),
             need.rounds);
    const std::int64_t more =
        need.rounds > 1 ? 2 * need.rounds : (rows + model.expert_room() - 1) / model.expert_room();
    need.rounds = std::min(std::max<std::int64_t>(2, more), n_tokens);
  }
  model.set_rounds(1);
  return need;
}

std::vector<double> rank_load(const LoadCounts& load, int expert_ranks) {
  std::vector<double> load_L;
  for (std::int64_t l = 0; l < load.n_layers(); ++l) {
    const std::vector<double> load_E = load.layer(l);
    const std::size_t each = load_E.size() / static_cast<std::size_t>(expert_ranks);
    double most = 0, all = 0;
    for (std::size_t first = 0; first < load_E.size(); first += each) {
      const double rows = std::accumulate(load_E.begin() + static_cast<std::ptrdiff_t>(first),
                                          load_E.begin() + static_cast<std::ptrdiff_t>(first + each), 0.0);
      most = std::max(most, rows);
      all += rows;
    }
    load_L.push_back(all > 0 ? most * expert_ranks / all : 1);
  }
  return load_L;
}

IdealBytes ideal_bytes(const ParameterStore& store, const parallel::Mesh& mesh, std::int64_t zero,
                       std::int64_t micro_batches) {
  // Each element goes from every rank that has a partial sum to its owner, and from the owner to all others. Of
  // experts, the groups that hold different ones send theirs side by side.
  const std::int64_t width = store.values().nbytes() / store.flat_size();
  IdealBytes bytes;
  for (std::size_t i = 0; i < store.regions().size(); ++i) {
    const std::int64_t others =
        i == 0 ? mesh.all.size() - 1 : std::int64_t{mesh.replicas.size() - 1} * mesh.expert.size();
    const std::int64_t once = others * width * store.regions()[i].all.count;
    bytes.weights += zero > 0 ? once : 0;
    if (zero < 2) bytes.gradients += zero > 0 ? once : 2 * once;
    if (zero < 2 || others == 0) continue;
    for (const FlatRange& range : store.ranges_in_grads(i)) bytes.gradients += others * width * range.count;
    for (std::int64_t layer = 0; layer < store.n_layers(); ++layer)
      bytes.gradients += micro_batches * others * width * store.layer_ranges(layer)[i].count;
  }
  return bytes;
}

RankFigures RankWatch::gather(const parallel::World& world, const parallel::Group& all,
                              std::optional<double> exchange_seconds) {
  const parallel::TransportCounts now = world.transport->counts();
  constexpr std::size_t kFigures = parallel::kTrafficKinds + 3;
  std::array<double, kFigures> mine{};  // whole numbers far below 2^53
  for (std::size_t kind = 0; kind < parallel::kTrafficKinds; ++kind)
    mine[kind] = static_cast<double>(now.sent_bytes[kind] - before_.sent_bytes[kind]);
  mine[kFigures - 3] = exchange_seconds.value_or(0);
  mine[kFigures - 2] = now.wait_seconds - before_.wait_seconds;
  mine[kFigures - 1] = static_cast<double>(peak_resident());
  before_ = now;

  const std::vector<double> of_all = all.gather_numbers(mine);
  RankFigures figures;
  for (std::size_t rank = 0; rank < of_all.size() / kFigures; ++rank) {
    const double* const of_rank = of_all.data() + rank * kFigures;
    for (std::size_t kind = 0; kind < parallel::kTrafficKinds; ++kind)
      figures.sent_bytes[kind] += static_cast<std::int64_t>(of_rank[kind]);
    if (exchange_seconds) figures.exchange_seconds_N.push_back(of_rank[kFigures - 3]);
    figures.wait_seconds_N.push_back(of_rank[kFigures - 2]);
    figures.memory_bytes_N.push_back(static_cast<std::int64_t>(of_rank[kFigures - 1]));
  }
  const std::vector<double>& exchanges = figures.exchange_seconds_N;
  for (std::size_t rank = 0; rank < exchanges.size(); ++rank)
    figures.wait_seconds_N[rank] += exchanges[rank] - *std::min_element(exchanges.begin(), exchanges.end());
  return figures;
}

namespace {

std::string sum_of(const Tensor& values) {
  const HostCopy host(values);
  return fmt::format(
      "{:08x}", crc32({static_cast<const std::byte*>(host->raw()), static_cast<std::size_t>(host->nbytes())}));
}

// One text a row of the region that is here.
std::string sums_of_rows(const ParameterStore& store, const FlatRange& region) {
  std::string sums;
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const std::int64_t offset = store.rows()[i].offset;
    if (offset >= region.first && offset < region.first + region.count) sums += sum_of(store.value(i));
  }
  return sums;
}

std::string name_of_row(const ParameterStore& store, const FlatRange& region, std::size_t number) {
  for (const Parameter& row : store.rows())
    if (row.offset >= region.first && row.offset < region.first + region.count && number-- == 0)
      return row.name;
  return "?";
}

// The difference in words; empty: none.
std::string difference_within(const ParameterStore& store, const parallel::Group& group,
                              const FlatRange& region) {
  if (group.size() == 1 || region.count == 0) return "";
  const std::vector<std::string> sums =
      group.gather_text(sum_of(store.values().slice(region.first, region.count)));
  if (std::all_of(sums.begin(), sums.end(), [&](const std::string& sum) { return sum == sums[0]; })) return "";
  const std::vector<std::string> rows = group.gather_text(sums_of_rows(store, region));
  for (std::size_t at = 1; at < rows.size(); ++at) {
    if (rows[at] == rows[0]) continue;
    const auto differs = std::mismatch(rows[0].begin(), rows[0].end(), rows[at].begin(), rows[at].end());
    const auto row = static_cast<std::size_t>(differs.first - rows[0].begin()) / 8;
    return fmt::format("{} of rank {} is not that of rank {}", name_of_row(store, region, row),
                       group.ranks()[at], group.ranks()[0]);
  }
  return "an alignment gap";
}

}  // namespace

void check_replicas(const ParameterStore& store, const parallel::Mesh& mesh, std::int64_t step) {
  std::string difference = difference_within(store, mesh.all, store.regions()[0].all);
  if (difference.empty()) difference = difference_within(store, mesh.replicas, store.regions()[1].all);
  for (const std::string& found : mesh.all.gather_text(difference))
    if (!found.empty())
      throw_run(
          "step {}: what ranks hold alike is not alike: {}; a processor or its memory may be faulty: go on "
          "from the "
          "last checkpoint on other machines",
          step, found);
}

}  // namespace switchyard::train
