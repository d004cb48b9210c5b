#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "ops/adamw.h"
#include "ops/elementwise.h"

namespace switchyard::train {

namespace {

// Where the own blocks are among the sums of gradients, as ops::squares_of_blocks reads it.
void write_blocks(const ParameterStore& store, std::int32_t* block_B3) {
  constexpr std::int64_t kSplit = 1 << 20;
  for (const Block& block : store.own_blocks()) {
    const std::int64_t first = store.index_of_sum(block.range);
    *block_B3++ = static_cast<std::int32_t>(first / kSplit);
    *block_B3++ = static_cast<std::int32_t>(first % kSplit);
    *block_B3++ = static_cast<std::int32_t>(block.range.count);
  }
}

}  // namespace

AdamW::AdamW(const config::Train& options, const ParameterStore& store, const parallel::Mesh& mesh,
             std::int64_t zero, Device device)
    : options_(options), mesh_(mesh), everywhere_(zero == 0 || mesh.all.size() == 1) {
  find_ranges(store);
  find_blocks(store, device);
}

void AdamW::find_ranges(const ParameterStore& store) {
  std::vector<const Parameter*> rows;
  for (std::size_t i = 0; i < store.rows().size(); ++i)
    if (store.is_here(i)) rows.push_back(&store.rows()[i]);
  std::sort(rows.begin(), rows.end(),
            [](const Parameter* a, const Parameter* b) { return a->offset < b->offset; });
  bool extend = false;  // whether the row before was trained and so belongs to a range
  for (const Parameter* row : rows) {
    const bool of_router = row->of_router && options_.router_lr_ratio != 1;
    if (row->trained &&
        (!extend || ranges_.back().decay != row->weight_decay || ranges_.back().of_router != of_router))
      ranges_.push_back({{row->offset, 0}, row->weight_decay, of_router});
    extend = row->trained;
    if (!row->trained) continue;
    FlatRange& flat = ranges_.back().flat;
    flat.count = row->offset + row->shape.numel() - flat.first;
  }
}

// Each rank has the sums of its own blocks, in an array that is as long on all of them; the index says where
// among all ranks' arrays, side by side, each block of the model is.
void AdamW::find_blocks(const ParameterStore& store, Device device) {
  const std::vector<Block>& own = store.own_blocks();
  const auto n_ranks = static_cast<std::int64_t>(mesh_.all.size()), M = store.n_blocks();
  Context ctx;
  std::vector<std::int32_t> count_N(static_cast<std::size_t>(n_ranks)),
      mine{static_cast<std::int32_t>(own.size())};
  const auto tensor = [](std::vector<std::int32_t>& values, Shape shape) {
    return Tensor(values.data(), shape, DType::i32);
  };
  mesh_.all.all_gather(tensor(count_N, {n_ranks, 1}), tensor(mine, {1}), parallel::Traffic::sums, ctx);
  most_own_blocks_ = *std::max_element(count_N.begin(), count_N.end());
  std::vector<std::int32_t> number(static_cast<std::size_t>(most_own_blocks_), -1),
      number_NB(static_cast<std::size_t>(n_ranks * most_own_blocks_));
  for (std::size_t b = 0; b < own.size(); ++b) number[b] = static_cast<std::int32_t>(own[b].number);
  mesh_.all.all_gather(tensor(number_NB, {n_ranks, most_own_blocks_}), tensor(number, {most_own_blocks_}),
                       parallel::Traffic::sums, ctx);

  const std::int64_t B = static_cast<std::int64_t>(own.size());
  tables_ = allocate_aligned((3 * B + M) * size_of(DType::i32), "tables of the gradient's norm", device);
  const Tensor all(tables_.get(), Shape{3 * B + M}, DType::i32, device);
  block_B3_ = all.slice(0, 3 * B).reshape(Shape{B, 3});
  index_M_ = all.slice(3 * B, M);
  std::vector<std::int32_t> host(static_cast<std::size_t>(3 * B + M), -1);
  write_blocks(store, host.data());
  for (std::size_t at = 0; at < number_NB.size(); ++at)
    if (number_NB[at] >= 0)
      host[static_cast<std::size_t>(3 * B + number_NB[at])] = static_cast<std::int32_t>(at);
  SY_CHECK(std::count(host.begin() + 3 * B, host.end(), -1) == 0, "a block of the model is owned by no rank");
  copy(all, Tensor(host.data(), all.shape(), DType::i32));
}

void AdamW::measure(const ParameterStore& store, Tensor grad_squares_1, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const auto n_ranks = static_cast<std::int64_t>(mesh_.all.size());
  const Tensor square_NB = ctx.scratch.take(Shape{n_ranks, most_own_blocks_}, DType::f64);
  const Tensor mine_B = square_NB.slice(mesh_.all.place(), 1).reshape(Shape{most_own_blocks_});
  ops::fill_zero(mine_B, ctx);
  ops::squares_of_blocks(mine_B.slice(0, block_B3_.rows()), store.sum_of_grads(), block_B3_, ctx);
  mesh_.all.all_gather(square_NB, mine_B, parallel::Traffic::sums, ctx);
  ops::sum_at(grad_squares_1, square_NB.reshape(Shape{n_ranks * most_own_blocks_}), index_M_, ctx);
}

void AdamW::update(ParameterStore& store, Tensor grad_squares_1, double lr, std::int64_t step,
                   Context& ctx) const {
  {
    ScratchScope scope(ctx.scratch);
    const Tensor grad_scale_1 = ctx.scratch.take(Shape{1}, DType::f64);
    ops::clip_factor(grad_scale_1, grad_squares_1, options_.clip_norm, ctx);
    for (const Range& range : ranges_) {
      const ops::AdamWStep numbers{.lr = range.of_router ? options_.router_lr_ratio * lr : lr,
                                   .beta1 = options_.beta1,
                                   .beta2 = options_.beta2,
                                   .eps = options_.eps,
                                   .weight_decay = range.decay ? options_.weight_decay : 0.0,
                                   .step = step};
      for (const FlatRange& part : store.updated(range.flat)) {
        const auto of = [&](const Tensor& flat_P) { return flat_P.slice(part.first, part.count); };
        ops::adamw_update(of(store.values()), store.moment1(part), store.moment2(part),
                          store.sum_of_grads(part), grad_scale_1, numbers,
                          store.has_rounded_weights() ? of(store.weights()) : Tensor{}, ctx);
      }
    }
  }
  if (everywhere_) return;
  for (std::size_t i = 0; i < store.regions().size(); ++i) {
    const Region& region = store.regions()[i];
    const auto of = [&](const Tensor& flat_P) { return flat_P.slice(region.all.first, region.all.count); };
    mesh_.sharing(i).all_gather_parts(of(store.values()), region.parts_in(region.all),
                                      parallel::Traffic::weights, ctx);
    // The update has rounded what this rank updates.
    if (store.has_rounded_weights()) ops::copy(of(store.weights()), of(store.values()), ctx);
  }
}

namespace {

// How far `step` has come from `begin` to `end`: 0 to 1, and 1 where there is no way between them.
double progress(std::int64_t step, std::int64_t begin, std::int64_t end) {
  if (step >= end) return 1.0;
  return std::max(0.0, static_cast<double>(step - begin) / static_cast<double>(end - begin));
}

double cosine_factor(double r, double t) {
  return r + (1.0 - r) * 0.5 * (1.0 + std::cos(std::numbers::pi * t));
}

}  // namespace

double learning_rate(const config::Train& train, std::int64_t step) {
  SY_CHECK(step >= 1 && train.steps >= 1, "step {} of {}", step, train.steps);
  const std::int64_t steps = train.steps;
  const auto share = [&](double ratio) {
    return static_cast<std::int64_t>(std::llround(ratio * static_cast<double>(steps)));
  };
  const std::int64_t warmup = share(train.warmup_ratio);
  const double r = train.min_lr_ratio;
  if (step <= warmup) return train.lr * static_cast<double>(step) / static_cast<double>(warmup);
  switch (train.schedule) {
    case config::Schedule::constant:
      return train.lr;
    case config::Schedule::linear:
      return train.lr * (1.0 - (1.0 - r) * progress(step, warmup, steps));
    case config::Schedule::cosine:
      return train.lr * cosine_factor(r, progress(step, warmup, steps));
    case config::Schedule::wsd: {
      const std::int64_t decay_begin = std::max(warmup, steps - share(train.decay_ratio));
      if (step <= decay_begin) return train.lr;
      return train.lr * cosine_factor(r, progress(step, decay_begin, steps));
    }
  }
  SY_CHECK(false, "unknown schedule");
  return 0.0;
}

}  // namespace switchyard::train
