// Hdf5File: round trips, conversions, and every way a file or a disk can be bad.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "kernels/core/error.h"
#include "tests/unit/data_test_util.h"

#ifdef __SANITIZE_ADDRESS__
// HDF5 forgets about 1 KB of its own when a file cannot be closed because the disk is full.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}
#endif

namespace rwkv {
namespace {

using test::error_of;
using test::TempDir;

template <class T>
std::vector<T> edge_values() {
  using L = std::numeric_limits<T>;
  return {L::lowest(), L::max(), T{0}, T{1}, static_cast<T>(L::max() / 3)};
}

TEST(Hdf5, RoundTripsEveryNumericType) {
  TempDir dir;
  const std::string path = dir.file("a.h5");
  const auto check = [&](auto tag) {
    using T = decltype(tag);
    const auto values = edge_values<T>();
    for (const int deflate : {0, 4}) {
      auto out = Hdf5File::create(path);
      out.write<T>("g/x", {5}, values, {.deflate = deflate, .shuffle = true});
      out.write_scalar<T>("g/s", values[1]);
      out.close();
      const auto in = Hdf5File::open(path);
      EXPECT_EQ(in.read<T>("g/x"), values);
      EXPECT_EQ(in.read<T>("/g//x/"), values);
      EXPECT_EQ(in.read_scalar<T>("g/s"), values[1]);
      EXPECT_EQ(in.shape("g/s"), Shape{});
      EXPECT_EQ(in.shape("g/x"), Shape{5});
      T part[2];
      in.read_slice<T>("g/x", 1, 2, part);
      EXPECT_EQ(part[0], values[1]);
      EXPECT_EQ(part[1], values[2]);
    }
  };
  check(int8_t{});
  check(uint8_t{});
  check(int16_t{});
  check(uint16_t{});
  check(int32_t{});
  check(uint32_t{});
  check(int64_t{});
  check(uint64_t{});
  check(float{});
  check(double{});
}

TEST(Hdf5, HalfIsStoredAsBinary16) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("a.h5"));
  const std::vector<F16> v = {{0x3C00}, {0xC000}, {0x0001}, {0x7BFF}};  // 1, -2, 2^-24, 65504
  out.write<F16>("h", {2, 2}, v);
  out.close();
  const auto in = Hdf5File::open(dir.file("a.h5"));
  EXPECT_EQ(in.type("h"), H5Type::kF16);
  EXPECT_EQ(in.read<float>("h"), (std::vector<float>{1, -2, std::ldexp(1.0f, -24), 65504}));
  EXPECT_EQ(in.read<F16>("h")[2].bits, 1);
  EXPECT_NE(error_of<IoError>([&] { in.read<uint16_t>("h"); }).find("f16"), std::string::npos);
}

TEST(Hdf5, ConvertsOnlyWithoutLoss) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("a.h5"));
  out.write<int64_t>("small", {3}, {-5, 0, 100});
  out.write<int64_t>("large", {2}, {1, 70000});
  out.write<uint64_t>("huge", {1}, {~0ull});
  out.write<double>("d", {1}, {0.1});
  out.write<float>("f", {1}, {0.1f});
  out.write<int32_t>("i32", {1}, {(1 << 24) + 1});
  out.close();
  const auto in = Hdf5File::open(dir.file("a.h5"));
  EXPECT_EQ(in.read<int8_t>("small"), (std::vector<int8_t>{-5, 0, 100}));
  EXPECT_EQ(in.read<double>("f"), std::vector<double>{static_cast<double>(0.1f)});
  EXPECT_EQ(in.read<double>("i32"), std::vector<double>{(1 << 24) + 1});
  EXPECT_EQ(in.read<uint64_t>("huge"), std::vector<uint64_t>{~0ull});
  EXPECT_THROW(in.read<uint8_t>("small"), IoError);
  EXPECT_THROW(in.read<int64_t>("huge"), IoError);
  EXPECT_THROW(in.read<float>("i32"), IoError);
  EXPECT_THROW(in.read<int32_t>("f"), IoError);
  EXPECT_THROW(in.read<double>("small"), IoError);
  const std::string narrow = error_of<IoError>([&] { in.read<uint16_t>("large"); });
  EXPECT_NE(narrow.find("element 1 is 70000"), std::string::npos) << narrow;
  const std::string loss = error_of<IoError>([&] { in.read<float>("d"); });
  EXPECT_NE(loss.find("f64"), std::string::npos) << loss;
  EXPECT_NE(loss.find("a.h5"), std::string::npos) << loss;
}

TEST(Hdf5, GroupsListingsAndNames) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("a.h5"));
  out.write<float>("w/blocks.0.att.x_r", {1, 1, 2}, {1, 2});
  out.write<float>("w/sub/deeper/z", {0}, std::vector<float>());
  out.write_scalar<int64_t>("b", 7);
  out.create_group("empty/inner");
  out.close();
  const auto in = Hdf5File::open(dir.file("a.h5"));
  using Names = std::vector<std::string>;
  EXPECT_EQ(in.list(), (Names{"b", "empty", "w"}));
  EXPECT_EQ(in.list("/w/"), (Names{"blocks.0.att.x_r", "sub"}));
  EXPECT_EQ(in.list_datasets(), (Names{"b", "w/blocks.0.att.x_r", "w/sub/deeper/z"}));
  EXPECT_EQ(in.list_datasets("w"), (Names{"blocks.0.att.x_r", "sub/deeper/z"}));
  EXPECT_TRUE(in.exists("w/sub"));
  EXPECT_FALSE(in.is_dataset("w/sub"));
  EXPECT_FALSE(in.exists("w/nothing/z"));
  EXPECT_TRUE(in.read<float>("w/sub/deeper/z").empty());
  const std::string missing = error_of<IoError>([&] { in.read<float>("w/blocks.1"); });
  EXPECT_NE(missing.find("blocks.0.att.x_r"), std::string::npos) << missing;
  EXPECT_THROW(in.read<float>("w"), IoError);
  float two[2];
  EXPECT_NO_THROW(in.read_into<float>("w/blocks.0.att.x_r", {1, 1, 2}, two));
  const std::string shape =
      error_of<IoError>([&] { in.read_into<float>("w/blocks.0.att.x_r", {2}, two); });
  EXPECT_NE(shape.find("(1, 1, 2), expected (2)"), std::string::npos) << shape;
  EXPECT_THROW(in.read_scalar<float>("w/blocks.0.att.x_r"), IoError);
  EXPECT_THROW(in.read_slice<float>("w/blocks.0.att.x_r", 0, 1, two), IoError);
}

TEST(Hdf5, StringsAndAttributes) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("a.h5"));
  const std::string text = "na\xc3\xafve \xf0\x9f\x9a\x80\nsecond line";
  out.write_string("config", text);
  out.write_string("empty", "");
  out.write<uint16_t>("tokens", {1}, {5});
  out.write_attr("", "format", "greylag-tokens");
  out.write_attr("", "version", 3);
  out.write_attr("tokens", "mean", 0.25);
  out.write_attr("tokens", "none", "");
  out.write_attr("tokens", "mean", 0.5);  // replaces
  EXPECT_THROW(out.write_string("nul", std::string("a\0b", 3)), IoError);
  EXPECT_THROW(out.write_string("config", "again"), IoError);
  out.close();
  const auto in = Hdf5File::open(dir.file("a.h5"));
  EXPECT_EQ(in.type("config"), H5Type::kString);
  EXPECT_EQ(in.read_string("config"), text);
  EXPECT_EQ(in.read_string("empty"), "");
  EXPECT_EQ(in.attr_string("", "format"), "greylag-tokens");
  EXPECT_EQ(in.attr_string("tokens", "none"), "");
  EXPECT_EQ(in.attr_int("/", "version"), 3);
  EXPECT_EQ(in.attr_double("/", "version"), 3.0);
  EXPECT_EQ(in.attr_double("tokens", "mean"), 0.5);
  EXPECT_TRUE(in.has_attr("tokens", "mean"));
  EXPECT_FALSE(in.has_attr("tokens", "median"));
  EXPECT_THROW(in.attr_int("tokens", "mean"), IoError);
  EXPECT_THROW(in.attr_int("", "format"), IoError);
  EXPECT_THROW(in.attr_string("", "version"), IoError);
  EXPECT_THROW(in.attr_string("", "absent"), IoError);
  EXPECT_THROW(in.read_string("tokens"), IoError);
  EXPECT_THROW(in.read<float>("config"), IoError);
}

TEST(Hdf5, AppendsAndReadsSlices) {
  TempDir dir;
  for (const int deflate : {0, 1}) {
    auto out = Hdf5File::create(dir.file("a.h5"));
    out.create_extendible<uint16_t>("t", {.chunk_rows = 100, .deflate = deflate});
    out.create_extendible<uint64_t>("o", {.chunk_rows = 10});
    std::vector<uint16_t> all;
    for (size_t piece = 0; piece < 40; ++piece) {
      std::vector<uint16_t> v(piece * 7 % 50);
      for (auto& x : v) x = static_cast<uint16_t>(all.size() * 31 + (&x - v.data()));
      out.append<uint16_t>("t", v);
      const uint64_t end = all.size();
      out.append<uint64_t>("o", std::span(&end, 1));
      all.insert(all.end(), v.begin(), v.end());
    }
    EXPECT_THROW(out.append<int32_t>("t", {}), IoError);
    out.close();
    const auto in = Hdf5File::open(dir.file("a.h5"));
    EXPECT_EQ(in.read<uint16_t>("t"), all);
    EXPECT_EQ(in.numel("o"), 40);
    std::vector<int32_t> part(77);
    for (const int64_t at : {0, 1, 99, 100, 350}) {
      in.read_slice<int32_t>("t", at, 77, part.data());
      for (size_t i = 0; i < part.size(); ++i)
        ASSERT_EQ(part[i], all[static_cast<size_t>(at) + i]) << at << " " << i;
    }
    const auto n = static_cast<int64_t>(all.size());
    in.read_slice<int32_t>("t", n, 0, part.data());
    EXPECT_THROW(in.read_slice<int32_t>("t", n - 1, 2, part.data()), IoError);
    EXPECT_THROW(in.read_slice<int32_t>("t", -1, 1, part.data()), IoError);
    EXPECT_THROW(in.read_slice<int32_t>("t", std::numeric_limits<int64_t>::max(), 1, part.data()),
                 IoError);
  }
}

TEST(Hdf5, EqualContentGivesEqualBytes) {
  TempDir dir;
  for (const char* name : {"a.h5", "b.h5"}) {
    auto out = Hdf5File::create(dir.file(name));
    out.write<float>("x/y", {1000}, std::vector<float>(1000, 1.5f), {.deflate = 3});
    out.write_attr("", "a", "text");
    out.close();
  }
  EXPECT_EQ(read_file(dir.file("a.h5")), read_file(dir.file("b.h5")));
}

TEST(Hdf5, RefusesBadWrites) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("a.h5"));
  out.write<float>("x", {1}, {1});
  EXPECT_THROW(out.write<float>("x", {1}, {1}), IoError);
  EXPECT_THROW(out.write<float>("y", {2}, {1}), IoError);
  EXPECT_THROW(out.write<float>("y", {-1}, std::vector<float>()), IoError);
  EXPECT_THROW(out.write<float>("", {1}, {1}), IoError);
  EXPECT_THROW(out.write<float>("x/below", {1}, {1}), IoError);
  EXPECT_THROW(out.create_extendible<float>("e", {}), IoError);
  out.close();
  EXPECT_FALSE(out.is_open());
  EXPECT_THROW(out.write<float>("z", {1}, {1}), IoError);
  EXPECT_THROW(out.read<float>("x"), IoError);
  EXPECT_THROW(out.flush(), IoError);
  out.close();  // closing twice is fine
  auto in = Hdf5File::open(dir.file("a.h5"));
  EXPECT_THROW(in.write<float>("z", {1}, {1}), IoError);
}

TEST(Hdf5, MovesAndClosesInTheDestructor) {
  TempDir dir;
  {
    auto a = Hdf5File::create(dir.file("a.h5"));
    a.write_scalar<float>("x", 1);
    auto b = std::move(a);
    b.write_scalar<float>("y", 2);
    b = Hdf5File::create(dir.file("b.h5"));
  }
  EXPECT_EQ(Hdf5File::open(dir.file("a.h5")).read_scalar<float>("y"), 2);
}

TEST(Hdf5, NamesWhatIsWrongWithAFile) {
  TempDir dir;
  const auto open = [&](const std::string& name) {
    return error_of<IoError>([&] { Hdf5File::open(dir.file(name)); });
  };
  EXPECT_NE(open("missing.h5").find("no such file"), std::string::npos);
  std::filesystem::create_directory(dir.file("folder"));
  EXPECT_NE(open("folder").find("not a regular file"), std::string::npos);
  std::ofstream(dir.file("text.h5")) << "once upon a time";
  EXPECT_NE(open("text.h5").find("not an HDF5 file"), std::string::npos);
  std::ofstream(dir.file("empty.h5"));
  EXPECT_NE(open("empty.h5").find("not an HDF5 file"), std::string::npos);
  EXPECT_THROW(Hdf5File::create(dir.file("no/such/folder.h5")), IoError);

  auto out = Hdf5File::create(dir.file("good.h5"));
  out.write<double>("x", {4096}, std::vector<double>(4096, 0.5));
  out.close();
  const std::string good = read_file(dir.file("good.h5"));
  for (const double share : {0.05, 0.5, 0.9, 0.999}) {
    std::ofstream(dir.file("cut.h5"))
        << good.substr(0, static_cast<size_t>(share * static_cast<double>(good.size())));
    EXPECT_NE(open("cut.h5").find("damaged or truncated"), std::string::npos) << share;
  }
}

TEST(Hdf5, DamagedCompressedDataIsReported) {
  TempDir dir;
  std::vector<int32_t> v(50000);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<int32_t>(i * i * 2654435761u);
  auto out = Hdf5File::create(dir.file("a.h5"));
  out.write<int32_t>("x", {50000}, v, {.deflate = 4, .shuffle = true});
  out.close();
  std::string bytes = read_file(dir.file("a.h5"));
  for (size_t i = bytes.size() / 2; i < bytes.size() / 2 + 64; ++i) bytes[i] ^= 0x55;
  std::ofstream(dir.file("b.h5")) << bytes;
  const auto in = Hdf5File::open(dir.file("b.h5"));
  const std::string text = error_of<IoError>([&] { in.read<int32_t>("x"); });
  EXPECT_NE(text.find("damaged"), std::string::npos) << text;
}

// In a child process: the limit and the ignored signal must not leak into other tests.
int run_limited(rlim_t bytes, const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit { bytes, bytes };
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

TEST(Hdf5, FullDiskIsAnIoErrorWhereverItStrikes) {
  TempDir dir;
  // Each limit stops the writer at another place: header, data, metadata at the end.
  for (rlim_t limit = 0; limit < 260000; limit = limit * 2 + 512) {
    std::ofstream(dir.file("kept.h5")) << "old";
    const int rc = run_limited(limit, [&] {
      const auto attempt = [&](const std::string& target, size_t elements) {
        AtomicFile out(target);
        auto file = Hdf5File::create(out.temp_path());
        file.create_extendible<uint16_t>("t", {.chunk_rows = 4096, .deflate = 1});
        std::vector<uint16_t> noise(elements);
        for (size_t i = 0; i < elements; ++i)
          noise[i] = static_cast<uint16_t>((i * 0x9E3779B97F4A7C15ull) >> 40);
        file.append<uint16_t>("t", noise);
        file.write<uint16_t>("all", {static_cast<int64_t>(elements)}, noise);
        file.write_attr("all", "text", "hello");
        file.close();
        out.commit();
      };
      try {
        attempt(dir.file("kept.h5"), 130000);
        return 1;
      } catch (const IoError&) {
      } catch (...) {
        return 2;
      }
      // The library must still be usable: small files fit below the larger limits.
      if (limit < 20000) return 0;
      try {
        attempt(dir.file("small.h5"), 100);
        return Hdf5File::open(dir.file("small.h5")).numel("all") == 100 ? 0 : 3;
      } catch (...) {
        return 4;
      }
    });
    EXPECT_EQ(rc, 0) << "limit " << limit;
    EXPECT_EQ(read_file(dir.file("kept.h5")), "old") << "limit " << limit;
    for (const auto& e : std::filesystem::directory_iterator(dir.path()))
      EXPECT_NE(e.path().extension(), ".tmp") << e.path();
  }
}

TEST(Hdf5, FullDevice) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  EXPECT_THROW(
      {
        auto file = Hdf5File::create("/dev/full");
        file.write<float>("x", {100000}, std::vector<float>(100000, 1));
        file.close();
      },
      IoError);
}

TEST(Hdf5, DifferentObjectsInDifferentThreads) {
  TempDir dir;
  auto out = Hdf5File::create(dir.file("in.h5"));
  std::vector<int32_t> v(10000);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<int32_t>(i);
  out.write<int32_t>("x", {10000}, v, {.chunk_rows = 512});
  out.close();
  bool reader_ok = true;
  std::thread reader([&] {
    const auto in = Hdf5File::open(dir.file("in.h5"));
    int32_t buffer[100];
    for (int64_t i = 0; i < 300; ++i) {
      in.read_slice<int32_t>("x", i * 33, 100, buffer);
      for (int32_t k = 0; k < 100; ++k) reader_ok &= buffer[k] == i * 33 + k;
    }
  });
  for (int i = 0; i < 20; ++i) {
    auto file = Hdf5File::create(dir.file("out.h5"));
    for (int k = 0; k < 10; ++k) file.write<int32_t>("w/" + std::to_string(k), {10000}, v);
    file.close();
  }
  reader.join();
  EXPECT_TRUE(reader_ok);
}

TEST(Hdf5, ReadsFilesFromElsewhere) {
  const char* folder = std::getenv("RWKV_GOLDEN_DIR");
  const std::string dir = folder != nullptr ? folder : std::string(RWKV_SOURCE_DIR "/tests/golden");
  if (!std::filesystem::exists(dir + "/wkv7_ops.h5")) GTEST_SKIP() << "no golden files in " << dir;
  const auto ops = Hdf5File::open(dir + "/wkv7_ops.h5");
  EXPECT_EQ(ops.read_scalar<int64_t>("t17/size/T"), 17);
  EXPECT_EQ(ops.read_scalar<int32_t>("t17/size/B"), 2);
  EXPECT_EQ(ops.type("t17/r"), H5Type::kF32);
  EXPECT_EQ(ops.shape("t17/r")[1], 17);
  double sum = 0;
  for (const double y : ops.read<double>("t17/y")) sum += y * y;
  EXPECT_TRUE(std::isfinite(sum) && sum > 0);
  size_t datasets = 0;
  for (const auto& e : std::filesystem::directory_iterator(dir)) {
    if (e.path().extension() != ".h5") continue;
    const auto in = Hdf5File::open(e.path().string());
    for (const auto& name : in.list_datasets()) {
      EXPECT_NE(in.type(name), H5Type::kOther) << name;
      ++datasets;
    }
  }
  EXPECT_GT(datasets, 100u);
}

}  // namespace
}  // namespace rwkv
