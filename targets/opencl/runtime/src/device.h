// One OpenCL device: its facts, its context and queues, the events of a profile.
#ifndef HETERO_SD_OPENCL_DEVICE_H_
#define HETERO_SD_OPENCL_DEVICE_H_

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api.h"

namespace hetero_sd {
namespace opencl {

struct DeviceFacts {
  std::string name, vendor, driver_version, version, c_version, extensions, platform, platform_version;
  cl_ulong type = 0;  // CL_DEVICE_TYPE_*
  bool unified_memory = false;
  uint64_t max_alloc_bytes = 0, global_bytes = 0, cache_bytes = 0, local_bytes = 0;
  size_t max_work_group = 0, max_work_items[3] = {0, 0, 0};
  uint32_t compute_units = 0, clock_mhz = 0;
};

// Whether the device says that it has an extension. A compiler may define the name of one that the device lacks.
bool HasExtension(const DeviceFacts& facts, const std::string& name);

// One command of a profile, times in nanoseconds of the device's clock.
struct Timing {
  std::string name;
  uint64_t queued_ns, submitted_ns, started_ns, ended_ns;
};

class Device {
 public:
  Device(cl_platform_id platform, cl_device_id id);

  const DeviceFacts facts;
  const cl_device_id id;

  cl_context Context();
  // The in-order queue of the calling thread: its stream where it chose one, else the one all threads share.
  cl_command_queue Queue();
  cl_command_queue NewQueue();
  void UseQueue(cl_command_queue queue);  // of the calling thread; nullptr = the shared one
  void Flush();
  void Finish(cl_command_queue queue);

  // The host's memory as a buffer for kernels to read, without a copy; nullptr where this driver would copy it, or
  // will not take this memory. The memory must stay until the buffer is released and the queue has finished.
  cl_mem ImportHost(void* host, size_t bytes);

  // Writes `bytes` from `source`, which may change after the return: up to 256 KiB without waiting for the queue.
  void Write(cl_mem to, size_t offset, const void* source, size_t bytes);
  // Throws Error where a write failed after it was queued; for whoever has waited for a queue. It says so once.
  void CheckWrites();

  // Profiling moves the shared queue to one with timestamps; begin and end it while no other thread enqueues.
  // EndProfile waits for the queue and returns the commands since the BeginProfile that returned `first`.
  size_t BeginProfile();
  std::vector<Timing> EndProfile(size_t first);
  // Whether commands of this queue have timestamps now; hand each one's event to Record.
  bool IsTimed(cl_command_queue queue) const;
  void Record(const std::string& name, cl_event event);

  std::atomic<int64_t> live_buffers{0}, live_bytes{0}, peak_bytes{0}, imported_bytes{0};

 private:
  struct Staged {
    cl_event event = nullptr;
    std::unique_ptr<char[]> bytes;
  };
  struct Recorded {
    std::string name;
    cl_event event;
  };
  using ImportArm = HandleFunction<cl_mem, cl_context, cl_bitfield, const intptr_t*, void*, size_t>;
  void OpenLocked();
  void ReapLocked(bool wait);

  const ImportArm import_arm_;
  std::mutex mutex_;
  cl_context context_ = nullptr;
  cl_command_queue plain_queue_ = nullptr;
  std::atomic<cl_command_queue> timed_queue_{nullptr};
  std::atomic<cl_command_queue> shared_queue_{nullptr};
  std::deque<Staged> staged_;
  std::vector<Recorded> recorded_;
  std::atomic<int> profiles_{0};
};

// GPUs first, then accelerators, then CPUs; within a kind in the loader's order. HSD_OPENCL_DEVICE, a part of the
// name of a device or platform, keeps only those that match. Throws Error where there is none, saying why; a later
// call looks again.
const std::vector<Device*>& Devices();

// Throws Error for an index that is out of range.
Device& GetDevice(int index);

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_DEVICE_H_
