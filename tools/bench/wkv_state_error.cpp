// rwkv-bench wkv --state-error: how far binary16 states drift from a float64 run.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/cases/wkv7_cases.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/cpu/wkv7_fp16.h"
#include "kernels/wkv/dither.h"
#include "tools/bench/wkv_fp16.h"

namespace rwkv::bench {
namespace {

constexpr int kHead = 64, kState = kHead * kHead;
constexpr int kHeads = 4;  // independent heads, whose squares are summed

/// What keeps the state. The phases are those of spec rwkv7 5.2, one head of slot 0 each: A depends
/// on token, column and slot, B on the token alone, C on token, head and column; `fp16-dithered`
/// is C. All of them round in the order of C.
enum Keeper { kPlain, kPhaseA, kPhaseB, kPhaseC, kF32, kKeepers };
constexpr const char* kKeeperNames[] = {"fp16 plain", "fp16 phase A", "fp16 phase B",
                                        "fp16 phase C", "fp32"};

struct Decays {
  const char* name;
  const char* what;
  double low, high;  // of the decay logit, uniform; equal: those of a model
  bool input;        // else r, k, v, a, b are zero and a random state only fades
};
constexpr Decays kDecays[] = {
    {"fading", "no input, slow decays: a state fades", -9, -7, false},
    {"slow", "slow decays", -9, -5, true},
    {"mixed", "decays as in a model", 0, 0, true},
};

float rotated(uint32_t turned) {
  return static_cast<float>(static_cast<int32_t>(turned)) * 0x1p-41f;
}

float dither_of(Keeper keeper, uint32_t t, uint32_t head, uint32_t column) {
  if (keeper == kPhaseA)
    return rotated(2654435769u * t + 1779033704u * column + 3144134277u * head);
  if (keeper == kPhaseB) return rotated(2654435769u * t);
  return dither_rotator(dither_phase(t, head, column));
}

template <class T>
struct Inputs {
  std::array<T, kHead> r, w, k, v, a, b;  // w: the decay, except for binary16 states
};

/// S[i][j]; u and the sum over j in the type of the state.
template <class T>
void advance(std::vector<T>& s, const Inputs<T>& x) {
  for (size_t i = 0; i < kHead; ++i) {
    T* row = s.data() + i * kHead;
    T u = 0;
    for (size_t j = 0; j < kHead; ++j) u += row[j] * x.a[j];
    for (size_t j = 0; j < kHead; ++j) row[j] = row[j] * x.w[j] + u * x.b[j] + x.v[i] * x.k[j];
  }
}

/// Tokens of one head, half-valued.
class Tokens {
 public:
  Tokens(const Decays& decays, int head)
      : decays_(decays),
        head_(head),
        rng_(1000 + static_cast<uint64_t>(head), hash_name("logits")) {}
  Inputs<float> next() {
    if (at_ == kPiece) {
      data_ = make_wkv7_data({"state error",
                              Wkv7Kind::kModel,
                              {1, kPiece, 1, kHead, false},
                              static_cast<uint64_t>(head_) << 32 | ++pieces_});
      at_ = 0;
    }
    Inputs<float> x{};
    const auto from = static_cast<size_t>(at_++ * kHead);
    for (size_t j = 0; j < kHead; ++j) {
      const double drawn = decays_.low + (decays_.high - decays_.low) * rng_.next_uniform();
      x.w[j] = round_to_half(decays_.low < decays_.high ? static_cast<float>(drawn)
                                                        : data_.w_logit[from + j]);
      if (!decays_.input) continue;
      x.r[j] = round_to_half(data_.r[from + j]);
      x.k[j] = round_to_half(data_.k[from + j]);
      x.v[j] = round_to_half(data_.v[from + j]);
      x.a[j] = round_to_half(data_.a[from + j]);
      x.b[j] = round_to_half(data_.b[from + j]);
    }
    return x;
  }

 private:
  static constexpr int64_t kPiece = 256;
  const Decays& decays_;
  int head_;
  Rng rng_;
  Wkv7Data data_;
  int64_t at_ = kPiece;
  uint64_t pieces_ = 0;
};

template <class T>
Inputs<T> with_decays(const Inputs<float>& x) {
  Inputs<T> y;
  for (size_t j = 0; j < kHead; ++j) {
    y.r[j] = static_cast<T>(x.r[j]);
    y.w[j] = static_cast<T>(ref::wkv7_decay(static_cast<double>(x.w[j])));
    y.k[j] = static_cast<T>(x.k[j]);
    y.v[j] = static_cast<T>(x.v[j]);
    y.a[j] = static_cast<T>(x.a[j]);
    y.b[j] = static_cast<T>(x.b[j]);
  }
  return y;
}

struct Sums {
  std::array<double, kKeepers> error{};
  double norm = 0;
};

/// Squares after 1, 2, 4, ... tokens of one head.
std::vector<Sums> run_head(const Decays& decays, int head, int64_t steps) {
  std::vector<double> exact(kState);
  std::vector<float> single(kState);
  std::array<std::vector<float>, kF32> half;  // [column][row]
  for (auto& s : half) s.resize(kState);
  Rng rng(2000 + static_cast<uint64_t>(head), hash_name("state"));
  for (size_t i = 0; i < kState; ++i) {
    const float x = decays.input ? 0.0f : round_to_half(static_cast<float>(rng.next_normal()));
    exact[i] = static_cast<double>(x);
    single[i] = x;
    for (auto& s : half) s[i % kHead * kHead + i / kHead] = x;
  }
  Tokens tokens(decays, head);
  std::vector<Sums> all;
  int64_t next = 1;
  for (int64_t t = 0; t < steps; ++t) {
    const Inputs<float> x = tokens.next();
    advance(exact, with_decays<double>(x));
    advance(single, with_decays<float>(x));
    for (int keeper = 0; keeper < kF32; ++keeper) {
      std::array<float, kHead> w, u, y;
      for (uint32_t j = 0; j < kHead; ++j) {
        const float d = decay_minus_one(x.w[j]);
        w[j] =
            keeper == kPlain
                ? plain_decay(x.w[j])
                : round_to_half(d + dither_of(static_cast<Keeper>(keeper), static_cast<uint32_t>(t),
                                              static_cast<uint32_t>(head), j));
      }
      cpu::wkv7_fp16_token(half[static_cast<size_t>(keeper)].data(), w.data(), x.r.data(),
                           x.k.data(), x.v.data(), x.a.data(), x.b.data(), u.data(), y.data());
    }
    if (t + 1 != next && t + 1 != steps) continue;
    if (t + 1 == next) next *= 2;
    Sums sums;
    for (size_t i = 0; i < kState; ++i) {
      const auto square = [&](float got) {
        return (static_cast<double>(got) - exact[i]) * (static_cast<double>(got) - exact[i]);
      };
      for (size_t keeper = 0; keeper < kF32; ++keeper)
        sums.error[keeper] += square(half[keeper][i % kHead * kHead + i / kHead]);
      sums.error[kF32] += square(single[i]);
      sums.norm += exact[i] * exact[i];
    }
    all.push_back(sums);
  }
  return all;
}

std::vector<int64_t> reported_steps(int64_t steps) {
  std::vector<int64_t> all;
  for (int64_t n = 1; n <= steps; n *= 2) all.push_back(n);
  if (all.back() != steps) all.push_back(steps);
  return all;
}

struct Result {
  const Decays* decays;
  std::vector<std::array<double, kKeepers>> errors;  // by reported step
};

void plot(const std::string& path, const std::vector<int64_t>& steps,
          const std::vector<Result>& results) {
  std::ostringstream data, gp;
  gp << "set terminal pngcairo size 1350,420 font ',10'\n"
     << plot_output(path)
     << "set logscale x 2\nset logscale y 10\nset format x '%.0f'\nset format y '10^{%L}'\n"
     << "set xtics rotate by -45\nset grid\nset key bottom right noenhanced\n"
     << "set xlabel 'tokens'\nset ylabel 'relative error of the state'\n"
     << "set multiplot layout 1," << results.size()
     << " title 'WKV-7 state against float64, H = " << kHeads << ", N = " << kHead << "'\n";
  for (size_t n = 0; n < results.size(); ++n) {
    data << "$d" << n << " << EOD\n";
    for (size_t i = 0; i < steps.size(); ++i) {
      data << steps[i];
      for (const double e : results[n].errors[i]) data << ' ' << e;
      data << '\n';
    }
    data << "EOD\n";
    gp << "set title '" << results[n].decays->what << "'\nplot ";
    for (int keeper = 0; keeper < kKeepers; ++keeper)
      gp << (keeper == 0 ? "" : ", \\\n  ") << "$d" << n << " using 1:" << keeper + 2
         << " with linespoints lw 2 pt 7 ps 0.4 title '" << kKeeperNames[keeper] << "'";
    gp << '\n';
  }
  write_plot(path, data.str() + gp.str() + "unset multiplot\n");
}

}  // namespace

int run_wkv_state_error(const WkvOptions& options) {
  if (options.threads > 0) set_num_threads(options.threads);
  const std::vector<int64_t> steps = reported_steps(options.steps);
  std::printf(
      "%s\nrelative 2-norm error of the state against float64 after so many tokens, %d heads of "
      "%d\n",
      to_string(environment()).c_str(), kHeads, kHead);
  constexpr auto kCases = static_cast<int64_t>(std::size(kDecays));
  std::vector<std::vector<Sums>> heads(static_cast<size_t>(kCases * kHeads));
  parallel_for(kCases * kHeads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      heads[static_cast<size_t>(i)] =
          run_head(kDecays[i / kHeads], static_cast<int>(i % kHeads), options.steps);
  });
  std::vector<Result> results;
  auto doc = nlohmann::ordered_json::parse(record_head("wkv state error", Device::kCpu));
  doc["heads"] = kHeads;
  doc["rows"] = nlohmann::ordered_json::array();
  for (int64_t c = 0; c < kCases; ++c) {
    Result result{&kDecays[c], {}};
    std::printf("\n%s: %s\n%8s", result.decays->name, result.decays->what, "tokens");
    for (const char* name : kKeeperNames) std::printf(" %13s", name);
    for (size_t n = 0; n < steps.size(); ++n) {
      Sums sums;
      for (int64_t h = 0; h < kHeads; ++h) {
        const Sums& one = heads[static_cast<size_t>(c * kHeads + h)][n];
        for (size_t k = 0; k < kKeepers; ++k) sums.error[k] += one.error[k];
        sums.norm += one.norm;
      }
      std::array<double, kKeepers> errors{};
      nlohmann::ordered_json row{{"decays", result.decays->name}, {"tokens", steps[n]}};
      std::printf("\n%8lld", static_cast<long long>(steps[n]));
      for (size_t k = 0; k < kKeepers; ++k) {
        errors[k] = std::sqrt(sums.error[k] / sums.norm);
        RWKV_CHECK(std::isfinite(errors[k]), Error, "the state of ", kKeeperNames[k],
                   " is not finite after ", steps[n], " tokens");
        row[kKeeperNames[k]] = errors[k];
        std::printf(" %13.3e", errors[k]);
      }
      doc["rows"].push_back(std::move(row));
      result.errors.push_back(errors);
    }
    std::printf("\n");
    results.push_back(std::move(result));
  }
  if (!options.json.empty()) write_file(options.json, record_text(doc.dump()));
  if (!options.plot.empty()) plot(options.plot, steps, results);
  return 0;
}

}  // namespace rwkv::bench
