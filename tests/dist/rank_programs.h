#pragma once
/// Programs of several ranks as a user starts them, in a folder with small data and a small model.

#include <signal.h>

#include <chrono>
#include <cmath>
#include <iterator>
#include <thread>

#include "kernels/core/error.h"
#include "model/rwkv.h"
#include "tests/integration/program.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"

namespace rwkv::test {

using Words = std::vector<std::string>;

#ifndef RWKV_MPIEXEC  // builds without MPI
#define RWKV_MPIEXEC ""
#define RWKV_MPIEXEC_COUNT ""
#endif

/// What starts the ranks.
enum class Launcher {
  kMpi,    ///< mpirun, rwkv-train
  kLocal,  ///< local_train --gpus N: as rwkv-train --gpus N, on the CPU
};

class RankPrograms : public testing::Test {
 protected:
  explicit RankPrograms(Launcher launcher = Launcher::kMpi)
      : launcher_(launcher), dir_("rank_programs") {
    write_token_file(dir_ / "train.h5", 20000, 1);
    write_token_file(dir_ / "valid.h5", 3000, 2);
    write_bytes(dir_ / "tiny.json",
                R"({"model": {"n_layer": 2, "n_embd": 64, "vocab_size": 257},
                          "data": {"train": "train.h5", "valid": "valid.h5", "sampler": "shuffle"},
                          "train": {"context": 32, "batch": 2, "steps": 12},
                          "eval": {"every": 5, "batches": 3},
                          "optimizer": {"lr": 1e-3},
                          "limits": {"peak_tflops": 1}})");
    // Each rank leaves its process number: the shell becomes the program.
    write_bytes(dir_ / "rank.sh",
                "echo $$ > pid.${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\nexec \"$@\"\n");
  }

  Words program(const std::string& run, Words more = {}) const {
    Words w = {"--config", "tiny.json", "--set", "checkpoint.dir=" + run};
    if (launcher_ == Launcher::kMpi)
      w.insert(w.begin(), {"/bin/sh", "rank.sh", RWKV_BINARY_DIR "/bin/rwkv-train"});
    w.insert(w.end(), more.begin(), more.end());
    return w;
  }
  pid_t start(int ranks, const Words& program, const Words& after = {}) {
    Words args = {RWKV_MPIEXEC, RWKV_MPIEXEC_COUNT, std::to_string(ranks)};
    if (launcher_ == Launcher::kLocal) args = {RWKV_LOCAL_TRAIN, "--gpus", std::to_string(ranks)};
    args.insert(args.end(), program.begin(), program.end());
    args.insert(args.end(), after.begin(), after.end());
    // Open MPI's folder, which launchers that run or end beside this one make and remove.
    return start_program(
        dir_.str(), args, -1,
        {{"OMPI_MCA_orte_tmpdir_base", dir_.str()}, {"PRTE_MCA_prte_tmpdir_base", dir_.str()}});
  }
  static int wait(pid_t pid) { return wait_for(pid); }
  /// As wait(); ends the launcher and fails after so long.
  static int wait_at_most(pid_t pid, int seconds) {
    if (const auto code = wait_for(pid, std::chrono::seconds(seconds))) return *code;
    kill(pid, SIGKILL);
    ADD_FAILURE() << "still running after " << seconds << " s";
    return wait(pid);
  }
  int run(int ranks, const Words& program, const Words& after = {}) {
    return wait(start(ranks, program, after));
  }
  std::string output() const { return file_bytes(dir_ / "out") + file_bytes(dir_ / "err"); }
  bool says(const std::string& part) const { return output().find(part) != std::string::npos; }
  size_t count(const std::string& part) const {
    const std::string text = output();
    size_t n = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++n;
    return n;
  }
  pid_t rank_pid(int rank) const {
    return static_cast<pid_t>(std::stol(file_bytes(dir_ / str("pid.", rank))));
  }
  /// The ranks that a parent has started so far.
  static std::vector<pid_t> children_of(pid_t parent) {
    std::ifstream in(str("/proc/", parent, "/task/", parent, "/children"));
    return {std::istream_iterator<pid_t>(in), {}};
  }
  /// Neither a process nor one that waits for its parent to hear of its end.
  bool has_ended(int rank) const {
    std::ifstream in(str("/proc/", rank_pid(rank), "/stat"));
    std::string text;
    std::getline(in, text);
    const size_t name_end = text.rfind(')');
    return !in || name_end == std::string::npos || text[name_end + 2] == 'Z' ||
           text[name_end + 2] == 'X';
  }
  /// Waits until the run has logged so many lines; false after a minute.
  bool wait_for_log(const std::string& run, int64_t lines) const {
    const std::string path = dir_ / (run + "/log.jsonl");
    for (int i = 0; i < 6000; ++i) {
      if (fs::exists(path) && std::ranges::count(file_bytes(path), '\n') >= lines) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  /// A checkpoint in either form.
  std::string path_of(const std::string& run, int64_t step) const {
    for (const CheckpointFile& f : list_checkpoints(dir_ / run))
      if (f.step == step) return f.path;
    return checkpoint_path(dir_ / run, step);
  }
  /// Weights and moments of a checkpoint, one after the other.
  std::vector<float> numbers(const std::string& run, int64_t step) const {
    const TrainConfig c = parse_config(file_bytes(dir_ / "tiny.json"), "tiny.json", {});
    const auto model = make_model(c.model);
    std::vector<ParamStore> stores;
    for (int i = 0; i < 3; ++i) stores.emplace_back(Device::kCpu, model->params(), "p");
    read_checkpoint(path_of(run, step),
                    {c.model, model->params(), stores[0], stores[1], stores[2]});
    std::vector<float> all;
    for (const ParamStore& s : stores) all.insert(all.end(), s.flat().begin(), s.flat().end());
    return all;
  }
  static double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      diff += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
      norm += static_cast<double>(a[i]) * a[i];
    }
    return std::sqrt(diff / norm);
  }

  /// What the log says of training and validation losses, one line each, in all digits.
  Words losses(const std::string& run) const {
    Words out;
    std::istringstream in(file_bytes(dir_ / (run + "/log.jsonl")));
    for (std::string line; std::getline(in, line);)
      for (const std::string key : {"\"loss\":", "\"valid_loss\":"}) {
        const size_t at = line.find(key);
        if (at == std::string::npos || line[at + key.size()] == 'n') continue;
        const size_t step = line.find("\"step\":");
        out.push_back(line.substr(step, line.find(',', step) - step) + " " +
                      line.substr(at, line.find_first_of(",}", at) - at));
      }
    return out;
  }
  static int64_t step_of(const std::string& line) { return std::stoll(line.substr(7)); }
  static double loss_of(const std::string& line) {
    return std::stod(line.substr(line.rfind(':') + 1));
  }

  const Launcher launcher_;
  ScratchDir dir_;
};

}  // namespace rwkv::test
