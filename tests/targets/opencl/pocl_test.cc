// The runtime below TVM on a real driver, which is PoCL here: built with AddressSanitizer and with ThreadSanitizer.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "buffer.h"
#include "program.h"

using namespace hetero_sd::opencl;

namespace {

constexpr char kFill[] = "__kernel void fill(__global float* y, float x) { y[get_global_id(0)] = x; }";
constexpr char kAdd[] =
    "__kernel void add(__global float* y, __global const float* x) { int i = get_global_id(0); y[i] += x[i]; }";
constexpr size_t kFloats = 4096;
int g_failed = 0;

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      ++g_failed;                                                                 \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                             \
  } while (false)

void Fill(Kernel* kernel, Buffer* buffer, float value, size_t global) {
  size_t local = 8;
  cl_mem memory = buffer->ForDevice();
  const Kernel::Argument arguments[] = {{sizeof(memory), &memory}, {sizeof(value), &value}};
  kernel->Launch(1, &global, &local, arguments, 2);
}

void Add(Kernel* kernel, Buffer* to, Buffer* from, size_t global) {
  size_t local = 8;
  cl_mem memory[] = {to->ForDevice(), from->ForDevice()};
  const Kernel::Argument arguments[] = {{sizeof(cl_mem), &memory[0]}, {sizeof(cl_mem), &memory[1]}};
  kernel->Launch(1, &global, &local, arguments, 2);
}

std::string Message(void (*body)(Device*), Device* device) {
  try {
    body(device);
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// Values written by the host, changed by kernels, seen by the host without a copy, copied and read.
void TestValues(Device* device) {
  Kernel fill(device, "fill", kFill), add(device, "add", kAdd);
  Buffer first(device, kFloats * 4), second(device, kFloats * 4);
  std::vector<float> numbers(kFloats), read(kFloats);
  for (size_t i = 0; i < kFloats; ++i) numbers[i] = static_cast<float>(i);
  for (int round = 0; round < 20; ++round) {
    first.Write(0, numbers.data(), kFloats * 4);  // the source may change at once
    std::vector<float> gone(numbers);
    second.Write(0, gone.data(), kFloats * 4);
    gone.assign(kFloats, -1.f);
    Add(&add, &first, &second, kFloats);
    float* host = static_cast<float*>(first.ToHost(HostAccess::kReadWrite));
    CHECK(host[kFloats - 1] == 2.f * (kFloats - 1));
    host[0] = 7;
    first.ToDevice();
    second.CopyFrom(4, first, 0, 8);
    second.Read(0, read.data(), kFloats * 4);
    CHECK(read[0] == 0 && read[1] == 7 && read[2] == 2 && read[3] == 3);
    Fill(&fill, &second, 3, kFloats);
    second.Read((kFloats - 1) * 4, read.data(), 4);
    CHECK(read[0] == 3);
  }
  first.ToHost(HostAccess::kRead);  // freed while the host has it
}

// The host's own memory as a buffer, where the driver shares it.
void TestImport(Device* device) {
  alignas(64) static float numbers[1024];
  for (int i = 0; i < 1024; ++i) numbers[i] = static_cast<float>(i);
  std::unique_ptr<Buffer> shared = Buffer::Import(device, numbers, sizeof(numbers));
  if (shared == nullptr) return;
  Kernel add(device, "add", kAdd);
  Buffer sum(device, sizeof(numbers));
  sum.Write(0, numbers, sizeof(numbers));
  Add(&add, &sum, shared.get(), 1024);
  float read = 0;
  sum.Read(1023 * 4, &read, 4);
  CHECK(read == 2046);
}

void TestMessages(Device* device) {
  CHECK(Message([](Device* d) { Kernel(d, "fill", "#error no"); }, device).find("its log: ") != std::string::npos);
  CHECK(Message([](Device* d) { Kernel(d, "absent", kFill); }, device).find("for absent") != std::string::npos);
}

// Whatever fails, nothing leaks and nothing is used after its release.
void TestFaults(Device* device) {
  Kernel fill(device, "fill", kFill);
  for (int64_t k = 1; k < 40; ++k) {
    InjectFailure("*", k, -9999, false);
    try {
      Buffer buffer(device, 256);
      buffer.Write(0, "four", 4);
      size_t profile = device->BeginProfile();
      std::string failed;
      try {
        Fill(&fill, &buffer, 1, 64);
      } catch (const Error& error) {
        failed = error.what();
      }
      device->EndProfile(profile);
      buffer.ToHost(HostAccess::kReadWrite);
      buffer.ToDevice();
      float read[2];
      buffer.Read(0, read, sizeof(read));
      device->Finish(device->Queue());
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find("status -9999") != std::string::npos);
    }
  }
  InjectFailure("*", 0, 0, false);
}

void TestThreads(Device* device) {
  Kernel shared(device, "fill", kFill);
  std::atomic<int> waiting{3};
  auto work = [&](float value) {
    --waiting;
    while (waiting > 0) std::this_thread::yield();  // so that they overlap
    Kernel own_kernel(device, "add", kAdd);
    Buffer buffer(device, 256), other(device, 256);
    cl_command_queue own = value > 1 ? device->NewQueue() : nullptr;
    device->UseQueue(own);
    for (int i = 0; i < 100; ++i) {
      Fill(&shared, &buffer, value * static_cast<float>(i), 64);
      Fill(&shared, &other, 1, 64);
      Add(&own_kernel, &buffer, &other, 64);
      float read[64] = {0};
      buffer.Read(0, read, sizeof(read));
      if (read[63] != value * static_cast<float>(i) + 1) std::abort();
      buffer.Write(0, read, sizeof(read));
      buffer.ToHost(HostAccess::kReadWrite);
      buffer.ToDevice();
    }
    device->UseQueue(nullptr);
    if (own != nullptr) Cl().clReleaseCommandQueue("", own);
  };
  std::thread one(work, 1.f), two(work, 2.f), three(work, 3.f);
  one.join();
  two.join();
  three.join();
}

}  // namespace

int main(int count, char** words) {
  try {
    Device* device = &GetDevice(0);
    std::printf("%s\n", device->facts.name.c_str());
    TestValues(device);
    TestImport(device);
    TestMessages(device);
    TestThreads(device);
    TestFaults(device);
    if (count > 1 && words[1] == std::string("overrun")) {  // a sanitizer that sees nothing would pass all of the above
      Buffer buffer(device, 64);
      std::vector<char> bytes(8);
      buffer.Write(0, bytes.data(), 64);
      device->Finish(device->Queue());
    }
    if (count > 1 && words[1] == std::string("race")) {
      Buffer buffer(device, 256);
      float* host = static_cast<float*>(buffer.ToHost(HostAccess::kReadWrite));
      std::thread other([&] { host[0] = 1; });
      host[0] = 2;
      other.join();
    }
    device->Finish(device->Queue());
    CHECK(device->live_buffers.load() == 0);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  if (g_failed == 0) std::puts("all passed");
  return g_failed != 0;
}
