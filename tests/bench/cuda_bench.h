// What the benchmark of the CUDA kernels is made of: cases, the memory that they work in, and the one place
// that takes times. bench_cuda.cpp runs the cases and prints them; cuda_cases_*.cpp hold them, a function a
// family.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/device_memory.h"

namespace switchyard::bench {

// The sizes that the cases share. kFull: a layer of a model worth a GPU, each call moving a multiple of the 50
// MB of L2; kSmoke: to see that every case runs, on the emulator too.
struct Sizes {
  std::int64_t tokens, hidden;        // of what moves rows
  std::int64_t heads, kv_heads;       // of 128 elements
  std::int64_t vocab, target_tokens;  // of the classifier
  std::int64_t parameters;            // of AdamW and the gradient's norm
  std::int64_t n_seq, seq_len;        // of attention
  std::int64_t experts, slots, expert_width;
  std::int64_t routed_tokens;  // of permutation, dispatch and combine; each takes `slots` slots
  std::int64_t gemm_rows;      // of grouped products: slots in all
  std::int64_t router_tokens;  // of what works on scores
  std::int64_t latent;         // width of LPR's latent space
  std::int64_t product;        // of the square product that is the ceiling
  std::int64_t copy_bytes;     // of the copy that is the other
};
extern const Sizes kFull, kSmoke;

// Device memory of one case, full of numbers that look like a run's: products of zeros draw less power and so
// run faster.
class Workspace {
 public:
  explicit Workspace(Context& ctx) : ctx_(ctx) {}
  Tensor take(Shape shape, DType dtype);  // not initialised
  Tensor zeros(Shape shape, DType dtype);
  Tensor normal(Shape shape, DType dtype, double scale = 1.0);
  Tensor ints(Shape shape, const std::vector<std::int32_t>& values);
  Context& ctx() { return ctx_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  Context& ctx_;
  std::vector<AlignedBuffer> buffers_;
  std::int64_t bytes_ = 0, next_ = 0;
};

// One call and what it has to do at least.
struct Work {
  std::string shape;
  double bytes;     // read and written, each element once each way
  double flop = 0;  // of its products; 0: memory is what limits it
  std::function<void(Context&)> call;
};
// Of tensors that are read or written; one that is added to is named twice.
double bytes_of(std::initializer_list<Tensor> tensors);
std::string text(const Tensor& tensor);  // "[4096, 2048] bf16"

struct Case {
  std::string kernel;
  double bar;  // the share of the ceiling that it must reach; 0: none is set
  std::function<Work(Workspace&)> make;
};
constexpr double kMoveBar = 0.85;             // of the copy: norms, rotations, permutation, AdamW
constexpr double kAttentionForwardBar = 0.6;  // of the product
constexpr double kAttentionBackwardBar = 0.5;
constexpr double kGroupedBar = 0.7;

std::vector<Case> row_cases(const Sizes& sizes);
std::vector<Case> model_cases(const Sizes& sizes);  // embedding, classifier, AdamW, whole tensors
std::vector<Case> attention_cases(const Sizes& sizes);
std::vector<Case> moe_cases(const Sizes& sizes);
std::vector<Case> router_cases(const Sizes& sizes);
std::vector<Case> lpr_cases(const Sizes& sizes);
Case product_ceiling(const Sizes& sizes);
Case copy_ceiling(const Sizes& sizes);

// Seconds a call.
struct Times {
  double median, fastest, slowest;
};
// Of one copy of the case after another, so that a call does not find its inputs in L2; times are the device's
// own (events on the stream) once all have warmed up. On the emulator: the host's clock, and one call.
Times measure(const Case& measured, bool smoke, Context& ctx, Work& work);

// "NVIDIA H100 80GB HBM3, ...; driver ..., CUDA ..."
struct Platform {
  std::string device, driver, cuda;
  bool emulated;
};
Platform platform();

}  // namespace switchyard::bench
