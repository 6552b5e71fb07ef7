// A CUDA runtime and driver without a device: they count bytes and hand out addresses, and nothing else.
//
// Built as libcudart.so.13 in front of PyTorch's libc10_cuda.so, it lets PyTorch's own caching allocator run on any
// machine. FAKE_CAPACITY: bytes that can be had; FAKE_DEVICE: bytes that the device says it has; FAKE_DOWN: set, each
// cudaMalloc lies below the one before, so that a dependence on addresses would show.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>

namespace {
size_t variable(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t capacity() {
  static size_t bytes = variable("FAKE_CAPACITY", size_t(1) << 46);
  return bytes;
}
size_t device() {
  static size_t bytes = variable("FAKE_DEVICE", size_t(80) << 30);
  return bytes;
}

size_t used = 0;
size_t up = size_t(1) << 40, down = size_t(1) << 46, reserved = size_t(1) << 47;
std::unordered_map<void*, size_t> segments;
std::unordered_map<CUmemGenericAllocationHandle, size_t> handles;

CUresult reserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  *address = reserved;
  reserved += bytes + (size_t(1) << 30);
  return CUDA_SUCCESS;
}
CUresult create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*, unsigned long long) {
  static CUmemGenericAllocationHandle last = 0;
  if (used + bytes > capacity()) return CUDA_ERROR_OUT_OF_MEMORY;
  used += bytes;
  *handle = ++last;
  handles[last] = bytes;
  return CUDA_SUCCESS;
}
CUresult release(CUmemGenericAllocationHandle handle) {
  used -= handles.at(handle);
  handles.erase(handle);
  return CUDA_SUCCESS;
}
CUresult attribute(int* value, CUdevice_attribute, CUdevice) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUresult describe(CUresult, const char** text) {
  *text = "error of the fake driver";
  return CUDA_SUCCESS;
}
CUresult succeed() {
  return CUDA_SUCCESS;
}
}  // namespace

#define RUNTIME extern "C" cudaError_t

RUNTIME cudaMalloc(void** address, size_t bytes) {
  if (used + bytes > capacity()) return cudaErrorMemoryAllocation;
  used += bytes;
  const size_t step = (bytes / (2 << 20) + 2) * (2 << 20);
  down -= step;
  *address = reinterpret_cast<void*>(getenv("FAKE_DOWN") ? down : up);
  up += step;
  segments[*address] = bytes;
  return cudaSuccess;
}
RUNTIME cudaFree(void* address) {
  if (!address) return cudaSuccess;
  used -= segments.at(address);
  segments.erase(address);
  return cudaSuccess;
}
RUNTIME cudaMemGetInfo(size_t* free, size_t* total) {
  *free = capacity() - used;
  *total = device();
  return cudaSuccess;
}
RUNTIME cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = device();
  properties->major = 9;
  return cudaSuccess;
}
RUNTIME cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
RUNTIME cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  static const std::unordered_map<std::string, void*> known{
      {"cuMemAddressReserve", reinterpret_cast<void*>(reserve)},
      {"cuMemCreate", reinterpret_cast<void*>(create)},
      {"cuMemRelease", reinterpret_cast<void*>(release)},
      {"cuDeviceGetAttribute", reinterpret_cast<void*>(attribute)},
      {"cuGetErrorString", reinterpret_cast<void*>(describe)},
  };
  auto found = known.find(name);
  *function = found == known.end() ? reinterpret_cast<void*>(succeed) : found->second;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
RUNTIME cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
RUNTIME cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }
RUNTIME cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
RUNTIME cudaDeviceGetStreamPriorityRange(int* low, int* high) { return *low = *high = 0, cudaSuccess; }
RUNTIME cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  static size_t last = 0;
  *stream = reinterpret_cast<cudaStream_t>(++last);
  return cudaSuccess;
}
RUNTIME cudaSetDevice(int) { return cudaSuccess; }
RUNTIME cudaGetLastError() { return cudaSuccess; }
RUNTIME cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
RUNTIME cudaDeviceSynchronize() { return cudaSuccess; }
extern "C" const char* cudaGetErrorString(cudaError_t) { return "error of the fake runtime"; }
extern "C" const char* cudaGetErrorName(cudaError_t) { return "fake"; }
