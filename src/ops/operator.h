// What every operator is made of: its declaration for both backends, the check of its arguments, and the choice
// of the backend. An operator family X is three files:
//   ops/X.h      the contract; declares ops::name and ops::cuda::name (SY_OPERATOR)
//   ops/X.cpp    checks its arguments (Signature), defines it on the CPU (name_on_cpu), and goes to the device
//   of
//                the run (run)
//   cuda/X.cu    defines ops::cuda::name
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <source_location>

#include "core/context.h"
#include "ops/profile.h"

// Declares an operator, ops::name, and its version on a CUDA device, ops::cuda::name, which is called with
// checked arguments.
#define SY_OPERATOR(name, ...) \
  namespace cuda {             \
  void name(__VA_ARGS__);      \
  }                            \
  void name(__VA_ARGS__)

// An argument of an operator as Signature takes it: its name and itself.
#define SY_ARG(tensor) #tensor, tensor

// An operator's definition on the CPU, a function template over the scalar type, as run() takes it.
#define SY_CPU(name) []<class T>(auto&&... each) -> decltype(name<T>(each...)) { return name<T>(each...); }

namespace switchyard::ops {

#ifdef SWITCHYARD_HAS_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// Calls f.operator()<float>() or <double>(), as the dtype says.
template <class F>
void with_scalar(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
    case DType::i32:
      break;
  }
  SY_CHECK(false, "operators compute in f32 or f64, not in {}", name_of(dtype));
}

// Calls an operator's version for the device of the run: the only place that chooses one. Both versions get
// `args`; on a CUDA device the context comes last, on the CPU where the function takes it. `scalar` is the
// CPU's scalar type. Without the CUDA backend Cuda is named and not used: a version that is missing is missed
// by the linker of a program that has the backend.
template <auto Cuda, class Cpu, class... Args>
void run(Context& ctx, DType scalar, Cpu&& cpu, const Args&... args) {
  if (ctx.measures()) return;
  if constexpr (kHasCuda) {
    if (ctx.device == Device::cuda) return Cuda(args..., ctx);
  }
  constexpr bool takes_context = requires { cpu.template operator()<float>(args..., ctx); };
  with_scalar(scalar, [&]<class T>() {
    if constexpr (takes_context)
      cpu.template operator()<T>(args..., ctx);
    else
      cpu.template operator()<T>(args...);
  });
}

// The same where the CPU's version is a plain function.
template <auto Cuda, class Cpu, class... Args>
requires std::invocable<Cpu, Args...> || std::invocable<Cpu, Args..., Context&>
void run(Context& ctx, Cpu&& cpu, const Args&... args) {
  if (ctx.measures()) return;
  if constexpr (kHasCuda) {
    if (ctx.device == Device::cuda) return Cuda(args..., ctx);
  }
  if constexpr (std::invocable<Cpu, Args..., Context&>)
    cpu(args..., ctx);
  else
    cpu(args...);
}

// For operators whose CPU version takes much scratch space, before run(): where the context only measures that
// version is called, which returns once it has taken it; for a model of bf16, which no CPU computes, it is not.
template <class Cpu, class... Args>
void measure(Context& ctx, DType scalar, Cpu&& cpu, const Args&... args) {
  if (ctx.measures() && (scalar == DType::f32 || scalar == DType::f64))
    with_scalar(scalar, [&]<class T>() { cpu.template operator()<T>(args..., ctx); });
}

// What a Signature asks of a tensor beside its shape and dtype, or does not ask; combined with |.
enum Asked : unsigned {
  kAsIs = 0,
  kOptional = 1,    // may be undefined
  kAnywhere = 2,    // may lie on the host in a run on a device
  kContiguous = 4,  // one run of elements
};

// Checks an operator's arguments against their names: what follows the last underscore are the dimensions, a
// letter each. The first tensor with a letter says how large it is, and the others must agree.
//   x_TD         [T, D]
//   weight_E2FK  [E, 2F, K]   a number multiplies the letter behind it
//   offset_Ep    [E + 1]      p: plus one
//   rstd_T1      [T, 1]       a number that no letter follows is a size
//   rng_offset_2      [2]
// Every tensor must lie on the device of the run. A mismatch is a broken invariant, reported at the operator:
// "token_T is [1]: its T is 2 elsewhere".
//
// It lives as long as the operator runs, and measures it where the run has a profile (ops/profile.h): each
// tensor is read or written once, unless the operator says otherwise.
class Signature {
 public:
  explicit Signature(const Context& ctx, std::source_location where = std::source_location::current());
  ~Signature() {
    if (profile_ != nullptr) profile_->end();
  }
  Signature(const Signature&) = delete;
  Signature& operator=(const Signature&) = delete;

  Signature& operator()(const char* name, const Tensor& tensor, DType dtype, unsigned asked = kAsIs);
  // Of a shape that the name does not say: whole tensors of any rank, heads that lie side by side in a row.
  Signature& operator()(const char* name, const Tensor& tensor, const Shape& shape, DType dtype,
                        unsigned asked = kAsIs);
  // As large as `other`, and of its dtype.
  Signature& like(const Tensor& other, const char* name, const Tensor& tensor, unsigned asked = kAsIs);
  // The size of a letter, where no tensor says it, or not the first.
  Signature& bind(char letter, std::int64_t size);

  std::int64_t operator[](char letter) const;

  // FLOPs of the operator's products, a multiply-add being 2; and bytes that it moves beside its tensors, each
  // once: those of a gradient that is read and written; negative: those of rows that it leaves alone.
  // Functions, which are called where there is a profile.
  template <std::invocable Flops>
  Signature& multiplies(Flops&& flops) {
    if (profile_ != nullptr) profile_->add_flops(static_cast<double>(flops()));
    return *this;
  }
  template <std::invocable Bytes>
  Signature& also_moves(Bytes&& bytes) {
    if (profile_ != nullptr) profile_->add_bytes(static_cast<std::int64_t>(bytes()));
    return *this;
  }

 private:
  bool passes(const char* name, const Tensor& tensor, DType dtype, unsigned asked) const;
  std::int64_t& size_of_letter(char letter);
  [[noreturn]] void fail(const std::string& why) const;

  Profile* profile_;
  Device device_;
  std::source_location where_;
  std::array<std::int64_t, 'z' - 'A' + 1> size_;  // -1: not known yet
};

}  // namespace switchyard::ops
