// Program binaries on disk, one file a program. An entry that is damaged counts as absent; a folder that cannot be
// written is no error: the cache saves time and nothing else.
#ifndef HETERO_SD_OPENCL_BINARY_CACHE_H_
#define HETERO_SD_OPENCL_BINARY_CACHE_H_

#include <mutex>
#include <string>

#include "program.h"

namespace hetero_sd {
namespace opencl {

class BinaryCache {
 public:
  static BinaryCache& Global();

  void SetFolder(const std::string& folder);
  std::string folder();
  bool enabled() { return !folder().empty(); }

  // An entry is a header (8 bytes of magic with the format's version, 32 bytes SHA-256 of the rest) and the binary.
  bool Read(const std::string& key, std::string* binary);
  // Beside, then renamed, so that no reader sees half an entry.
  void Write(const std::string& key, const std::string& binary);

  void CountLoaded();
  void CountBuilt();
  void CountDamaged();
  CacheCounts counts();

 private:
  std::string FolderLocked();

  std::mutex mutex_;
  bool known_ = false;
  std::string folder_;
  CacheCounts counts_;
};

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_BINARY_CACHE_H_
