// The part of OpenCL 1.2's C interface that the runtime uses, declared here so that building it needs no OpenCL headers.
// Types, constants and signatures are facts of the Khronos OpenCL 1.2 specification; a test compares them with Debian's
// headers.
#ifndef HETERO_SD_OPENCL_ABI_H_
#define HETERO_SD_OPENCL_ABI_H_

#include <cstddef>
#include <cstdint>

using cl_int = int32_t;
using cl_uint = uint32_t;
using cl_ulong = uint64_t;
using cl_bool = cl_uint;
using cl_bitfield = cl_ulong;
using cl_platform_id = struct _cl_platform_id*;
using cl_device_id = struct _cl_device_id*;
using cl_context = struct _cl_context*;
using cl_command_queue = struct _cl_command_queue*;
using cl_mem = struct _cl_mem*;
using cl_program = struct _cl_program*;
using cl_kernel = struct _cl_kernel*;
using cl_event = struct _cl_event*;

// Every constant with its value; abi_check.cc in the tests holds them against the official header.
#define HETERO_SD_CL_CONSTANTS(X)               \
  X(CL_SUCCESS, 0)                              \
  X(CL_INVALID_VALUE, -30)                      \
  X(CL_INVALID_WORK_GROUP_SIZE, -54)            \
  X(CL_PLATFORM_NAME, 0x0902)                   \
  X(CL_PLATFORM_VERSION, 0x0901)                \
  X(CL_DEVICE_TYPE_CPU, 1 << 1)                 \
  X(CL_DEVICE_TYPE_GPU, 1 << 2)                 \
  X(CL_DEVICE_TYPE_ACCELERATOR, 1 << 3)         \
  X(CL_DEVICE_TYPE_ALL, 0xFFFFFFFF)             \
  X(CL_DEVICE_TYPE, 0x1000)                     \
  X(CL_DEVICE_MAX_COMPUTE_UNITS, 0x1002)        \
  X(CL_DEVICE_MAX_WORK_GROUP_SIZE, 0x1004)      \
  X(CL_DEVICE_MAX_WORK_ITEM_SIZES, 0x1005)      \
  X(CL_DEVICE_MAX_CLOCK_FREQUENCY, 0x100C)      \
  X(CL_DEVICE_MAX_MEM_ALLOC_SIZE, 0x1010)       \
  X(CL_DEVICE_GLOBAL_MEM_CACHE_SIZE, 0x101E)    \
  X(CL_DEVICE_GLOBAL_MEM_SIZE, 0x101F)          \
  X(CL_DEVICE_LOCAL_MEM_SIZE, 0x1023)           \
  X(CL_DEVICE_NAME, 0x102B)                     \
  X(CL_DEVICE_VENDOR, 0x102C)                   \
  X(CL_DRIVER_VERSION, 0x102D)                  \
  X(CL_DEVICE_VERSION, 0x102F)                  \
  X(CL_DEVICE_EXTENSIONS, 0x1030)               \
  X(CL_DEVICE_HOST_UNIFIED_MEMORY, 0x1035)      \
  X(CL_DEVICE_OPENCL_C_VERSION, 0x103D)         \
  X(CL_QUEUE_PROFILING_ENABLE, 1 << 1)          \
  X(CL_MEM_READ_WRITE, 1 << 0)                  \
  X(CL_MEM_READ_ONLY, 1 << 2)                   \
  X(CL_MEM_USE_HOST_PTR, 1 << 3)                \
  X(CL_MEM_ALLOC_HOST_PTR, 1 << 4)              \
  X(CL_MAP_READ, 1 << 0)                        \
  X(CL_MAP_WRITE, 1 << 1)                       \
  X(CL_MAP_WRITE_INVALIDATE_REGION, 1 << 2)     \
  X(CL_PROGRAM_BINARY_SIZES, 0x1165)            \
  X(CL_PROGRAM_BINARIES, 0x1166)                \
  X(CL_PROGRAM_BUILD_LOG, 0x1183)               \
  X(CL_KERNEL_WORK_GROUP_SIZE, 0x11B0)          \
  X(CL_EVENT_COMMAND_EXECUTION_STATUS, 0x11D3)  \
  X(CL_COMPLETE, 0)                             \
  X(CL_PROFILING_COMMAND_QUEUED, 0x1280)        \
  X(CL_PROFILING_COMMAND_SUBMIT, 0x1281)        \
  X(CL_PROFILING_COMMAND_START, 0x1282)         \
  X(CL_PROFILING_COMMAND_END, 0x1283)           \
  X(CL_IMPORT_TYPE_ARM, 0x40B2)                 \
  X(CL_IMPORT_TYPE_HOST_ARM, 0x40B3)

#define HETERO_SD_DECLARE(name, value) constexpr int64_t name = value;
HETERO_SD_CL_CONSTANTS(HETERO_SD_DECLARE)
#undef HETERO_SD_DECLARE

// Functions that return their status: name, then the parameters.
#define HETERO_SD_CL_STATUS_FUNCTIONS(X)                                                                              \
  X(clGetPlatformIDs, cl_uint, cl_platform_id*, cl_uint*)                                                             \
  X(clGetPlatformInfo, cl_platform_id, cl_uint, size_t, void*, size_t*)                                               \
  X(clGetDeviceIDs, cl_platform_id, cl_bitfield, cl_uint, cl_device_id*, cl_uint*)                                    \
  X(clGetDeviceInfo, cl_device_id, cl_uint, size_t, void*, size_t*)                                                   \
  X(clReleaseCommandQueue, cl_command_queue)                                                                          \
  X(clReleaseMemObject, cl_mem)                                                                                       \
  X(clBuildProgram, cl_program, cl_uint, const cl_device_id*, const char*, void (*)(cl_program, void*), void*)        \
  X(clGetProgramInfo, cl_program, cl_uint, size_t, void*, size_t*)                                                    \
  X(clGetProgramBuildInfo, cl_program, cl_device_id, cl_uint, size_t, void*, size_t*)                                 \
  X(clReleaseProgram, cl_program)                                                                                     \
  X(clSetKernelArg, cl_kernel, cl_uint, size_t, const void*)                                                          \
  X(clGetKernelWorkGroupInfo, cl_kernel, cl_device_id, cl_uint, size_t, void*, size_t*)                               \
  X(clReleaseKernel, cl_kernel)                                                                                       \
  X(clEnqueueNDRangeKernel, cl_command_queue, cl_kernel, cl_uint, const size_t*, const size_t*, const size_t*,        \
    cl_uint, const cl_event*, cl_event*)                                                                              \
  X(clEnqueueReadBuffer, cl_command_queue, cl_mem, cl_bool, size_t, size_t, void*, cl_uint, const cl_event*,          \
    cl_event*)                                                                                                        \
  X(clEnqueueWriteBuffer, cl_command_queue, cl_mem, cl_bool, size_t, size_t, const void*, cl_uint, const cl_event*,   \
    cl_event*)                                                                                                        \
  X(clEnqueueCopyBuffer, cl_command_queue, cl_mem, cl_mem, size_t, size_t, size_t, cl_uint, const cl_event*,          \
    cl_event*)                                                                                                        \
  X(clEnqueueUnmapMemObject, cl_command_queue, cl_mem, void*, cl_uint, const cl_event*, cl_event*)                    \
  X(clEnqueueMarkerWithWaitList, cl_command_queue, cl_uint, const cl_event*, cl_event*)                               \
  X(clEnqueueBarrierWithWaitList, cl_command_queue, cl_uint, const cl_event*, cl_event*)                              \
  X(clWaitForEvents, cl_uint, const cl_event*)                                                                        \
  X(clGetEventInfo, cl_event, cl_uint, size_t, void*, size_t*)                                                        \
  X(clGetEventProfilingInfo, cl_event, cl_uint, size_t, void*, size_t*)                                               \
  X(clReleaseEvent, cl_event)                                                                                         \
  X(clFlush, cl_command_queue)                                                                                        \
  X(clFinish, cl_command_queue)

// Functions that return a handle and put their status where their last parameter points: name, handle, parameters.
#define HETERO_SD_CL_HANDLE_FUNCTIONS(X)                                                                              \
  X(clCreateContext, cl_context, const intptr_t*, cl_uint, const cl_device_id*,                                       \
    void (*)(const char*, const void*, size_t, void*), void*)                                                         \
  X(clCreateCommandQueue, cl_command_queue, cl_context, cl_device_id, cl_bitfield)                                    \
  X(clCreateBuffer, cl_mem, cl_context, cl_bitfield, size_t, void*)                                                   \
  X(clCreateProgramWithSource, cl_program, cl_context, cl_uint, const char**, const size_t*)                          \
  X(clCreateProgramWithBinary, cl_program, cl_context, cl_uint, const cl_device_id*, const size_t*,                   \
    const unsigned char**, cl_int*)                                                                                   \
  X(clCreateKernel, cl_kernel, cl_program, const char*)                                                               \
  X(clEnqueueMapBuffer, void*, cl_command_queue, cl_mem, cl_bool, cl_bitfield, size_t, size_t, cl_uint,               \
    const cl_event*, cl_event*)

// Functions that not every driver has: name, what it returns, parameters. clImportMemoryARM belongs to the extension
// cl_arm_import_memory and is asked of its platform.
#define HETERO_SD_CL_OPTIONAL_FUNCTIONS(X) \
  X(clGetExtensionFunctionAddressForPlatform, void*, cl_platform_id, const char*)
#define HETERO_SD_CL_EXTENSION_FUNCTIONS(X) \
  X(clImportMemoryARM, cl_mem, cl_context, cl_bitfield, const intptr_t*, void*, size_t)

#endif  // HETERO_SD_OPENCL_ABI_H_
