// Compiled to nothing without cuDNN.
//   B sequences of S tokens; otherwise as ops/attention.h
#ifdef SWITCHYARD_HAS_CUDNN

#include "attention_cudnn.h"

#define CUDNN_FRONTEND_SKIP_JSON_LIB  // graphs are not written to files
#include <cudnn_frontend.h>

#include <array>
#include <compare>
#include <map>
#include <memory>
#include <unordered_map>

#include "core/error.h"
#include "launch.h"

namespace switchyard::ops::cuda {

namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;

// Before it, what is written to statistics did not follow their strides.
constexpr std::size_t kOldestVersion = 91200;

void check(cudnnStatus_t status, const char* op, const char* call) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  throw_run(
      "cuDNN: {} failed in {} with '{}'; run with CUDNN_LOGLEVEL_DBG=2 CUDNN_LOGDEST_DBG=stderr to see more",
      call, op, cudnnGetErrorString(status));
}
void check(fe::error_t error, const char* op, const char* call) {
  if (error.is_good()) return;
  throw_run(
      "cuDNN: {} failed in {} with '{}'; run with CUDNN_FRONTEND_LOG_INFO=1 CUDNN_FRONTEND_LOG_FILE=stderr "
      "to see what it was asked for",
      call, op, error.get_message());
}

// The tensors of a graph: cuDNN knows them by number.
enum Id : std::int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv };
constexpr std::size_t kIds = kDv + 1;

// What a plan depends on.
struct Problem {
  bool backward;
  std::int64_t n_seq, seq_len, n_heads, n_kv_heads, head_dim, v_head_dim, window;
  float scale;
  std::array<std::int64_t, kIds> stride{};  // of rows, by Id; 0: no such tensor
  auto operator<=>(const Problem&) const = default;

  Problem(bool is_backward, const AttentionShape& shape)
      : backward(is_backward),
        n_seq(shape.n_seq),
        seq_len(shape.seq_len),
        n_heads(shape.n_heads),
        n_kv_heads(shape.n_kv_heads),
        head_dim(shape.head_dim),
        v_head_dim(shape.v_head_dim),
        window(shape.window < shape.seq_len ? shape.window : 0),
        scale(static_cast<float>(shape.scale)) {
    SY_CHECK(shape.n_past == 0,
             "{} keys before the first query: cuDNN's attention is asked for whole sequences", shape.n_past);
  }
};

struct Plan {
  Graph graph;
  std::int64_t workspace_bytes = 0;
};

// [B, heads, S, width] of a [T, heads * width] matrix.
Tensor_attributes heads_of(const Problem& p, Id id, std::int64_t heads, std::int64_t width) {
  const std::int64_t row = p.stride[id];
  return Tensor_attributes()
      .set_uid(id)
      .set_data_type(fe::DataType_t::BFLOAT16)
      .set_dim({p.n_seq, heads, p.seq_len, width})
      .set_stride({p.seq_len * row, width, row, 1});
}
// [B, H, S, 1]: written into lse_TH; for gradients cuDNN reads nothing but [B, H, S], whatever the strides say.
Tensor_attributes lse_of(const Problem& p) {
  const std::int64_t H = p.n_heads, S = p.seq_len, row = p.stride[kLse];
  return Tensor_attributes()
      .set_uid(kLse)
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({p.n_seq, H, S, 1})
      .set_stride(p.backward ? std::vector<std::int64_t>{H * S, S, 1, 1}
                             : std::vector<std::int64_t>{S * row, 1, row, 1});
}
void make_output(const std::shared_ptr<Tensor_attributes>& tensor, const Tensor_attributes& as) {
  tensor->set_output(true)
      .set_uid(as.get_uid())
      .set_data_type(as.get_data_type())
      .set_dim(as.get_dim())
      .set_stride(as.get_stride());
}

// Key j of query i: j <= i, and with a window j + window > i.
template <class Attributes>
Attributes masked(const Problem& p, Attributes attributes) {
  attributes.set_attn_scale(p.scale)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
  if (p.window > 0) attributes.set_diagonal_band_left_bound(static_cast<int>(p.window));
  return attributes;
}

// What cuDNN says of the problem; good: `plan` is ready.
fe::error_t make_plan(Plan& plan, cudnnHandle_t handle, const Problem& p) {
  const std::int64_t H = p.n_heads, G = p.n_kv_heads, N = p.head_dim, M = p.v_head_dim;
  Graph& graph = plan.graph;
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const auto q = graph.tensor(heads_of(p, kQ, H, N));
  const auto k = graph.tensor(heads_of(p, kK, G, N));
  const auto v = graph.tensor(heads_of(p, kV, G, M));
  if (p.backward) {
    const auto out = graph.tensor(heads_of(p, kOut, H, M));
    const auto dout = graph.tensor(heads_of(p, kDout, H, M));
    const auto lse = graph.tensor(lse_of(p));
    const auto options = masked(p, fe::graph::SDPA_backward_attributes().set_name("attention_backward"))
                             .set_deterministic_algorithm(true);
    const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, lse, options);
    make_output(dq, heads_of(p, kDq, H, N));
    make_output(dk, heads_of(p, kDk, G, N));
    make_output(dv, heads_of(p, kDv, G, M));
  } else {
    const auto options =
        masked(p, fe::graph::SDPA_attributes().set_name("attention_forward")).set_generate_stats(true);
    const auto [out, lse] = graph.sdpa(q, k, v, options);
    make_output(out, heads_of(p, kOut, H, M));
    make_output(lse, lse_of(p));
  }
  const fe::error_t error = graph.build(handle, {fe::HeurMode_t::A});
  if (error.is_bad()) return error;
  return graph.get_workspace_size(plan.workspace_bytes);
}

// A thread's handle and the plans it has made: to make one takes longer than to run it.
class Library {
 public:
  explicit Library(const char* op) {
    cudnnHandle_t handle = nullptr;
    check(cudnnCreate(&handle), op, "cudnnCreate");
    handle_.reset(handle);
  }
  cudnnHandle_t handle() const { return handle_.get(); }
  const Plan& plan_for(const Problem& problem, const char* op) {
    auto found = plans_.find(problem);
    if (found == plans_.end()) {
      auto plan = std::make_unique<Plan>();
      check(make_plan(*plan, handle(), problem), op, "Graph::build");
      found = plans_.emplace(problem, std::move(plan)).first;
    }
    return *found->second;
  }

 private:
  struct Destroy {
    void operator()(cudnnContext* handle) const { (void)cudnnDestroy(handle); }  // it has nobody to tell
  };
  std::unique_ptr<cudnnContext, Destroy> handle_;
  std::map<Problem, std::unique_ptr<Plan>> plans_;
};
Library& library(const char* op) {
  thread_local Library one(op);
  return one;
}

struct Operand {
  Id id;
  const Tensor& tensor;
};

void run(const char* op, Problem problem, std::initializer_list<Operand> operands, Context& ctx) {
  if (problem.n_seq * problem.seq_len == 0) return;
  std::unordered_map<std::int64_t, void*> address;
  for (const auto& [id, tensor] : operands) {
    const bool statistics = id == kLse;
    SY_CHECK(tensor.dtype() == (statistics ? DType::f32 : DType::bf16), "cuDNN's attention of {}",
             name_of(tensor.dtype()));
    if (!statistics)
      SY_CHECK(reinterpret_cast<std::uintptr_t>(tensor.raw()) % 16 == 0 && tensor.row_stride() % 8 == 0,
               "rows of {} elements at {} do not begin at multiples of 16 bytes", tensor.row_stride(),
               tensor.raw());
    problem.stride[id] = tensor.row_stride();
    address[id] = tensor.raw();
  }
  Library& cudnn = library(op);
  const Plan& plan = cudnn.plan_for(problem, op);
  ScratchScope scope(ctx.scratch);
  const std::int64_t floats = ceil_div(plan.workspace_bytes, std::int64_t{size_of(DType::f32)});
  const Tensor workspace = ctx.scratch.take({std::max<std::int64_t>(1, floats)}, DType::f32);
  check(cudnnSetStream(cudnn.handle(), stream_of(ctx)), op, "cudnnSetStream");
  check(plan.graph.execute(cudnn.handle(), address, workspace.raw()), op, "Graph::execute");
}

}  // namespace

std::string cudnn_version() {
  const std::size_t version = cudnnGetVersion();
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::string attention_cudnn_unavailable_reason(const AttentionShape& shape) {
  const char* op = "attention";
  if (cudnnGetVersion() < kOldestVersion)
    return fmt::format("cuDNN {} was found, 9.12 or newer is needed", cudnnGetVersion());
  const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, N = shape.head_dim, M = shape.v_head_dim;
  for (const bool backward : {false, true}) {
    Problem problem(backward, shape);
    problem.stride = {0, H * N, G * N, G * M, H * M, H, H * M, H * N, G * N, G * M};
    Plan plan;
    fe::error_t error = make_plan(plan, library(op).handle(), problem);
    if (error.is_bad())
      return fmt::format("cuDNN {} refuses {} sequences of {} tokens, {} heads of {} and {} over {}, {}: {}",
                         cudnnGetVersion(), shape.n_seq, shape.seq_len, H, N, M, G,
                         backward ? "backward" : "forward", error.get_message());
  }
  return "";
}

void attention_cudnn_forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                             const AttentionShape& shape, Context& ctx) {
  run("attention_forward", Problem(false, shape),
      {{kQ, q_THN}, {kK, k_TGN}, {kV, v_TGM}, {kOut, out_THM}, {kLse, lse_TH}}, ctx);
}

void attention_cudnn_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                              Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                              const AttentionShape& shape, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor lse_BHS = ctx.scratch.take({shape.n_seq, shape.n_heads, shape.seq_len}, DType::f32);
  attention_lse_by_head(lse_BHS, lse_TH, ctx);
  run("attention_backward", Problem(true, shape),
      {{kQ, q_THN},
       {kK, k_TGN},
       {kV, v_TGM},
       {kOut, out_THM},
       {kLse, lse_BHS},
       {kDout, dout_THM},
       {kDq, dq_THN},
       {kDk, dk_TGN},
       {kDv, dv_TGM}},
      ctx);
}

}  // namespace switchyard::ops::cuda

#endif  // SWITCHYARD_HAS_CUDNN
