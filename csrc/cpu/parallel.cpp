#include "parallel.h"

#if !defined(__linux__) || defined(RTM_STD_THREADS)  // std::thread asks for a newer glibc than manylinux_2_28 has
#include <system_error>
#include <thread>
#endif

namespace rtm {

namespace {

void own_team(void (*body)(void*), void* data, [[maybe_unused]] unsigned threads, unsigned) {
#if !defined(__linux__) || defined(RTM_STD_THREADS)
  std::vector<std::thread> others;
  try {
    while (others.size() + 1 < threads) others.emplace_back(body, data);
  } catch (const std::system_error&) {  // those that started do all the work
  }
  body(data);
  for (std::thread& other : others) other.join();
#else
  body(data);
#endif
}

}  // namespace

Team team = own_team;

}  // namespace rtm
