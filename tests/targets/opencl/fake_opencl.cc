// A stand-in for an OpenCL driver, for unit tests of the runtime: two devices (a CPU, then a GPU), commands done at
// once, every handle a heap object so that sanitizers see leaks and uses after release, and rules checked that real
// drivers leave unchecked: a mapped buffer must not be used by a command, an argument must be set before the launch.
// FAKE_UNIFIED=0: memory is not unified. FAKE_MOVES=1: each map is elsewhere. FAKE_ARM=1: the GPU imports memory of the
// host, as Arm's drivers do. Kernel "fill" writes its float argument. For tests of what is said about a driver:
// FAKE_PLATFORM, FAKE_NAME, FAKE_VERSION, FAKE_DRIVER and FAKE_EXTENSIONS are its texts, FAKE_PLATFORMS=0 and
// FAKE_DEVICES=0 leave it without, FAKE_MAX_ALLOC is the largest buffer, FAKE_REFUSES and FAKE_CRASHES are parts of the
// kernels that its compiler refuses or crashes at. FAKE_EVENT_STATE is what commands enqueued from now on say of
// themselves: below 0 that they failed, above that they are not done, until something waits for them.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

struct _cl_platform_id {};
struct _cl_device_id {
  const char* name;
  cl_ulong type;
};
struct _cl_context {};
struct _cl_command_queue {
  bool timed;
};
struct _cl_mem {
  std::vector<float> floats;
  void* host = nullptr;  // the host's own memory, shared and only read
  std::vector<std::vector<float>> moved;
  size_t bytes;
  int maps = 0;
};
struct _cl_program {
  std::string text;
  bool built = false;
};
struct _cl_kernel {
  std::string name;
  cl_mem memory = nullptr;
  float value = 0;
  int set = 0;
};
struct _cl_event {
  cl_ulong at;
  cl_int state;
};

namespace {

_cl_platform_id g_platform;
_cl_device_id g_devices[2] = {{"a CPU", CL_DEVICE_TYPE_CPU}, {"a GPU", CL_DEVICE_TYPE_GPU}};
std::atomic<long> g_handles{0}, g_clock{1000}, g_finished{0};
std::mutex g_mutex;  // a driver's own lock: its functions may be called from several threads

bool Is(const char* variable, const char* value) {
  const char* text = std::getenv(variable);
  return text != nullptr && std::strcmp(text, value) == 0;
}

std::string Text(const char* variable, const std::string& otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? text : otherwise;
}

bool Names(const char* variable, const std::string& text) {
  std::string part = Text(variable, "");
  return !part.empty() && text.find(part) != std::string::npos;
}

template <typename T>
T* Made(T* handle, cl_int* status) {
  ++g_handles;
  *status = CL_SUCCESS;
  return handle;
}

template <typename T>
cl_int Freed(T* handle) {
  --g_handles;
  delete handle;
  return CL_SUCCESS;
}

cl_int Give(const void* value, size_t size, size_t room, void* to, size_t* size_to) {
  if (size_to != nullptr) *size_to = size;
  if (to == nullptr) return CL_SUCCESS;
  if (room < size) return CL_INVALID_VALUE;
  std::memcpy(to, value, size);
  return CL_SUCCESS;
}

template <typename T>
cl_int GiveValue(T value, size_t room, void* to, size_t* size_to) {
  return Give(&value, sizeof(value), room, to, size_to);
}

cl_int GiveText(const std::string& text, size_t room, void* to, size_t* size_to) {
  return Give(text.c_str(), text.size() + 1, room, to, size_to);
}

void Happen(cl_event* event) {
  cl_int status, state = std::atoi(Text("FAKE_EVENT_STATE", "0").c_str());
  if (event != nullptr) *event = Made(new _cl_event{static_cast<cl_ulong>(g_clock += 10), state}, &status);
}

char* BytesOf(cl_mem memory) {
  return memory->host != nullptr ? static_cast<char*>(memory->host) : reinterpret_cast<char*>(memory->floats.data());
}
constexpr cl_int kMapped = -59;  // CL_INVALID_OPERATION

cl_mem Import(cl_context, cl_bitfield flags, const intptr_t* properties, void* memory, size_t bytes, cl_int* status) {
  bool known = properties[0] == CL_IMPORT_TYPE_ARM && properties[1] == CL_IMPORT_TYPE_HOST_ARM && properties[2] == 0;
  *status = CL_INVALID_VALUE;
  if (!known || flags != CL_MEM_READ_ONLY) return nullptr;
  auto* imported = new _cl_mem;
  imported->host = memory;
  imported->bytes = bytes;
  return Made(imported, status);
}

}  // namespace

extern "C" {

long FakeLiveHandles() { return g_handles; }

cl_int clGetPlatformIDs(cl_uint room, cl_platform_id* to, cl_uint* count) {
  if (count != nullptr) *count = 1;
  if (Is("FAKE_PLATFORMS", "0")) return -1001;  // CL_PLATFORM_NOT_FOUND_KHR, what a loader without drivers says
  if (room > 0) *to = &g_platform;
  return CL_SUCCESS;
}
void* clGetExtensionFunctionAddressForPlatform(cl_platform_id, const char* name) {
  return std::strcmp(name, "clImportMemoryARM") == 0 ? reinterpret_cast<void*>(Import) : nullptr;
}

cl_int clGetPlatformInfo(cl_platform_id, cl_uint what, size_t room, void* to, size_t* size) {
  std::string text = what == CL_PLATFORM_VERSION ? Text("FAKE_VERSION", "OpenCL 1.2") : Text("FAKE_PLATFORM", "Fake");
  return GiveText(text, room, to, size);
}

cl_int clGetDeviceIDs(cl_platform_id, cl_bitfield, cl_uint room, cl_device_id* to, cl_uint* count) {
  if (Is("FAKE_DEVICES", "0")) return -1;  // CL_DEVICE_NOT_FOUND
  if (count != nullptr) *count = 2;
  for (cl_uint i = 0; i < room && i < 2; ++i) to[i] = &g_devices[i];
  return CL_SUCCESS;
}

cl_int clGetDeviceInfo(cl_device_id device, cl_uint what, size_t room, void* to, size_t* size) {
  switch (what) {
    case CL_DEVICE_TYPE:
      return GiveValue(device->type, room, to, size);
    case CL_DEVICE_HOST_UNIFIED_MEMORY:
      return GiveValue<cl_bool>(!Is("FAKE_UNIFIED", "0"), room, to, size);
    case CL_DEVICE_MAX_MEM_ALLOC_SIZE:
      return GiveValue<cl_ulong>(std::stoull(Text("FAKE_MAX_ALLOC", "1048576")), room, to, size);
    case CL_DEVICE_GLOBAL_MEM_SIZE:
    case CL_DEVICE_GLOBAL_MEM_CACHE_SIZE:
    case CL_DEVICE_LOCAL_MEM_SIZE:
      return GiveValue<cl_ulong>(1 << 22, room, to, size);
    case CL_DEVICE_MAX_WORK_GROUP_SIZE:
      return GiveValue<size_t>(64, room, to, size);
    case CL_DEVICE_MAX_COMPUTE_UNITS:
    case CL_DEVICE_MAX_CLOCK_FREQUENCY:
      return GiveValue<cl_uint>(1, room, to, size);
    case CL_DEVICE_MAX_WORK_ITEM_SIZES: {
      size_t sizes[3] = {64, 64, 64};
      return Give(sizes, sizeof(sizes), room, to, size);
    }
    case CL_DEVICE_EXTENSIONS: {
      bool arm = Is("FAKE_ARM", "1") && device->type == CL_DEVICE_TYPE_GPU;
      std::string imports = arm ? " cl_arm_import_memory cl_arm_import_memory_host" : "";
      return GiveText(Text("FAKE_EXTENSIONS", "cl_khr_none") + imports, room, to, size);
    }
    case CL_DEVICE_VERSION:
      return GiveText(Text("FAKE_VERSION", "OpenCL 1.2"), room, to, size);
    case CL_DRIVER_VERSION:
      return GiveText(Text("FAKE_DRIVER", "1"), room, to, size);
    case CL_DEVICE_NAME:
      return GiveText(device->type == CL_DEVICE_TYPE_GPU ? Text("FAKE_NAME", device->name) : device->name, room, to, size);
    default:
      return GiveText(device->name, room, to, size);
  }
}

cl_context clCreateContext(const intptr_t*, cl_uint, const cl_device_id*,
                           void (*)(const char*, const void*, size_t, void*), void*, cl_int* status) {
  return Made(new _cl_context, status);
}
cl_command_queue clCreateCommandQueue(cl_context, cl_device_id, cl_bitfield flags, cl_int* status) {
  return Made(new _cl_command_queue{flags == CL_QUEUE_PROFILING_ENABLE}, status);
}
cl_int clReleaseCommandQueue(cl_command_queue queue) { return Freed(queue); }

cl_mem clCreateBuffer(cl_context, cl_bitfield flags, size_t bytes, void* host, cl_int* status) {
  auto* memory = new _cl_mem;
  if (flags & CL_MEM_USE_HOST_PTR) memory->host = host;
  memory->floats.resize((bytes + 3) / 4);
  memory->bytes = bytes;
  return Made(memory, status);
}
cl_int clReleaseMemObject(cl_mem memory) { return memory->maps > 0 ? kMapped : Freed(memory); }

cl_program clCreateProgramWithSource(cl_context, cl_uint count, const char** texts, const size_t* sizes, cl_int* status) {
  auto* program = new _cl_program;
  for (cl_uint i = 0; i < count; ++i) program->text.append(texts[i], sizes[i]);
  return Made(program, status);
}
cl_program clCreateProgramWithBinary(cl_context, cl_uint, const cl_device_id*, const size_t* sizes,
                                     const unsigned char** binaries, cl_int* binary_status, cl_int* status) {
  std::string binary(reinterpret_cast<const char*>(binaries[0]), sizes[0]);
  *binary_status = binary.compare(0, 4, "BIN:") == 0 ? CL_SUCCESS : -42;
  auto* program = new _cl_program;
  if (*binary_status == CL_SUCCESS) program->text = binary.substr(4);
  return Made(program, status);
}
cl_int clBuildProgram(cl_program program, cl_uint, const cl_device_id*, const char*, void (*)(cl_program, void*), void*) {
  if (Names("FAKE_CRASHES", program->text)) std::abort();
  program->built = program->text.find("#error") == std::string::npos && !Names("FAKE_REFUSES", program->text);
  return program->built ? CL_SUCCESS : -11;
}
cl_int clGetProgramInfo(cl_program program, cl_uint what, size_t room, void* to, size_t* size) {
  std::string binary = "BIN:" + program->text;
  if (what == CL_PROGRAM_BINARY_SIZES) return GiveValue<size_t>(binary.size(), room, to, size);
  std::memcpy(*static_cast<unsigned char**>(to), binary.data(), binary.size());
  return CL_SUCCESS;
}
cl_int clGetProgramBuildInfo(cl_program, cl_device_id, cl_uint, size_t room, void* to, size_t* size) {
  return GiveText("line 1: #error\n", room, to, size);
}
cl_int clReleaseProgram(cl_program program) { return Freed(program); }

cl_kernel clCreateKernel(cl_program program, const char* name, cl_int* status) {
  if (!program->built || program->text.find(name) == std::string::npos) {
    *status = -46;
    return nullptr;
  }
  return Made(new _cl_kernel{name}, status);
}
cl_int clSetKernelArg(cl_kernel kernel, cl_uint index, size_t size, const void* value) {
  std::memcpy(index == 0 ? static_cast<void*>(&kernel->memory) : &kernel->value, value, size);  // unlocked, as allowed
  kernel->set |= 1 << index;
  std::this_thread::yield();
  return CL_SUCCESS;
}
cl_int clGetKernelWorkGroupInfo(cl_kernel, cl_device_id, cl_uint, size_t room, void* to, size_t* size) {
  return GiveValue<size_t>(32, room, to, size);
}
cl_int clReleaseKernel(cl_kernel kernel) { return Freed(kernel); }

cl_int clEnqueueNDRangeKernel(cl_command_queue, cl_kernel kernel, cl_uint, const size_t*, const size_t* global,
                              const size_t* local, cl_uint, const cl_event*, cl_event* event) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (kernel->set != 3) return -52;
  if (kernel->memory->maps > 0 || kernel->memory->host != nullptr) return kMapped;
  if (local[0] > 32) return CL_INVALID_WORK_GROUP_SIZE;
  for (size_t i = 0; i < global[0]; ++i) kernel->memory->floats.at(i) = kernel->value;
  kernel->set = 0;
  Happen(event);
  return CL_SUCCESS;
}

cl_int clEnqueueReadBuffer(cl_command_queue, cl_mem memory, cl_bool, size_t offset, size_t bytes, void* to, cl_uint,
                           const cl_event*, cl_event* event) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (memory->maps > 0) return kMapped;
  std::memcpy(to, BytesOf(memory) + offset, bytes);
  Happen(event);
  return CL_SUCCESS;
}
cl_int clEnqueueWriteBuffer(cl_command_queue, cl_mem memory, cl_bool, size_t offset, size_t bytes, const void* from,
                            cl_uint, const cl_event*, cl_event* event) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (memory->maps > 0) return kMapped;
  std::memcpy(BytesOf(memory) + offset, from, bytes);
  Happen(event);
  return CL_SUCCESS;
}
cl_int clEnqueueCopyBuffer(cl_command_queue, cl_mem from, cl_mem to, size_t from_offset, size_t to_offset, size_t bytes,
                           cl_uint, const cl_event*, cl_event* event) {
  std::lock_guard<std::mutex> lock(g_mutex);
  std::memcpy(BytesOf(to) + to_offset, BytesOf(from) + from_offset, bytes);
  Happen(event);
  return CL_SUCCESS;
}
void* clEnqueueMapBuffer(cl_command_queue, cl_mem memory, cl_bool, cl_bitfield, size_t, size_t, cl_uint,
                         const cl_event*, cl_event*, cl_int* status) {
  std::lock_guard<std::mutex> lock(g_mutex);
  *status = CL_SUCCESS;
  ++memory->maps;
  if (!Is("FAKE_MOVES", "1")) return BytesOf(memory);
  memory->moved.emplace_back(memory->floats);
  return memory->moved.back().data();
}
cl_int clEnqueueUnmapMemObject(cl_command_queue, cl_mem memory, void* at, cl_uint, const cl_event*, cl_event*) {
  std::lock_guard<std::mutex> lock(g_mutex);
  --memory->maps;
  if (at != BytesOf(memory)) std::memcpy(BytesOf(memory), at, memory->bytes);
  return CL_SUCCESS;
}
cl_int clEnqueueMarkerWithWaitList(cl_command_queue, cl_uint, const cl_event*, cl_event* event) {
  Happen(event);
  return CL_SUCCESS;
}
cl_int clEnqueueBarrierWithWaitList(cl_command_queue, cl_uint, const cl_event*, cl_event*) { return CL_SUCCESS; }
cl_int clWaitForEvents(cl_uint, const cl_event* events) {
  if (events[0]->state > 0) events[0]->state = 0;
  return events[0]->state < 0 ? -14 : CL_SUCCESS;  // CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST
}
cl_int clGetEventInfo(cl_event event, cl_uint, size_t room, void* to, size_t* size) {
  bool done = event->state > 0 && event->at <= static_cast<cl_ulong>(g_finished);
  return GiveValue<cl_int>(done ? 0 : event->state, room, to, size);
}
cl_int clGetEventProfilingInfo(cl_event event, cl_uint what, size_t room, void* to, size_t* size) {
  return GiveValue<cl_ulong>(event->at + what - CL_PROFILING_COMMAND_QUEUED, room, to, size);
}
cl_int clReleaseEvent(cl_event event) { return Freed(event); }
cl_int clFlush(cl_command_queue) { return CL_SUCCESS; }
cl_int clFinish(cl_command_queue) {
  g_finished.store(g_clock);
  return CL_SUCCESS;
}
}
