// program_cache_test FOLDER (read KEY | write KEY TEXT)...: prints what was read ("-" for nothing), then the counts.
#include <cstdio>
#include <cstring>
#include <string>

#include "binary_cache.h"

using hetero_sd::opencl::BinaryCache;
using hetero_sd::opencl::CacheCounts;

int main(int count, char** words) {
  BinaryCache& cache = BinaryCache::Global();
  cache.SetFolder(words[1]);
  for (int i = 2; i < count; i += 2) {
    std::string binary;
    if (std::strcmp(words[i], "write") == 0) {
      cache.Write(words[i + 1], words[i + 2]);
      ++i;
    } else {
      std::printf("%s ", cache.Read(words[i + 1], &binary) ? binary.c_str() : "-");
    }
  }
  CacheCounts counts = cache.counts();
  std::printf("damaged %d written %d\n", static_cast<int>(counts.damaged), static_cast<int>(counts.written));
}
