#include "checkpoint/weight_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <utility>

#include "model/names.h"

namespace switchyard::checkpoint {

namespace {

using Parts = std::vector<std::string>;

Parts parts_of(std::string_view name) {
  Parts parts;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    parts.emplace_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::string joined(const Parts& parts) { return fmt::format("{}", fmt::join(parts, ".")); }

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// The projections of an expert, under the layouts' names.
enum class Projection { none, gate, up, down, gate_up };
Projection projection_of(std::string_view word) {
  if (is_one_of(word, {"gate_proj", "w1"})) return Projection::gate;
  if (is_one_of(word, {"up_proj", "w3"})) return Projection::up;
  if (is_one_of(word, {"down_proj", "w2"})) return Projection::down;
  if (is_one_of(word, {"gate_up_proj", "w13"})) return Projection::gate_up;
  return Projection::none;
}

const std::string& name_of(Projection projection, const model::ExpertNames& names) {
  return projection == Projection::up ? names.up : projection == Projection::down ? names.down : names.gate;
}

// Where the feed-forward part of "model.layers.N.<it>." stands.
constexpr std::size_t kBlock = 3;

bool in_block(const Parts& parts) {
  constexpr std::size_t kMostDigits = 9;
  return parts.size() > kBlock + 1 && parts[0] == "model" && parts[1] == "layers" && is_number(parts[2]) &&
         parts[2].size() <= kMostDigits && is_one_of(parts[kBlock], {"mlp", "block_sparse_moe"});
}

// Of `n` equal parts, one behind the other, the one of index `i`.
StoredTensor part_of(const StoredTensor& stored, std::string name, std::int64_t i, std::int64_t n,
                     std::vector<std::int64_t> shape) {
  const std::size_t size = stored.bytes.size() / static_cast<std::size_t>(n);
  return {std::move(name), stored.type, std::move(shape),
          stored.bytes.subspan(static_cast<std::size_t>(i) * size, size)};
}

}  // namespace

std::int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  std::int64_t layer = -1;
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return error == std::errc() && stop != name.data() + name.size() && *stop == '.' ? layer : -1;
}

std::string without_wrappers(std::string_view name) {
  Parts parts = parts_of(name);
  std::erase_if(parts, [](const std::string& part) {
    return is_one_of(part, {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
                            "language_model", "base_model"});
  });
  while (parts.size() > 1 && parts[0] == "model" && is_one_of(parts[1], {"model", "lm_head"}))
    parts.erase(parts.begin());
  if (!parts.empty() && is_one_of(parts[0], {"layers", "embed_tokens", "norm"}))
    parts.insert(parts.begin(), "model");
  return parts.empty() ? std::string(name) : joined(parts);
}

WeightNames::WeightNames(const config::Layout& layout, std::span<const Parameter> rows) : layout_(layout) {
  for (const Parameter& row : rows) rows_.insert(row.name);
}

// "mlp.gate.weight" and "mlp.experts.N.gate_proj.weight" of a Mixtral, and whatever else differs by layout
// alone.
std::string WeightNames::layout_name(std::string_view name) const {
  Parts parts = parts_of(name);
  if (!in_block(parts)) return std::string(name);
  const std::size_t next = kBlock + 1;
  if (parts[next] == "router") parts[next] = "gate";
  if (!is_one_of(parts[next], {"gate", "experts"})) return std::string(name);
  const std::string prefix = model::moe_prefix(layout_, std::stoll(parts[2]));
  parts[kBlock] = parts_of(prefix)[kBlock];
  if (parts.size() == next + 4 && parts[next] == "experts" && is_number(parts[next + 1])) {
    const model::ExpertNames names = model::expert_names(layout_, 0, 0);
    const Projection projection = projection_of(parts[next + 2]);
    if (parts.back() == "weight" && projection != Projection::none && projection != Projection::gate_up)
      parts[next + 2] = parts_of(name_of(projection, names))[next + 2];
  }
  return joined(parts);
}

std::vector<StoredRow> WeightNames::split(const StoredTensor& stored, const std::string& name) const {
  Parts parts = parts_of(name);
  if (!in_block(parts)) return {};
  if (parts.back() == "weight") parts.pop_back();
  const Projection projection = projection_of(parts.back());
  const bool both = projection == Projection::gate_up;
  parts.pop_back();
  const std::vector<std::int64_t>& shape = stored.shape;
  if (stored.bytes.empty() || bits_of(stored.type) % 8 != 0) return {};

  // [E, F, D] of all experts.
  if (parts.size() == kBlock + 2 && parts.back() == "experts" && projection != Projection::none &&
      shape.size() == 3 && (!both || shape[1] % 2 == 0)) {
    std::vector<StoredRow> rows;
    const std::int64_t n = shape[0], layer = std::stoll(parts[2]);
    for (std::int64_t e = 0; e < n; ++e) {
      const model::ExpertNames names = model::expert_names(layout_, layer, e);
      if (both) {
        const std::vector<std::int64_t> half = {shape[1] / 2, shape[2]};
        rows.push_back({part_of(stored, names.gate, 2 * e, 2 * n, half), &stored});
        rows.push_back({part_of(stored, names.up, 2 * e + 1, 2 * n, half), &stored});
      } else {
        rows.push_back({part_of(stored, name_of(projection, names), e, n, {shape[1], shape[2]}), &stored});
      }
    }
    return rows;
  }
  // [2F, D] of one expert, of shared experts or of a dense layer.
  if (both && shape.size() == 2 && shape[0] % 2 == 0) {
    const auto half = [&](const char* projection_name, std::int64_t which) {
      const std::string own = layout_name(fmt::format("{}.{}.weight", joined(parts), projection_name));
      return StoredRow{part_of(stored, own, which, 2, {shape[0] / 2, shape[1]}), &stored};
    };
    return {half("gate_proj", 0), half("up_proj", 1)};
  }
  return {};
}

std::vector<StoredRow> WeightNames::rows_of(const StoredTensor& stored) const {
  if (rows_.contains(stored.name)) return {{stored, &stored}};
  const std::string name = without_wrappers(stored.name);
  std::vector<StoredRow> rows = split(stored, name);
  const auto is_row = [&](const StoredRow& row) { return rows_.contains(row.tensor.name); };
  if (std::any_of(rows.begin(), rows.end(), is_row)) return rows;
  StoredRow whole{stored, &stored};
  const std::string own = layout_name(name);
  whole.tensor.name = rows_.contains(own) ? own : name;
  return {whole};
}

}  // namespace switchyard::checkpoint
