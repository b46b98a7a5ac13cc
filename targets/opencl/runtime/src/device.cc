#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace hetero_sd {
namespace opencl {
namespace {

constexpr size_t kLargestStaged = 256 << 10;
constexpr size_t kMostStaged = 64;

std::string TextOf(cl_device_id device, cl_uint what) {
  size_t size = 0;
  if (Cl().clGetDeviceInfo.Try(device, what, 0, nullptr, &size) != CL_SUCCESS || size == 0) return "";
  std::string text(size, '\0');
  Cl().clGetDeviceInfo("the device", device, what, size, &text[0], nullptr);
  return text.c_str();  // drops the closing zero
}

std::string TextOf(cl_platform_id platform, cl_uint what) {
  size_t size = 0;
  if (Cl().clGetPlatformInfo.Try(platform, what, 0, nullptr, &size) != CL_SUCCESS || size == 0) return "";
  std::string text(size, '\0');
  Cl().clGetPlatformInfo("the platform", platform, what, size, &text[0], nullptr);
  return text.c_str();
}

template <typename T>
T ValueOf(cl_device_id device, cl_uint what) {
  T value{};
  Cl().clGetDeviceInfo("the device", device, what, sizeof(value), &value, nullptr);
  return value;
}

DeviceFacts FactsOf(cl_platform_id platform, cl_device_id device) {
  DeviceFacts facts;
  facts.name = TextOf(device, CL_DEVICE_NAME);
  facts.vendor = TextOf(device, CL_DEVICE_VENDOR);
  facts.driver_version = TextOf(device, CL_DRIVER_VERSION);
  facts.version = TextOf(device, CL_DEVICE_VERSION);
  facts.c_version = TextOf(device, CL_DEVICE_OPENCL_C_VERSION);
  facts.extensions = TextOf(device, CL_DEVICE_EXTENSIONS);
  facts.platform = TextOf(platform, CL_PLATFORM_NAME);
  facts.platform_version = TextOf(platform, CL_PLATFORM_VERSION);
  facts.type = ValueOf<cl_ulong>(device, CL_DEVICE_TYPE);
  facts.unified_memory = ValueOf<cl_bool>(device, CL_DEVICE_HOST_UNIFIED_MEMORY) != 0;
  facts.max_alloc_bytes = ValueOf<cl_ulong>(device, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
  facts.global_bytes = ValueOf<cl_ulong>(device, CL_DEVICE_GLOBAL_MEM_SIZE);
  facts.cache_bytes = ValueOf<cl_ulong>(device, CL_DEVICE_GLOBAL_MEM_CACHE_SIZE);
  facts.local_bytes = ValueOf<cl_ulong>(device, CL_DEVICE_LOCAL_MEM_SIZE);
  facts.max_work_group = ValueOf<size_t>(device, CL_DEVICE_MAX_WORK_GROUP_SIZE);
  facts.compute_units = ValueOf<cl_uint>(device, CL_DEVICE_MAX_COMPUTE_UNITS);
  facts.clock_mhz = ValueOf<cl_uint>(device, CL_DEVICE_MAX_CLOCK_FREQUENCY);
  size_t sizes[16] = {0};  // one per dimension; there are 3 everywhere, and room for a strange driver
  Cl().clGetDeviceInfo("the device", device, CL_DEVICE_MAX_WORK_ITEM_SIZES, sizeof(sizes), sizes, nullptr);
  std::copy(sizes, sizes + 3, facts.max_work_items);
  return facts;
}

bool Wanted(const DeviceFacts& facts) {
  const char* part = std::getenv("HSD_OPENCL_DEVICE");
  return part == nullptr || facts.name.find(part) != std::string::npos ||
         facts.platform.find(part) != std::string::npos;
}

int Rank(const Device* device) {
  if (device->facts.type & CL_DEVICE_TYPE_GPU) return 0;
  return device->facts.type & CL_DEVICE_TYPE_ACCELERATOR ? 1 : 2;
}

std::vector<Device*> Find() {
  const Api& cl = Cl();
  cl_uint platform_count = 0;
  cl_int status = cl.clGetPlatformIDs.Try(0, nullptr, &platform_count);
  if (status != CL_SUCCESS || platform_count == 0) {
    throw Error("the OpenCL loader (" + cl.loader + ") finds no driver: clGetPlatformIDs returned " +
                (status == CL_SUCCESS ? "no platform" : StatusName(status)));
  }
  std::vector<cl_platform_id> platforms(platform_count);
  cl.clGetPlatformIDs("", platform_count, platforms.data(), nullptr);
  std::vector<Device*> found;
  size_t unwanted = 0;
  std::string names;
  for (cl_platform_id platform : platforms) {
    names += (names.empty() ? "" : ", ") + TextOf(platform, CL_PLATFORM_NAME);
    cl_uint count = 0;
    status = cl.clGetDeviceIDs.Try(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &count);
    if (status != CL_SUCCESS || count == 0) continue;
    std::vector<cl_device_id> ids(count);
    cl.clGetDeviceIDs("", platform, CL_DEVICE_TYPE_ALL, count, ids.data(), nullptr);
    for (cl_device_id id : ids) {
      auto device = std::make_unique<Device>(platform, id);
      if (Wanted(device->facts)) {
        found.push_back(device.release());
      } else {
        ++unwanted;
      }
    }
  }
  if (found.empty()) {
    throw Error(unwanted > 0 ? std::string("no OpenCL device matches HSD_OPENCL_DEVICE=") + std::getenv("HSD_OPENCL_DEVICE")
                             : "no OpenCL platform has a device: " + names);
  }
  std::stable_sort(found.begin(), found.end(), [](Device* a, Device* b) { return Rank(a) < Rank(b); });
  return found;
}

constexpr size_t kImportAlignment = 64;  // a line of Mali's cache, and what the kernels' vector loads expect

// $HSD_OPENCL_IMPORT=0 has every weight copied, for a driver that imports badly.
bool MayImport() {
  const char* text = std::getenv("HSD_OPENCL_IMPORT");
  return text == nullptr || std::strcmp(text, "0") != 0;
}

// clImportMemoryARM, or nullptr where the device does not import memory of the host.
void* FindImport(cl_platform_id platform, const DeviceFacts& facts) {
  const Api& cl = Cl();
  bool listed = HasExtension(facts, "cl_arm_import_memory") && HasExtension(facts, "cl_arm_import_memory_host");
  if (!listed || cl.clGetExtensionFunctionAddressForPlatform == nullptr) return nullptr;
  return cl.clGetExtensionFunctionAddressForPlatform(platform, "clImportMemoryARM");
}

// The queue that this thread chose for a device.
thread_local std::unordered_map<const Device*, cl_command_queue> t_queues;

}  // namespace

bool HasExtension(const DeviceFacts& facts, const std::string& name) {
  return (" " + facts.extensions + " ").find(" " + name + " ") != std::string::npos;
}

Device::Device(cl_platform_id platform, cl_device_id device)
    : facts(FactsOf(platform, device)),
      id(device),
      import_arm_{"clImportMemoryARM", reinterpret_cast<decltype(ImportArm::pointer)>(FindImport(platform, facts))} {}

void Device::OpenLocked() {
  if (plain_queue_ != nullptr) return;
  const char* about = facts.name.c_str();
  if (context_ == nullptr) context_ = Cl().clCreateContext(about, nullptr, 1, &id, nullptr, nullptr);
  plain_queue_ = Cl().clCreateCommandQueue(about, context_, id, 0);
  shared_queue_.store(plain_queue_);
}

cl_context Device::Context() {
  std::lock_guard<std::mutex> lock(mutex_);
  OpenLocked();
  return context_;
}

cl_command_queue Device::Queue() {
  if (!t_queues.empty()) {
    auto chosen = t_queues.find(this);
    if (chosen != t_queues.end()) return chosen->second;
  }
  cl_command_queue queue = shared_queue_.load(std::memory_order_acquire);
  if (queue != nullptr) return queue;
  std::lock_guard<std::mutex> lock(mutex_);
  OpenLocked();
  return shared_queue_.load();
}

cl_command_queue Device::NewQueue() {
  return Cl().clCreateCommandQueue(facts.name.c_str(), Context(), id, 0);
}

void Device::UseQueue(cl_command_queue queue) {
  if (queue == nullptr) {
    t_queues.erase(this);
  } else {
    t_queues[this] = queue;
  }
}

void Device::Flush() { Cl().clFlush(facts.name.c_str(), Queue()); }

void Device::Finish(cl_command_queue queue) {
  Cl().clFinish(facts.name.c_str(), queue);
  CheckWrites();
}

void Device::CheckWrites() {
  std::lock_guard<std::mutex> lock(mutex_);
  ReapLocked(false);
}

// Arm's extension never copies. CL_MEM_USE_HOST_PTR may: a driver whose device is the CPU has no reason to, a GPU's
// driver often does and does not say so, so there it is not asked.
cl_mem Device::ImportHost(void* host, size_t bytes) {
  if (!MayImport() || bytes == 0 || reinterpret_cast<uintptr_t>(host) % kImportAlignment != 0) return nullptr;
  cl_int status = CL_SUCCESS;
  cl_mem memory = nullptr;
  if (import_arm_.pointer != nullptr) {
    const intptr_t properties[] = {CL_IMPORT_TYPE_ARM, CL_IMPORT_TYPE_HOST_ARM, 0};
    memory = import_arm_.Try(&status, Context(), CL_MEM_READ_ONLY, properties, host, bytes);
  } else if (facts.unified_memory && !(facts.type & (CL_DEVICE_TYPE_GPU | CL_DEVICE_TYPE_ACCELERATOR))) {
    memory = Cl().clCreateBuffer.Try(&status, Context(), CL_MEM_READ_ONLY | CL_MEM_USE_HOST_PTR, bytes, host);
  }
  return status == CL_SUCCESS ? memory : nullptr;
}

void Device::Write(cl_mem to, size_t offset, const void* source, size_t bytes) {
  cl_command_queue queue = Queue();
  if (bytes > kLargestStaged) {
    Cl().clEnqueueWriteBuffer("a copy to the device", queue, to, 1, offset, bytes, source, 0, nullptr, nullptr);
    return;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  ReapLocked(staged_.size() >= kMostStaged);
  std::unique_ptr<char[]> copy(new char[bytes]);
  std::memcpy(copy.get(), source, bytes);
  cl_event event = nullptr;
  Cl().clEnqueueWriteBuffer("a copy to the device", queue, to, 0, offset, bytes, copy.get(), 0, nullptr, &event);
  staged_.push_back({event, std::move(copy)});
}

// Frees the copies that the device has read, those of every queue; with `wait` it waits for the older half of them
// first. A copy of which the driver does not say whether it was read is kept: the device may still read it. Throws
// Error where a copy failed after it was queued (what the kernels since then read is not what was written), or where
// the driver could not wait or say.
void Device::ReapLocked(bool wait) {
  const char* about = "a copy to the device, after it was queued";
  size_t awaited = wait ? staged_.size() - staged_.size() / 2 : 0, kept = 0;
  cl_int failed = CL_SUCCESS, not_awaited = CL_SUCCESS, not_said = CL_SUCCESS;
  for (size_t i = 0; i < staged_.size(); ++i) {
    cl_event event = staged_[i].event;
    if (i < awaited && not_awaited == CL_SUCCESS) not_awaited = Cl().clWaitForEvents.Try(1, &event);
    cl_int state = CL_COMPLETE;
    cl_int status = Cl().clGetEventInfo.Try(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof(state), &state, nullptr);
    if (status != CL_SUCCESS) not_said = status;
    if (status != CL_SUCCESS || state > CL_COMPLETE) {
      std::swap(staged_[kept++], staged_[i]);
      continue;
    }
    if (state < CL_COMPLETE) failed = state;
    Cl().clReleaseEvent.Try(event);
  }
  staged_.resize(kept);
  if (failed != CL_SUCCESS) ThrowStatus(failed, "clEnqueueWriteBuffer", about);
  if (not_awaited != CL_SUCCESS) ThrowStatus(not_awaited, "clWaitForEvents", about);
  if (not_said != CL_SUCCESS) ThrowStatus(not_said, "clGetEventInfo", about);
}

size_t Device::BeginProfile() {
  std::lock_guard<std::mutex> lock(mutex_);
  OpenLocked();
  if (profiles_.load() == 0) {
    Cl().clFinish(facts.name.c_str(), plain_queue_);
    if (timed_queue_.load() == nullptr) {
      timed_queue_.store(Cl().clCreateCommandQueue("a profile", context_, id, CL_QUEUE_PROFILING_ENABLE));
    }
    shared_queue_.store(timed_queue_.load());
  }
  profiles_.fetch_add(1);
  return recorded_.size();
}

std::vector<Timing> Device::EndProfile(size_t first) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (profiles_.load() == 0) throw Error("no profile was begun on " + facts.name);
  std::vector<Recorded> ended;
  if (profiles_.fetch_sub(1) == 1) {
    shared_queue_.store(plain_queue_);
    ended.swap(recorded_);
  }
  const std::vector<Recorded>& all = profiles_.load() == 0 ? ended : recorded_;
  cl_int status = Cl().clFinish.Try(timed_queue_.load());
  std::vector<Timing> timings;
  for (size_t i = first; i < all.size() && status == CL_SUCCESS; ++i) {
    cl_ulong times[4] = {0};
    const cl_uint whats[4] = {CL_PROFILING_COMMAND_QUEUED, CL_PROFILING_COMMAND_SUBMIT, CL_PROFILING_COMMAND_START,
                              CL_PROFILING_COMMAND_END};
    for (int k = 0; k < 4 && status == CL_SUCCESS; ++k) {
      status = Cl().clGetEventProfilingInfo.Try(all[i].event, whats[k], sizeof(cl_ulong), &times[k], nullptr);
    }
    timings.push_back({all[i].name, times[0], times[1], times[2], times[3]});
  }
  for (const Recorded& command : ended) Cl().clReleaseEvent.Try(command.event);
  if (status != CL_SUCCESS) ThrowStatus(status, "clGetEventProfilingInfo", "a profile of " + facts.name);
  ReapLocked(false);
  return timings;
}

bool Device::IsTimed(cl_command_queue queue) const {
  return profiles_.load(std::memory_order_relaxed) > 0 && queue == timed_queue_.load(std::memory_order_relaxed);
}

void Device::Record(const std::string& name, cl_event event) {
  std::lock_guard<std::mutex> lock(mutex_);
  recorded_.push_back({name, event});
}

const std::vector<Device*>& Devices() {
  static std::mutex mutex;
  static std::vector<Device*>* devices = new std::vector<Device*>;  // they live as long as the process
  std::lock_guard<std::mutex> lock(mutex);
  if (devices->empty()) *devices = Find();
  return *devices;
}

Device& GetDevice(int index) {
  const std::vector<Device*>& devices = Devices();
  if (index < 0 || static_cast<size_t>(index) >= devices.size()) {
    throw Error("there is no opencl:" + std::to_string(index) + ", only " + std::to_string(devices.size()) + " device(s)");
  }
  return *devices[index];
}

}  // namespace opencl
}  // namespace hetero_sd
