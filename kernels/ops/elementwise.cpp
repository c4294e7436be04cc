#include "kernels/ops/elementwise.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer_add(ShapeCall& call) {
  constexpr std::string_view op = "add";
  checks::counts(call, op, 2, 2, 0, 0);
  checks::any_rank(op, "x", call.in[0]);
  checks::same(op, "y", call.in[1], "x", call.in[0]);
  call.out = {call.in[0]};
}

void infer_squared_relu(ShapeCall& call) {
  constexpr std::string_view op = "squared_relu";
  checks::counts(call, op, 1, 1, 0, 0);
  checks::any_rank(op, "x", call.in[0]);
  call.out = {call.in[0]};
}

void infer_gate(ShapeCall& call) {
  constexpr std::string_view op = "gate";
  checks::counts(call, op, 2, 3, 0, 0);
  checks::any_rank(op, "r", call.in[0]);
  checks::same(op, "x", call.in[1], "r", call.in[0]);
  if (call.in.size() == 3) checks::same(op, "residual", call.in[2], "r", call.in[0]);
  call.out = {call.in[0]};
}

}  // namespace

constinit const Op kAdd = {
    .name = "add",
    .infer = infer_add,
    .backward_reads_in = 0,
    .backward_reads_out = 0,
    .forward = {cpu::add_forward, cuda::add_forward},
    .backward = {cpu::add_backward, cuda::add_backward},
    .passes_gradient = 0b11,
};

constinit const Op kSquaredRelu = {
    .name = "squared_relu",
    .infer = infer_squared_relu,
    .backward_reads_in = 0b1,
    .backward_reads_out = 0,
    .forward = {cpu::squared_relu_forward, cuda::squared_relu_forward},
    .backward = {cpu::squared_relu_backward, cuda::squared_relu_backward},
};

constinit const Op kGate = {
    .name = "gate",
    .infer = infer_gate,
    .backward_reads_in = 0b11,
    .backward_reads_out = 0,
    .forward = {cpu::gate_forward, cuda::gate_forward},
    .backward = {cpu::gate_backward, cuda::gate_backward},
    .passes_gradient = 0b100,
};

}  // namespace rwkv
