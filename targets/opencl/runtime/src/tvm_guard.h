// From the runtime's exceptions to TVM's: Python sees them as OpenCLError.
#ifndef HETERO_SD_OPENCL_TVM_GUARD_H_
#define HETERO_SD_OPENCL_TVM_GUARD_H_

#include <tvm/ffi/error.h>

#include <utility>

#include "api.h"

namespace hetero_sd {
namespace opencl {

template <typename F>
auto Guard(F&& body) -> decltype(body()) {
  try {
    return std::forward<F>(body)();
  } catch (const Error& error) {
    throw tvm::ffi::Error("OpenCLError", std::string("OpenCL: ") + error.what(), "");
  }
}

// The device that TVM's host code chose for this thread.
int CurrentDevice();

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_TVM_GUARD_H_
