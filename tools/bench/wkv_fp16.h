#pragma once
/// rwkv-bench wkv --decode and --state-error: what a binary16 WKV-7 state saves and what it costs.

#include "kernels/core/dtype.h"
#include "tools/bench/bench.h"
#include "tools/bench/report.h"

namespace rwkv::bench {

/// Times one decoding step of many sequences, state in place, as a share of the copy bandwidth.
/// `shapes`: "B,1,H,N"; `variants` empty: serial, fp16-plain and fp16-dithered.
int run_wkv_decode(const WkvOptions& options);

/// Relative error of the state against a float64 run over many tokens, on the CPU, whose bits are
/// the GPU's: decays that only forget, slow ones, and those of a model; without dither, with the
/// three published phases of it (spec rwkv7 5.2), and of a float32 state.
int run_wkv_state_error(const WkvOptions& options);

/// The begin of a record about this machine, a JSON object.
std::string record_head(const std::string& benchmark, Device device);

}  // namespace rwkv::bench
