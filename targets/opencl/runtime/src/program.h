// Programs and kernels: built from source once per process, and from a binary on disk where one is there.
#ifndef HETERO_SD_OPENCL_PROGRAM_H_
#define HETERO_SD_OPENCL_PROGRAM_H_

#include <map>
#include <mutex>
#include <string>

#include "device.h"

namespace hetero_sd {
namespace opencl {

// What became of the binaries on disk, in this process.
struct CacheCounts {
  int64_t loaded = 0, built = 0, damaged = 0, written = 0;
};

// Where binaries are kept: the folder given here ("" = nowhere), else $HSD_OPENCL_CACHE, else
// $XDG_CACHE_HOME/hetero_sd/opencl, else ~/.cache/hetero_sd/opencl, else nowhere.
void SetCacheFolder(const std::string& folder);
std::string CacheFolder();
CacheCounts GetCacheCounts();

// What stands before every source: no contraction of a * b + c, and HSD_HAS_<name> for those of the extensions that
// kernels ask for (targets/opencl/kernels/integer_dot.py) that the device has.
std::string Prologue(const DeviceFacts& facts);

// A kernel in the OpenCL sense, with the lock that setting its arguments and enqueueing it needs.
class Kernel {
 public:
  // Builds the program of `source`, or finds it. Throws Error with the kernel's name and the first lines of the
  // compiler's log.
  Kernel(Device* device, const std::string& name, const std::string& source);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Enqueues it over `dimensions` of global and local work-items, without waiting; each argument is its size and
  // where its value lies. Nothing is enqueued where a global size is 0.
  struct Argument {
    size_t bytes;
    const void* value;
  };
  void Launch(cl_uint dimensions, const size_t* global, const size_t* local, const Argument* arguments, size_t count);

  const std::string name;

 private:
  void Enqueue(cl_uint dimensions, const size_t* global, const size_t* local);

  Device* device_;
  std::string program_key_;
  cl_kernel handle_ = nullptr;
  std::mutex mutex_;
};

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_PROGRAM_H_
