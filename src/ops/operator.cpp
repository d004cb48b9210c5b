#include "ops/operator.h"

#include <cstring>

namespace switchyard::ops {

namespace {

bool is_digit(char c) { return '0' <= c && c <= '9'; }
bool is_letter(char c) { return ('A' <= c && c <= 'Z') || ('a' <= c && c <= 'z'); }

}  // namespace

Signature::Signature(const Context& ctx, std::source_location where)
    : profile_(ctx.profile), device_(ctx.device), where_(where) {
  size_.fill(-1);
  if (profile_ != nullptr) profile_->begin(where.function_name());
}

void Signature::fail(const std::string& why) const {
  throw_broken_invariant("arguments", where_.file_name(), static_cast<int>(where_.line()), why);
}

std::int64_t& Signature::size_of_letter(char letter) {
  if (!is_letter(letter)) fail(fmt::format("'{}' stands for no dimension", letter));
  return size_[static_cast<std::size_t>(letter - 'A')];
}

std::int64_t Signature::operator[](char letter) const {
  const std::int64_t size = size_[static_cast<std::size_t>(letter - 'A')];
  if (size < 0) fail(fmt::format("no argument says how large {} is", letter));
  return size;
}

Signature& Signature::bind(char letter, std::int64_t size) {
  size_of_letter(letter) = size;
  return *this;
}

// Whether the tensor is there: an optional one need not be. Its dtype, device and layout are checked then.
bool Signature::passes(const char* name, const Tensor& tensor, DType dtype, unsigned asked) const {
  if (!tensor.defined()) {
    if (asked & kOptional) return false;
    fail(fmt::format("{} is not defined", name));
  }
  if (tensor.dtype() != dtype)
    fail(fmt::format("{} is {}, expected {}", name, name_of(tensor.dtype()), name_of(dtype)));
  const bool may_lie_there =
      tensor.device() == device_ || ((asked & kAnywhere) && tensor.device() == Device::cpu);
  if (!may_lie_there)
    fail(fmt::format("{} lies on {}, and the run computes on {}", name, name_of(tensor.device()),
                     name_of(device_)));
  if ((asked & kContiguous) && !tensor.contiguous())
    fail(fmt::format("{} {} has a row stride of {}", name, tensor.shape().to_string(), tensor.row_stride()));
  if (profile_ != nullptr) profile_->add_bytes(tensor.nbytes());
  return true;
}

Signature& Signature::operator()(const char* name, const Tensor& tensor, DType dtype, unsigned asked) {
  if (!passes(name, tensor, dtype, asked)) return *this;
  const char* const underscore = std::strrchr(name, '_');
  if (!underscore) fail(fmt::format("{} has no dimensions in its name", name));
  const auto shape = [&] { return tensor.shape().to_string(); };
  int n = 0;
  for (const char* c = underscore + 1; *c; ++n) {
    const char* const begin = c;
    std::int64_t number = 0;
    const bool has_number = is_digit(*c);
    for (; is_digit(*c); ++c) number = 10 * number + (*c - '0');
    if (n == tensor.shape().rank()) fail(fmt::format("{} is {}: its name has more dimensions", name, shape()));
    const std::int64_t size = tensor.dim(n);
    if (!is_letter(*c)) {
      if (!has_number) fail(fmt::format("{}: '{}' stands for no dimension", name, *c));
      if (size != number) fail(fmt::format("{} is {}: its dimension {} is not {}", name, shape(), n, number));
      continue;
    }
    const char letter = *c++;
    const std::int64_t factor = has_number ? number : 1, extra = *c == 'p' ? 1 : 0;
    if (extra) ++c;
    std::int64_t& known = size_of_letter(letter);
    if (known < 0) {
      if (size < extra || (size - extra) % factor != 0)
        fail(fmt::format("{} is {}: its dimension {} is not {}", name, shape(), n, std::string(begin, c)));
      known = (size - extra) / factor;
    } else if (size != factor * known + extra) {
      fail(fmt::format("{} is {}: its {} is {} elsewhere", name, shape(), letter, known));
    }
  }
  if (n != tensor.shape().rank()) fail(fmt::format("{} is {}: its name has {} dimensions", name, shape(), n));
  return *this;
}

Signature& Signature::operator()(const char* name, const Tensor& tensor, const Shape& shape, DType dtype,
                                 unsigned asked) {
  if (passes(name, tensor, dtype, asked) && tensor.shape() != shape)
    fail(fmt::format("{} is {}, expected {}", name, tensor.shape().to_string(), shape.to_string()));
  return *this;
}

Signature& Signature::like(const Tensor& other, const char* name, const Tensor& tensor, unsigned asked) {
  return (*this)(name, tensor, other.shape(), other.dtype(), asked);
}

}  // namespace switchyard::ops
