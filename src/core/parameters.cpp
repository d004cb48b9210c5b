#include "core/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/rng.h"

namespace switchyard {

namespace {

// Elements in a cache line of float32. In float64 the same offsets are a multiple of one.
constexpr std::int64_t kLine = kAlignment / 4;

std::int64_t round_up(std::int64_t n) { return (n + kLine - 1) / kLine * kLine; }

void zero(std::byte* data, std::int64_t bytes, Device device) {
  if (device != Device::cpu) return fill_bytes(data, 0, bytes, device);
  constexpr std::int64_t kPiece = 1 << 20;
  const std::int64_t pieces = (bytes + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < pieces; ++i)
    std::memset(data + i * kPiece, 0, static_cast<std::size_t>(std::min(kPiece, bytes - i * kPiece)));
}

template <class T>
void fill(Tensor out, T value) {
  T* const data = out.as<T>();
  const std::int64_t n = out.numel();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i) data[i] = value;
}

template <class T>
void fill_normal(Tensor out, const Rng& rng, double standard_deviation) {
  T* const data = out.as<T>();
  const std::int64_t n = out.numel();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i)
    data[i] = static_cast<T>(standard_deviation * rng.normal(static_cast<std::uint64_t>(i)));
}

template <class T>
void scale_to_unit(Tensor out) {
  for (std::int64_t r = 0; r < out.rows(); ++r) {
    T* row = out.row<T>(r);
    double squares = 0;
    for (std::int64_t i = 0; i < out.row_size(); ++i)
      squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    for (std::int64_t i = 0; i < out.row_size(); ++i)
      row[i] = static_cast<T>(static_cast<double>(row[i]) / std::sqrt(squares));
  }
}

// The first `count` of the numbers below n in a random order: by the bits at first + number, of equal ones
// (there are none among 64 bits) the smaller number.
std::vector<std::int64_t> drawn(std::int64_t n, std::int64_t count, const Rng& rng, std::int64_t first) {
  std::vector<std::pair<std::uint64_t, std::int64_t>> keyed;
  keyed.reserve(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) keyed.emplace_back(rng.bits(static_cast<std::uint64_t>(first + i)), i);
  std::partial_sort(keyed.begin(), keyed.begin() + count, keyed.end());
  std::vector<std::int64_t> numbers;
  for (std::int64_t i = 0; i < count; ++i) numbers.push_back(keyed[static_cast<std::size_t>(i)].second);
  return numbers;
}

template <class T>
void deal(const Parameter& row, Tensor out, const Rng& rng) {
  T* const experts = out.as<T>();
  const std::int64_t E = row.dealt_experts, K = row.dealt_slots, n_tokens = out.numel() / K;
  const std::vector<std::int64_t> order = drawn(n_tokens, n_tokens, rng, 0);
  std::vector<std::int64_t> offsets;
  for (std::int64_t r = 0; r < n_tokens; ++r) {
    if (r % E == 0) offsets = drawn(E, K, rng, n_tokens + r);
    const std::int64_t token = order[static_cast<std::size_t>(r)];
    for (std::int64_t k = 0; k < K; ++k)
      experts[token * K + k] = static_cast<T>((r + offsets[static_cast<std::size_t>(k)]) % E);
  }
}

template <class T>
void initialise_row(const Parameter& row, Tensor out, std::uint64_t seed) {
  switch (row.init) {
    case Init::zeros:
      return fill<T>(out, T{0});
    case Init::ones:
      return fill<T>(out, T{1});
    case Init::normal:
      return fill_normal<T>(out, Rng(seed, RngPurpose::init, hash_name(row.name)), row.init_std);
    case Init::unit_rows:
      fill_normal<T>(out, Rng(seed, RngPurpose::init, hash_name(row.name)), 1.0);
      return scale_to_unit<T>(out);
    case Init::dealt:
      return deal<T>(row, out, Rng(seed, RngPurpose::init, hash_name(row.name)));
  }
}

}  // namespace

FlatRange overlap(const FlatRange& a, const FlatRange& b) {
  const std::int64_t first = std::max(a.first, b.first);
  return {first, std::max<std::int64_t>(0, std::min(a.first + a.count, b.first + b.count) - first)};
}

std::vector<FlatRange> Region::parts_in(const FlatRange& range) const {
  std::vector<FlatRange> inside;
  for (const FlatRange& part : parts) {
    const FlatRange both = overlap(part, range);
    inside.push_back(both.count > 0 ? FlatRange{both.first - range.first, both.count} : FlatRange{});
  }
  return inside;
}

void ParameterStore::begin_group() { group_pending_ = true; }

void ParameterStore::mark_router(std::size_t first) {
  for (std::size_t i = first; i < rows_.size(); ++i) rows_[i].of_router = true;
}

std::int64_t ParameterStore::begin_layer() {
  begin_group();
  return layer_ = n_layers_++;
}

void ParameterStore::end_layers() {
  begin_group();
  layer_ = -1;
}

std::size_t ParameterStore::add(Parameter parameter) {
  SY_CHECK(!memory_, "parameter {} comes after allocate()", parameter.name);
  SY_CHECK(parameter.shape.numel() > 0, "parameter {} of shape {}", parameter.name,
           parameter.shape.to_string());
  parameter.layer = layer_;
  rows_.push_back(std::move(parameter));
  starts_group_.push_back(std::exchange(group_pending_, false));
  return rows_.size() - 1;
}

namespace {

constexpr std::int64_t kBlock = 1 << 16;  // elements of a whole one

std::int64_t blocks_of_row(const Parameter& row) { return (row.shape.numel() + kBlock - 1) / kBlock; }

// Places hold neighbouring experts, as even as their number allows.
bool holds(const Placement& placement, const Parameter& row) {
  return row.sharding == Sharding::replicated ||
         row.expert * placement.expert_size / row.n_experts == placement.expert_place;
}

}  // namespace

void ParameterStore::place(const Placement& placement) {
  SY_CHECK(!memory_, "rows are laid out before allocate()");
  placement_ = placement;
  size_ = moments_size_ = n_blocks_ = 0;
  for (const Parameter& row : rows_) n_blocks_ += blocks_of_row(row);
  lay_out(Sharding::replicated, regions_[0], placement.size, placement.place);
  lay_out(Sharding::by_expert, regions_[1], placement.replica_size, placement.replica_place);
  own_blocks_.clear();
  own_size_ = 0;
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const FlatRange& own = regions_[i].own_part();
    for (const Block& block : blocks_of(own)) own_blocks_.push_back(block);
    // As far from a line's beginning as the values that the moments belong to.
    first_own_[i] = round_up(own_size_) + own.first % kLine;
    own_size_ = first_own_[i] + own.count;
  }
  own_size_ = round_up(own_size_);
  moments_size_ = placement.shard_moments ? own_size_ : size_;
  find_layers();
}

void ParameterStore::lay_out(Sharding sharding, Region& region, int size, int place) {
  region.all.first = size_;
  std::vector<std::int64_t> block_begins;
  bool begins_group = false;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Parameter& row = rows_[i];
    begins_group = begins_group || starts_group_[i];
    if (row.sharding != sharding) continue;
    row.offset = -1;
    if (!holds(placement_, row)) continue;
    if (std::exchange(begins_group, false)) size_ = round_up(size_);
    row.offset = size_;
    for (std::int64_t first = 0; first < row.shape.numel(); first += kBlock)
      block_begins.push_back(size_ + first);
    size_ += row.shape.numel();
  }
  size_ = round_up(size_);
  region.all.count = size_ - region.all.first;
  region.own = place;
  region.parts.clear();
  // A part begins with the first block from its even share on.
  const auto begin_of = [&](int part) {
    if (part == size) return size_;
    const auto share = region.all.count * part / size;
    const auto at = std::lower_bound(block_begins.begin(), block_begins.end(), region.all.first + share);
    return part == 0 ? region.all.first : at == block_begins.end() ? size_ : *at;
  };
  for (int part = 0; part < size; ++part)
    region.parts.push_back({begin_of(part), begin_of(part + 1) - begin_of(part)});
}

std::vector<Block> ParameterStore::blocks_of(const FlatRange& range) const {
  std::vector<Block> blocks;
  std::int64_t number = 0;
  for (const Parameter& row : rows_) {
    for (std::int64_t first = 0; first < row.shape.numel(); first += kBlock, ++number) {
      if (row.offset < 0 || row.offset + first < range.first || row.offset + first >= range.first + range.count)
        continue;
      blocks.push_back({{row.offset + first, std::min(kBlock, row.shape.numel() - first)}, number});
    }
  }
  return blocks;
}

std::vector<FlatRange> ParameterStore::updated(const FlatRange& range) const {
  std::vector<FlatRange> ranges;
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const FlatRange own = overlap(range, placement_.shard_moments ? regions_[i].own_part() : regions_[i].all);
    const auto add = [&](const FlatRange& piece) {
      if (const FlatRange part = overlap(own, piece); part.count > 0) ranges.push_back(part);
    };
    for (const auto& layer : layer_ranges_)
      if (layers_share_gradients(i)) add(layer[i]);
    for (const FlatRange& in_grads : ranges_in_grads(i)) add(in_grads);
  }
  return ranges;
}

std::int64_t ParameterStore::index_of_own(const FlatRange& range) const {
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const FlatRange& own = regions_[i].own_part();
    if (overlap(range, own).count == range.count) return first_own_[i] + range.first - own.first;
  }
  SY_CHECK(false, "another rank owns {} elements from {}", range.count, range.first);
  return 0;
}

Tensor ParameterStore::moment(const Tensor& moment_M, const FlatRange& range) const {
  SY_CHECK(moment_M.defined(), "moments were not allocated");
  return moment_M.slice(placement_.shard_moments ? index_of_own(range) : range.first, range.count);
}

bool ParameterStore::layers_share_gradients(std::size_t region) const {
  return placement_.shard_gradients && regions_[region].parts.size() > 1;
}

// Where the rows of each layer lie, in each region side by side, up to where the next group begins; and what
// memory their gradients take where layers share it.
void ParameterStore::find_layers() {
  layer_ranges_.assign(static_cast<std::size_t>(n_layers_), {});
  for (const Parameter& row : rows_) {
    if (row.layer < 0 || row.offset < 0) continue;
    FlatRange& range =
        layer_ranges_[static_cast<std::size_t>(row.layer)][row.sharding == Sharding::by_expert ? 1 : 0];
    if (range.count == 0) range.first = row.offset;
    range.count = round_up(row.offset + row.shape.numel()) - range.first;
  }
  grads_size_ = layer_sums_size_ = 0;
  for (std::size_t i = 0; i < regions_.size(); ++i)
    for (const FlatRange& range : ranges_in_grads(i)) grads_size_ += range.count;
  first_sum_.assign(layer_ranges_.size(), {});
  std::vector<std::int64_t> window_size(static_cast<std::size_t>(placement_.gradient_windows), 0);
  for (std::size_t layer = 0; layer < layer_ranges_.size(); ++layer) {
    const auto& ranges = layer_ranges_[layer];
    std::int64_t& size = window_size[window_of(static_cast<std::int64_t>(layer))];
    size = std::max(size, size_in_window(static_cast<std::int64_t>(layer)));
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      if (!layers_share_gradients(i)) continue;
      const FlatRange own = overlap(ranges[i], regions_[i].own_part());
      first_sum_[layer][i] = grads_size_ + layer_sums_size_;
      // As far from a line's beginning as the values that the sums belong to.
      if (own.count > 0) first_sum_[layer][i] += own.first % kLine;
      if (own.count > 0) layer_sums_size_ += round_up(own.first % kLine + own.count);
    }
  }
  first_of_window_.clear();
  layer_grads_size_ = 0;
  for (const std::int64_t size : window_size)
    first_of_window_.push_back(std::exchange(layer_grads_size_, layer_grads_size_ + size));
}

const std::array<FlatRange, 2>& ParameterStore::layer_ranges(std::int64_t layer) const {
  return layer_ranges_[static_cast<std::size_t>(layer)];
}

std::int64_t ParameterStore::size_in_window(std::int64_t layer) const {
  std::int64_t size = 0;
  for (std::size_t i = 0; i < regions_.size(); ++i)
    if (layers_share_gradients(i)) size += layer_ranges(layer)[i].count;
  return size;
}

// What of a region is not in the memory of layers.
std::vector<FlatRange> ParameterStore::ranges_in_grads(std::size_t region) const {
  if (layers_share_gradients(region)) return ranges_of_no_layer(region);
  const FlatRange& all = regions_[region].all;
  return all.count > 0 ? std::vector{all} : std::vector<FlatRange>{};
}

std::vector<FlatRange> ParameterStore::ranges_of_no_layer(std::size_t region) const {
  const FlatRange& all = regions_[region].all;
  std::vector<FlatRange> ranges;
  std::int64_t next = all.first;
  const auto up_to = [&](std::int64_t end) {
    if (end > next) ranges.push_back({next, end - next});
  };
  for (const auto& layer : layer_ranges_) {
    if (layer[region].count == 0) continue;
    up_to(layer[region].first);
    next = layer[region].first + layer[region].count;
  }
  up_to(all.first + all.count);
  return ranges;
}

std::size_t ParameterStore::region_of(const FlatRange& range) const {
  return overlap(range, regions_[0].all).count == range.count ? 0 : 1;
}

std::int64_t ParameterStore::layer_of(std::size_t region, const FlatRange& range) const {
  if (!layers_share_gradients(region)) return -1;
  for (std::size_t layer = 0; layer < layer_ranges_.size(); ++layer)
    if (range.count > 0 && overlap(range, layer_ranges_[layer][region]).count == range.count)
      return static_cast<std::int64_t>(layer);
  return -1;
}

std::int64_t ParameterStore::index_in_grads(const FlatRange& range) const {
  std::int64_t at = 0;
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    for (const FlatRange& in_grads : ranges_in_grads(i)) {
      if (overlap(range, in_grads).count == range.count) return at + range.first - in_grads.first;
      at += in_grads.count;
    }
  }
  SY_CHECK(false, "{} elements from {} are not of one layer", range.count, range.first);
  return 0;
}

Tensor ParameterStore::grad(const FlatRange& range) const {
  SY_CHECK(grad_P_.defined(), "gradients were not allocated");
  const std::size_t region = region_of(range);
  const std::int64_t layer = layer_of(region, range);
  if (layer < 0) return grad_P_.slice(index_in_grads(range), range.count);
  const auto& ranges = layer_ranges(layer);
  const std::int64_t first_of_region = first_of_window_[window_of(layer)] + (region == 0 ? 0 : ranges[0].count);
  return layer_grad_W_.slice(first_of_region + range.first - ranges[region].first, range.count);
}

Tensor ParameterStore::layer_grads(std::int64_t layer) const {
  return layer_grad_W_.slice(first_of_window_[window_of(layer)], size_in_window(layer));
}

std::int64_t ParameterStore::index_of_sum(const FlatRange& range) const {
  const std::size_t region = region_of(range);
  const std::int64_t layer = layer_of(region, range);
  if (layer < 0) return index_in_grads(range);
  const FlatRange own = overlap(layer_ranges(layer)[region], regions_[region].own_part());
  SY_CHECK(overlap(range, own).count == range.count, "another rank owns {} elements from {}", range.count,
           range.first);
  return first_sum_[static_cast<std::size_t>(layer)][region] + range.first - own.first;
}

Tensor ParameterStore::sum_of_grads(const FlatRange& range) const {
  return sum_S_.slice(index_of_sum(range), range.count);
}

std::int64_t ParameterStore::gradients_size() const {
  return grads_size_ + layer_sums_size_ + layer_grads_size_;
}

Tensor ParameterStore::grad(std::size_t row) const { return grad(range_of(row)).reshape(rows_[row].shape); }

Tensor ParameterStore::grad_block(std::size_t first, Shape shape) const {
  return grad(range_of_block(first, shape)).reshape(shape);
}

Tensor ParameterStore::moment1(std::size_t row) const {
  return moment1(range_of(row)).reshape(rows_[row].shape);
}

Tensor ParameterStore::moment2(std::size_t row) const {
  return moment2(range_of(row)).reshape(rows_[row].shape);
}

Tensor ParameterStore::array_part(RowArray array, const FlatRange& range) const {
  switch (array) {
    case RowArray::value:
      return value_P_.slice(range.first, range.count);
    case RowArray::gradient:
      return sum_of_grads(range);
    case RowArray::moment1:
      return moment1(range);
    case RowArray::moment2:
      return moment2(range);
  }
  SY_CHECK(false, "no such array");
  return {};
}

std::vector<RowPiece> ParameterStore::pieces_of(RowArray array, const FlatRange& range) const {
  std::vector<RowPiece> pieces;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Parameter& row = rows_[i];
    if (row.offset < 0 || (array != RowArray::value && !row.trained)) continue;
    const FlatRange part = overlap(range, {row.offset, row.shape.numel()});
    if (part.count == 0) continue;
    pieces.push_back({i, part.first - row.offset, array_part(array, part)});
  }
  return pieces;
}

std::vector<RowPiece> ParameterStore::owned(RowArray array) const {
  std::vector<RowPiece> pieces;
  for (const Region& region : regions_)
    for (RowPiece& piece : pieces_of(array, region.own_part())) pieces.push_back(std::move(piece));
  std::sort(pieces.begin(), pieces.end(), [](const RowPiece& a, const RowPiece& b) {
    return std::pair(a.row, a.first) < std::pair(b.row, b.first);
  });
  return pieces;
}

std::vector<RowPiece> ParameterStore::held(RowArray array) const {
  const bool moments = array == RowArray::moment1 || array == RowArray::moment2;
  if (moments && placement_.shard_moments) return owned(array);
  return pieces_of(array, {0, size_});
}

std::int64_t ParameterStore::bytes(DType dtype, DType compute, bool training) const {
  return size_ * size_of(dtype) + (compute == dtype ? 0 : size_ * size_of(compute)) +
         (training ? (gradients_size() + 2 * moments_size_) * size_of(dtype) : 0);
}

void ParameterStore::allocate(DType dtype, DType compute, bool training, Device device) {
  SY_CHECK(!memory_, "parameters are allocated once");
  SY_CHECK(dtype == DType::f32 || dtype == DType::f64, "parameters are f32 or f64, not {}", name_of(dtype));
  SY_CHECK(accumulation_dtype(compute) == dtype, "parameters of {} do not serve a run in {}", name_of(dtype),
           name_of(compute));
  std::vector<std::string_view> names;
  names.reserve(rows_.size());
  for (const Parameter& row : rows_) names.push_back(row.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  SY_CHECK(twice == names.end(), "two parameters are named {}", *twice);

  place(placement_);
  training_ = training;
  const std::int64_t bytes = this->bytes(dtype, compute, training);
  memory_ = allocate_exchanged(std::max(bytes, least_bytes_),
                               training ? "parameters, gradients and moments" : "parameters", device);
  zero(memory_.get(), bytes, device);
  make_tensors(memory_.get(), dtype, compute, training, device);
}

void ParameterStore::pretend(DType dtype, DType compute, bool training) {
  SY_CHECK(!memory_, "parameters are there");
  make_tensors(nullptr, dtype, compute, training, Device::cpu);
}

void ParameterStore::make_tensors(std::byte* memory, DType dtype, DType compute, bool training, Device device) {
  const std::int64_t array_bytes = size_ * size_of(dtype), moment_bytes = moments_size_ * size_of(dtype);
  const std::int64_t weight_bytes = compute == dtype ? 0 : size_ * size_of(compute);
  const std::int64_t grad_bytes = gradients_size() * size_of(dtype);
  const auto at = [&](std::int64_t first, std::int64_t size, DType type) {
    return Tensor(memory == nullptr ? nullptr : memory + first, Shape{size}, type, device);
  };
  const auto flat = [&](std::int64_t first, std::int64_t size) { return at(first, size, dtype); };
  value_P_ = flat(0, size_);
  weight_P_ = weight_bytes == 0 ? value_P_ : at(bytes(dtype, compute, training) - weight_bytes, size_, compute);
  if (!training) return;
  grad_P_ = flat(array_bytes, grads_size_);
  sum_S_ = flat(array_bytes, grads_size_ + layer_sums_size_);
  layer_grad_W_ = flat(array_bytes + (grads_size_ + layer_sums_size_) * size_of(dtype), layer_grads_size_);
  moment1_P_ = flat(array_bytes + grad_bytes, moments_size_);
  moment2_P_ = flat(array_bytes + grad_bytes + moment_bytes, moments_size_);
}

void ParameterStore::initialise(std::uint64_t seed) {
  for (std::size_t i = 0; i < rows_.size(); ++i) initialise(seed, i);
}

void ParameterStore::initialise(std::uint64_t seed, std::size_t row) {
  SY_CHECK(memory_ != nullptr, "initialise() comes before allocate()");
  if (!is_here(row)) return;
  const HostCopy host(value(row));
  if (value_P_.dtype() == DType::f64) {
    initialise_row<double>(rows_[row], host.tensor(), seed);
  } else {
    initialise_row<float>(rows_[row], host.tensor(), seed);
  }
  host.write_back();
}

std::int64_t ParameterStore::count() const {
  std::int64_t n = 0;
  for (const Parameter& row : rows_) n += row.shape.numel();
  return n;
}

FlatRange ParameterStore::range_of(std::size_t row) const {
  SY_CHECK(row < rows_.size(), "parameter {} of {}", row, rows_.size());
  SY_CHECK(is_here(row), "{} lies on another rank", rows_[row].name);
  return {rows_[row].offset, rows_[row].shape.numel()};
}

Tensor ParameterStore::view(const Tensor& flat_P, std::size_t row) const {
  const FlatRange range = range_of(row);
  SY_CHECK(flat_P.defined(), "{}: this array was not allocated", rows_[row].name);
  return flat_P.slice(range.first, range.count).reshape(rows_[row].shape);
}

FlatRange ParameterStore::range_of_block(std::size_t first, const Shape& shape) const {
  FlatRange range = range_of(first);
  range.count = 0;
  for (std::size_t i = first; range.count < shape.numel(); ++i) {
    SY_CHECK(i < rows_.size() && is_here(i) && (i == first || !starts_group_[i]),
             "block {} from {} leaves its group", shape.to_string(), rows_[first].name);
    range.count += rows_[i].shape.numel();
  }
  SY_CHECK(range.count == shape.numel() && range.count > 0, "block {} from {} ends inside a parameter",
           shape.to_string(), rows_[first].name);
  return range;
}

Tensor ParameterStore::weight_block(std::size_t first, Shape shape) const {
  const FlatRange range = range_of_block(first, shape);
  SY_CHECK(weight_P_.defined(), "{}: this array was not allocated", rows_[first].name);
  return weight_P_.slice(range.first, range.count).reshape(shape);
}

}  // namespace switchyard
