#include "api.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

// glibc 2.34 moved these into libc under a new version; boards with an older one have only the first.
#if defined(__x86_64__)
#define HETERO_SD_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define HETERO_SD_FIRST_GLIBC "GLIBC_2.17"
#else
#error "x86-64 and AArch64 only"
#endif
__asm__(".symver dlopen,dlopen@" HETERO_SD_FIRST_GLIBC);
__asm__(".symver dlsym,dlsym@" HETERO_SD_FIRST_GLIBC);
__asm__(".symver dlerror,dlerror@" HETERO_SD_FIRST_GLIBC);

namespace hetero_sd {
namespace opencl {
namespace {

struct NamedStatus {
  cl_int value;
  const char* name;
};

// OpenCL 1.2, 2.0 and 2.2, then those of the loader and of the SPIR-V extension.
constexpr NamedStatus kStatuses[] = {
    {0, "CL_SUCCESS"},
    {-1, "CL_DEVICE_NOT_FOUND"},
    {-2, "CL_DEVICE_NOT_AVAILABLE"},
    {-3, "CL_COMPILER_NOT_AVAILABLE"},
    {-4, "CL_MEM_OBJECT_ALLOCATION_FAILURE"},
    {-5, "CL_OUT_OF_RESOURCES"},
    {-6, "CL_OUT_OF_HOST_MEMORY"},
    {-7, "CL_PROFILING_INFO_NOT_AVAILABLE"},
    {-8, "CL_MEM_COPY_OVERLAP"},
    {-9, "CL_IMAGE_FORMAT_MISMATCH"},
    {-10, "CL_IMAGE_FORMAT_NOT_SUPPORTED"},
    {-11, "CL_BUILD_PROGRAM_FAILURE"},
    {-12, "CL_MAP_FAILURE"},
    {-13, "CL_MISALIGNED_SUB_BUFFER_OFFSET"},
    {-14, "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"},
    {-15, "CL_COMPILE_PROGRAM_FAILURE"},
    {-16, "CL_LINKER_NOT_AVAILABLE"},
    {-17, "CL_LINK_PROGRAM_FAILURE"},
    {-18, "CL_DEVICE_PARTITION_FAILED"},
    {-19, "CL_KERNEL_ARG_INFO_NOT_AVAILABLE"},
    {-30, "CL_INVALID_VALUE"},
    {-31, "CL_INVALID_DEVICE_TYPE"},
    {-32, "CL_INVALID_PLATFORM"},
    {-33, "CL_INVALID_DEVICE"},
    {-34, "CL_INVALID_CONTEXT"},
    {-35, "CL_INVALID_QUEUE_PROPERTIES"},
    {-36, "CL_INVALID_COMMAND_QUEUE"},
    {-37, "CL_INVALID_HOST_PTR"},
    {-38, "CL_INVALID_MEM_OBJECT"},
    {-39, "CL_INVALID_IMAGE_FORMAT_DESCRIPTOR"},
    {-40, "CL_INVALID_IMAGE_SIZE"},
    {-41, "CL_INVALID_SAMPLER"},
    {-42, "CL_INVALID_BINARY"},
    {-43, "CL_INVALID_BUILD_OPTIONS"},
    {-44, "CL_INVALID_PROGRAM"},
    {-45, "CL_INVALID_PROGRAM_EXECUTABLE"},
    {-46, "CL_INVALID_KERNEL_NAME"},
    {-47, "CL_INVALID_KERNEL_DEFINITION"},
    {-48, "CL_INVALID_KERNEL"},
    {-49, "CL_INVALID_ARG_INDEX"},
    {-50, "CL_INVALID_ARG_VALUE"},
    {-51, "CL_INVALID_ARG_SIZE"},
    {-52, "CL_INVALID_KERNEL_ARGS"},
    {-53, "CL_INVALID_WORK_DIMENSION"},
    {-54, "CL_INVALID_WORK_GROUP_SIZE"},
    {-55, "CL_INVALID_WORK_ITEM_SIZE"},
    {-56, "CL_INVALID_GLOBAL_OFFSET"},
    {-57, "CL_INVALID_EVENT_WAIT_LIST"},
    {-58, "CL_INVALID_EVENT"},
    {-59, "CL_INVALID_OPERATION"},
    {-60, "CL_INVALID_GL_OBJECT"},
    {-61, "CL_INVALID_BUFFER_SIZE"},
    {-62, "CL_INVALID_MIP_LEVEL"},
    {-63, "CL_INVALID_GLOBAL_WORK_SIZE"},
    {-64, "CL_INVALID_PROPERTY"},
    {-65, "CL_INVALID_IMAGE_DESCRIPTOR"},
    {-66, "CL_INVALID_COMPILER_OPTIONS"},
    {-67, "CL_INVALID_LINKER_OPTIONS"},
    {-68, "CL_INVALID_DEVICE_PARTITION_COUNT"},
    {-69, "CL_INVALID_PIPE_SIZE"},
    {-70, "CL_INVALID_DEVICE_QUEUE"},
    {-71, "CL_INVALID_SPEC_ID"},
    {-72, "CL_MAX_SIZE_RESTRICTION_EXCEEDED"},
    {-1001, "CL_PLATFORM_NOT_FOUND_KHR"},
};

std::atomic<int64_t> g_calls{0};
std::atomic<bool> g_fault_armed{false};

struct Fault {
  std::mutex mutex;
  std::string function;
  int64_t countdown = 0;
  cl_int status = CL_SUCCESS;
  bool forever = false;
};

Fault& TheFault() {
  static Fault* fault = new Fault;
  return *fault;
}

void InjectFromEnvironment() {
  const char* text = std::getenv("HSD_OPENCL_FAULT");
  if (text == nullptr || *text == '\0') return;
  std::string spec = text, parts[4];
  size_t count = 0, start = 0;
  for (; count < 4 && start <= spec.size(); ++count) {
    size_t end = spec.find(':', start);
    if (end == std::string::npos) end = spec.size();
    parts[count] = spec.substr(start, end - start);
    start = end + 1;
  }
  int64_t k = std::atoll(parts[1].c_str());
  if (count < 3 || k < 1 || (count == 4 && parts[3] != "forever")) {
    throw Error("HSD_OPENCL_FAULT=" + spec + ": expected function:k:status[:forever]");
  }
  InjectFailure(parts[0], k, StatusOf(parts[2]), count == 4);
}

// Looks every function up in `library`; the name of the first that is missing, or nullptr.
const char* Fill(Api* api, void* library) {
#define HETERO_SD_LOOK_UP(function, ...)                                           \
  if (void* symbol = dlsym(library, #function)) {                                  \
    std::memcpy(&api->function.pointer, &symbol, sizeof(symbol));                  \
  } else {                                                                         \
    return #function;                                                              \
  }
  HETERO_SD_CL_STATUS_FUNCTIONS(HETERO_SD_LOOK_UP)
  HETERO_SD_CL_HANDLE_FUNCTIONS(HETERO_SD_LOOK_UP)
#undef HETERO_SD_LOOK_UP
#define HETERO_SD_LOOK_UP(function, ...)           \
  if (void* symbol = dlsym(library, #function)) {  \
    std::memcpy(&api->function, &symbol, sizeof(symbol)); \
  }
  HETERO_SD_CL_OPTIONAL_FUNCTIONS(HETERO_SD_LOOK_UP)
#undef HETERO_SD_LOOK_UP
  return nullptr;
}

const Api* Open() {
  InjectFromEnvironment();
  Api* api = new Api;  // for the life of the process: handles outlive every static destructor
  const char* stated = std::getenv("HSD_OPENCL_LIB");
  bool is_stated = stated != nullptr && *stated != '\0';
  if (!is_stated && Fill(api, RTLD_DEFAULT) == nullptr) {
    api->loader = "the process";
    return api;
  }
  const char* names[] = {"libOpenCL.so.1", "libOpenCL.so", "libmali.so.1"};
  std::string tried;
  for (const char* name : names) {
    if (is_stated) name = stated;
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    const char* missing = library == nullptr ? nullptr : Fill(api, library);
    if (library != nullptr && missing == nullptr) {
      api->loader = name;
      return api;
    }
    const char* reason = library == nullptr ? dlerror() : nullptr;
    tried += std::string(tried.empty() ? "" : "; ") + name + ": ";
    tried += missing != nullptr ? std::string("no function ") + missing : reason != nullptr ? reason : "cannot be opened";
    if (is_stated) break;
  }
  delete api;
  throw Error("no OpenCL library: " + tried);
}

}  // namespace

std::string StatusName(cl_int status) {
  for (const NamedStatus& named : kStatuses) {
    if (named.value == status) return named.name;
  }
  return "status " + std::to_string(status);
}

cl_int StatusOf(const std::string& name) {
  for (const NamedStatus& named : kStatuses) {
    if (name == named.name || name == std::to_string(named.value)) return named.value;
  }
  throw Error("no OpenCL status is called " + name);
}

void ThrowStatus(cl_int status, const char* call, const std::string& about) {
  std::string name = StatusName(status);
  std::string number = name.compare(0, 3, "CL_") == 0 ? " (" + std::to_string(status) + ")" : "";
  throw Error(std::string(call) + " returned " + name + number + (about.empty() ? "" : " for " + about));
}

void InjectFailure(const std::string& function, int64_t k, cl_int status, bool forever) {
  Fault& fault = TheFault();
  std::lock_guard<std::mutex> lock(fault.mutex);
  fault.function = function;
  fault.countdown = k;
  fault.status = status;
  fault.forever = forever;
  g_fault_armed.store(k > 0 && status != CL_SUCCESS);
}

int64_t CallCount() { return g_calls.load(); }

cl_int NextFault(const char* function) {
  g_calls.fetch_add(1, std::memory_order_relaxed);
  if (!g_fault_armed.load(std::memory_order_relaxed)) return CL_SUCCESS;
  Fault& fault = TheFault();
  std::lock_guard<std::mutex> lock(fault.mutex);
  bool releases = std::strncmp(function, "clRelease", 9) == 0;
  if (fault.function == "*" ? releases : fault.function != function) return CL_SUCCESS;
  if (fault.countdown > 1) {
    --fault.countdown;
    return CL_SUCCESS;
  }
  if (!fault.forever) g_fault_armed.store(false);
  return fault.status;
}

const Api& Cl() {
  static std::mutex mutex;
  static std::atomic<const Api*> api{nullptr};
  const Api* opened = api.load(std::memory_order_acquire);
  if (opened == nullptr) {
    std::lock_guard<std::mutex> lock(mutex);
    opened = api.load(std::memory_order_relaxed);
    if (opened == nullptr) {
      opened = Open();
      api.store(opened, std::memory_order_release);
    }
  }
  return *opened;
}

}  // namespace opencl
}  // namespace hetero_sd
