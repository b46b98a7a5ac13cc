#include "binary_cache.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sha256.h"

namespace hetero_sd {
namespace opencl {
namespace {

constexpr char kMagic[] = "HSDOCL1\n";
constexpr size_t kHeader = 8 + 32;
constexpr long kLargest = 256L << 20;

std::string DefaultFolder() {
  const char* stated = std::getenv("HSD_OPENCL_CACHE");
  if (stated != nullptr) return stated;
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg != nullptr && *xdg == '/') return std::string(xdg) + "/hetero_sd/opencl";
  const char* home = std::getenv("HOME");
  return home != nullptr && *home == '/' ? std::string(home) + "/.cache/hetero_sd/opencl" : "";
}

void MakeFolders(const std::string& folder) {
  for (size_t at = 1; at <= folder.size(); ++at) {
    if (at == folder.size() || folder[at] == '/') mkdir(folder.substr(0, at).c_str(), 0700);
  }
}

std::string HeaderOf(const std::string& binary) {
  std::array<uint8_t, 32> digest = Sha256(binary);
  return std::string(kMagic, 8) + std::string(digest.begin(), digest.end());
}

}  // namespace

BinaryCache& BinaryCache::Global() {
  static BinaryCache* cache = new BinaryCache;
  return *cache;
}

void BinaryCache::SetFolder(const std::string& folder) {
  std::lock_guard<std::mutex> lock(mutex_);
  known_ = true;
  folder_ = folder;
}

std::string BinaryCache::FolderLocked() {
  if (!known_) {
    known_ = true;
    folder_ = DefaultFolder();
  }
  return folder_;
}

std::string BinaryCache::folder() {
  std::lock_guard<std::mutex> lock(mutex_);
  return FolderLocked();
}

bool BinaryCache::Read(const std::string& key, std::string* binary) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (FolderLocked().empty()) return false;
  std::FILE* file = std::fopen((folder_ + "/" + key + ".clbin").c_str(), "rb");
  if (file == nullptr) return false;
  std::string bytes;
  bool whole = std::fseek(file, 0, SEEK_END) == 0;
  long size = whole ? std::ftell(file) : 0;
  if (size > static_cast<long>(kHeader) && size <= kLargest && std::fseek(file, 0, SEEK_SET) == 0) {
    bytes.resize(size);
    whole = std::fread(&bytes[0], 1, bytes.size(), file) == bytes.size();
  } else {
    whole = false;
  }
  std::fclose(file);
  if (whole) {
    *binary = bytes.substr(kHeader);
    whole = bytes.compare(0, kHeader, HeaderOf(*binary)) == 0;
  }
  if (!whole) ++counts_.damaged;
  return whole;
}

void BinaryCache::Write(const std::string& key, const std::string& binary) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (FolderLocked().empty() || binary.empty()) return;
  MakeFolders(folder_);
  std::string beside = folder_ + "/." + key + "." + std::to_string(getpid()) + ".tmp";
  std::FILE* file = std::fopen(beside.c_str(), "wb");
  if (file == nullptr) return;
  std::string bytes = HeaderOf(binary) + binary;
  bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  written = std::fclose(file) == 0 && written;
  if (written && std::rename(beside.c_str(), (folder_ + "/" + key + ".clbin").c_str()) == 0) {
    ++counts_.written;
  } else {
    std::remove(beside.c_str());
  }
}

void BinaryCache::CountLoaded() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++counts_.loaded;
}

void BinaryCache::CountBuilt() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++counts_.built;
}

void BinaryCache::CountDamaged() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++counts_.damaged;
}

CacheCounts BinaryCache::counts() {
  std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

void SetCacheFolder(const std::string& folder) { BinaryCache::Global().SetFolder(folder); }
std::string CacheFolder() { return BinaryCache::Global().folder(); }
CacheCounts GetCacheCounts() { return BinaryCache::Global().counts(); }

}  // namespace opencl
}  // namespace hetero_sd
