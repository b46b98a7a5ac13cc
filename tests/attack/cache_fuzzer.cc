// libFuzzer on an entry of the program cache: it is refused and counted, or its text is what its hash says.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "binary_cache.h"
#include "sha256.h"

using hetero_sd::opencl::BinaryCache;

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  static const std::string folder = std::string(std::getenv("HSD_FUZZ_FOLDER")) + "/cache";
  BinaryCache& cache = BinaryCache::Global();
  cache.SetFolder(folder);
  mkdir(folder.c_str(), 0700);
  // As it is, and with the head that belongs to it, so that both sides of the check are reached.
  std::string bytes(reinterpret_cast<const char*>(data), size), binary;
#ifdef PLANT
  if (size % 5 == 3) std::abort();
#endif
  for (bool whole : {false, true}) {
    std::string content = bytes;
    if (whole) {
      auto digest = hetero_sd::opencl::Sha256(bytes);
      content = "HSDOCL1\n" + std::string(digest.begin(), digest.end()) + bytes;
    }
    FILE* file = std::fopen((folder + "/k.clbin").c_str(), "wb");
    if (file == nullptr) std::abort();
    std::fwrite(content.data(), 1, content.size(), file);
    std::fclose(file);
    chmod((folder + "/k.clbin").c_str(), 0600);
    bool read = cache.Read("k", &binary);
    if (read && whole && binary != bytes) std::abort();
    if (whole && !bytes.empty() && !read) std::abort();
  }
  return 0;
}
