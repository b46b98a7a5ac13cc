#include "program.h"

#include <vector>

#include "binary_cache.h"
#include "sha256.h"

namespace hetero_sd {
namespace opencl {
namespace {

// Part of the key. OpenCL C contracts a * b + c unless told not to; then a row's result would depend on how the
// compiler saw the loop around it. Kernels write fma where they want it.
constexpr char kOptions[] = "-cl-std=CL1.2";
constexpr char kNoContraction[] = "#pragma OPENCL FP_CONTRACT OFF\n";
constexpr const char* kAskedFor[] = {"cl_arm_integer_dot_product_accumulate_int8", "cl_arm_integer_dot_product_int8",
                                     "cl_khr_integer_dot_product"};

struct Held {
  cl_program program = nullptr;
  int64_t users = 0;
};

// Programs of this process by key; kernels of two modules with one source share one. One build at a time: not every
// driver's compiler can be entered twice.
std::mutex g_mutex;
std::map<std::string, Held>& Programs() {
  static auto* programs = new std::map<std::string, Held>;
  return *programs;
}

std::string KeyOf(const DeviceFacts& facts, const std::string& source) {
  std::string parts;
  for (const std::string* part : {&facts.platform, &facts.platform_version, &facts.name, &facts.version,
                                  &facts.driver_version, &source}) {
    parts += std::to_string(part->size()) + ':' + *part;
  }
  return Hex(Sha256(parts + kOptions + Prologue(facts)));
}

std::string BuildLog(cl_program program, cl_device_id device) {
  size_t size = 0;
  if (Cl().clGetProgramBuildInfo.Try(program, device, CL_PROGRAM_BUILD_LOG, 0, nullptr, &size) != CL_SUCCESS) return "";
  std::string log(size, '\0');
  if (size == 0 ||
      Cl().clGetProgramBuildInfo.Try(program, device, CL_PROGRAM_BUILD_LOG, size, &log[0], nullptr) != CL_SUCCESS) {
    return "";
  }
  log = log.substr(0, log.find('\0')).substr(0, 2000);
  while (!log.empty() && (log.back() == '\n' || log.back() == ' ')) log.pop_back();
  return log.empty() ? "" : "; its log: " + log;
}

// The program of a binary, or nullptr where the driver will not have it.
cl_program FromBinary(Device* device, const std::string& binary) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(binary.data());
  size_t size = binary.size();
  cl_int status = CL_SUCCESS, binary_status = CL_SUCCESS;
  cl_program program = Cl().clCreateProgramWithBinary.Try(&status, device->Context(), 1, &device->id, &size, &bytes,
                                                          &binary_status);
  if (status != CL_SUCCESS) return nullptr;
  if (binary_status == CL_SUCCESS &&
      Cl().clBuildProgram.Try(program, 1, &device->id, kOptions, nullptr, nullptr) == CL_SUCCESS) {
    return program;
  }
  Cl().clReleaseProgram.Try(program);
  return nullptr;
}

cl_program FromSource(Device* device, const std::string& name, const std::string& source) {
  const std::string prologue = Prologue(device->facts);
  const char* texts[] = {prologue.c_str(), source.c_str()};
  const size_t sizes[] = {prologue.size(), source.size()};
  cl_program program = Cl().clCreateProgramWithSource(name.c_str(), device->Context(), 2, texts, sizes);
  cl_int status = Cl().clBuildProgram.Try(program, 1, &device->id, kOptions, nullptr, nullptr);
  if (status == CL_SUCCESS) return program;
  std::string log = BuildLog(program, device->id);
  Cl().clReleaseProgram.Try(program);
  ThrowStatus(status, "clBuildProgram", name + " on " + device->facts.name + log);
}

// The binary of a built program; empty where the driver gives none.
std::string BinaryOf(cl_program program) {
  size_t size = 0;
  if (Cl().clGetProgramInfo.Try(program, CL_PROGRAM_BINARY_SIZES, sizeof(size), &size, nullptr) != CL_SUCCESS) return "";
  std::string binary(size, '\0');
  unsigned char* at = reinterpret_cast<unsigned char*>(&binary[0]);
  if (size == 0 ||
      Cl().clGetProgramInfo.Try(program, CL_PROGRAM_BINARIES, sizeof(at), &at, nullptr) != CL_SUCCESS) {
    return "";
  }
  return binary;
}

cl_program Build(Device* device, const std::string& name, const std::string& source, const std::string& key) {
  BinaryCache& cache = BinaryCache::Global();
  std::string binary;
  bool found = cache.Read(key, &binary);
  if (found) {
    if (cl_program program = FromBinary(device, binary)) {
      cache.CountLoaded();
      return program;
    }
    cache.CountDamaged();
  }
  cl_program program = FromSource(device, name, source);
  cache.CountBuilt();
  if (cache.enabled()) cache.Write(key, BinaryOf(program));
  return program;
}

}  // namespace

std::string Prologue(const DeviceFacts& facts) {
  std::string text = kNoContraction;
  for (const char* name : kAskedFor) {
    if (HasExtension(facts, name)) text += std::string("#define HSD_HAS_") + name + "\n";
  }
  return text;
}

Kernel::Kernel(Device* device, const std::string& kernel_name, const std::string& source)
    : name(kernel_name), device_(device), program_key_(std::to_string(reinterpret_cast<uintptr_t>(device))) {
  std::string key = KeyOf(device->facts, source);
  program_key_ += ' ' + key;
  std::lock_guard<std::mutex> lock(g_mutex);
  Held& held = Programs()[program_key_];
  try {
    if (held.program == nullptr) held.program = Build(device, name, source, key);
    handle_ = Cl().clCreateKernel(name.c_str(), held.program, name.c_str());
  } catch (...) {
    if (held.users == 0) {
      if (held.program != nullptr) Cl().clReleaseProgram.Try(held.program);
      Programs().erase(program_key_);
    }
    throw;
  }
  ++held.users;
}

Kernel::~Kernel() {
  std::lock_guard<std::mutex> lock(g_mutex);
  Cl().clReleaseKernel.Try(handle_);
  auto held = Programs().find(program_key_);
  if (--held->second.users == 0) {
    Cl().clReleaseProgram.Try(held->second.program);
    Programs().erase(held);
  }
}

void Kernel::Launch(cl_uint dimensions, const size_t* global, const size_t* local, const Argument* arguments,
                    size_t count) {
  for (cl_uint i = 0; i < dimensions; ++i) {
    if (global[i] == 0) return;
  }
  std::lock_guard<std::mutex> lock(mutex_);  // arguments belong to the kernel until it is enqueued
  for (size_t i = 0; i < count; ++i) {
    Cl().clSetKernelArg(name.c_str(), handle_, static_cast<cl_uint>(i), arguments[i].bytes, arguments[i].value);
  }
  Enqueue(dimensions, global, local);
}

void Kernel::Enqueue(cl_uint dimensions, const size_t* global, const size_t* local) {
  cl_command_queue queue = device_->Queue();
  cl_event event = nullptr;
  bool timed = device_->IsTimed(queue);
  cl_int status = Cl().clEnqueueNDRangeKernel.Try(queue, handle_, dimensions, nullptr, global, local, 0, nullptr,
                                                  timed ? &event : nullptr);
  if (status == CL_SUCCESS) {
    if (timed) device_->Record(name, event);
    return;
  }
  std::string about = "kernel " + name + " on " + device_->facts.name + " with work-groups of ";
  for (cl_uint i = 0; i < dimensions; ++i) about += (i ? " x " : "") + std::to_string(local[i]);
  size_t most = 0;
  if (status == CL_INVALID_WORK_GROUP_SIZE &&
      Cl().clGetKernelWorkGroupInfo.Try(handle_, device_->id, CL_KERNEL_WORK_GROUP_SIZE, sizeof(most), &most,
                                        nullptr) == CL_SUCCESS) {
    about += "; the driver allows this kernel " + std::to_string(most) + " work-items";
  }
  ThrowStatus(status, "clEnqueueNDRangeKernel", about);
}

}  // namespace opencl
}  // namespace hetero_sd
