#include "tests/ops/op_harness.h"

#include <algorithm>
#include <cstring>

namespace rwkv::test {
namespace {

std::vector<GuardedBuffer> fresh(const std::vector<TensorSpec>& specs, size_t misalign) {
  std::vector<GuardedBuffer> list;
  for (const TensorSpec& s : specs) list.emplace_back(s, misalign);
  return list;
}

std::vector<TensorView> views(std::vector<GuardedBuffer>& list, uint32_t mask = ~0u) {
  std::vector<TensorView> v;
  for (size_t i = 0; i < list.size(); ++i)
    v.push_back(mask >> i & 1u ? list[i].view() : TensorView());
  return v;
}

}  // namespace

OpRun::OpRun(const cases::OpCase& c, uint64_t seed, size_t misalign)
    : case_(c), shapes_(c.infer()), seed_(seed), misalign_(misalign) {
  const auto make = [&](const std::vector<cases::Argument>& args, const char* what) {
    std::vector<GuardedBuffer> list;
    for (const auto& a : args) {
      list.emplace_back(a.spec, misalign);
      a.fill(Rng(seed, hash_name(c.name + what + a.name)), list.back().view());
    }
    return list;
  };
  in = make(c.in, "/in/");
  param = make(c.param, "/param/");
  for (const auto& a : c.in) grad_name.push_back("d" + a.name);
  for (const auto& a : c.param) grad_name.push_back("d" + a.name);
  dout = fresh(shapes_.out, misalign);
  for (size_t i = 0; i < dout.size(); ++i)
    if (flows(i)) cases::normal(0, 1)(Rng(seed, hash_name(c.name + "/dout"), i), dout[i].view());
  ctx_.reserve_workspace(shapes_.workspace_bytes);
}

/// Kernels must not rely on what the workspace holds: NaN everywhere.
void OpRun::spoil_workspace() {
  const size_t bytes = shapes_.workspace_bytes;
  if (bytes > 0) std::memset(ctx_.workspace(bytes), 0xff, bytes);
}

void OpRun::forward() {
  out = fresh(shapes_.out, misalign_);
  saved = fresh(shapes_.saved, misalign_);
  spoil_workspace();
  const auto i = views(in), p = views(param), o = views(out), s = views(saved);
  run_forward(ctx_, *case_.op,
              {.in = i, .param = p, .out = o, .saved = s, .attrs = case_.attrs.get()});
}

std::vector<Accum> OpRun::all(Accum mode) const {
  std::vector<Accum> modes;
  for (const auto& a : case_.in) modes.push_back(a.spec.dtype == DType::kF32 ? mode : Accum::kSkip);
  modes.resize(case_.in.size() + case_.param.size(), mode);
  return modes;
}

void OpRun::backward(const std::vector<Accum>& modes) {
  grad.clear();
  content.clear();
  std::vector<TensorView> din, dparam;
  for (size_t g = 0; g < modes.size(); ++g) {
    const bool is_in = g < in.size();
    const TensorSpec spec = is_in ? in[g].spec() : param[g - in.size()].spec();
    grad.emplace_back(spec, misalign_);
    content.emplace_back();
    if (modes[g] == Accum::kAdd) {
      cases::normal(0, 1)(Rng(seed_, hash_name(case_.name + "/content"), g), grad[g].view());
      if (!resemble.empty())
        for (size_t k = 0; k < resemble[g].size(); ++k)
          grad[g].f32()[k] = std::fabs(grad[g].f32()[k]) * static_cast<float>(resemble[g][k]);
      content[g].assign(grad[g].f32().begin(), grad[g].f32().end());
    }
    (is_in ? din : dparam).push_back(modes[g] == Accum::kSkip ? TensorView() : grad[g].view());
  }
  spoil_workspace();
  const auto i = views(in, case_.op->backward_reads_in), p = views(param),
             o = views(out, case_.op->backward_reads_out), s = views(saved), d = views(dout);
  const std::span<const Accum> m(modes);
  run_backward(ctx_, *case_.op,
               {.in = i,
                .param = p,
                .out = o,
                .saved = s,
                .dout = d,
                .din = din,
                .dparam = dparam,
                .din_mode = m.first(in.size()),
                .dparam_mode = m.subspan(in.size()),
                .attrs = case_.attrs.get()});
}

testing::AssertionResult OpRun::guards_intact() const {
  const auto check = [&](const std::vector<GuardedBuffer>& list, const char* what) {
    for (size_t i = 0; i < list.size(); ++i) {
      const auto r = list[i].intact(str(case_.name, " ", what, " ", i));
      if (!r) return r;
    }
    return testing::AssertionSuccess();
  };
  for (const auto& [list, what] : {std::pair{&in, "in"},
                                   {&param, "param"},
                                   {&out, "out"},
                                   {&saved, "saved"},
                                   {&dout, "dout"},
                                   {&grad, "gradient"}}) {
    const auto r = check(*list, what);
    if (!r) return r;
  }
  return testing::AssertionSuccess();
}

}  // namespace rwkv::test
