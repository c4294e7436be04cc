#include "trainer/gemm_choices.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>

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

/// The first line of an export names device and library.
std::string cache_file(const std::string& exported) {
  const fs::path folder = cache_folder();
  if (folder.empty()) return {};
  const std::string place = exported.substr(0, exported.find('\n'));
  char name[32];
  std::snprintf(name, sizeof name, "gemm-%08x.txt", crc32_of(std::span<const char>(place)));
  return (folder / name).string();
}

}  // namespace

std::string prepare_step(TrainStep& step, const std::string& known,
                         const std::function<void(const std::string&)>& message) {
  Context& ctx = step.context();
  if (ctx.device() == Device::kCpu) return known;
  if (!known.empty() && import_gemm_algorithms(ctx, known) == 0)
    message(
        "the checkpoint's choices of matrix product algorithms are for another GPU or cuBLASLt: "
        "results are no longer those of the undisturbed run, bit for bit");
  const bool cached = step.options().measure_gemms;
  const std::string path = cached ? cache_file(export_gemm_algorithms(ctx)) : std::string();
  if (!path.empty() && fs::exists(path)) {
    try {
      import_gemm_algorithms(ctx, read_file(path));
    } catch (const Error& e) {
      message(str("not using ", path, ": ", e.what()));
    }
  }
  const std::string before = export_gemm_algorithms(ctx, true);
  step.prepare();
  const std::string after = export_gemm_algorithms(ctx, true);
  if (!path.empty() && after != before) {
    try {
      fs::create_directories(fs::path(path).parent_path());
      write_file_atomic(path, after);
    } catch (const std::exception& e) {
      message(str("choices of matrix product algorithms not kept for later runs: ", e.what()));
    }
  }
  return export_gemm_algorithms(ctx);
}

}  // namespace rwkv
