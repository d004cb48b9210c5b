#include "graph.h"

#include "launch.h"

namespace switchyard::ops::cuda {

Graph::~Graph() {
  if (exec_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}

void Graph::begin(Context& ctx) {
  SY_CUDA(cudaStreamBeginCapture(stream_of(ctx), cudaStreamCaptureModeGlobal));
}

void Graph::end(Context& ctx) {
  cudaGraph_t graph = nullptr;
  SY_CUDA(cudaStreamEndCapture(stream_of(ctx), &graph));
  std::size_t n_nodes = 0;
  cudaGraphExec_t exec = nullptr;
  SY_CUDA(cudaGraphGetNodes(graph, nullptr, &n_nodes));
  SY_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  SY_CUDA(cudaGraphDestroy(graph));
  exec_ = exec;
  n_nodes_ = static_cast<std::int64_t>(n_nodes);
}

void Graph::abandon(Context& ctx) noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream_of(ctx), &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();  // what has failed is on its way as an exception
}

void Graph::launch(Context& ctx) {
  SY_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), stream_of(ctx)));
}

void* run_stream() {
  static cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    SY_CUDA(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  }();
  return stream;
}

}  // namespace switchyard::ops::cuda
