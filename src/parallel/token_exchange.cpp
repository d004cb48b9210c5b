#include "parallel/token_exchange.h"

#include <cstring>
#include <numeric>

#include "ops/elementwise.h"
#include "ops/operator.h"

namespace switchyard::parallel {

namespace {

constexpr std::int64_t kParallelBytes = std::int64_t{1}
                                        << 16;  // below, a team of threads is not worth its start

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// The sum of rows by halves, left in one of them; null where none is there.
template <class T>
T* add_halves(T* const* row_N, int n, std::int64_t width) {
  if (n == 1) return row_N[0];
  const int half = (n + 1) / 2;
  T* const first = add_halves(row_N, half, width);
  const T* const second = add_halves(row_N + half, n - half, width);
  if (first == nullptr || second == nullptr) return first != nullptr ? first : const_cast<T*>(second);
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) first[i] += second[i];
  return first;
}

}  // namespace

std::int64_t TokenExchange::route(Tensor expert_TK, std::int64_t experts_each, Context& ctx) {
  expert_TK_ = expert_TK;
  experts_each_ = experts_each;
  // Where only memory is measured nobody knows who goes where: all to all.
  n_spread_ = way_ == Way::rows && !ctx.measures() ? route_rows(ctx) : group_.size() * expert_TK.rows();
  return n_spread_;
}

std::int64_t TokenExchange::route_rows(Context& ctx) {
  const Tensor& expert_TK = expert_TK_;
  SY_CHECK(ctx.device == Device::cpu, "the host brings rows to ranks on a CPU alone");
  SY_CHECK(expert_TK.contiguous(), "slots are walked as one run of elements");
  const std::int64_t n_tokens = expert_TK.rows(), K = expert_TK.dim(1), n = group_.size();
  const std::int32_t* const expert = expert_TK.as<std::int32_t>();
  place_TN_.assign(index(n_tokens * n), -1);
  for (std::int64_t s = 0; s < n_tokens * K; ++s) {
    if (expert[s] < 0) continue;
    SY_CHECK(expert[s] < n * experts_each_, "slot {} names expert {} of {}", s, expert[s], n * experts_each_);
    place_TN_[index(s / K * n + expert[s] / experts_each_)] = 0;
  }
  sent_.clear();
  send_N_.assign(index(n), 0);
  for (std::int64_t p = 0; p < n; ++p)
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      std::int32_t& place = place_TN_[index(t * n + p)];
      if (place < 0) continue;
      place = static_cast<std::int32_t>(sent_.size());
      sent_.push_back(static_cast<std::int32_t>(t));
      ++send_N_[index(p)];
    }
  std::vector<std::int32_t> send(send_N_.begin(), send_N_.end()), receive(index(n));
  group_.exchange(Tensor(receive.data(), Shape{n}, DType::i32), Tensor(send.data(), Shape{n}, DType::i32),
                  Traffic::control, ctx);
  receive_N_.assign(receive.begin(), receive.end());
  return std::accumulate(receive_N_.begin(), receive_N_.end(), std::int64_t{0});
}

Tensor TokenExchange::room_for(const Tensor& token_TX, std::int64_t most_T, std::int64_t rows,
                               Context& ctx) const {
  const Shape most = token_TX.shape().with_rows(most_tokens(most_T));
  return ctx.scratch.take(most, token_TX.dtype()).slice(0, rows);
}

Tensor TokenExchange::arrivals(const Tensor& token_TX, std::int64_t most_T, Context& ctx) const {
  if (way_ == Way::windows && ctx.measures())
    return {nullptr, token_TX.shape().with_rows(n_spread_), token_TX.dtype()};
  return way_ == Way::windows ? windows_->arrivals(n_spread_) : room_for(token_TX, most_T, n_spread_, ctx);
}

Tensor TokenExchange::departures(const Tensor& token_TX, std::int64_t most_T, Context& ctx) const {
  if (way_ == Way::windows && ctx.measures())
    return {nullptr, token_TX.shape().with_rows(n_spread_), token_TX.dtype()};
  return way_ == Way::windows ? windows_->departures(n_spread_) : room_for(token_TX, most_T, n_spread_, ctx);
}

void TokenExchange::spread(const Spread& wide, std::initializer_list<Spread> small, Context& ctx) const {
  if (way_ != Way::windows || ctx.measures()) {
    for (const Spread& rows : small) spread_one(rows, ctx);
    if (way_ != Way::windows) spread_one(wide, ctx);
    return;
  }
  SY_CHECK(wide.to_SX.raw() == windows_->arrivals(n_spread_).raw(), "rows arrive in a window");
  // What was in the window has been read by all once they have met; it is there once they have met again.
  const Spread* next = small.begin();
  next == small.end() ? group_.meet(ctx) : spread_one(*next++, ctx);
  ops::spread_rows(windows_->all_arrivals(n_spread_), windows_->sent_bytes_1(), wide.from_TX, expert_TK_,
                   places(), ctx);
  if (next == small.end()) group_.meet(ctx);
  for (; next != small.end(); ++next) spread_one(*next, ctx);
}

void TokenExchange::spread_one(const Spread& rows, Context& ctx) const {
  if (way_ != Way::rows) return group_.all_gather(rows.to_SX, rows.from_TX, Traffic::tokens, ctx);
  if (ctx.measures()) {
    const ScratchScope scope(ctx.scratch);
    (void)room_for(rows.from_TX, rows.from_TX.rows(), 0, ctx);
    return;
  }
  const Tensor& from_TX = rows.from_TX;
  SY_CHECK(from_TX.contiguous(), "ranks exchange contiguous tensors");
  const auto n_sent = static_cast<std::int64_t>(sent_.size());
  const ScratchScope scope(ctx.scratch);
  const Tensor row_MX = room_for(from_TX, from_TX.rows(), n_sent, ctx);
  const auto row_bytes = from_TX.row_size() * size_of(from_TX.dtype());
  auto* const to = static_cast<std::byte*>(row_MX.raw());
  const auto* const from = static_cast<const std::byte*>(from_TX.raw());
#pragma omp parallel for schedule(static) if (n_sent * row_bytes >= kParallelBytes)
  for (std::int64_t i = 0; i < n_sent; ++i)
    std::memcpy(to + i * row_bytes, from + sent_[index(i)] * row_bytes, static_cast<std::size_t>(row_bytes));
  group_.exchange_rows(rows.to_SX, row_MX, receive_N_, send_N_, Traffic::tokens, ctx);
}

void TokenExchange::collect(const Collect& wide, std::initializer_list<Collect> small, Context& ctx) const {
  for (const Collect& rows : small) collect_one(rows, ctx);
  if (way_ != Way::windows) return collect_one(wide, ctx);
  if (ctx.measures()) return;
  SY_CHECK(wide.from_SX.raw() == windows_->departures(n_spread_).raw(), "rows depart from a window");
  // All have written once they have met. They have read before they meet in the next spread(), and write again
  // behind that.
  if (small.size() == 0) group_.meet(ctx);
  ops::collect_rows(wide.out_TX, windows_->sent_bytes_1(), wide.addend_TX, windows_->all_departures(n_spread_),
                    expert_TK_, places(), ctx);
}

ops::ExpertPlaces TokenExchange::places() const { return {group_.place(), experts_each_}; }

void TokenExchange::collect_one(const Collect& rows, Context& ctx) const {
  way_ == Way::rows ? collect_rows(rows, ctx) : collect_all(rows, ctx);
}

void TokenExchange::collect_all(const Collect& rows, Context& ctx) const {
  const ScratchScope scope(ctx.scratch);
  const Tensor piece_NX = ctx.scratch.take(rows.from_SX.shape(), rows.from_SX.dtype());
  group_.exchange(piece_NX, rows.from_SX, Traffic::tokens, ctx);
  const auto flat = [](const Tensor& x) { return x.defined() ? x.reshape(Shape{x.numel()}) : x; };
  ops::sum_by_halves(flat(rows.out_TX), flat(rows.addend_TX), leaves(piece_NX, group_.size()), ctx);
}

void TokenExchange::collect_rows(const Collect& rows, Context& ctx) const {
  const Tensor &out = rows.out_TX, &addend = rows.addend_TX;
  SY_CHECK(out.contiguous() && (!addend.defined() || addend.shape() == out.shape()), "{} cannot be collected",
           out.shape().to_string());
  const std::int64_t n = group_.size(), width = out.row_size();
  const ScratchScope scope(ctx.scratch);
  const Tensor row_MX =
      room_for(out, out.rows(), ctx.measures() ? 0 : static_cast<std::int64_t>(sent_.size()), ctx);
  if (ctx.measures()) return;
  group_.exchange_rows(row_MX, rows.from_SX, send_N_, receive_N_, Traffic::tokens, ctx);
  ops::with_scalar(out.dtype(), [&]<class T>() {
    T* const sums = row_MX.as<T>();
#pragma omp parallel if (out.nbytes() >= kParallelBytes)
    {
      std::vector<T*> row_N(index(n));
#pragma omp for schedule(static)
      for (std::int64_t t = 0; t < out.rows(); ++t) {
        for (std::int64_t p = 0; p < n; ++p) {
          const std::int32_t place = place_TN_[index(t * n + p)];
          row_N[index(p)] = place < 0 ? nullptr : sums + place * width;
        }
        const T* const sum = add_halves(row_N.data(), static_cast<int>(n), width);
        T* const to = out.row<T>(t);
        for (std::int64_t i = 0; i < width; ++i)
          to[i] = (addend.defined() ? addend.row<T>(t)[i] : T(0)) + (sum != nullptr ? sum[i] : T(0));
      }
    }
  });
}

}  // namespace switchyard::parallel
