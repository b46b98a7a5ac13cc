#include "buffer.h"

#include <algorithm>

namespace hetero_sd {
namespace opencl {
namespace {

constexpr uint64_t kMark = 0x6873645f6f636c21;  // "hsd_ocl!"
constexpr size_t kHostAlignment = 64;           // what TVM's CPU kernels expect

void CheckSize(const DeviceFacts& facts, size_t bytes) {
  if (bytes <= facts.max_alloc_bytes) return;
  throw Error("a buffer of " + std::to_string(bytes) + " bytes is larger than CL_DEVICE_MAX_MEM_ALLOC_SIZE = " +
              std::to_string(facts.max_alloc_bytes) + " bytes of " + facts.name);
}

}  // namespace

Buffer::Buffer(Device* owner, size_t size) : device(owner), bytes(std::max<size_t>(size, 1)), mark_(kMark) {
  const DeviceFacts& facts = device->facts;
  CheckSize(facts, bytes);
  cl_bitfield flags = CL_MEM_READ_WRITE | (facts.unified_memory ? CL_MEM_ALLOC_HOST_PTR : 0);
  std::string about = "a buffer of " + std::to_string(bytes) + " bytes on " + facts.name;
  mem_ = Cl().clCreateBuffer(about.c_str(), device->Context(), flags, bytes, nullptr);
  device->live_buffers.fetch_add(1);
  int64_t live = device->live_bytes.fetch_add(bytes) + static_cast<int64_t>(bytes);
  int64_t peak = device->peak_bytes.load();
  while (live > peak && !device->peak_bytes.compare_exchange_weak(peak, live)) {
  }
}

Buffer::Buffer(Device* owner, size_t size, cl_mem memory)
    : device(owner), bytes(size), imported_(true), mark_(kMark), mem_(memory) {
  device->live_buffers.fetch_add(1);
  device->imported_bytes.fetch_add(bytes);
}

std::unique_ptr<Buffer> Buffer::Import(Device* device, void* host, size_t bytes) {
  CheckSize(device->facts, bytes);
  cl_mem memory = device->ImportHost(host, bytes);
  return std::unique_ptr<Buffer>(memory == nullptr ? nullptr : new Buffer(device, bytes, memory));
}

// OpenCL keeps its own memory until the commands that use it have finished, so only the host's is waited for. A failure
// here has nobody to go to.
Buffer::~Buffer() {
  mark_ = 0;
  if (host_owns_.load() && mapped_ != nullptr) {
    Cl().clEnqueueUnmapMemObject.Try(device->Queue(), mem_, mapped_, 0, nullptr, nullptr);
  }
  if (imported_) Cl().clFinish.Try(device->Queue());
  Cl().clReleaseMemObject.Try(mem_);
  device->live_buffers.fetch_sub(1);
  (imported_ ? device->imported_bytes : device->live_bytes).fetch_sub(bytes);
}

Buffer& Buffer::At(const void* data) {
  Buffer* buffer = static_cast<Buffer*>(const_cast<void*>(data));
  if (buffer == nullptr || buffer->mark_ != kMark) throw Error("a pointer that is no OpenCL buffer of this runtime");
  return *buffer;
}

void* Buffer::ToHost(HostAccess access) {
  if (imported_ && access != HostAccess::kRead) ForWriting();
  void* known = device->facts.unified_memory ? mapped_ : copy_.get();
  if (host_owns_.load()) {
    if (host_writes_ || access == HostAccess::kRead) return known;
    ToDevice();  // it was mapped to be read alone
  }
  const char* about = "a hand-over to the host";
  bool reads = access != HostAccess::kWrite;
  if (device->facts.unified_memory) {
    // Mapped for both, so that a later write by the host needs no second map; only "write alone" says so, because
    // then the driver need not make the device's bytes visible.
    cl_bitfield flags = reads ? CL_MAP_READ | CL_MAP_WRITE : CL_MAP_WRITE_INVALIDATE_REGION;
    if (access == HostAccess::kRead) flags = CL_MAP_READ;
    void* at = Cl().clEnqueueMapBuffer(about, device->Queue(), mem_, 1, flags, 0, bytes, 0, nullptr, nullptr);
    try {
      if (known != nullptr && at != known) {
        throw Error("the driver of " + device->facts.name + " moved a mapped buffer; it cannot be shared");
      }
      device->CheckWrites();
    } catch (...) {
      Cl().clEnqueueUnmapMemObject.Try(device->Queue(), mem_, at, 0, nullptr, nullptr);
      throw;
    }
    mapped_ = known = at;
  } else {
    void* memory = nullptr;
    if (copy_ == nullptr && posix_memalign(&memory, kHostAlignment, bytes) != 0) {
      throw Error("no memory for the host's copy of " + std::to_string(bytes) + " bytes");
    }
    if (memory != nullptr) copy_.reset(memory);
    known = copy_.get();
    if (reads) {
      Cl().clEnqueueReadBuffer(about, device->Queue(), mem_, 1, 0, bytes, known, 0, nullptr, nullptr);
      device->CheckWrites();
    }
  }
  host_writes_ = access != HostAccess::kRead;
  host_owns_.store(true);
  return known;
}

void Buffer::ToDevice() {
  if (!host_owns_.load()) return;
  if (mapped_ != nullptr) {
    Cl().clEnqueueUnmapMemObject("a hand-over to the device", device->Queue(), mem_, mapped_, 0, nullptr, nullptr);
  } else if (host_writes_) {
    device->Write(mem_, 0, copy_.get(), bytes);
  }
  host_owns_.store(false);
}

cl_mem Buffer::ForDevice() const {
  if (host_owns_.load(std::memory_order_relaxed)) {
    throw Error("a buffer of " + std::to_string(bytes) + " bytes is with the host: give it to the device first");
  }
  return mem_;
}

cl_mem Buffer::ForWriting() const {
  if (imported_) throw Error("a buffer that shares " + std::to_string(bytes) + " bytes of the host is read alone");
  return ForDevice();
}

void Buffer::Write(size_t offset, const void* source, size_t size) {
  if (size != 0) device->Write(ForWriting(), offset, source, size);
}

void Buffer::Read(size_t offset, void* target, size_t size) const {
  if (size == 0) return;
  Cl().clEnqueueReadBuffer("a copy to the host", device->Queue(), ForDevice(), 1, offset, size, target, 0, nullptr,
                           nullptr);
  device->CheckWrites();
}

void Buffer::CopyFrom(size_t offset, const Buffer& source, size_t source_offset, size_t size) {
  if (size == 0) return;
  if (source.device != device) throw Error("a copy between two OpenCL devices goes through the host");
  Cl().clEnqueueCopyBuffer("a copy on the device", device->Queue(), source.ForDevice(), ForWriting(),
                           source_offset, offset, size, 0, nullptr, nullptr);
}

}  // namespace opencl
}  // namespace hetero_sd
