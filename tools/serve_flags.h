#pragma once
/// The command line of rwkv-serve.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "inference/scheduler.h"
#include "inference/server/http_server.h"
#include "tools/device_flags.h"

namespace rwkv {

struct ServeFlags {
  std::string model, random, vocab, chat = "world", thinking = "plain", key_file;
  DeviceFlags device;
  ApiSettings api;
  HttpOptions http;
  SchedulerOptions scheduler;
  int64_t slots = 16, prefill_tokens = 0;
  int64_t cache_mib = 256, drain_seconds = 30;
  bool page = true, fast = false, dry_run = false;
  int threads = 0;
};

void declare_serve_flags(CLI::App& app, ServeFlags& flags);

}  // namespace rwkv
