#pragma once
/// Choices of matrix product algorithms that outlive a run, so that reruns and resumed runs compute
/// with the same algorithms and do not measure again.

#include <functional>
#include <string>

#include "trainer/train_step.h"

namespace rwkv {

/// A file of choices, as kernels/core/gemm.h exports them, with a checksum, for one GPU model and
/// library: gemm-<hash>.txt in $RWKV_CACHE_DIR, $XDG_CACHE_HOME/greylag or ~/.cache/greylag.
class GemmCache {
 public:
  /// `place`: an export; its first line names GPU and library.
  explicit GemmCache(const std::string& place);
  const std::string& path() const { return path_; }  ///< empty: the environment names no place
  /// Empty if there is none. Throws IoError if it cannot be read or is damaged.
  std::string read() const;
  /// Adds the lines of an export for shapes that the file does not have yet. Processes take turns;
  /// a damaged file is begun anew. Throws IoError.
  void add(const std::string& measured) const;

 private:
  std::string path_;
};

/// Prepares an allocated step (TrainStep::prepare). For each of its products the algorithm is that
/// of `known` (from a checkpoint) if it is there, else that of the cache, else measured and added
/// to the cache. A cache that cannot be read or written is reported to `message` and does no harm:
/// the run itself stays reproducible through its checkpoints. Without
/// TrainStepOptions::measure_gemms cuBLASLt's guess counts, and `known` and cache are left alone.
/// Returns the choices in use, for the checkpoint; `known` on the CPU, nothing where none is
/// measured.
std::string prepare_step(TrainStep& step, const std::string& known,
                         const std::function<void(const std::string&)>& message);

}  // namespace rwkv
