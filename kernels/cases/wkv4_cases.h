#pragma once
/// WKV-4 problems for tests and rwkv-bench: shapes and inputs that look like the model's, and those
/// that expose mistakes (spec rwkv4 11, 12). Inputs are pure functions of the case (Philox).

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/wkv/wkv.h"

namespace rwkv {

enum class Wkv4Kind : uint8_t {
  kModel,       ///< rates e^-5 to e^3 rising with the channel as at initialisation; k, v ~ N(0, 1)
  kSpread,      ///< rates 0.001 to 20 in random order
  kSlow,        ///< rates 0.001 to 0.3
  kWide,        ///< as kSpread, k uniform in +-80
  kLowFirst,    ///< as kSpread, the first five keys around -300 to -120
  kFarState,    ///< as kSpread, p0 off by +-40 and more
  kManyBehind,  ///< hardly any decay, k = 0; what came before are 2000 tokens of k = 79.9
};

struct Wkv4Case {
  std::string name;
  Wkv4Kind kind = Wkv4Kind::kModel;
  WkvShape shape;  ///< heads = channels, head_size = 1
  uint64_t seed = 1;
};

/// k, v, dy (B, T, C); tau, u (C); a0, b0, p0, da_out, db_out (B, C), empty without a state.
struct Wkv4Data {
  std::vector<float> k, v, tau, u, a0, b0, p0, dy, da_out, db_out;
};

/// Every case of the op tests, small enough for a sanitizer run.
std::vector<Wkv4Case> wkv4_cases();

Wkv4Data make_wkv4_data(const Wkv4Case& c);

}  // namespace rwkv
