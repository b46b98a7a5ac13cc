#include "binary_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "sha256.h"

namespace hetero_sd {
namespace opencl {
namespace {

constexpr char kMagic[] = "HSDOCL1\n";
constexpr size_t kHeader = 8 + 32;
constexpr off_t kLargest = 256L << 20;
constexpr mode_t kOthersWrite = S_IWGRP | S_IWOTH;

// A file descriptor that is closed at the end of its block.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }
  bool is_open() const { return number_ >= 0; }

 private:
  int number_;
};

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
    if (at != folder.size() && folder[at] != '/') continue;
    std::string made = folder.substr(0, at);
    struct stat facts;
    if (mkdir(made.c_str(), S_IRWXU) == 0 && stat(made.c_str(), &facts) == 0 && (facts.st_mode & S_IRWXU) != S_IRWXU) {
      chmod(made.c_str(), S_IRWXU);  // a umask that takes the owner's own rights
    }
  }
}

// Ours, and nobody else's to write: then whatever lies in it was put there by this user (or by root).
bool OursAlone(const struct stat& facts) { return facts.st_uid == geteuid() && (facts.st_mode & kOthersWrite) == 0; }

// The folder, or a closed descriptor where it is not there or others may write it.
int OpenFolder(const std::string& folder) {
  int opened = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct stat facts;
  if (opened >= 0 && (fstat(opened, &facts) != 0 || !OursAlone(facts))) {
    close(opened);
    return -1;
  }
  return opened;
}

// Removes what a process left that was killed while it wrote: a writer holds a lock on its file.
void RemoveLeftovers(int folder) {
  int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* listing = copy >= 0 ? fdopendir(copy) : nullptr;
  if (listing == nullptr) {
    if (copy >= 0) close(copy);
    return;
  }
  while (const dirent* entry = readdir(listing)) {
    std::string name = entry->d_name;
    if (name.size() < 5 || name[0] != '.' || name.compare(name.size() - 4, 4, ".tmp") != 0) continue;
    Descriptor file(openat(folder, name.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
    if (file.is_open() && flock(file.number(), LOCK_EX | LOCK_NB) == 0) unlinkat(folder, name.c_str(), 0);
  }
  closedir(listing);
}

bool ReadAll(int file, std::string* bytes) {
  struct stat facts;
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode) || !OursAlone(facts)) return false;
  if (facts.st_size <= static_cast<off_t>(kHeader) || facts.st_size > kLargest) return false;
  bytes->resize(static_cast<size_t>(facts.st_size));
  size_t done = 0;
  while (done < bytes->size()) {
    ssize_t count = read(file, &(*bytes)[done], bytes->size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

bool WriteAll(int file, const std::string& bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    ssize_t count = write(file, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

// 32 hex digits that nobody can foresee; empty where the system gives none.
std::string Unforeseeable() {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes))) return "";
  std::string digits;
  for (unsigned char byte : bytes) {
    digits += "0123456789abcdef"[byte >> 4];
    digits += "0123456789abcdef"[byte & 15];
  }
  return digits;
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
  Descriptor folder(OpenFolder(folder_));
  if (!folder.is_open()) return false;
  if (!swept_) RemoveLeftovers(folder.number());
  swept_ = true;
  // O_NONBLOCK: a pipe of that name must not hold the start up.
  Descriptor file(openat(folder.number(), (key + ".clbin").c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) {
    if (errno != ENOENT) ++counts_.damaged;
    return false;
  }
  std::string bytes;
  bool whole = ReadAll(file.number(), &bytes);
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
  Descriptor folder(OpenFolder(folder_));
  std::string random = Unforeseeable();
  if (!folder.is_open() || random.empty()) return;
  std::string beside = "." + random + ".tmp", name = key + ".clbin";
  int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  Descriptor file(openat(folder.number(), beside.c_str(), flags, S_IRUSR | S_IWUSR));
  if (!file.is_open()) return;
  bool written = fchmod(file.number(), S_IRUSR | S_IWUSR) == 0 && flock(file.number(), LOCK_EX) == 0 &&
                 WriteAll(file.number(), HeaderOf(binary) + binary) &&
                 renameat(folder.number(), beside.c_str(), folder.number(), name.c_str()) == 0;
  if (written) {
    ++counts_.written;
  } else {
    unlinkat(folder.number(), beside.c_str(), 0);
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
