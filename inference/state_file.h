#pragma once
/// The recurrent state of a sequence in a file, for prompts that are computed once. docs/formats.md
/// describes it field by field: safetensors, f32, without the batch dimension.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "inference/engine.h"
#include "inference/sequence_runner.h"

namespace rwkv {

/// Writes a state of one sequence, complete or not at all. `tokens`: how many it has seen.
/// Throws IoError; ShapeError if the state has several sequences.
void write_state_file(const std::string& path, Engine& engine, const RnnState& state,
                      int64_t tokens);

/// Fills a state that engine.new_state() made; returns the number of tokens it has seen. A WKV
/// variant that counts tokens may read the state of one that does not.
/// Throws IoError for what is no state file, for damage, for the state of a model of other sizes,
/// and for numbers that are not finite.
int64_t read_state_file(const std::string& path, Engine& engine, RnnState& state);

/// The same with a slot of a runner, which is left alone when something is thrown.
void write_state_file(const std::string& path, SequenceRunner& runner, int64_t slot,
                      int64_t tokens);
int64_t read_state_file(const std::string& path, SequenceRunner& runner, int64_t slot);

/// The tensors of a saved state as files name them. Runners over an Engine have these names
/// already; those of inference/decode_runner.h keep all layers together: their parts are named.
std::vector<SequenceRunner::StateTensor> state_file_layout(
    const ModelConfig& config, std::span<const SequenceRunner::StateTensor> layout);

}  // namespace rwkv
