// TVM's module of OpenCL kernels.
#ifndef HETERO_SD_OPENCL_TVM_MODULE_H_
#define HETERO_SD_OPENCL_TVM_MODULE_H_

#include <tvm/ffi/extra/module.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace hetero_sd {
namespace opencl {

// What TVM's code generator says of a kernel: its arguments, and which launch sizes follow them in a call.
struct KernelInfo {
  std::vector<DLDataType> arguments;
  std::vector<std::string> launch_tags;  // "blockIdx.x", "threadIdx.y", ...
};

// One kernel of a module, on whichever devices it was called.
class ModuleKernel {
 public:
  ModuleKernel(std::string name, KernelInfo info, std::string source);

  void Call(tvm::ffi::PackedArgs args);
  Kernel& On(int device);

 private:
  const std::string name_, source_;
  const KernelInfo info_;
  std::vector<int> axes_;  // of each launch size: 0..2 = groups in x, y, z; 3..5 = work-items of a group
  cl_uint dimensions_ = 1;
  std::mutex mutex_;
  std::map<int, std::unique_ptr<Kernel>> kernels_;
};

class OpenCLModule final : public tvm::ffi::ModuleObj {
 public:
  // Parses the serialized form; throws Error for a damaged one or a format other than OpenCL C.
  explicit OpenCLModule(const tvm::ffi::Bytes& bytes);

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final {
    return tvm::ffi::Module::kBinarySerializable | tvm::ffi::Module::kRunnable;
  }
  tvm::ffi::Optional<tvm::ffi::Function> GetFunction(const tvm::ffi::String& name) final;
  tvm::ffi::Bytes SaveToBytes() const final { return bytes_; }
  tvm::ffi::String InspectSource(const tvm::ffi::String& format) const final;

  // Builds every kernel for a device, each after `before` was called with its name; those that fail, with the reason.
  std::vector<std::pair<std::string, std::string>> BuildAll(int device,
                                                            const std::function<void(const std::string&)>& before);

 private:
  const tvm::ffi::Bytes bytes_;
  std::string source_;
  std::map<std::string, std::unique_ptr<ModuleKernel>> kernels_;
};

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_TVM_MODULE_H_
