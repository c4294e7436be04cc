// rwkv-train --gpus N on the CPU: the same ranks (local processes that meet over TCP) and the same
// trainer, with collectives that need no GPU. For the tests of faults.

#include <unistd.h>

#include <cstdio>

#include "tests/dist/host_communicator.h"
#include "tools/cli_common.h"
#include "trainer/comm/launch.h"
#include "trainer/trainer.h"

int main(int argc, char** argv) {
  CLI::App app{"Trains on local CPU ranks", "local_train"};
  int ranks = 1;
  std::string config_path;
  std::vector<std::string> settings;
  rwkv::TrainerOptions options;
  app.add_option("--gpus", ranks)->required();
  app.add_option("--config", config_path)->required();
  app.add_option("--set", settings)->allow_extra_args(false);
  app.add_flag("--resume", options.resume);
  return rwkv::run_program(app, argc, argv, [&] {
    return rwkv::run_ranks(ranks, app.get_name(), [&](rwkv::RankSession& session) {
      // For tests that end a rank.
      const std::string name = rwkv::str("pid.", session.rank());
      if (std::FILE* f = std::fopen(name.c_str(), "w"); f != nullptr) {
        std::fprintf(f, "%d\n", static_cast<int>(getpid()));
        std::fclose(f);
      }
      rwkv::TrainConfig config = rwkv::load_config(config_path, settings);
      config.ranks = session.size();
      if (session.size() == 1) {
        rwkv::run_training(config, options);
        return 0;
      }
      rwkv::test::HostCommunicator comm(*session.group());
      options.comm = &comm;
      rwkv::run_training(config, options);
      return 0;
    });
  });
}
