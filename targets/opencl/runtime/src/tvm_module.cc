#include "tvm_module.h"

#include <tvm/ffi/cast.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "tvm_guard.h"

namespace hetero_sd {
namespace opencl {
namespace {

constexpr size_t kMostArguments = 64;

// Reads the little-endian fields of a serialized module and never past its end.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), left_(size) {}

  template <typename T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof(T)), sizeof(T));
    return value;
  }

  std::string Text() {
    uint64_t size = Number<uint64_t>();
    const char* start = Take(size);
    return std::string(start, size);
  }

  // How many elements of at least `element_bytes` follow.
  size_t Count(size_t element_bytes) {
    uint64_t count = Number<uint64_t>();
    if (count > left_ / element_bytes) Damaged();
    return count;
  }

  bool AtEnd() const { return left_ == 0; }
  [[noreturn]] static void Damaged() { throw Error("a module of OpenCL kernels is damaged"); }

 private:
  const char* Take(uint64_t size) {
    if (size > left_) Damaged();
    const char* start = at_;
    at_ += size;
    left_ -= size;
    return start;
  }

  const char* at_;
  size_t left_;
};

KernelInfo ReadInfo(Reader* reader) {
  KernelInfo info;
  reader->Text();  // the name once more
  for (size_t count = reader->Count(4); count > 0; --count) {
    DLDataType type;
    type.code = reader->Number<uint8_t>();
    type.bits = reader->Number<uint8_t>();
    type.lanes = reader->Number<uint16_t>();
    info.arguments.push_back(type);
  }
  for (size_t count = reader->Count(8); count > 0; --count) info.launch_tags.push_back(reader->Text());
  for (size_t count = reader->Count(4); count > 0; --count) reader->Number<int32_t>();  // tensor maps: CUDA's
  return info;
}

// The source of each kernel: it follows the line "// Function: NAME", and what precedes the first is common to all.
std::map<std::string, std::string> SplitKernels(const std::string& source) {
  static const std::string kMark = "// Function: ";
  std::map<std::string, std::string> kernels;
  size_t start = source.find(kMark);
  std::string common = source.substr(0, start);
  while (start != std::string::npos) {
    size_t line_end = source.find('\n', start);
    if (line_end == std::string::npos) break;
    size_t next = source.find(kMark, line_end);
    std::string name = source.substr(start + kMark.size(), line_end - start - kMark.size());
    kernels[name] = common + source.substr(line_end + 1, next == std::string::npos ? next : next - line_end - 1);
    start = next;
  }
  return kernels;
}

// The bits of a scalar argument in the width the kernel takes.
struct Scalar {
  union {
    int64_t integer;
    double float64;
    float float32;
  };
};

size_t PutScalar(const tvm::ffi::AnyView& value, DLDataType type, Scalar* scalar) {
  if (type.code == kDLFloat) {
    double number = value.cast<double>();
    if (type.bits == 64) {
      scalar->float64 = number;
    } else {
      scalar->float32 = static_cast<float>(number);
    }
  } else {
    scalar->integer = value.cast<int64_t>();  // little-endian: its first bytes are the narrower number
  }
  return type.bits / 8;
}

int AxisOf(const std::string& tag) {
  for (const char* prefix : {"blockIdx.", "threadIdx."}) {
    size_t size = std::strlen(prefix);
    if (tag.compare(0, size, prefix) == 0 && tag.size() == size + 1 && tag[size] >= 'x' && tag[size] <= 'z') {
      return (prefix[0] == 'b' ? 0 : 3) + (tag[size] - 'x');
    }
  }
  throw Error("a kernel is launched over " + tag + ", which OpenCL has not");
}

}  // namespace

ModuleKernel::ModuleKernel(std::string name, KernelInfo info, std::string source)
    : name_(std::move(name)), source_(std::move(source)), info_(std::move(info)) {
  if (info_.arguments.size() > kMostArguments) throw Error(name_ + ": more than 64 arguments");
  for (DLDataType type : info_.arguments) {
    bool half = type.code == kDLFloat && type.bits < 32;
    bool odd = type.bits != 8 && type.bits != 16 && type.bits != 32 && type.bits != 64;
    if (type.code != kDLOpaqueHandle && (type.lanes != 1 || half || odd || type.code == kDLBfloat)) {
      throw Error(name_ + ": an argument has a type that OpenCL kernels cannot take");
    }
  }
  for (const std::string& tag : info_.launch_tags) {
    axes_.push_back(AxisOf(tag));
    dimensions_ = std::max<cl_uint>(dimensions_, axes_.back() % 3 + 1);
  }
}

Kernel& ModuleKernel::On(int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Kernel>& kernel = kernels_[device];
  if (kernel == nullptr) kernel = std::make_unique<Kernel>(&GetDevice(device), name_, source_);
  return *kernel;
}

void ModuleKernel::Call(tvm::ffi::PackedArgs args) {
  size_t count = info_.arguments.size();
  if (static_cast<size_t>(args.size()) != count + axes_.size()) throw Error(name_ + ": a call with a wrong number of arguments");
  Kernel::Argument arguments[kMostArguments];
  Scalar scalars[kMostArguments];
  cl_mem buffers[kMostArguments];
  for (size_t i = 0; i < count; ++i) {
    if (info_.arguments[i].code == kDLOpaqueHandle) {
      auto data = args[i].try_cast<void*>();
      buffers[i] = data.has_value() && *data != nullptr ? Buffer::At(*data).ForDevice() : nullptr;
      arguments[i] = {sizeof(cl_mem), &buffers[i]};
    } else {
      arguments[i] = {PutScalar(args[i], info_.arguments[i], &scalars[i]), &scalars[i]};
    }
  }
  size_t sizes[6] = {1, 1, 1, 1, 1, 1};
  for (size_t i = 0; i < axes_.size(); ++i) sizes[axes_[i]] = args[static_cast<int>(count + i)].cast<int64_t>();
  size_t global[3];
  for (int i = 0; i < 3; ++i) global[i] = sizes[i] * sizes[3 + i];
  On(CurrentDevice()).Launch(dimensions_, global, sizes + 3, arguments, count);
}

OpenCLModule::OpenCLModule(const tvm::ffi::Bytes& bytes) : bytes_(bytes) {
  Reader reader(bytes.data(), bytes.size());
  std::string format = reader.Text();
  if (format != "cl") throw Error("a module of OpenCL kernels has the format " + format + "; only OpenCL C is known");
  std::map<std::string, KernelInfo> infos;
  for (size_t count = reader.Count(8); count > 0; --count) {
    std::string name = reader.Text();
    infos[name] = ReadInfo(&reader);
  }
  source_ = reader.Text();
  if (!reader.AtEnd()) Reader::Damaged();
  std::map<std::string, std::string> sources = SplitKernels(source_);
  for (auto& [name, info] : infos) {
    auto source = sources.find(name);
    if (source == sources.end()) throw Error("a module of OpenCL kernels has no source for " + name);
    kernels_[name] = std::make_unique<ModuleKernel>(name, std::move(info), source->second);
  }
}

tvm::ffi::Optional<tvm::ffi::Function> OpenCLModule::GetFunction(const tvm::ffi::String& name) {
  auto found = kernels_.find(name);
  if (found == kernels_.end()) return std::nullopt;
  tvm::ffi::ObjectPtr<tvm::ffi::Object> self = tvm::ffi::GetObjectPtr<tvm::ffi::Object>(this);
  return tvm::ffi::Function::FromPacked([self, kernel = found->second.get()](tvm::ffi::PackedArgs args, tvm::ffi::Any*) {
    Guard([&] { kernel->Call(args); });
  });
}

tvm::ffi::String OpenCLModule::InspectSource(const tvm::ffi::String& format) const {
  return format.empty() || format == "cl" ? tvm::ffi::String(source_) : tvm::ffi::String();
}

std::vector<std::pair<std::string, std::string>> OpenCLModule::BuildAll(
    int device, const std::function<void(const std::string&)>& before) {
  std::vector<std::pair<std::string, std::string>> failed;
  for (auto& [name, kernel] : kernels_) {
    before(name);
    try {
      kernel->On(device);
    } catch (const Error& error) {
      failed.emplace_back(name, error.what());
    }
  }
  return failed;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("ffi.Module.load_from_bytes.opencl", [](const tvm::ffi::Bytes& bytes) {
    return Guard([&] { return tvm::ffi::Module(tvm::ffi::make_object<OpenCLModule>(bytes)); });
  });
}

}  // namespace opencl
}  // namespace hetero_sd
