#pragma once
// Damaged and hostile files of any format: an error with exit code 3 or what the file holds, never
// anything else, and never more memory than the file justifies.
//
//   RWKV_MUTATIONS=N          mutations per format; the suite runs a few, 10,000 and more are run
//                             by hand with sanitizers (docs/formats.md)
//   RWKV_FIRST_MUTATION=N     number of the first, to spread them over processes (default: 0)

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "data/io/atomic_file.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"

// The HDF5 library leaks a little when it refuses some damaged files.
#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n";
}
#endif

namespace rwkv::test {

constexpr int64_t kMaxGrowthMib = 512;  // of a process that reads files of 100 kB

inline int64_t number_from_env(const char* name, int64_t otherwise) {
  const char* n = std::getenv(name);
  return n != nullptr ? std::atoll(n) : otherwise;
}

inline int64_t peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

/// A new file: some file systems wait for the disk when one is emptied and written again.
inline void put_file(const std::string& path, std::string_view bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Runs `body`. "": it worked; else the message. Everything but an error with exit code 3 fails the
/// test.
inline std::string attempt(const char* doing, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_code(), 3) << doing << ": " << e.what();
    return e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << doing << ": " << e.what();
    return e.what();
  }
  return "";
}

/// A format's file, how it is opened, and where in it the structure is: most mutations go there.
struct Victim {
  std::string name;
  std::string changed;                ///< the file that is changed
  std::function<std::string()> open;  ///< "" or the message, see attempt()
  size_t structure_begin = 0, structure_end = SIZE_MAX;
  bool cuts_show = true;    ///< a shorter file is an error; of texts it may be a shorter text
  int64_t mutations = 300;  ///< where RWKV_MUTATIONS does not say otherwise
};

/// One change of the kinds that files suffer and attackers make.
inline void mutate(std::string& bytes, const Rng& rng, uint64_t& draw, size_t begin, size_t end) {
  const auto below = [&](uint64_t n) { return rng.below(draw++, n); };
  static constexpr uint64_t kInteresting[] = {0,
                                              1,
                                              0x7f,
                                              0xff,
                                              0x7fff,
                                              0xffff,
                                              0x7fffffff,
                                              0xffffffff,
                                              0x7fffffffffffffff,
                                              0xffffffffffffffff,
                                              uint64_t{1} << 32,
                                              uint64_t{1} << 48,
                                              uint64_t{1} << 60};
  end = std::min(end, bytes.size());
  if (begin >= end) begin = 0, end = bytes.size();
  if (end == 0) return;
  const size_t at = begin + below(end - begin);
  switch (below(6)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      break;
    case 1:
      bytes[at] = static_cast<char>(below(256));
      break;
    case 2: {
      const uint64_t value = kInteresting[below(std::size(kInteresting))];
      const size_t n = std::min<size_t>(size_t{1} << below(4), bytes.size() - at);
      std::memcpy(&bytes[at], &value, n);
      break;
    }
    case 3:
      bytes.erase(at, 1 + below(16));
      break;
    case 4:
      bytes.insert(at, bytes.substr(begin + below(end - begin), 1 + below(64)));
      break;
    default: {  // another part of the file over this one
      const std::string piece = bytes.substr(begin + below(end - begin), 1 + below(32));
      bytes.replace(at, std::min(piece.size(), bytes.size() - at), piece);
    }
  }
}

/// Cut to every percent of its length.
inline void truncate_everywhere(const Victim& v) {
  ASSERT_EQ(v.open(), "") << "the victim is whole first";
  const std::string bytes = read_file(v.changed);
  size_t last = SIZE_MAX;
  for (size_t percent = 0; percent < 100; ++percent) {
    const size_t n = bytes.size() * percent / 100;
    if (n == last) continue;
    last = n;
    put_file(v.changed, std::string_view(bytes).substr(0, n));
    const std::string message = v.open();
    EXPECT_TRUE(!v.cuts_show || !message.empty()) << v.name << " cut to " << n << " bytes";
  }
  put_file(v.changed, bytes);
}

inline void mutate_often(const Victim& v) {
  const int64_t before = peak_mib(), count = number_from_env("RWKV_MUTATIONS", v.mutations);
  const int64_t first = number_from_env("RWKV_FIRST_MUTATION", 0);
  const std::string bytes = read_file(v.changed);
  int64_t opened = 0;
  for (int64_t n = first; n < first + count; ++n) {
    const Rng rng(static_cast<uint64_t>(n), hash_name(v.name));
    uint64_t draw = 0;
    std::string changed = bytes;
    const uint64_t changes = 1 + rng.below(draw++, 4);
    for (uint64_t i = 0; i < changes; ++i) {
      const bool anywhere = rng.below(draw++, 8) == 0;
      mutate(changed, rng, draw, anywhere ? 0 : v.structure_begin,
             anywhere ? SIZE_MAX : v.structure_end);
    }
    put_file(v.changed, changed);
    opened += v.open().empty();
    ASSERT_FALSE(testing::Test::HasFailure()) << v.name << ", mutation " << n;
  }
  put_file(v.changed, bytes);
  std::printf("%s: mutations %lld to %lld, %lld still open, peak %lld MiB\n", v.name.c_str(),
              static_cast<long long>(first), static_cast<long long>(first + count - 1),
              static_cast<long long>(opened), static_cast<long long>(peak_mib()));
  std::fflush(stdout);
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LE(peak_mib() - before, kMaxGrowthMib);
#else
  (void)before;
#endif
}

}  // namespace rwkv::test
