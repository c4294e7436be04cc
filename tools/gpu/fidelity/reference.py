"""Runs the reference trainer's own code: model and kernels, initial weights, data order, learning
rate and parameter groups. Ours here: stand-ins for the packages it imports, and an optimizer that
does the arithmetic of DeepSpeed's bf16 ZeRO on one GPU. See README.md beside this file."""
import contextlib
import importlib.machinery
import io
import json
import math
import os
import subprocess
import sys
import types

import numpy as np
import torch
import torch.utils.cpp_extension


class DeepSpeedAdam:
    """FusedAdam behind ZeRO with bf16: parameters and gradients are bf16, masters and moments f32.
    The global norm is that of the bf16 gradients; they are divided by (norm + 1e-6) / clip where
    that is above 1; then Adam with bias correction and decoupled decay; then the parameters become
    the masters rounded to bf16."""

    def __init__(self, groups, lr, betas, eps, bias_correction, amsgrad, adam_w_mode):
        assert bias_correction and adam_w_mode and not amsgrad
        self.betas, self.eps, self.steps = betas, eps, 0
        self.param_groups = [dict(group, lr=lr) for group in groups]
        for group in self.param_groups:
            group["master"] = torch.cat([p.detach().flatten() for p in group["params"]]).float()
            group["m"] = torch.zeros_like(group["master"])
            group["v"] = torch.zeros_like(group["master"])

    @torch.no_grad()
    def step(self, clip):
        """One update; the norm of the gradients as a tensor, so that nothing waits for the GPU."""
        self.steps += 1
        b1, b2 = self.betas
        c1, c2 = 1 - b1**self.steps, 1 - b2**self.steps
        gradients = []
        for group in self.param_groups:
            parts = [
                torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                for p in group["params"]
            ]
            gradients.append(torch.cat(parts).float())
        norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients])
        norm = torch.linalg.vector_norm(norm)
        factor = 1 / torch.clamp((norm + 1e-6) / clip, min=1)
        for group, g in zip(self.param_groups, gradients):
            p, m, v = group["master"], group["m"], group["v"]
            g.mul_(factor.float())
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            update = (m / c1).div_((v / c2).sqrt_().add_(self.eps))
            update.add_(p, alpha=group["weight_decay"])
            p.sub_(update, alpha=group["lr"])
            at = 0
            for q in group["params"]:
                q.copy_(p[at : at + q.numel()].view_as(q))
                q.grad = None
                at += q.numel()
        return norm

    def masters(self, names):
        """{name: f32 tensor on the CPU}; names: {parameter: name}."""
        result = {}
        for group in self.param_groups:
            at = 0
            for q in group["params"]:
                result[names[q]] = group["master"][at : at + q.numel()].view_as(q).cpu()
                at += q.numel()
        return result


def stand_ins():
    """Modules under the names of Lightning and DeepSpeed with what the reference uses of them."""

    def module(name, **members):
        m = types.ModuleType(name)
        m.__spec__ = importlib.machinery.ModuleSpec(name, None)
        m.__dict__.update(members)
        sys.modules[name] = m
        return m

    def quiet(*_, **__):
        pass

    class LightningModule(torch.nn.Module):
        pass

    class Callback:
        pass

    class DeepSpeedStrategy:
        pass

    utilities = dict(rank_zero_info=quiet, rank_zero_only=lambda f: f)
    pl = module("pytorch_lightning", LightningModule=LightningModule, Callback=Callback)
    pl.utilities = module("pytorch_lightning.utilities", **utilities)
    pl.strategies = module("pytorch_lightning.strategies", DeepSpeedStrategy=DeepSpeedStrategy)
    ds = module("deepspeed")
    ds.ops = module("deepspeed.ops")
    ds.ops.adam = module("deepspeed.ops.adam", DeepSpeedCPUAdam=None, FusedAdam=DeepSpeedAdam)


def enter(folder, kernel, jit):
    """Makes the reference importable and sets what its train.py puts into the environment."""
    os.environ.update(
        RWKV_MY_TESTING="x070",
        RWKV_KERNEL=kernel,
        RWKV_HEAD_SIZE="64",
        RWKV_HEAD_L2WRAP_CE_CHUNK="0",
        RWKV_FLOAT_MODE="bf16",
        RWKV_JIT_ON="1" if jit else "0",
        TORCH_CUDA_ARCH_LIST="9.0",
    )
    os.chdir(folder)
    sys.path.insert(0, folder)
    stand_ins()


def import_without_kernels():
    """Imports the model without building its extensions. Returns the calls that would build them."""
    calls = []
    extension, library = torch.utils.cpp_extension, torch.library
    real = extension.load, library.register_autograd, torch.jit.script
    extension.load = lambda **arguments: calls.append(arguments)
    library.register_autograd = lambda *_, **__: None
    torch.jit.script = lambda f: f
    try:
        import src.model
    finally:
        extension.load, library.register_autograd, torch.jit.script = real
    return calls


def build(folder, kernels):
    """Compiles all extensions side by side; afterwards an import finds them in torch's cache."""
    calls = {}
    for kernel in kernels:
        code = "import json, reference as r; r.enter(%r, %r, True); print(); print(json.dumps(" \
            "r.import_without_kernels()))" % (folder, kernel)
        lines = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE,
                               env=child_environment()).stdout.decode().splitlines()
        for call in json.loads(lines[-1]):
            calls[call["name"]] = call
    jobs = []
    for call in calls.values():
        code = "import os, json, sys, torch.utils.cpp_extension as e; os.chdir(%r); " \
            "e.load(**json.loads(sys.argv[1]))" % folder
        jobs.append(subprocess.Popen([sys.executable, "-c", code, json.dumps(call)],
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     env=child_environment()))
    failed = []
    for name, job in zip(calls, jobs):
        output = job.communicate()[0].decode()
        if job.returncode != 0:
            failed.append(name)
            print(f"--- {name}\n{output[-3000:]}")
    print(f"{len(calls)} extensions built, {len(failed)} failed: {' '.join(failed)}")
    return not failed


def child_environment():
    here = os.path.dirname(os.path.abspath(__file__))
    return dict(os.environ, PYTHONPATH=here, TORCH_CUDA_ARCH_LIST="9.0", MAX_JOBS="2")


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def arguments(config, tokens, data, device):
    """The reference's options for one of our configs; tokens: length of the data."""
    model, train, optimizer = config["model"], config["train"], config["optimizer"]
    slots = tokens // train["context"]
    prime = next(p for p in range(slots - 1, 1, -1) if p % 3 == 2 and is_prime(p))
    return types.SimpleNamespace(
        n_layer=model["n_layer"], n_embd=model["n_embd"], vocab_size=model["vocab_size"],
        dim_att=model["n_embd"], dim_ffn=4 * model["n_embd"], head_size=model["head_size"],
        my_testing="x070", ctx_len=train["context"], micro_bsz=train["batch"],
        real_bsz=train["batch"], epoch_steps=40320 // train["batch"], epoch_begin=0, grad_cp=0,
        lr_init=optimizer["lr"], lr_final=optimizer["lr_final"],
        warmup_steps=optimizer["warmup"], betas=(optimizer["beta1"], optimizer["beta2"]),
        adam_eps=optimizer["eps"], weight_decay=optimizer["weight_decay"],
        my_exit_tokens=train["exit_tokens"], magic_prime=prime, data_file=data, train_stage=3,
        load_model="", accelerator=device, strategy="deepspeed_stage_2", proj_dir="")


def initial_weights(args, seed):
    """The bf16 checkpoint that the reference starts a new run from, as {name: tensor}."""
    import src.model
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        return src.model.RWKV(args).generate_init_weight()


def batches(args, steps):
    """The first token batches of the reference's data set: int64 (B, T) inputs and targets."""
    import src.dataset
    data = src.dataset.MyDataset(args)
    data.global_rank, data.real_epoch, data.world_size = 0, 0, 1
    for n in range(steps):
        rows = [data[n * args.micro_bsz + b] for b in range(args.micro_bsz)]
        yield torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


class Run:
    """Model, optimizer and schedule of the reference, started from `weights`."""

    def __init__(self, args, weights, device):
        import src.model
        import src.trainer
        self.device = device
        self.model = src.model.RWKV(args)
        self.model.load_state_dict(weights)
        self.model.to(device=device, dtype=torch.bfloat16)
        trainer = types.SimpleNamespace(is_global_zero=False, strategy="", global_step=0)
        self.model.trainer = self.trainer = trainer
        self.schedule = src.trainer.train_callback(args)
        self.optimizer = self.model.configure_optimizers()
        trainer.optimizers = [self.optimizer]

    def step(self, x, y, clip):
        """Loss and gradient norm as tensors, and the learning rate."""
        self.schedule.on_train_batch_start(self.trainer, self.model, None, 0)
        loss = self.model.training_step((x.to(self.device), y.to(self.device)), 0)
        loss.backward()
        norm = self.optimizer.step(clip)
        self.trainer.global_step += 1
        return loss.detach(), norm, self.trainer.my_lr

    def masters(self):
        return self.optimizer.masters({p: n for n, p in self.model.named_parameters()})


def write_binidx(path, tokens):
    """All tokens as one sequence in the reference's data format."""
    import src.binidx
    tokens.astype(np.uint16).tofile(path + ".bin")
    with src.binidx.MMapIndexedDataset.Index.writer(path + ".idx", np.uint16) as index:
        index.write([len(tokens)], [0, 1])
