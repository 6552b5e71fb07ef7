// Reads events from standard input, sends them to PyTorch's caching allocator, prints its figures after each.
//
// "m N" requests N bytes, "f I" frees the I-th request, "e" empties the cache, "l" prints the layout.
#include <c10/cuda/CUDACachingAllocator.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

int main() {
  auto* allocator = c10::cuda::CUDACachingAllocator::get();
  allocator->init(1);
  std::vector<void*> taken;
  char kind;
  while (scanf(" %c", &kind) == 1) {
    const char* answer = "ok";
    size_t number = 0;
    if ((kind == 'm' || kind == 'f') && scanf("%zu", &number) != 1) return 1;
    if (kind == 'm') {
      taken.push_back(nullptr);
      try {
        taken.back() = allocator->raw_alloc_with_stream(number, nullptr);
      } catch (const std::exception&) {
        answer = "full";
      }
    } else if (kind == 'f') {
      allocator->raw_delete(taken.at(number));
    } else if (kind == 'e') {
      allocator->emptyCache({0, 0});
    } else {
      printf("layout");
      for (const auto& segment : allocator->snapshot({0, 0}, false).segments) {
        const char* between = " ";
        for (const auto& block : segment.blocks) {
          printf("%s%c%zu", between, block.allocated ? '+' : '-', block.size);
          between = ",";
        }
      }
      printf("\n");
      continue;
    }
    auto s = allocator->getDeviceStats(0);
    printf(
        "%s %ld %ld %ld %ld\n", answer, s.allocated_bytes[0].current, s.reserved_bytes[0].current,
        s.requested_bytes[0].current, s.inactive_split_bytes[0].current);
  }
  fflush(stdout);
  _Exit(0);  // no destructors: there is no device to tear down
}
