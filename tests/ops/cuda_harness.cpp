#include "tests/ops/cuda_harness.h"

#include <cstring>

#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"

namespace rwkv::test {
namespace {

constexpr size_t kGuard = 256;               // bytes between tensors
constexpr uint32_t kGuardWord = 0x7fc17fc1;  // NaN in f32 and, twice, in bf16
constexpr uint32_t kFillWord = 0x7fc07fc0;   // another one
constexpr size_t kMaxPoison = size_t{64} << 20;

}  // namespace

CudaRun::CudaRun(Context& ctx, const cases::OpCase& c, uint64_t seed, size_t shift)
    : ctx_(ctx), case_(c), shapes_(c.infer()), seed_(seed), shift_(shift) {
  for (const auto& a : c.in) place(kIn, a.spec);
  for (const auto& a : c.param) place(kParam, a.spec);
  for (const auto& s : shapes_.out) place(kOut, s);
  for (const auto& s : shapes_.saved) place(kSaved, s);
  for (const auto& s : shapes_.out) place(kDout, s);
  for (const auto& a : c.in) place(kGrad, a.spec);
  for (const auto& a : c.param) {
    TensorSpec spec = a.spec;
    spec.dtype = DType::kF32;
    place(kGrad, spec);
  }
  image_.assign((bytes_ + kGuard) / 4, kGuardWord);
  arena_ = Arena(Device::kCuda, image_.size() * 4, "op test");
  ctx_.reserve_workspace(shapes_.workspace_bytes);
  for (int kind = 0; kind < kKinds; ++kind)
    for (const Tensor& t : tensor_[kind]) {
      auto* p = reinterpret_cast<uint8_t*>(image_.data()) + t.offset;
      for (size_t i = 0; i < t.spec.bytes(); ++i)
        p[i] = static_cast<uint8_t>(kFillWord >> (8 * (i % 2)));
    }
  for (size_t i = 0; i < c.in.size(); ++i)
    cases::fill_argument(c.in[i], Rng(seed, hash_name(c.name + "/in/" + c.in[i].name)),
                         host(kIn, i));
  for (size_t i = 0; i < c.param.size(); ++i)
    cases::fill_argument(c.param[i], Rng(seed, hash_name(c.name + "/param/" + c.param[i].name)),
                         host(kParam, i));
  for (size_t i = 0; i < shapes_.out.size(); ++i)
    if (flows(i))
      cases::fill_argument({"dout", shapes_.out[i], cases::normal(0, 1)},
                           Rng(seed, hash_name(c.name + "/dout"), i), host(kDout, i));
}

void CudaRun::place(Kind kind, const TensorSpec& spec) {
  bytes_ = align_up(bytes_ + kGuard) + shift_ * dtype_bytes(spec.dtype);
  tensor_[kind].push_back({spec, bytes_});
  bytes_ += spec.bytes();
}

TensorView CudaRun::host(Kind kind, size_t i) {
  return {reinterpret_cast<uint8_t*>(image_.data()) + tensor_[kind][i].offset,
          tensor_[kind][i].spec};
}

std::vector<TensorView> CudaRun::device(Kind kind, uint32_t mask) const {
  std::vector<TensorView> views;
  for (size_t i = 0; i < tensor_[kind].size(); ++i)
    views.push_back(mask >> i & 1u ? TensorView(arena_.data() + tensor_[kind][i].offset,
                                                tensor_[kind][i].spec, Device::kCuda)
                                   : TensorView());
  return views;
}

void CudaRun::poison_workspace() {
  const size_t n = std::min(shapes_.workspace_bytes, kMaxPoison) / 4;
  if (n == 0) return;
  std::vector<uint32_t> poison(n, 0xffffffffu);
  const TensorSpec spec({static_cast<int64_t>(n)}, DType::kI32);
  copy(ctx_, TensorView(ctx_.workspace(n * 4), spec, Device::kCuda),
       TensorView(poison.data(), spec));
  ctx_.synchronize("test");
}

std::vector<Accum> CudaRun::all(Accum mode) const {
  std::vector<Accum> modes;
  for (const auto& a : case_.in) modes.push_back(a.spec.dtype == DType::kI32 ? Accum::kSkip : mode);
  modes.resize(case_.in.size() + case_.param.size(), mode);
  return modes;
}

void CudaRun::run(const std::vector<Accum>& modes,
                  const std::vector<std::vector<double>>& content) {
  for (size_t g = 0; g < count(kGrad); ++g) {
    const TensorView view = host(kGrad, g);
    if (modes[g] == Accum::kAdd && !content.empty()) {
      for (size_t i = 0; i < content[g].size(); ++i) {
        const auto x = static_cast<float>(content[g][i]);
        if (view.spec.dtype == DType::kBF16)
          view.as<BF16>()[i] = to_bf16(x);
        else
          view.f32()[i] = x;
      }
    } else {
      auto* p = static_cast<uint8_t*>(view.data);
      for (size_t i = 0; i < view.bytes(); ++i)
        p[i] = static_cast<uint8_t>(kFillWord >> (8 * (i % 2)));
    }
  }
  const TensorSpec words({static_cast<int64_t>(image_.size())}, DType::kI32);
  const TensorView host_image(image_.data(), words);
  const TensorView device_image(arena_.data(), words, Device::kCuda);
  copy(ctx_, device_image, host_image);
  const auto in = device(kIn), param = device(kParam), out = device(kOut), saved = device(kSaved),
             dout = device(kDout), grad = device(kGrad);
  poison_workspace();
  run_forward(ctx_, *case_.op,
              {.in = in, .param = param, .out = out, .saved = saved, .attrs = case_.attrs.get()});
  poison_workspace();
  const auto read_in = device(kIn, case_.op->backward_reads_in),
             read_out = device(kOut, case_.op->backward_reads_out);
  std::vector<TensorView> wanted = grad;
  for (size_t g = 0; g < wanted.size(); ++g)
    if (modes[g] == Accum::kSkip) wanted[g] = TensorView();
  const std::span<const TensorView> all_grads(wanted);
  const std::span<const Accum> m(modes);
  run_backward(ctx_, *case_.op,
               {.in = read_in,
                .param = param,
                .out = read_out,
                .saved = saved,
                .dout = dout,
                .din = all_grads.first(in.size()),
                .dparam = all_grads.subspan(in.size()),
                .din_mode = m.first(in.size()),
                .dparam_mode = m.subspan(in.size()),
                .attrs = case_.attrs.get()});
  copy(ctx_, host_image, device_image);
}

std::vector<double> CudaRun::values(Kind kind, size_t i) const {
  const Tensor& t = tensor_[kind][i];
  const auto* p = reinterpret_cast<const uint8_t*>(image_.data()) + t.offset;
  std::vector<double> v(static_cast<size_t>(t.spec.numel()));
  for (size_t k = 0; k < v.size(); ++k) {
    if (t.spec.dtype == DType::kBF16) {
      BF16 x;
      std::memcpy(&x, p + 2 * k, 2);
      v[k] = static_cast<double>(to_float(x));
    } else if (t.spec.dtype == DType::kF32) {
      float x;
      std::memcpy(&x, p + 4 * k, 4);
      v[k] = static_cast<double>(x);
    } else {
      int32_t x;
      std::memcpy(&x, p + 4 * k, 4);
      v[k] = x;
    }
  }
  return v;
}

std::vector<uint8_t> CudaRun::bytes(Kind kind, size_t i) const {
  const Tensor& t = tensor_[kind][i];
  const auto* p = reinterpret_cast<const uint8_t*>(image_.data()) + t.offset;
  return {p, p + t.spec.bytes()};
}

testing::AssertionResult CudaRun::guards_intact() const {
  std::vector<bool> owned(image_.size() * 4, false);
  for (int kind = 0; kind < kKinds; ++kind)
    for (const Tensor& t : tensor_[kind])
      std::fill_n(owned.begin() + static_cast<std::ptrdiff_t>(t.offset), t.spec.bytes(), true);
  const auto* p = reinterpret_cast<const uint8_t*>(image_.data());
  for (size_t i = 0; i < owned.size(); ++i)
    if (!owned[i] && p[i] != static_cast<uint8_t>(kGuardWord >> (8 * (i % 4))))
      return testing::AssertionFailure()
             << case_.name << ": byte " << i << " of the memory between tensors was overwritten";
  return testing::AssertionSuccess();
}

ref::RefCall<double> CudaRun::operands() const {
  ref::RefCall<double> c;
  c.attrs = case_.attrs.get();
  for (size_t i = 0; i < count(kIn); ++i) {
    c.in_spec.push_back(spec(kIn, i));
    const auto v = values(kIn, i);
    const bool ids = spec(kIn, i).dtype == DType::kI32;
    c.in.push_back(ids ? std::vector<double>() : v);
    c.ids.emplace_back();
    if (ids)
      for (const double x : v) c.ids.back().push_back(static_cast<int32_t>(x));
    c.din.emplace_back(c.in.back().size());
  }
  for (size_t i = 0; i < count(kParam); ++i) {
    c.param_spec.push_back(spec(kParam, i));
    c.param.push_back(values(kParam, i));
    c.dparam.emplace_back(c.param.back().size());
  }
  for (size_t i = 0; i < count(kOut); ++i) {
    c.out_spec.push_back(spec(kOut, i));
    c.out.emplace_back(static_cast<size_t>(spec(kOut, i).numel()));
    c.dout.push_back(flows(i) ? values(kDout, i) : std::vector<double>(c.out.back().size()));
  }
  return c;
}

}  // namespace rwkv::test
