#include "while_graph.h"

#include <stdexcept>
#include <string>

namespace rtm {
namespace {

constexpr int kThreads = 256;

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}
#define RTM_CHECK(call) check((call), #call)

// Sets the loop's condition and counts the steps: `ran` is 0 before the loop and 1 after each step.
__global__ void decide(cudaGraphConditionalHandle loop, const uint8_t* active, int64_t count, int32_t* steps,
                       int32_t max_steps, int32_t ran) {
  int any = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) any |= active[i];
  any = __syncthreads_or(any);
  if (threadIdx.x == 0) {
    const int32_t taken = ran ? *steps + 1 : 0;
    *steps = taken;
    cudaGraphSetConditional(loop, any && taken < max_steps);
  }
}

cudaGraphNode_t add_decision(cudaGraph_t graph, cudaGraphNode_t after, cudaGraphConditionalHandle loop,
                             const uint8_t* active, int64_t count, int32_t* steps, int32_t max_steps, int32_t ran) {
  void* arguments[] = {&loop, &active, &count, &steps, &max_steps, &ran};
  cudaKernelNodeParams parameters = {};
  parameters.func = reinterpret_cast<void*>(decide);
  parameters.gridDim = dim3(1);
  parameters.blockDim = dim3(kThreads);
  parameters.kernelParams = arguments;
  cudaGraphNode_t node = nullptr;
  RTM_CHECK(cudaGraphAddKernelNode(&node, graph, &after, after != nullptr, &parameters));
  return node;
}

cudaGraph_t add_loop(cudaGraph_t graph, cudaGraphNode_t after, cudaGraphConditionalHandle loop) {
  cudaGraphNodeParams parameters = {};
  parameters.type = cudaGraphNodeTypeConditional;
  parameters.conditional.handle = loop;
  parameters.conditional.type = cudaGraphCondTypeWhile;
  parameters.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
  RTM_CHECK(cudaGraphAddNode(&node, graph, &after, nullptr, 1, &parameters));
#else
  RTM_CHECK(cudaGraphAddNode(&node, graph, &after, 1, &parameters));
#endif
  return parameters.conditional.phGraph_out[0];
}

}  // namespace

WhileGraph::WhileGraph(cudaGraph_t step, const uint8_t* active, int64_t count, int32_t* steps, int32_t max_steps) {
  RTM_CHECK(cudaGraphCreate(&graph_, 0));
  try {
    cudaGraphConditionalHandle loop;
    RTM_CHECK(cudaGraphConditionalHandleCreate(&loop, graph_, 0, 0));
    cudaGraphNode_t first = add_decision(graph_, nullptr, loop, active, count, steps, max_steps, 0);
    cudaGraph_t body = add_loop(graph_, first, loop);
    cudaGraphNode_t run = nullptr;
    RTM_CHECK(cudaGraphAddChildGraphNode(&run, body, nullptr, 0, step));
    add_decision(body, run, loop, active, count, steps, max_steps, 1);
    RTM_CHECK(cudaGraphInstantiate(&executable_, graph_, 0));
  } catch (...) {
    cudaGraphDestroy(graph_);
    throw;
  }
}

WhileGraph::~WhileGraph() {
  cudaGraphExecDestroy(executable_);
  cudaGraphDestroy(graph_);
}

void WhileGraph::launch(cudaStream_t stream) const { RTM_CHECK(cudaGraphLaunch(executable_, stream)); }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace rtm
