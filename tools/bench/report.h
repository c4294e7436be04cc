#pragma once
/// Shared by the benchmarks: what machine and code ran, statistics of repeats, copy bandwidth.

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"

namespace rwkv::bench {

struct Environment {
  std::string commit;       ///< git describe at build time; "unknown" outside a checkout
  std::string kernel_hash;  ///< of the sources of the GPU kernels (tools/kernel_hash.sh)
  std::string cpu;
  int threads = 1;
  std::string device;  ///< the GPU, with its driver; empty on the CPU
};
/// kCuda: also names the GPU; throws DeviceError without one.
Environment environment(Device device = Device::kCpu);
/// One line: commit, processor and threads, or the GPU.
std::string to_string(const Environment& env);

/// Of some repeats, in seconds. spread = (largest - smallest) / median.
struct Timing {
  double median = 0, minimum = 0, spread = 0;
  double maximum() const { return minimum + spread * median; }
};
Timing summarize(std::vector<double> seconds);

/// Writes through a buffer larger than the private caches, so that the next run starts without its
/// data there (a last-level cache of hundreds of MiB keeps some).
class CacheFlusher {
 public:
  explicit CacheFlusher(size_t bytes = size_t{64} << 20) : buffer_(bytes) {}
  void flush();

 private:
  std::vector<char> buffer_;
  char value_ = 0;
};

/// Bytes per second, read plus written, of the best of some parallel copies of 128 MiB.
double copy_bandwidth();

/// "2026-11-22", UTC.
std::string today();

/// Reads or writes a text file; throws IoError.
std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& text);

/// A JSON object with one item of each of its arrays a line: a record is read by people too.
std::string record_text(const std::string& json);

/// Writes `script` to FILE.gp. If `path` ends in .png the script is also run by gnuplot, when there
/// is one; otherwise a line says what to do. `script` must hold plot_output(path). Throws IoError
/// as draw_picture does; FILE.gp is there then.
void write_plot(const std::string& path, const std::string& script);
/// The lines by which a script opens FILE.png, its output.
std::string plot_output(const std::string& path);
/// Before a measurement that takes long: throws IoError if the folder of one of the files is not
/// there, ConfigError if `plot` ends neither in .gp nor in .png. Empty names are none.
void check_outputs(const std::string& json, const std::string& plot);
/// `path` with its extension replaced.
std::string with_extension(const std::string& path, const std::string& extension);

}  // namespace rwkv::bench
