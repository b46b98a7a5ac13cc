// Device memory, and its hand-over between CPU and GPU.
#ifndef HETERO_SD_OPENCL_BUFFER_H_
#define HETERO_SD_OPENCL_BUFFER_H_

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "device.h"

namespace hetero_sd {
namespace opencl {

enum class HostAccess { kRead, kWrite, kReadWrite };

// A cl_mem with one owner at a time, the device or the host. Where memory is unified the host sees the same bytes
// (mapped: cache maintenance at the hand-over, no copy); else a copy of them that the hand-over brings up to date.
// TVM's `data` pointer of an opencl tensor points to one of these.
class Buffer {
 public:
  // Throws Error when `bytes` is above CL_DEVICE_MAX_MEM_ALLOC_SIZE; both numbers are in the message.
  Buffer(Device* device, size_t bytes);
  // Shares memory of the host, which kernels read and nobody writes, and which must outlive the buffer; nullptr where
  // the driver does not share it. Throws as the constructor does.
  static std::unique_ptr<Buffer> Import(Device* device, void* host, size_t bytes);
  ~Buffer();  // waits for the queue where memory is shared, whose owner may free it next
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // The Buffer behind a tensor's data pointer; throws Error for a pointer that is none.
  static Buffer& At(const void* data);

  // Waits for the commands that use the buffer and gives it to the host; returns where the host finds it, which is
  // the same address each time. With kWrite the content may be lost and is not waited for on the way back.
  void* ToHost(HostAccess access);
  // Gives it back to the device, in the order of the queue; does not wait. Nothing if the device has it.
  void ToDevice();
  // The cl_mem, for a command; throws Error while the host has it.
  cl_mem ForDevice() const;

  void Write(size_t offset, const void* source, size_t bytes);
  void Read(size_t offset, void* target, size_t bytes) const;
  void CopyFrom(size_t offset, const Buffer& source, size_t source_offset, size_t bytes);

  Device* const device;
  const size_t bytes;

 private:
  Buffer(Device* device, size_t bytes, cl_mem imported);
  cl_mem ForWriting() const;

  const bool imported_ = false;
  uint64_t mark_;  // tells a Buffer from other memory
  cl_mem mem_ = nullptr;
  void* mapped_ = nullptr;  // unified: where it was mapped first
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> copy_;  // not unified: the host's copy
  std::atomic<bool> host_owns_{false};
  bool host_writes_ = false;
};

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_BUFFER_H_
