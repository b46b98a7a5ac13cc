// The packed functions "hetero_sd.opencl.*", what TVM's own interface has no place for. targets/opencl/interface.py is
// their Python face and their documentation.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "buffer.h"
#include "tvm_guard.h"
#include "tvm_module.h"

// TVM's interface of a timer. Its header tvm/runtime/timer.h includes one that the wheel leaves out.
namespace tvm {
namespace runtime {

class TimerNode : public ffi::Object {
 public:
  virtual void Start() = 0;
  virtual void Stop() = 0;
  virtual int64_t SyncAndGetElapsedNanos() = 0;
  virtual ~TimerNode() {}

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("runtime.TimerNode", TimerNode, ffi::Object);
};

}  // namespace runtime
}  // namespace tvm

namespace hetero_sd {
namespace opencl {
namespace {

using tvm::ffi::Any;
using tvm::ffi::Array;
using tvm::ffi::Function;
using tvm::ffi::Map;
using tvm::ffi::String;
using tvm::ffi::Tensor;
using Facts = Map<String, Any>;

Facts Describe(const Device& device) {
  const DeviceFacts& facts = device.facts;
  return {{"name", String(facts.name)},
          {"vendor", String(facts.vendor)},
          {"driver_version", String(facts.driver_version)},
          {"version", String(facts.version)},
          {"c_version", String(facts.c_version)},
          {"extensions", String(facts.extensions)},
          {"platform", String(facts.platform)},
          {"platform_version", String(facts.platform_version)},
          {"type", String(facts.type & CL_DEVICE_TYPE_GPU           ? "gpu"
                          : facts.type & CL_DEVICE_TYPE_ACCELERATOR ? "accelerator"
                                                                    : "cpu")},
          {"unified_memory", facts.unified_memory},
          {"max_alloc_bytes", static_cast<int64_t>(facts.max_alloc_bytes)},
          {"global_bytes", static_cast<int64_t>(facts.global_bytes)},
          {"cache_bytes", static_cast<int64_t>(facts.cache_bytes)},
          {"local_bytes", static_cast<int64_t>(facts.local_bytes)},
          {"max_work_group", static_cast<int64_t>(facts.max_work_group)},
          {"max_work_items", Array<int64_t>{static_cast<int64_t>(facts.max_work_items[0]),
                                            static_cast<int64_t>(facts.max_work_items[1]),
                                            static_cast<int64_t>(facts.max_work_items[2])}},
          {"compute_units", static_cast<int64_t>(facts.compute_units)},
          {"clock_mhz", static_cast<int64_t>(facts.clock_mhz)}};
}

// The host's tensor over the bytes of a device tensor, which it keeps alive.
struct HostBytes {
  Tensor device_tensor;
  void* host;
  void AllocData(DLTensor* tensor) { tensor->data = host; }
  void FreeData(DLTensor*) {}
};

Buffer& BufferOf(const Tensor& tensor) {
  if (tensor.device().device_type != kDLOpenCL) throw Error("a tensor that is not on an opencl device");
  return Buffer::At(tensor.GetDLTensorPtr()->data);
}

Tensor HostView(Tensor tensor) {
  char* host = static_cast<char*>(BufferOf(tensor).ToHost(HostAccess::kReadWrite)) + tensor.GetDLTensorPtr()->byte_offset;
  return Tensor::FromNDAlloc(HostBytes{tensor, host}, tensor.shape(), tensor.dtype(), DLDevice{kDLCPU, 0});
}

// The buffer that shares the bytes of a CPU tensor, and that tensor; the buffer goes first.
struct SharedBytes {
  Tensor host_tensor;
  std::shared_ptr<Buffer> buffer;
  void AllocData(DLTensor* tensor) { tensor->data = buffer.get(); }
  void FreeData(DLTensor*) { buffer.reset(); }
};

tvm::ffi::Optional<Tensor> ImportHost(Tensor tensor, int index) {
  const DLTensor* host = tensor.GetDLTensorPtr();
  if (host->device.device_type != kDLCPU || !tensor.IsContiguous()) throw Error("a tensor that is not in host memory in one piece");
  char* start = static_cast<char*>(host->data) + host->byte_offset;
  std::unique_ptr<Buffer> buffer = Buffer::Import(&GetDevice(index), start, tvm::ffi::GetDataSize(*host));
  if (buffer == nullptr) return std::nullopt;
  return Tensor::FromNDAlloc(SharedBytes{tensor, std::move(buffer)}, tensor.shape(), tensor.dtype(),
                             DLDevice{kDLOpenCL, index});
}

void ToHost(Tensor tensor, String access) {
  HostAccess known = HostAccess::kReadWrite;
  if (access == "read") {
    known = HostAccess::kRead;
  } else if (access == "write") {
    known = HostAccess::kWrite;
  } else if (access != "readwrite") {
    throw Error("access " + std::string(access) + " is none of read, write, readwrite");
  }
  BufferOf(tensor).ToHost(known);
}

// A point in the queue, as a function: called with true it waits for it; it returns whether it has been reached.
struct Mark {
  explicit Mark(cl_event e) : event(e) {}
  ~Mark() { Cl().clReleaseEvent.Try(event); }
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  cl_event event;
};

class MarkObj final : public tvm::ffi::Object {
 public:
  explicit MarkObj(cl_event event) : mark(event) {}
  Mark mark;
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("hetero_sd.opencl.Mark", MarkObj, tvm::ffi::Object);
};

Function MakeMark(int index) {
  Device& device = GetDevice(index);
  cl_event event = nullptr;
  cl_command_queue queue = device.Queue();
  Cl().clEnqueueMarkerWithWaitList("a mark", queue, 0, nullptr, &event);
  auto mark = tvm::ffi::make_object<MarkObj>(event);
  Cl().clFlush(device.facts.name.c_str(), queue);
  return Function::FromTyped([mark, &device](bool wait) {
    return Guard([&] {
      cl_event at = mark->mark.event;
      if (wait) Cl().clWaitForEvents("a mark", 1, &at);
      cl_int state = CL_COMPLETE;
      Cl().clGetEventInfo("a mark", at, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof(state), &state, nullptr);
      if (state < 0) ThrowStatus(state, "a command before a mark", "");
      if (state == CL_COMPLETE) device.CheckWrites();
      return state == CL_COMPLETE;
    });
  });
}

// Begins a profile; the function that ends it returns its commands.
Function Profile(int index) {
  Device* device = &GetDevice(index);
  size_t first = device->BeginProfile();
  return Function::FromTyped([device, first]() {
    Array<Facts> commands;
    for (const Timing& t : Guard([&] { return device->EndProfile(first); })) {
      commands.push_back({{"name", String(t.name)},
                          {"queued_ns", static_cast<int64_t>(t.queued_ns)},
                          {"submitted_ns", static_cast<int64_t>(t.submitted_ns)},
                          {"started_ns", static_cast<int64_t>(t.started_ns)},
                          {"ended_ns", static_cast<int64_t>(t.ended_ns)}});
    }
    return commands;
  });
}

// TVM's timer: from the start of the first kernel in between to the end of the last, by the device's clock.
class OpenCLTimer final : public tvm::runtime::TimerNode {
 public:
  explicit OpenCLTimer(DLDevice device) : device_(Guard([&] { return &GetDevice(device.device_id); })) {}
  void Start() final { first_ = Guard([&] { return device_->BeginProfile(); }); }
  void Stop() final { timings_ = Guard([&] { return device_->EndProfile(first_); }); }
  int64_t SyncAndGetElapsedNanos() final {
    if (timings_.empty()) return 0;
    uint64_t start = timings_[0].started_ns, end = timings_[0].ended_ns;
    for (const Timing& t : timings_) start = std::min(start, t.started_ns), end = std::max(end, t.ended_ns);
    return static_cast<int64_t>(end - start);
  }
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("hetero_sd.opencl.Timer", OpenCLTimer, tvm::runtime::TimerNode);

 private:
  Device* device_;
  size_t first_ = 0;
  std::vector<Timing> timings_;
};

using Before = tvm::ffi::Optional<Function>;  // called with each kernel's name before it is built

void BuildModules(const tvm::ffi::Module& module, int device, const Before& before, Array<Array<String>>* failed) {
  if (std::string(module->kind()) == "opencl") {
    auto* ours = dynamic_cast<OpenCLModule*>(const_cast<tvm::ffi::ModuleObj*>(module.get()));
    if (ours == nullptr) throw Error("an opencl module that is not loaded by this runtime: export the library and load it");
    auto tell = [&](const std::string& name) {
      if (before.has_value()) before.value()(name);
    };
    for (auto& [name, reason] : ours->BuildAll(device, tell)) failed->push_back({String(name), String(reason)});
  }
  for (const Any& import : module->imports()) BuildModules(import.cast<tvm::ffi::Module>(), device, before, failed);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("hetero_sd.opencl.devices",
           [] {
             return Guard([] {
               Array<Facts> devices;
               for (const Device* device : Devices()) devices.push_back(Describe(*device));
               return devices;
             });
           })
      .def("hetero_sd.opencl.loader", [] { return Guard([] { return String(Cl().loader); }); })
      .def("hetero_sd.opencl.flush", [](int device) { Guard([&] { GetDevice(device).Flush(); }); })
      .def("hetero_sd.opencl.mark", [](int device) { return Guard([&] { return MakeMark(device); }); })
      .def("hetero_sd.opencl.host_view", [](Tensor tensor) { return Guard([&] { return HostView(tensor); }); })
      .def("hetero_sd.opencl.import_host",
           [](Tensor tensor, int device) { return Guard([&] { return ImportHost(tensor, device); }); })
      .def("hetero_sd.opencl.to_host", [](Tensor t, String access) { Guard([&] { ToHost(t, access); }); })
      .def("hetero_sd.opencl.to_device", [](Tensor tensor) { Guard([&] { BufferOf(tensor).ToDevice(); }); })
      .def("hetero_sd.opencl.profile", [](int device) { return Guard([&] { return Profile(device); }); })
      .def("hetero_sd.opencl.build_kernels",
           [](tvm::ffi::Module module, int device, Before before) {
             return Guard([&] {
               Array<Array<String>> failed;
               GetDevice(device);
               BuildModules(module, device, before, &failed);
               return failed;
             });
           })
      .def("hetero_sd.opencl.memory",
           [](int index) {
             return Guard([&]() -> Facts {
               Device& device = GetDevice(index);
               return {{"buffers", device.live_buffers.load()},
                       {"bytes", device.live_bytes.load()},
                       {"peak_bytes", device.peak_bytes.load()},
                       {"imported_bytes", device.imported_bytes.load()}};
             });
           })
      .def("hetero_sd.opencl.set_cache_folder", [](String folder) { SetCacheFolder(folder); })
      .def("hetero_sd.opencl.cache",
           []() -> Facts {
             CacheCounts counts = GetCacheCounts();
             return {{"folder", String(CacheFolder())},
                     {"loaded", counts.loaded},
                     {"built", counts.built},
                     {"damaged", counts.damaged},
                     {"written", counts.written}};
           })
      .def("hetero_sd.opencl.inject_failure",
           [](String function, int64_t k, String status, bool forever) {
             Guard([&] { InjectFailure(function, k, StatusOf(status), forever); });
           })
      .def("hetero_sd.opencl.call_count", [] { return CallCount(); })
      .def("runtime.timer.opencl", [](DLDevice device) {
        return tvm::ffi::ObjectRef(tvm::ffi::make_object<OpenCLTimer>(device));
      });
}

}  // namespace opencl
}  // namespace hetero_sd
