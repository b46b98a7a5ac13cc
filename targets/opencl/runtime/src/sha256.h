// SHA-256 (FIPS 180-4), for the keys and the checks of the program cache.
#ifndef HETERO_SD_OPENCL_SHA256_H_
#define HETERO_SD_OPENCL_SHA256_H_

#include <array>
#include <cstdint>
#include <string>

namespace hetero_sd {
namespace opencl {

std::array<uint8_t, 32> Sha256(const std::string& bytes);
std::string Hex(const std::array<uint8_t, 32>& digest);

}  // namespace opencl
}  // namespace hetero_sd

#endif  // HETERO_SD_OPENCL_SHA256_H_
