// rwkv-serve as a program: what it says when it cannot serve, and clients that mean no good.

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/core/trace.h"
#include "tests/integration/serve_process.h"
#include "tests/unit/model_files.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Program = test::ServeProcess;

class ServeProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = fs::temp_directory_path() / str("greylag-serve-x-", static_cast<long>(getpid()));
    fs::create_directories(dir_);
    test::write_hdf5_model(path("random.h5"), test::random_model(30, 2, 64, 257));
  }
  static void TearDownTestSuite() { fs::remove_all(dir_); }
  static std::string path(const std::string& name) { return (dir_ / name).string(); }

  static inline fs::path dir_;
};

/// A limit of this process that its children have, too.
class Limit {
 public:
  Limit(decltype(RLIMIT_NOFILE) what, rlim_t soft) : what_(what) {
    if (::getrlimit(what, &before_) != 0) throw IoError("getrlimit");
    const rlimit less{soft, before_.rlim_max};
    if (::setrlimit(what, &less) != 0) throw IoError("setrlimit");
  }
  ~Limit() { ::setrlimit(what_, &before_); }
  Limit(const Limit&) = delete;
  Limit& operator=(const Limit&) = delete;

 private:
  decltype(RLIMIT_NOFILE) what_;
  rlimit before_{};
};

/// What a shell command prints, and its exit code.
std::pair<std::string, int> shell(const std::string& command) {
  FILE* out = ::popen((command + " 2>&1").c_str(), "r");
  std::string text;
  for (int c; (c = std::fgetc(out)) != EOF;) text.push_back(static_cast<char>(c));
  const int status = ::pclose(out);
  return {text, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
}

TEST_F(ServeProgram, APortInUseAndTooFewFilesAreNamedAtOnce) {
  const Program other(path("random.h5"), {});
  const auto [said, code] = shell(str("ulimit -n 140; timeout 30 ", RWKV_BINARY_DIR,
                                      "/bin/rwkv-serve --random 0.1B ", "--port ", other.port()));
  EXPECT_EQ(code, 3);
  EXPECT_NE(said.find("the port is in use"), std::string::npos) << said;
  EXPECT_NE(said.find("has room for 12 connections, not for 256"), std::string::npos) << said;
  const auto [elsewhere, second] = shell(str("timeout 30 ", RWKV_BINARY_DIR, "/bin/rwkv-serve ",
                                             "--random 0.1B --host 192.0.2.1 --port 0"));
  EXPECT_EQ(second, 3);
  EXPECT_NE(elsewhere.find("not one of this machine"), std::string::npos) << elsewhere;
}

TEST_F(ServeProgram, TooManySlotsAreNamedBeforeTheModelIsRead) {
  const auto [said, code] =
      shell(str("timeout 30 ", RWKV_BINARY_DIR, "/bin/rwkv-serve --random 13.3B --port 0 --slots ",
                int64_t{1} << 30));
  EXPECT_EQ(code, 4);
  EXPECT_NE(said.find("serving takes more memory than there is"), std::string::npos) << said;
}

TEST_F(ServeProgram, AFolderIsServedUnderItsName) {
  fs::create_directories(path("tiny-0.1B"));
  const auto [said, code] = shell(str(RWKV_BINARY_DIR, "/bin/rwkv-convert ", path("random.h5"), " ",
                                      path("tiny-0.1B/model.safetensors")));
  ASSERT_EQ(code, 0) << said;
  const Program folder(path("tiny-0.1B/"), {}), file(path("random.h5"), {});
  const auto id = [](const Program& p) {
    return nlohmann::json::parse(p.client().Get("/v1/models")->body)["data"][0]["id"];
  };
  EXPECT_EQ(id(folder), "tiny-0.1B");
  EXPECT_EQ(id(file), "random");
}

/// The soft limit is what most shells start with.
TEST_F(ServeProgram, ManyConnectionsHaveFiles) {
  std::optional<Program> program;
  {
    const Limit limit(RLIMIT_NOFILE, 64);
    program.emplace(path("random.h5"), std::vector<std::string>{"--max-connections", "100"});
  }
  std::vector<httplib::Client> clients;
  const double start = now_seconds();
  while (clients.size() < 90) {
    clients.push_back(program->client());
    clients.back().set_keep_alive(true);
    ASSERT_TRUE(clients.back().Get("/health"));
  }
  EXPECT_LE(now_seconds() - start, 4);  // idle connections end after 5 s and leave their files
}

/// Before it serves there is nothing to end: the key is a pipe that nobody writes to.
TEST_F(ServeProgram, ASignalEndsAProgramThatStarts) {
  ASSERT_EQ(::mkfifo(path("slow").c_str(), 0600), 0);
  const auto [said, code] =
      shell(str("timeout -k 20 1 ", RWKV_BINARY_DIR, "/bin/rwkv-serve --model ", path("random.h5"),
                " --api-key-file ", path("slow"), " --port 0"));
  EXPECT_EQ(code, 124) << said;  // by the first signal; the second would be 137
}

TEST_F(ServeProgram, SilentClientsDoNotHoldUpTheEnd) {
  Program program(path("random.h5"), {});
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(program.port()));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  ASSERT_EQ(::send(fd, "POST /tokenize HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", 47, 0), 47);
  const double start = now_seconds();
  while (program.client().Get("/metrics")->body.find("rwkv_http_connections 2\n") ==
         std::string::npos)
    ASSERT_LE(now_seconds() - start, test::kPatience);
  const double asked = now_seconds();
  program.terminate();
  EXPECT_EQ(program.wait(), 0);
  EXPECT_LE(now_seconds() - asked, 15);  // such a client has 30 s to go on
  ::close(fd);
}

/// The library would send a part for every range.
TEST_F(ServeProgram, RangesAreLeftAlone) {
  std::string ranges = "bytes=0-";
  for (int i = 0; i < 500; ++i) ranges += ",0-";
  const Program program(path("random.h5"), {});
  auto c = program.client();
  const auto all = c.Get("/"), page = c.Get("/", {{"Range", ranges}});
  ASSERT_TRUE(all && page);
  EXPECT_EQ(page->status, 200);
  EXPECT_EQ(page->body, all->body);
}

/// The library matches paths and headers by expressions that recurse for every character.
TEST_F(ServeProgram, LongPathsAndHeadersDoNotOverflowStacks) {
  std::optional<Program> program;
  {
    const Limit limit(RLIMIT_STACK, 2 << 20);  // what threads have by default
    program.emplace(path("random.h5"), std::vector<std::string>{});
  }
  auto c = program->client();
  const auto refused = c.Get(("/v1/models/" + std::string(8000, 'a')).c_str());
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 414);
  EXPECT_NE(refused->body.find("the path has 8011 characters"), std::string::npos);
  ASSERT_TRUE(c.Get(("/v1/models/" + std::string(1000, 'a')).c_str()));
  ASSERT_TRUE(c.Get("/health", {{"Range", "bytes=" + std::string(8000, '1') + "-"}}));
  const auto still = c.Get("/health");
  ASSERT_TRUE(still);
  EXPECT_EQ(still->status, 200);
}

}  // namespace
}  // namespace rwkv
