#include "parallel/group.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "ops/elementwise.h"

namespace switchyard::parallel {

namespace {

std::size_t index(int place) { return static_cast<std::size_t>(place); }

bool on_host(const Tensor& x) { return x.device() == Device::cpu; }
void check_moved(const Tensor& to, const Tensor& from) {
  SY_CHECK(to.contiguous() && from.contiguous(), "ranks exchange contiguous tensors");
  SY_CHECK(to.device() == from.device() && to.dtype() == from.dtype(), "{} of {} does not become {} of {}",
           name_of(from.dtype()), name_of(from.device()), name_of(to.dtype()), name_of(to.device()));
}
void check_summed(const Tensor& x) {
  SY_CHECK(x.contiguous(), "ranks add contiguous tensors");
  SY_CHECK(x.dtype() == DType::f32 || x.dtype() == DType::f64, "ranks add f32 or f64, not {}",
           name_of(x.dtype()));
}

// Elements [first, first + count) of a contiguous tensor.
std::span<std::byte> bytes_of(const Tensor& x, std::int64_t first, std::int64_t count) {
  SY_CHECK(first >= 0 && count >= 0 && first + count <= x.numel(), "elements [{}, {}) of {}", first,
           first + count, x.numel());
  const std::int64_t size = size_of(x.dtype());
  return {static_cast<std::byte*>(x.raw()) + first * size, static_cast<std::size_t>(count * size)};
}
Tensor elements(const Tensor& x, FlatRange part) {
  return x.reshape({x.numel()}).slice(part.first, part.count);
}

}  // namespace

FlatRange part_of(std::int64_t total, std::int64_t block, int n, int place) {
  SY_CHECK(total >= 0 && block >= 1 && n >= 1 && place >= 0 && place < n, "part {} of {} of {} elements", place,
           n, total);
  const std::int64_t blocks = (total + block - 1) / block;
  const auto start = [&](std::int64_t p) { return std::min(total, blocks * p / n * block); };
  const std::int64_t first = start(place);
  return {first, start(place + 1) - first};
}

Group::Group(Transport& transport, std::vector<int> ranks, std::shared_ptr<ops::DeviceGroup> device,
             bool library_sums)
    : transport_(transport), ranks_(std::move(ranks)), device_(std::move(device)), library_sums_(library_sums) {
  SY_CHECK(std::is_sorted(ranks_.begin(), ranks_.end()) &&
               std::adjacent_find(ranks_.begin(), ranks_.end()) == ranks_.end(),
           "the ranks of a group ascend");
  SY_CHECK(!ranks_.empty() && ranks_.front() >= 0 && ranks_.back() < transport.size(),
           "a group is made of the {} ranks there are", transport.size());
  if (size() > ops::kMostLeaves)
    throw_input("{} ranks are more than sums over ranks are written for, {}; start fewer", size(),
                ops::kMostLeaves);
  const auto mine = std::find(ranks_.begin(), ranks_.end(), transport.rank());
  SY_CHECK(mine != ranks_.end(), "rank {} is not in the group that it makes", transport.rank());
  place_ = static_cast<int>(mine - ranks_.begin());
}

template <class F>
void Group::tell_all(std::span<const std::byte> mine, F&& place_of, Traffic kind) const {
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int p = 0; p < size(); ++p) {
    if (p == place_) continue;
    out.push_back({ranks_[index(p)], mine});
    in.push_back({ranks_[index(p)], place_of(p)});
  }
  transport_.move(out, in, kind);
}

ops::DeviceGroup& Group::device_of(const Tensor& x) const {
  SY_CHECK(device_ != nullptr, "these ranks do not meet on {}", name_of(x.device()));
  return *device_;
}

void Group::move(const Tensor& of, std::span<const Piece> out, std::span<const Piece> in, Traffic kind,
                 Context& ctx) const {
  if (on_host(of)) {
    std::vector<Outgoing> sent;
    std::vector<Incoming> received;
    for (const Piece& piece : out) sent.push_back({ranks_[index(piece.place)], piece.bytes});
    for (const Piece& piece : in) received.push_back({ranks_[index(piece.place)], piece.bytes});
    return transport_.move(sent, received, kind);
  }
  const auto messages = [](std::span<const Piece> pieces) {
    std::vector<ops::DeviceGroup::Message> some;
    for (const Piece& piece : pieces)
      if (!piece.bytes.empty())
        some.push_back({piece.place, piece.bytes.data(), static_cast<std::int64_t>(piece.bytes.size())});
    return some;
  };
  const auto sent = messages(out), received = messages(in);
  if (!sent.empty() || !received.empty()) device_of(of).move(sent, received, ctx);
  for (const auto& message : sent) count(kind, message.bytes);
}

void Group::all_gather(Tensor to_NX, Tensor from_X, Traffic kind, Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: all_gather");
  check_moved(to_NX, from_X);
  const std::int64_t piece = from_X.numel();
  SY_CHECK(to_NX.numel() == size() * piece, "{} pieces of {} do not make {}", size(),
           from_X.shape().to_string(), to_NX.shape().to_string());
  if (ctx.measures()) return;
  if (!on_host(to_NX) && size() > 1) {
    device_of(to_NX).all_gather(to_NX, from_X, ctx);
    return count(kind, (size() - 1) * from_X.nbytes());
  }
  const Tensor own = elements(to_NX, {place_ * piece, piece});
  if (piece > 0 && own.raw() != from_X.raw()) {
    if (on_host(to_NX))
      std::memcpy(own.raw(), from_X.raw(), static_cast<std::size_t>(own.nbytes()));
    else
      ops::copy(own, from_X.reshape(own.shape()), ctx);
  }
  if (size() == 1) return;
  const auto place_of = [&](int p) { return bytes_of(to_NX, p * piece, piece); };
  tell_all(bytes_of(from_X, 0, piece), place_of, kind);
}

void Group::meet(Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: meet");
  const ScratchScope scope(ctx.scratch);
  const Tensor token_N = ctx.scratch.take(Shape{size()}, DType::i32);  // whatever it holds
  all_gather(token_N, token_N.slice(place_, 1), Traffic::control, ctx);
}

void Group::all_gather_parts(Tensor to_P, std::span<const FlatRange> part_N, Traffic kind, Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: all_gather_parts");
  if (size() == 1 || ctx.measures()) return;
  check_moved(to_P, to_P);
  SY_CHECK(part_N.size() == ranks_.size(), "{} parts for {} ranks", part_N.size(), size());
  const auto part = [&](int p) { return bytes_of(to_P, part_N[index(p)].first, part_N[index(p)].count); };
  std::vector<Piece> out, in;
  for (int p = 0; p < size(); ++p) {
    if (p == place_) continue;
    out.push_back({p, part(place_)});
    in.push_back({p, part(p)});
  }
  move(to_P, out, in, kind, ctx);
}

void Group::exchange(Tensor to_NX, Tensor from_NX, Traffic kind, Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: exchange");
  check_moved(to_NX, from_NX);
  SY_CHECK(to_NX.numel() == from_NX.numel() && to_NX.numel() % size() == 0, "{} and {} are not {} equal pieces",
           from_NX.shape().to_string(), to_NX.shape().to_string(), size());
  if (ctx.measures()) return;
  if (!on_host(to_NX) && size() > 1) {
    device_of(to_NX).exchange(to_NX, from_NX, ctx);
    return count(kind, from_NX.nbytes() / size() * (size() - 1));
  }
  const Shape pieces{size(), to_NX.numel() / size()};
  const std::vector<std::int64_t> one_N(ranks_.size(), 1);
  exchange_rows(to_NX.reshape(pieces), from_NX.reshape(pieces), one_N, one_N, kind, ctx);
}

void Group::exchange_rows(Tensor to_RX, Tensor from_RX, std::span<const std::int64_t> receive_N,
                          std::span<const std::int64_t> send_N, Traffic kind, Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: exchange_rows");
  if (ctx.measures()) return;
  check_moved(to_RX, from_RX);
  SY_CHECK(on_host(to_RX), "the host does not exchange rows of {}", name_of(to_RX.device()));
  SY_CHECK(to_RX.row_size() == from_RX.row_size(), "rows of {} become rows of {}", from_RX.row_size(),
           to_RX.row_size());
  SY_CHECK(receive_N.size() == ranks_.size() && send_N.size() == ranks_.size(), "{} and {} counts for {} ranks",
           receive_N.size(), send_N.size(), size());
  SY_CHECK(receive_N[index(place_)] == send_N[index(place_)], "{} rows to itself, but {} from itself",
           send_N[index(place_)], receive_N[index(place_)]);
  const std::int64_t row = to_RX.row_size();
  std::int64_t to_row = 0, from_row = 0;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int p = 0; p < size(); ++p) {
    const std::span<std::byte> to = bytes_of(to_RX, to_row * row, receive_N[index(p)] * row),
                               from = bytes_of(from_RX, from_row * row, send_N[index(p)] * row);
    to_row += receive_N[index(p)];
    from_row += send_N[index(p)];
    if (p == place_) {
      if (!to.empty()) std::memcpy(to.data(), from.data(), to.size());
    } else {
      out.push_back({ranks_[index(p)], from});
      in.push_back({ranks_[index(p)], to});
    }
  }
  transport_.move(out, in, kind);
}

void Group::sum(Tensor x, Traffic kind, Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: sum");
  check_summed(x);
  if (size() == 1 || x.numel() == 0) return;
  if (library_sums_ && !on_host(x)) {
    device_of(x).sum(x, ctx);
    return count(kind, 2 * (size() - 1) * x.nbytes() / size());  // what a ring of ranks sends
  }
  const ScratchScope scope(ctx.scratch);
  const Tensor piece_NX = ctx.scratch.take({size(), x.numel()}, x.dtype());
  all_gather(piece_NX, x, kind, ctx);
  ops::sum_by_halves(elements(x, {0, x.numel()}), {}, leaves(piece_NX, size()), ctx);
}

void Group::sum_to_owners(Tensor x_P, std::span<const FlatRange> part_N, Traffic kind, Context& ctx) const {
  const ops::Profiled profiled(ctx, "ranks: sum_to_owners");
  check_summed(x_P);
  SY_CHECK(part_N.size() == ranks_.size(), "{} parts for {} ranks", part_N.size(), size());
  if (size() == 1) return;
  if (library_sums_ && !on_host(x_P)) {
    device_of(x_P).sum_to_owners(x_P, part_N, ctx);
    for (const FlatRange& part : part_N)
      if (&part != &part_N[index(place_)]) count(kind, part.count * size_of(x_P.dtype()));
    return;
  }
  std::int64_t longest = 0;
  for (const FlatRange& part : part_N) longest = std::max(longest, part.count);
  const std::int64_t piece = std::min(longest, kSumPieceBytes / size_of(x_P.dtype()));
  const ScratchScope scope(ctx.scratch);
  const Tensor others_NX = ctx.scratch.take({size(), piece}, x_P.dtype());
  if (ctx.measures()) return;
  // Piece after piece of all parts at once. What has been sent of x_P is not read again, and the own part takes
  // its sum where it lies.
  for (std::int64_t start = 0; start < longest; start += piece) {
    const auto piece_of = [&](const FlatRange& part) {
      const std::int64_t skipped = std::min(start, part.count);
      return FlatRange{part.first + skipped, std::min(piece, part.count - skipped)};
    };
    const FlatRange own = piece_of(part_N[index(place_)]);
    const Tensor sum = elements(x_P, own);
    std::vector<Piece> out, in;
    std::vector<Tensor> leaf_N;
    for (int p = 0; p < size(); ++p) {
      if (p == place_) {
        leaf_N.push_back(sum);
        continue;
      }
      const FlatRange theirs = piece_of(part_N[index(p)]);
      leaf_N.push_back(elements(others_NX, {p * piece, own.count}));
      out.push_back({p, bytes_of(x_P, theirs.first, theirs.count)});
      in.push_back({p, bytes_of(others_NX, p * piece, own.count)});
    }
    move(x_P, out, in, kind, ctx);
    if (own.count > 0) ops::sum_by_halves(sum, {}, leaf_N, ctx);
  }
}

void Group::send(int to_place, std::span<const std::byte> bytes, Traffic kind) const {
  const Outgoing out{ranks_[index(to_place)], bytes};
  transport_.move(std::span(&out, 1), {}, kind);
}

void Group::receive(int from_place, std::span<std::byte> bytes, Traffic kind) const {
  const Incoming in{ranks_[index(from_place)], bytes};
  transport_.move({}, std::span(&in, 1), kind);
}

std::vector<std::string> Group::gather_text(const std::string& mine) const {
  std::vector<std::uint64_t> length_N(ranks_.size());
  const std::uint64_t length = mine.size();
  tell_all(
      std::as_bytes(std::span(&length, 1)),
      [&](int p) { return std::as_writable_bytes(std::span(&length_N[index(p)], 1)); }, Traffic::control);
  std::vector<std::string> text_N(ranks_.size());
  for (std::size_t p = 0; p < text_N.size(); ++p) text_N[p].resize(length_N[p]);
  text_N[index(place_)] = mine;
  tell_all(
      std::as_bytes(std::span(mine)),
      [&](int p) { return std::as_writable_bytes(std::span(text_N[index(p)])); }, Traffic::control);
  return text_N;
}

std::vector<double> Group::gather_numbers(std::span<const double> mine) const {
  const std::size_t n = mine.size();
  std::vector<double> numbers(n * ranks_.size());
  const auto place_of = [&](int p) { return std::span(numbers).subspan(index(p) * n, n); };
  std::copy(mine.begin(), mine.end(), place_of(place_).begin());
  tell_all(
      std::as_bytes(mine), [&](int p) { return std::as_writable_bytes(place_of(p)); }, Traffic::sums);
  return numbers;
}

void Group::sum_numbers(std::span<double> numbers) const {
  Context host;
  sum(Tensor(numbers.data(), Shape{static_cast<std::int64_t>(numbers.size())}, DType::f64), Traffic::sums,
      host);
}

std::string Group::text_of_first(const std::string& mine) const {
  std::string text = mine;
  std::uint64_t length = text.size();
  const auto from_first = [&](std::span<std::byte> bytes) {
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
    if (place_ > 0) in.push_back({ranks_[0], bytes});
    for (int p = 1; p < size() && place_ == 0; ++p) out.push_back({ranks_[index(p)], bytes});
    transport_.move(out, in, Traffic::control);
  };
  from_first(std::as_writable_bytes(std::span(&length, 1)));
  text.resize(length);
  from_first(std::as_writable_bytes(std::span(text)));
  return text;
}

bool Group::any(bool flag) const {
  std::vector<std::byte> flag_N(ranks_.size());
  flag_N[index(place_)] = static_cast<std::byte>(flag);
  const auto place_of = [&](int p) { return std::span(&flag_N[index(p)], 1); };
  tell_all(place_of(place_), place_of, Traffic::control);
  return std::any_of(flag_N.begin(), flag_N.end(), [](std::byte each) { return each != std::byte{0}; });
}

std::vector<Tensor> leaves(const Tensor& piece_NX, std::int64_t n) {
  SY_CHECK(n >= 1 && piece_NX.contiguous() && piece_NX.numel() % n == 0, "{} are not {} equal pieces",
           piece_NX.shape().to_string(), n);
  const std::int64_t piece = piece_NX.numel() / n;
  std::vector<Tensor> leaf_N;
  for (std::int64_t p = 0; p < n; ++p) leaf_N.push_back(elements(piece_NX, {p * piece, piece}));
  return leaf_N;
}

}  // namespace switchyard::parallel
