// rtm_kernels._cuda: addresses and handles come in as integers, so nothing here depends on PyTorch's headers.
#include <pybind11/pybind11.h>

#include <memory>

#include "while_graph.h"

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("driver_version", &rtm::driver_version, "CUDA version of the driver, such as 12040; 0 without one.");
  module.attr("runtime_version") = CUDART_VERSION;
  py::class_<rtm::WhileGraph>(module, "WhileGraph")
      .def(py::init([](uintptr_t step, uintptr_t active, int64_t count, uintptr_t steps, int32_t max_steps) {
             return std::make_unique<rtm::WhileGraph>(reinterpret_cast<cudaGraph_t>(step),
                                                      reinterpret_cast<const uint8_t*>(active), count,
                                                      reinterpret_cast<int32_t*>(steps), max_steps);
           }),
           py::arg("step"), py::arg("active"), py::arg("count"), py::arg("steps"), py::arg("max_steps"))
      .def("launch",
           [](const rtm::WhileGraph& graph, uintptr_t stream) { graph.launch(reinterpret_cast<cudaStream_t>(stream)); },
           py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}
