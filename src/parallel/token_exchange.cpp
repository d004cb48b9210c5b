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
  if (way_ == Way::all) return group_.size() * expert_TK.rows();
  SY_CHECK(ctx.device == Device::cpu, "tokens go one by one on a CPU alone");
  SY_CHECK(expert_TK.contiguous(), "slots are walked as one run of elements");
  const std::int64_t n_tokens = expert_TK.rows(), K = expert_TK.dim(1), n = group_.size();
  const std::int32_t* const expert = expert_TK.as<std::int32_t>();
  place_TN_.assign(index(n_tokens * n), -1);
  for (std::int64_t s = 0; s < n_tokens * K; ++s) {
    if (expert[s] < 0) continue;
    SY_CHECK(expert[s] < n * experts_each, "slot {} names expert {} of {}", s, expert[s], n * experts_each);
    place_TN_[index(s / K * n + expert[s] / experts_each)] = 0;
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

Tensor TokenExchange::room_for(const Tensor& token_TX, Context& ctx) const {
  return ctx.scratch.take(token_TX.shape().with_rows(most_tokens(token_TX.rows())), token_TX.dtype());
}

void TokenExchange::spread(Tensor to_SX, Tensor from_TX, Context& ctx) const {
  if (way_ == Way::all) return group_.all_gather(to_SX, from_TX, Traffic::tokens, ctx);
  SY_CHECK(from_TX.contiguous(), "ranks exchange contiguous tensors");
  const auto n_sent = static_cast<std::int64_t>(sent_.size());
  const ScratchScope scope(ctx.scratch);
  const Tensor row_MX = room_for(from_TX, ctx).slice(0, n_sent);
  const auto row_bytes = from_TX.row_size() * size_of(from_TX.dtype());
  auto* const to = static_cast<std::byte*>(row_MX.raw());
  const auto* const from = static_cast<const std::byte*>(from_TX.raw());
#pragma omp parallel for schedule(static) if (n_sent * row_bytes >= kParallelBytes)
  for (std::int64_t i = 0; i < n_sent; ++i)
    std::memcpy(to + i * row_bytes, from + sent_[index(i)] * row_bytes, static_cast<std::size_t>(row_bytes));
  group_.exchange_rows(to_SX, row_MX, receive_N_, send_N_, Traffic::tokens, ctx);
}

void TokenExchange::collect(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const {
  way_ == Way::all ? collect_all(out_TX, addend_TX, from_SX, ctx)
                   : collect_rows(out_TX, addend_TX, from_SX, ctx);
}

void TokenExchange::collect_all(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const {
  const ScratchScope scope(ctx.scratch);
  const Tensor piece_NX = ctx.scratch.take(from_SX.shape(), from_SX.dtype());
  group_.exchange(piece_NX, from_SX, Traffic::tokens, ctx);
  const auto flat = [](const Tensor& x) { return x.defined() ? x.reshape(Shape{x.numel()}) : x; };
  ops::sum_by_halves(flat(out_TX), flat(addend_TX), leaves(piece_NX, group_.size()), ctx);
}

void TokenExchange::collect_rows(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const {
  SY_CHECK(out_TX.contiguous() && (!addend_TX.defined() || addend_TX.shape() == out_TX.shape()),
           "{} cannot be collected", out_TX.shape().to_string());
  const std::int64_t n = group_.size(), width = out_TX.row_size();
  const ScratchScope scope(ctx.scratch);
  const Tensor row_MX = room_for(out_TX, ctx).slice(0, static_cast<std::int64_t>(sent_.size()));
  group_.exchange_rows(row_MX, from_SX, send_N_, receive_N_, Traffic::tokens, ctx);
  ops::with_scalar(out_TX.dtype(), [&]<class T>() {
    T* const rows = row_MX.as<T>();
#pragma omp parallel if (out_TX.nbytes() >= kParallelBytes)
    {
      std::vector<T*> row_N(index(n));
#pragma omp for schedule(static)
      for (std::int64_t t = 0; t < out_TX.rows(); ++t) {
        for (std::int64_t p = 0; p < n; ++p) {
          const std::int32_t place = place_TN_[index(t * n + p)];
          row_N[index(p)] = place < 0 ? nullptr : rows + place * width;
        }
        const T* const sum = add_halves(row_N.data(), static_cast<int>(n), width);
        T* const out = out_TX.row<T>(t);
        for (std::int64_t i = 0; i < width; ++i)
          out[i] = (addend_TX.defined() ? addend_TX.row<T>(t)[i] : T(0)) + (sum != nullptr ? sum[i] : T(0));
      }
    }
  });
}

}  // namespace switchyard::parallel
