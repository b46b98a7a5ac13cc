// TVM's DeviceAPI for opencl devices.
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include "buffer.h"
#include "tvm_guard.h"

namespace hetero_sd {
namespace opencl {
namespace {

using tvm::Device;
using tvm::ffi::Any;
using tvm::ffi::String;

thread_local int t_device = 0;

class OpenCLDeviceApi final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(Device device) final { t_device = device.device_id; }

  void GetAttr(Device device, tvm::runtime::DeviceAttrKind kind, Any* value) final {
    if (kind == tvm::runtime::kExist) {
      *value = static_cast<int>(Exists(device.device_id));
      return;
    }
    Guard([&] { Attribute(GetDevice(device.device_id).facts, kind, value); });
  }

  void* AllocDataSpace(Device device, size_t bytes, size_t, DLDataType) final {
    return Guard([&] { return new Buffer(&GetDevice(device.device_id), bytes); });
  }

  using tvm::runtime::DeviceAPI::AllocDataSpace;

  void FreeDataSpace(Device, void* data) final {
    Guard([&] { delete &Buffer::At(data); });
  }

  void* AllocWorkspace(Device device, size_t bytes, DLDataType type) final {
    return AllocDataSpace(device, bytes, tvm::runtime::kTempAllocaAlignment, type);
  }

  void FreeWorkspace(Device device, void* data) final { FreeDataSpace(device, data); }

  TVMStreamHandle CreateStream(Device device) final {
    return Guard([&] { return GetDevice(device.device_id).NewQueue(); });
  }

  void FreeStream(Device device, TVMStreamHandle stream) final {
    Guard([&] { Cl().clReleaseCommandQueue(GetDevice(device.device_id).facts.name.c_str(), Queue(device, stream)); });
  }

  void StreamSync(Device device, TVMStreamHandle stream) final {
    Guard([&] { GetDevice(device.device_id).Finish(Queue(device, stream)); });
  }

  void SetStream(Device device, TVMStreamHandle stream) final {
    Guard([&] { GetDevice(device.device_id).UseQueue(static_cast<cl_command_queue>(stream)); });
  }

  TVMStreamHandle GetCurrentStream(Device device) final {
    return Guard([&] { return GetDevice(device.device_id).Queue(); });
  }

  void SyncStreamFromTo(Device device, TVMStreamHandle from, TVMStreamHandle to) final {
    Guard([&] {
      cl_event event = nullptr;
      Cl().clEnqueueMarkerWithWaitList("a stream", Queue(device, from), 0, nullptr, &event);
      cl_int status = Cl().clFlush.Try(Queue(device, from));
      if (status == CL_SUCCESS) {
        status = Cl().clEnqueueBarrierWithWaitList.Try(Queue(device, to), 1, &event, nullptr);
      }
      Cl().clReleaseEvent.Try(event);
      if (status != CL_SUCCESS) ThrowStatus(status, "clEnqueueBarrierWithWaitList", "a stream");
    });
  }

 protected:
  // To the device: the source may change after the return. From the device: the target is ready at the return.
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      Device from_device, Device to_device, DLDataType, TVMStreamHandle) final {
    Guard([&] {
      bool from_here = from_device.device_type == kDLOpenCL, to_here = to_device.device_type == kDLOpenCL;
      if (from_here && to_here) {
        Buffer::At(to).CopyFrom(to_offset, Buffer::At(from), from_offset, bytes);
      } else if (to_here) {
        Buffer::At(to).Write(to_offset, static_cast<const char*>(from) + from_offset, bytes);
      } else {
        Buffer::At(from).Read(from_offset, static_cast<char*>(to) + to_offset, bytes);
      }
    });
  }

 private:
  static bool Exists(int index) {
    try {
      return index >= 0 && static_cast<size_t>(index) < Devices().size();
    } catch (const Error&) {
      return false;
    }
  }

  static cl_command_queue Queue(Device device, TVMStreamHandle stream) {
    return stream != nullptr ? static_cast<cl_command_queue>(stream) : GetDevice(device.device_id).Queue();
  }

  static void Attribute(const DeviceFacts& facts, tvm::runtime::DeviceAttrKind kind, Any* value) {
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *value = static_cast<int64_t>(facts.max_work_group);
        break;
      case tvm::runtime::kWarpSize:
        *value = int64_t{1};  // OpenCL 1.2 does not say
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *value = static_cast<int64_t>(facts.local_bytes);
        break;
      case tvm::runtime::kComputeVersion:
        *value = String(facts.version);
        break;
      case tvm::runtime::kDeviceName:
        *value = String(facts.name);
        break;
      case tvm::runtime::kMaxClockRate:
        *value = static_cast<int64_t>(facts.clock_mhz) * 1000;  // kHz
        break;
      case tvm::runtime::kMultiProcessorCount:
        *value = static_cast<int64_t>(facts.compute_units);
        break;
      case tvm::runtime::kMaxThreadDimensions: {
        std::string text;
        for (size_t size : facts.max_work_items) text += (text.empty() ? "[" : ", ") + std::to_string(size);
        *value = String(text + "]");
        break;
      }
      case tvm::runtime::kApiVersion:
        *value = int64_t{120};
        break;
      case tvm::runtime::kDriverVersion:
        *value = String(facts.driver_version);
        break;
      case tvm::runtime::kL2CacheSizeBytes:
        *value = static_cast<int64_t>(facts.cache_bytes);
        break;
      case tvm::runtime::kTotalGlobalMemory:
        *value = static_cast<int64_t>(facts.global_bytes);
        break;
      default:
        break;  // left as None
    }
  }
};

}  // namespace

int CurrentDevice() { return t_device; }

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def_packed("device_api.opencl", [](tvm::ffi::PackedArgs, Any* value) {
    static OpenCLDeviceApi* api = new OpenCLDeviceApi;  // tensors may be freed after static destructors
    *value = static_cast<void*>(api);
  });
}

}  // namespace opencl
}  // namespace hetero_sd
