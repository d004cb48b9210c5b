// What every operator needs beside its tensors: where it runs, in what precision its matrix products are, and
// scratch space. One a run; handed down by reference.
#pragma once

#include "core/arena.h"
#include "core/tensor.h"

namespace switchyard {

namespace ops {
class Profile;
}

// bf16: operands rounded to bf16, sums in float32. e4m3: operands in FP8 with a scale for each tile or block of
// them (ops/linear.h), sums in float32.
enum class MatmulType : std::uint8_t { f32, bf16, e4m3 };
// Whose attention a CUDA device computes: cuda/attention.cu's or cuDNN's (cuda/attention_cudnn.h).
enum class AttentionBackend : std::uint8_t { flash, cudnn };

struct Context {
  explicit Context(Device where = Device::cpu) : device(where), scratch(where), beside{Scratch(where)} {}
  // One in which operators check their arguments and take their scratch space, and do nothing else: tensors
  // need no memory, and scratch.peak() is what the same calls take where they compute.
  static Context measuring() {
    Context ctx;
    ctx.scratch = Scratch::measuring();
    return ctx;
  }
  bool measures() const { return scratch.measures(); }

  Device device;
  MatmulType matmul = MatmulType::f32;
  bool e4m3_layers = false;  // where LayerProducts says so matmul is e4m3
  AttentionBackend attention = AttentionBackend::flash;
  Scratch scratch;
  ops::Profile* profile = nullptr;  // where operators say what they cost (ops/profile.h); null: nowhere
  void* stream = nullptr;           // the device's own handle of the queue that all of the run's work goes to
  // A second queue and its scratch space: ops/device.h, Beside.
  struct {
    Scratch scratch;
    void* stream = nullptr;
    bool is_used = false;
  } beside;
};

// Matrix products of a block in float32, whatever the run has chosen: a router's logits are float32 everywhere.
class Float32Products {
 public:
  explicit Float32Products(Context& ctx) : ctx_(ctx), before_(ctx.matmul) { ctx.matmul = MatmulType::f32; }
  ~Float32Products() { ctx_.matmul = before_; }
  Float32Products(const Float32Products&) = delete;
  Float32Products& operator=(const Float32Products&) = delete;

 private:
  Context& ctx_;
  MatmulType before_;
};

// Matrix products of a block with the weights of attention, dense layers and experts: in FP8 where the run
// wants it of those.
class LayerProducts {
 public:
  explicit LayerProducts(Context& ctx) : ctx_(ctx), before_(ctx.matmul) {
    if (ctx.e4m3_layers) ctx.matmul = MatmulType::e4m3;
  }
  ~LayerProducts() { ctx_.matmul = before_; }
  LayerProducts(const LayerProducts&) = delete;
  LayerProducts& operator=(const LayerProducts&) = delete;

 private:
  Context& ctx_;
  MatmulType before_;
};

}  // namespace switchyard
