// A captured step as the body of a conditional WHILE node: "run until nothing is active" is one graph launch.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

namespace rtm {

// Runs `step` while any byte of `active` [count] on the device is set, at most `max_steps` times. The step must clear
// bytes of `active`; `steps` [1] on the device counts how often it ran. Throws std::runtime_error naming the CUDA
// call that failed. The step is copied; its memory must outlive this object.
class WhileGraph {
 public:
  WhileGraph(cudaGraph_t step, const uint8_t* active, int64_t count, int32_t* steps, int32_t max_steps);
  ~WhileGraph();
  WhileGraph(const WhileGraph&) = delete;
  WhileGraph& operator=(const WhileGraph&) = delete;

  void launch(cudaStream_t stream) const;

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

// CUDA version of the driver, such as 12040, or 0 without a driver.
int driver_version();

}  // namespace rtm
