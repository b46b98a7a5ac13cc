// Unit tests of the runtime below TVM, on the fake driver; built with AddressSanitizer and with ThreadSanitizer.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "buffer.h"
#include "program.h"
#include "sha256.h"

using namespace hetero_sd::opencl;

namespace {

constexpr char kFill[] = "__kernel void fill(__global float* y, float x) {}";
int g_failed = 0;
long (*g_live)() = nullptr;  // handles of the driver that are not released

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      ++g_failed;                                                                 \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                             \
  } while (false)

// The message of the Error that `body` throws.
template <typename F>
std::string Message(F body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void Fill(Kernel* kernel, Buffer* buffer, float value, size_t global, size_t local = 8) {
  cl_mem memory = buffer->ForDevice();
  const Kernel::Argument arguments[] = {{sizeof(memory), &memory}, {sizeof(value), &value}};
  kernel->Launch(1, &global, &local, arguments, 2);
}

void TestHash() {
  CHECK(Hex(Sha256("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");  // FIPS 180-4
  CHECK(Hex(Sha256("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(Hex(Sha256(std::string(64, 'a'))) == "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

void TestDevices() {
  CHECK(Devices().size() == 2);
  CHECK(GetDevice(0).facts.name == "a GPU");
  CHECK(GetDevice(1).facts.name == "a CPU");
  CHECK(Message([] { GetDevice(2); }) == "there is no opencl:2, only 2 device(s)");
}

void TestPrologue() {
  DeviceFacts facts;
  facts.extensions = "cl_khr_fp16 cl_arm_integer_dot_product_int8 cl_khr_integer_dot_product_of_another_kind";
  CHECK(Prologue(facts) == "#pragma OPENCL FP_CONTRACT OFF\n#define HSD_HAS_cl_arm_integer_dot_product_int8\n");
}

void TestBuffers() {
  Device& gpu = GetDevice(0);
  CHECK(Message([&] { Buffer(&gpu, (1 << 20) + 1); }) ==
        "a buffer of 1048577 bytes is larger than CL_DEVICE_MAX_MEM_ALLOC_SIZE = 1048576 bytes of a GPU");
  char other[sizeof(Buffer)] = {0};
  CHECK(Message([&] { Buffer::At(other); }) == "a pointer that is no OpenCL buffer of this runtime");
  Kernel fill(&gpu, "fill", kFill);
  Buffer buffer(&gpu, 64);
  Fill(&fill, &buffer, 3, 16);
  float* host = static_cast<float*>(buffer.ToHost(HostAccess::kReadWrite));
  CHECK(host[15] == 3);
  host[0] = 7;
  CHECK(Message([&] { Fill(&fill, &buffer, 1, 16); }) ==
        "a buffer of 64 bytes is with the host: give it to the device first");
  buffer.ToDevice();
  float first = 0;
  buffer.Read(0, &first, sizeof(first));
  CHECK(first == 7);
  if (std::getenv("FAKE_MOVES") != nullptr) {
    CHECK(Message([&] { buffer.ToHost(HostAccess::kRead); }) ==
          "the driver of a GPU moved a mapped buffer; it cannot be shared");
    Fill(&fill, &buffer, 1, 16);  // and it is still the device's
    return;
  }
  CHECK(buffer.ToHost(HostAccess::kRead) == host);
  CHECK(buffer.ToHost(HostAccess::kReadWrite) == host);  // from reading to writing
  host[1] = 8;
  buffer.ToDevice();
  buffer.Read(4, &first, sizeof(first));
  CHECK(first == 8);
  buffer.ToHost(HostAccess::kWrite);
  host[0] = 9;
  buffer.ToDevice();
  Buffer copy(&gpu, 64);
  copy.CopyFrom(4, buffer, 0, 8);
  copy.Read(4, &first, sizeof(first));
  CHECK(first == 9);
  copy.ToHost(HostAccess::kRead);  // freed while the host has it
}

// The CPU shares whatever it is given, a GPU only through Arm's extension.
void TestImports() {
  alignas(64) float numbers[32];
  for (int i = 0; i < 32; ++i) numbers[i] = static_cast<float>(i);
  bool unified = std::getenv("FAKE_UNIFIED") == nullptr, arm = std::getenv("FAKE_ARM") != nullptr;
  for (int index : {0, 1}) {
    Device& device = GetDevice(index);
    std::unique_ptr<Buffer> shared = Buffer::Import(&device, numbers, sizeof(numbers));
    CHECK((shared != nullptr) == (index == 0 ? arm : unified));
    if (shared == nullptr) continue;
    CHECK(device.imported_bytes.load() == sizeof(numbers));
    numbers[3] = 40.f + static_cast<float>(index);
    float read = 0;
    shared->Read(12, &read, sizeof(read));
    CHECK(read == numbers[3]);  // the same bytes
    const char* refusal = "a buffer that shares 128 bytes of the host is read alone";
    CHECK(Message([&] { shared->Write(0, numbers, 4); }) == refusal);
    CHECK(Message([&] { shared->ToHost(HostAccess::kReadWrite); }) == refusal);
    CHECK(Message([&] { shared->CopyFrom(0, *shared, 4, 4); }) == refusal);
    Buffer copy(&device, 64);
    copy.CopyFrom(0, *shared, 8, 8);
    copy.Read(4, &read, sizeof(read));
    CHECK(read == numbers[3]);
    CHECK(Buffer::Import(&device, numbers + 1, 64) == nullptr);  // not at a multiple of 64 bytes
    CHECK(Message([&] { Buffer::Import(&device, numbers, (1 << 20) + 1); }).find("MAX_MEM_ALLOC_SIZE = 1048576") !=
          std::string::npos);
    InjectFailure(index == 0 ? "clImportMemoryARM" : "clCreateBuffer", 1, StatusOf("CL_OUT_OF_RESOURCES"), false);
    CHECK(Buffer::Import(&device, numbers, 64) == nullptr);  // a driver that declines: the caller copies
    shared.reset();
    CHECK(device.imported_bytes.load() == 0);
    setenv("HSD_OPENCL_IMPORT", "0", 1);
    CHECK(Buffer::Import(&device, numbers, 64) == nullptr);
    unsetenv("HSD_OPENCL_IMPORT");
  }
}

void TestStagedWrites() {
  Buffer buffer(&GetDevice(0), 1 << 20);
  std::string bytes(1 << 20, 'x'), read(1 << 20, ' ');
  buffer.Write(0, bytes.data(), bytes.size());
  for (size_t i = 0; i < 300; ++i) buffer.Write(i * 1000, std::string(1000, 'y').data(), 1000);
  buffer.Read(0, &read[0], read.size());
  CHECK(read == std::string(300000, 'y') + std::string((1 << 20) - 300000, 'x'));

  GetDevice(0).Finish(GetDevice(0).Queue());
}

// Writes four bytes whose command says that of itself; the message of the Error.
std::string WriteAs(const char* state, Buffer* buffer) {
  setenv("FAKE_EVENT_STATE", state, 1);
  std::string message = Message([&] { buffer->Write(0, "four", 4); });
  unsetenv("FAKE_EVENT_STATE");
  return message;
}

// A copy that fails after it was queued is an error of the next wait, whatever waits, once; its memory is freed.
void TestFailedWrites() {
  Device& gpu = GetDevice(0);
  Buffer buffer(&gpu, 64);
  long before = g_live();
  const std::string failed =
      "clEnqueueWriteBuffer returned CL_OUT_OF_RESOURCES (-5) for a copy to the device, after it was queued";
  char read[4];
  auto finish = [&] { gpu.Finish(gpu.Queue()); };
  auto to_host = [&] { buffer.ToHost(HostAccess::kReadWrite); };
  auto from_device = [&] { buffer.Read(0, read, sizeof(read)); };
  auto profile = [&] { gpu.EndProfile(gpu.BeginProfile()); };
  auto each = [&](auto wait) {
    WriteAs("-5", &buffer);
    CHECK(Message(wait) == failed);
    CHECK(g_live() == before);
    CHECK(Message(wait) == "nothing was thrown");
    buffer.ToDevice();  // after a failed hand-over the device still has it, and the host gets it the next time
    finish();
  };
  each(finish), each(to_host), each(from_device), each(profile);
  WriteAs("1", &buffer);  // one that is not done, as of another queue, hides none that failed after it
  WriteAs("-5", &buffer);
  CHECK(Message(from_device) == failed);
  CHECK(g_live() == before + 1);
  finish();
  CHECK(g_live() == before);
}

// Where the driver cannot wait for a copy, or does not say whether it was read, that is said and the copy is kept.
void TestUnknownWrites() {
  Device& gpu = GetDevice(0);
  Buffer buffer(&gpu, 64);
  long before = g_live();
  const cl_int status = StatusOf("CL_OUT_OF_HOST_MEMORY");
  const std::string returned = " returned CL_OUT_OF_HOST_MEMORY (-6) for a copy to the device, after it was queued";
  WriteAs("1", &buffer);
  InjectFailure("clGetEventInfo", 1, status, false);
  CHECK(Message([&] { gpu.Finish(gpu.Queue()); }) == "clGetEventInfo" + returned);
  CHECK(g_live() == before + 1);
  gpu.Finish(gpu.Queue());
  CHECK(g_live() == before);

  for (int i = 0; i < 64; ++i) WriteAs("1", &buffer);  // as many as are staged before one is waited for
  InjectFailure("clWaitForEvents", 1, status, false);
  CHECK(WriteAs("1", &buffer) == "clWaitForEvents" + returned);
  CHECK(g_live() == before + 64);
  CHECK(WriteAs("1", &buffer) == "nothing was thrown");  // waits for the older half
  CHECK(g_live() == before + 33);
  gpu.Finish(gpu.Queue());
  CHECK(g_live() == before);
}

void TestKernels() {
  Device& gpu = GetDevice(0);
  CHECK(Message([&] { Kernel(&gpu, "fill", "#error"); }) ==
        "clBuildProgram returned CL_BUILD_PROGRAM_FAILURE (-11) for fill on a GPU; its log: line 1: #error");
  CHECK(Message([&] { Kernel(&gpu, "absent", kFill); }) ==
        "clCreateKernel returned CL_INVALID_KERNEL_NAME (-46) for absent");
  Kernel fill(&gpu, "fill", kFill);
  Buffer buffer(&gpu, 256);
  CHECK(Message([&] { Fill(&fill, &buffer, 1, 64, 64); }) ==
        "clEnqueueNDRangeKernel returned CL_INVALID_WORK_GROUP_SIZE (-54) for kernel fill on a GPU with work-groups of "
        "64; the driver allows this kernel 32 work-items");
  Fill(&fill, &buffer, 1, 0);  // nothing to do, nothing enqueued
  size_t outer = gpu.BeginProfile();
  Fill(&fill, &buffer, 1, 8);
  size_t inner = gpu.BeginProfile();
  Fill(&fill, &buffer, 2, 8);
  CHECK(gpu.EndProfile(inner).size() == 1);
  std::vector<Timing> all = gpu.EndProfile(outer);
  CHECK(all.size() == 2 && all[0].name == "fill" && all[0].ended_ns < all[1].started_ns);
  CHECK(Message([&] { gpu.EndProfile(0); }) == "no profile was begun on a GPU");
}

void TestFaults() {
  Device& gpu = GetDevice(0);
  InjectFailure("clCreateBuffer", 2, StatusOf("CL_OUT_OF_RESOURCES"), false);
  Buffer first(&gpu, 4);
  CHECK(Message([&] { Buffer(&gpu, 4); }) ==
        "clCreateBuffer returned CL_OUT_OF_RESOURCES (-5) for a buffer of 4 bytes on a GPU");
  Buffer third(&gpu, 4);
  CHECK(Message([] { StatusOf("CL_TIRED"); }) == "no OpenCL status is called CL_TIRED");
  // Whatever fails, nothing leaks and nothing is used after its release.
  for (int64_t k = 1; k < 60; ++k) {
    InjectFailure("*", k, -9999, false);
    std::string message = Message([&] {
      Kernel fill(&gpu, "fill", std::string(kFill) + "//" + std::to_string(k));
      Buffer buffer(&gpu, 64);
      buffer.Write(0, "four", 4);
      size_t profile = gpu.BeginProfile();
      std::string failed = Message([&] { Fill(&fill, &buffer, 1, 16); });
      gpu.EndProfile(profile);
      buffer.ToHost(HostAccess::kReadWrite);
      buffer.ToDevice();
      float read[2];
      buffer.Read(0, read, sizeof(read));
      gpu.Finish(gpu.Queue());
      if (failed != "nothing was thrown") throw Error(failed);
    });
    CHECK(message == "nothing was thrown" || message.find("status -9999") != std::string::npos);
  }
  InjectFailure("*", 0, 0, false);
}

void TestThreads() {
  Device& gpu = GetDevice(0);
  Kernel shared(&gpu, "fill", kFill);
  std::atomic<int> waiting{2};
  auto work = [&](float value) {
    --waiting;
    while (waiting > 0) std::this_thread::yield();  // so that they overlap
    Buffer buffer(&gpu, 64);
    cl_command_queue own = value > 1 ? gpu.NewQueue() : nullptr;
    gpu.UseQueue(own);
    for (int i = 0; i < 1000; ++i) {
      Fill(&shared, &buffer, value * i, 16);
      float read[16] = {0};
      buffer.Read(0, read, sizeof(read));
      if (read[15] != value * i) std::abort();
      buffer.Write(0, read, sizeof(read));
      buffer.ToHost(HostAccess::kReadWrite);
      buffer.ToDevice();
      GetCacheCounts();
    }
    gpu.UseQueue(nullptr);
    if (own != nullptr) Cl().clReleaseCommandQueue("", own);
  };
  std::thread one(work, 1.f), two(work, 2.f);
  one.join();
  two.join();
}

void TestCache() {
  CacheCounts before = GetCacheCounts();
  std::string folder = CacheFolder();
  for (int i = 0; i < 2; ++i) Kernel(&GetDevice(0), "fill", std::string(kFill) + "// cached");
  CacheCounts after = GetCacheCounts();
  CHECK(after.built == before.built + (folder.empty() ? 2 : 1));
  CHECK(after.loaded == before.loaded + (folder.empty() ? 0 : 1));
}

}  // namespace

int main() {
  TestHash();
  TestDevices();
  TestPrologue();
  g_live = reinterpret_cast<long (*)()>(
      dlsym(dlopen(std::getenv("HSD_OPENCL_LIB"), RTLD_NOW | RTLD_NOLOAD), "FakeLiveHandles"));
  GetDevice(0).Finish(GetDevice(0).Queue());
  GetDevice(0).EndProfile(GetDevice(0).BeginProfile());
  GetDevice(1).Finish(GetDevice(1).Queue());
  long before = g_live();  // a context and two queues, kept for the life of the process
  TestBuffers();
  if (std::getenv("FAKE_MOVES") == nullptr) {
    TestImports();
    TestStagedWrites();
    TestFailedWrites();
    TestUnknownWrites();
    TestKernels();
    TestCache();
    TestThreads();
    TestFaults();
  }
  GetDevice(0).Finish(GetDevice(0).Queue());
  CHECK(g_live() == before);
  CHECK(GetDevice(0).live_buffers.load() == 0);
  if (g_failed == 0) std::puts("all passed");
  return g_failed != 0;
}
