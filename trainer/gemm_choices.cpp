#include "trainer/gemm_choices.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>
#include <sstream>
#include <vector>

#include "data/io/atomic_file.h"
#include "data/io/crc32.h"
#include "kernels/core/error.h"
#include "kernels/core/gemm.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

/// Empty if the environment names no place.
fs::path cache_folder() {
  const auto variable = [](const char* name) {
    const char* v = std::getenv(name);
    return fs::path(v == nullptr ? "" : v);
  };
  if (const fs::path p = variable("RWKV_CACHE_DIR"); !p.empty()) return p;
  if (const fs::path p = variable("XDG_CACHE_HOME"); !p.empty()) return p / "greylag";
  if (const fs::path p = variable("HOME"); !p.empty()) return p / ".cache" / "greylag";
  return {};
}

std::string crc_line(const std::string& text) {
  char line[32];
  std::snprintf(line, sizeof line, "crc32 %08x\n", crc32_of(std::span<const char>(text)));
  return line;
}

/// An export behind a checksum: what the cache holds. Throws IoError.
std::string checked(const std::string& file) {
  const size_t at = file.rfind("crc32 ");
  RWKV_CHECK(at != std::string::npos && crc_line(file.substr(0, at)) == file.substr(at), IoError,
             "its checksum does not match: it is damaged; remove it");
  return file.substr(0, at);
}

/// Released with the descriptor, on any death.
class FileLock {
 public:
  explicit FileLock(const std::string& path)
      : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    RWKV_CHECK(fd_ >= 0 && flock(fd_, LOCK_EX) == 0, IoError, "locking ", path, ": ",
               std::strerror(errno));
  }
  ~FileLock() {
    if (fd_ >= 0) close(fd_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
};

/// The lines of `more` for shapes that `base` has no line for are added to it. Both are exports
/// with the same first line; a line begins with the numbers that name the shape.
std::string merged(const std::string& base, const std::string& more) {
  const auto shape = [](const std::string& line) { return line.substr(0, line.find("  ")); };
  std::vector<std::string> known;
  std::string out = base, line;
  for (std::istringstream in(base); std::getline(in, line);) known.push_back(shape(line));
  std::istringstream in(more);
  for (std::getline(in, line); std::getline(in, line);)
    if (std::ranges::find(known, shape(line)) == known.end()) out += line + "\n";
  return out;
}

}  // namespace

GemmCache::GemmCache(const std::string& place) {
  const fs::path folder = cache_folder();
  if (folder.empty()) return;
  char name[32];
  std::snprintf(name, sizeof name, "gemm-%08x.txt", crc32_of(std::span<const char>(place)));
  path_ = (folder / name).string();
}

std::string GemmCache::read() const {
  if (path_.empty() || access(path_.c_str(), F_OK) != 0) {
    RWKV_CHECK(path_.empty() || errno == ENOENT || errno == ENOTDIR, IoError, "reading ", path_,
               ": ", std::strerror(errno));
    return {};
  }
  return checked(read_file(path_));
}

void GemmCache::add(const std::string& measured) const {
  if (path_.empty()) return;
  const fs::path folder = fs::path(path_).parent_path();
  std::error_code ec;
  fs::create_directories(folder, ec);
  RWKV_CHECK(!ec, IoError, "making the folder ", folder.string(), ": ", ec.message());
  const FileLock lock(path_ + ".lock");
  std::string base = measured.substr(0, measured.find('\n') + 1);
  try {
    if (const std::string now = read(); !now.empty()) base = now;
  } catch (const Error&) {  // damaged: begun anew
  }
  const std::string text = merged(base, measured);
  remove_stale_temporaries(path_);
  write_file_atomic(path_, text + crc_line(text));
}

std::string prepare_step(TrainStep& step, const std::string& known,
                         const std::function<void(const std::string&)>& message) {
  Context& ctx = step.context();
  if (ctx.device() == Device::kCpu) return known;
  if (!step.options().measure_gemms) {
    step.prepare();
    return {};
  }
  if (!known.empty() && import_gemm_algorithms(ctx, known) == 0)
    message(
        "the checkpoint's choices of matrix product algorithms are for another GPU or cuBLASLt: "
        "results are no longer those of the undisturbed run, bit for bit");
  const std::string nothing = export_gemm_algorithms(ctx, GemmChoices::kMeasured);
  const GemmCache cache(nothing);
  try {
    import_gemm_algorithms(ctx, cache.read());
  } catch (const Error& e) {
    message(str("not using ", cache.path(), ": ", e.what()));
  }
  step.prepare();
  const std::string measured = export_gemm_algorithms(ctx, GemmChoices::kMeasured);
  try {
    if (measured != nothing) cache.add(measured);
  } catch (const Error& e) {
    message(str("choices of matrix product algorithms not kept for later runs: ", e.what()));
  }
  return export_gemm_algorithms(ctx);
}

}  // namespace rwkv
