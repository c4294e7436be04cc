#pragma once
/// WKV-7 problems for tests and rwkv-bench: shapes and inputs that look like the model's, and those
/// that expose mistakes (spec rwkv7 9). Inputs are pure functions of the case (Philox).

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/wkv/wkv.h"

namespace rwkv {

enum class Wkv7Kind : uint8_t {
  kModel,    ///< decays as in a trained model, a few at the floor and next to 1; unit-norm keys
  kFloor,    ///< every decay at the floor, exp(-exp(-1/2))
  kNearOne,  ///< hardly any forgetting
  kSameKey,  ///< one key for all tokens, in-context rate close to 1: hard triangular systems
  kZeroKey,  ///< k, a, b are zero at some tokens
  kPlain,    ///< what peers are measured with: r, v, dy ~ N(0, 1), k ~ 0.7 N, a = -z, b = z s(N)
             ///< with unit-norm z, w_logit ~ 1.5 N - 2, states ~ N(0, 1)
};

struct Wkv7Case {
  std::string name;
  Wkv7Kind kind = Wkv7Kind::kModel;
  WkvShape shape;
  uint64_t seed = 1;
};

/// Vectors (B, T, H, N); states (B, H, N, N), empty without a state.
struct Wkv7Data {
  std::vector<float> r, w_logit, k, v, a, b, s0, dy, ds_out;
};

/// Every case of the op tests, small enough for a sanitizer run.
std::vector<Wkv7Case> wkv7_cases();

Wkv7Data make_wkv7_data(const Wkv7Case& c);

}  // namespace rwkv
