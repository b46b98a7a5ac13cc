// The call layer: every OpenCL call of the runtime goes through here, so that each failure carries the name of the
// call, of its status and of the kernel, and so that a test can make any call fail.
#ifndef HETERO_SD_OPENCL_API_H_
#define HETERO_SD_OPENCL_API_H_

#include <stdexcept>
#include <string>

#include "abi.h"

namespace hetero_sd {
namespace opencl {

// A failed OpenCL call, or a request that the device cannot serve. The message is one line, without "OpenCL: " before.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

// CL_OUT_OF_RESOURCES for -5; "status -9999" for one that nobody named.
std::string StatusName(cl_int status);

// The status with that name or number, such as "CL_OUT_OF_RESOURCES" or "-5"; throws Error for another text.
cl_int StatusOf(const std::string& name);

[[noreturn]] void ThrowStatus(cl_int status, const char* call, const std::string& about);

// Failures on demand. From then on the k-th call (1 = the next) of `function` fails with `status` without reaching
// the driver; "*" means any but the clRelease functions, whose failure would leak by design. With `forever` all such
// calls after it fail too, as when a GPU is lost. k = 0 switches it off. The environment variable
// HSD_OPENCL_FAULT="function:k:status[:forever]" does it from the start.
void InjectFailure(const std::string& function, int64_t k, cl_int status, bool forever);

// Calls made so far, injected failures included.
int64_t CallCount();

// Whether this call is to fail, and then its status; counts the call.
cl_int NextFault(const char* function);

template <typename... P>
struct StatusFunction {
  const char* name;
  cl_int (*pointer)(P...) = nullptr;

  cl_int Try(P... p) const {
    cl_int fault = NextFault(name);
    return fault != CL_SUCCESS ? fault : pointer(p...);
  }
  // `about` names the kernel or the thing, for the message.
  void operator()(const char* about, P... p) const {
    cl_int status = Try(p...);
    if (status != CL_SUCCESS) ThrowStatus(status, name, about);
  }
};

template <typename Handle, typename... P>
struct HandleFunction {
  const char* name;
  Handle (*pointer)(P..., cl_int*) = nullptr;

  Handle Try(cl_int* status, P... p) const {
    *status = NextFault(name);
    return *status != CL_SUCCESS ? nullptr : pointer(p..., status);
  }
  Handle operator()(const char* about, P... p) const {
    cl_int status = CL_SUCCESS;
    Handle handle = Try(&status, p...);
    if (status != CL_SUCCESS) ThrowStatus(status, name, about);
    return handle;
  }
};

struct Api {
#define HETERO_SD_MEMBER(function, ...) StatusFunction<__VA_ARGS__> function{#function};
  HETERO_SD_CL_STATUS_FUNCTIONS(HETERO_SD_MEMBER)
#undef HETERO_SD_MEMBER
#define HETERO_SD_MEMBER(function, ...) HandleFunction<__VA_ARGS__> function{#function};
  HETERO_SD_CL_HANDLE_FUNCTIONS(HETERO_SD_MEMBER)
#undef HETERO_SD_MEMBER
#define HETERO_SD_MEMBER(function, returned, ...) returned (*function)(__VA_ARGS__) = nullptr;
  HETERO_SD_CL_OPTIONAL_FUNCTIONS(HETERO_SD_MEMBER)
#undef HETERO_SD_MEMBER
  std::string loader;  // where the functions come from
};

// The functions of the OpenCL library, opened at the first call: $HSD_OPENCL_LIB, else what the process has already
// (Oclgrind preloads itself), else libOpenCL.so.1, libOpenCL.so, libmali.so.1. Throws Error where there is none.
const Api& Cl();

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_API_H_
