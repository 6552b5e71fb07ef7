// What libc10_cuda.so links, and an allocator on one stream never calls.
#include <stdio.h>
#include <stdlib.h>

#define UNCALLED(name)                               \
  void name(void) {                                  \
    fprintf(stderr, "%s was not expected\n", #name); \
    abort();                                         \
  }

UNCALLED(cudaDeviceCanAccessPeer)
UNCALLED(cudaDeviceEnablePeerAccess)
UNCALLED(cudaDeviceGetDefaultMemPool)
UNCALLED(cudaEventCreateWithFlags)
UNCALLED(cudaEventDestroy)
UNCALLED(cudaEventElapsedTime)
UNCALLED(cudaEventQuery)
UNCALLED(cudaEventRecord)
UNCALLED(cudaEventSynchronize)
UNCALLED(cudaFreeAsync)
UNCALLED(cudaGraphNodeGetDependencies)
UNCALLED(cudaIpcCloseMemHandle)
UNCALLED(cudaIpcGetMemHandle)
UNCALLED(cudaIpcOpenMemHandle)
UNCALLED(cudaMallocAsync)
UNCALLED(cudaMemPoolGetAttribute)
UNCALLED(cudaMemPoolSetAccess)
UNCALLED(cudaMemPoolSetAttribute)
UNCALLED(cudaMemPoolTrimTo)
UNCALLED(cudaMemcpy)
UNCALLED(cudaMemcpyAsync)
UNCALLED(cudaMemcpyPeerAsync)
UNCALLED(cudaStreamGetCaptureInfo)
UNCALLED(cudaStreamQuery)
UNCALLED(cudaStreamWaitEvent)
UNCALLED(cudaThreadExchangeStreamCaptureMode)
