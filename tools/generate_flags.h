#pragma once
/// The command line of rwkv-generate.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "inference/chat_session.h"
#include "inference/generate.h"
#include "tools/device_flags.h"

namespace rwkv {

struct GenerateFlags {
  std::string model, vocab, prompt, prompt_file, state_in, state_out;
  DeviceFlags device;
  std::vector<int32_t> prompt_ids;
  GenerateOptions generate{.sampling = {.top_p = 0.85}};
  bool ids = false, echo = false, no_start_token = false, stream = true, stats = false;
  bool free_numbers = false, ignore_end = false;
  int threads = 0;
  bool chat = false;
  std::string chat_template = "world", thinking = "plain", effort, system;
};

void declare_generate_flags(CLI::App& app, GenerateFlags& flags);

/// What they mean for a chat, whose defaults are other ones. Throws ConfigError.
ChatOptions chat_options(const CLI::App& app, const GenerateFlags& flags);

}  // namespace rwkv
