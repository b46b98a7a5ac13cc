// Program binaries on disk, one file a program. An entry that is damaged counts as absent; a folder that cannot be
// written is no error: the cache saves time and nothing else.
//
// A driver runs what it is given, so an entry must be this user's own. The folder is used only where it belongs to the
// user and nobody else may write it; it is made so, whatever the umask. A secret beside the hash would protect no more:
// who can put a file into that folder can read a secret of that user, too.
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
  // Beside, under a name that nobody can foresee, then renamed, so that no reader sees half an entry. The first use of
  // a process removes what killed ones left.
  void Write(const std::string& key, const std::string& binary);

  void CountLoaded();
  void CountBuilt();
  void CountDamaged();
  CacheCounts counts();

 private:
  std::string FolderLocked();

  std::mutex mutex_;
  bool known_ = false;
  bool swept_ = false;
  std::string folder_;
  CacheCounts counts_;
};

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_BINARY_CACHE_H_
