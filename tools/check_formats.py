#!/usr/bin/env python3
"""Loads files that rwkv-convert wrote in the programs they are for, and compares.

    tools/check_formats.py --bin build/bin --refs REFS

REFS has tiny_rwkv7_bf16.pth, tiny_rwkv4_bf16.pth and the logits of the rwkv package in
tiny_rwkv{7,4}_expected.json. Every check needs a Python package (torch, safetensors, gguf,
transformers, fla, rwkv, llama_cpp); those that are missing are named and left out. For people who
change data/io or model/: nothing of Greylag needs Python at run time.
"""
import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

CHECKS = []


def check(*packages):
    def add(function):
        CHECKS.append((function, packages))
        return function
    return add


def convert(a, *arguments):
    subprocess.run([os.path.join(a.bin, "rwkv-convert"), *arguments], check=True,
                   stderr=subprocess.DEVNULL)


def expected(a, generation):
    with open(f"{a.refs}/tiny_rwkv{generation}_expected.json") as f:
        return json.load(f)["cases"].values()


def worst(got, want):
    return max(abs(float(x) - y) for x, y in zip(got, want))


@check("torch")
def pth_bits(a):
    """.pth to HDF5 to .pth: the same tensors, read with weights_only=True"""
    import torch
    n = 0
    for g in "74":
        want = torch.load(f"{a.refs}/tiny_rwkv{g}_bf16.pth", weights_only=True)
        got = torch.load(f"{a.dir}/{g}.pth", weights_only=True)
        assert want.keys() == got.keys()
        for k in want:
            assert want[k].dtype == got[k].dtype and torch.equal(want[k], got[k]), k
            n += 1
    return f"{n} tensors equal"


RWKV_PACKAGE = """
import json, os, sys
os.environ.update(RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
if sys.argv[2] == "7": os.environ["RWKV_V7_ON"] = "1"
from rwkv.model import RWKV
m = RWKV(model=sys.argv[1], strategy="cpu fp32")
out = [m.forward(t, None)[0].tolist() for t in json.loads(sys.argv[3])]
print("\\n" + json.dumps(out))
"""


def rwkv_package(path, generation, prompts):
    o = subprocess.run([sys.executable, "-c", RWKV_PACKAGE, path, generation, json.dumps(prompts)],
                       capture_output=True, text=True)
    assert o.returncode == 0, o.stderr[-500:]
    return json.loads(o.stdout.splitlines()[-1])


@check("torch", "rwkv")
def pth_in_rwkv_package(a):
    """logits of the rwkv package from our .pth: RWKV-7 the expected, RWKV-4 those of its own file"""
    cases = expected(a, "7")
    got = rwkv_package(f"{a.dir}/7", "7", [c["tokens"] for c in cases])
    error = max(worst(g, c["last_logits"]) for g, c in zip(got, cases))
    prompts = [c["tokens"] for c in expected(a, "4")]
    shutil.copy(f"{a.refs}/tiny_rwkv4_bf16.pth", f"{a.dir}/original4.pth")
    same = (rwkv_package(f"{a.dir}/4", "4", prompts) ==
            rwkv_package(f"{a.dir}/original4", "4", prompts))
    assert error <= 1e-4 and same
    return f"RWKV-7 worst {error:.1e}, RWKV-4 equal"


@check("torch", "safetensors")
def fla_bits(a):
    """fla layout: the same tensors as the reference folder"""
    from safetensors.torch import load_file
    import torch
    want = load_file(f"{a.refs}/tiny_rwkv7_fla/model.safetensors")
    got = load_file(f"{a.dir}/hf7/model.safetensors")
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) and want[k].dtype == got[k].dtype for k in want)
    return f"{len(want)} tensors equal"


@check("torch", "transformers", "fla")
def fla_strict(a):
    """fla's RWKV7ForCausalLM.from_pretrained: no key missing, none too many"""
    from fla.models import RWKV7ForCausalLM
    _, info = RWKV7ForCausalLM.from_pretrained(f"{a.dir}/hf7", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return "all keys match"


@check("torch", "transformers")
def transformers_rwkv4(a):
    """transformers' RwkvForCausalLM: the expected logits"""
    import torch
    from transformers import RwkvForCausalLM
    m = RwkvForCausalLM.from_pretrained(f"{a.dir}/hf4", dtype=torch.float32).eval()
    error = 0.0
    with torch.no_grad():
        for c in expected(a, "4"):
            error = max(error, worst(m(torch.tensor([c["tokens"]])).logits[0, -1],
                                     c["last_logits"]))
    assert error <= 1e-4, error
    return f"worst {error:.1e}"


@check("torch", "gguf")
def gguf_bits(a):
    """gguf's reader: names and values; q8_0 as its own quantiser makes it"""
    import gguf
    import numpy as np
    import torch
    pth = torch.load(f"{a.refs}/tiny_rwkv7_bf16.pth", weights_only=True)
    ours = {t.name: t for t in gguf.GGUFReader(f"{a.dir}/7.gguf").tensors}
    theirs = {t.name: t for t in gguf.GGUFReader(f"{a.refs}/tiny_rwkv7.gguf").tensors}
    assert ours.keys() == theirs.keys()
    for k in theirs:
        if k.startswith("blk.0.time_mix_v") and k[16] in "012":
            continue  # unused by the model
        x, y = (gguf.dequantize(t[k].data, t[k].tensor_type).ravel() for t in (ours, theirs))
        assert np.array_equal(x, y), k
    q8 = {t.name: t for t in gguf.GGUFReader(f"{a.dir}/7q8.gguf").tensors}
    want = gguf.quantize(pth["head.weight"].float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(want, q8["output.weight"].data)
    return f"{len(ours)} tensors equal"


@check("llama_cpp")
def llama_greedy(a):
    """llama.cpp: the logits of four prompts, and 24 greedy tokens after each"""
    from llama_cpp import Llama
    m = Llama(f"{a.dir}/7f32.gguf", n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False,
              logits_all=True)
    error = 0.0
    for ids in ([7], [1, 2, 3, 4], [300, 12, 77, 5], [9, 8, 7]):
        m.reset()
        m.eval(ids)
        logits, greedy = m.scores[len(ids) - 1].tolist(), []
        for _ in range(24):
            greedy.append(int(m.scores[m.n_tokens - 1].argmax()))
            m.eval(greedy[-1:])
        model = ["--model", f"{a.dir}/7f32.gguf"]
        text = subprocess.run([f"{a.bin}/rwkv-generate", *model, "--max-tokens", "24",
                               "--temperature", "0", "--ids", "--ignore-end", "--prompt-ids",
                               *map(str, ids)], capture_output=True, text=True, check=True).stdout
        assert list(map(int, text.split())) == greedy, (ids, greedy, text)
        o = subprocess.run([f"{a.bin}/rwkv-eval", "logits", *model, "--last"], check=True,
                           input=json.dumps(ids) + "\n", capture_output=True, text=True).stdout
        error = max(error, worst(json.loads(o), logits))
    assert error <= 1e-4, error
    return f"greedy tokens equal, logits within {error:.1e}"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bin", default="build/bin")
    p.add_argument("--refs", required=True)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as a.dir:
        for g in "74":
            convert(a, f"{a.refs}/tiny_rwkv{g}_bf16.pth", f"{a.dir}/{g}.h5")
            convert(a, f"{a.dir}/{g}.h5", f"{a.dir}/{g}.pth", "--dtype", "bf16")
            convert(a, f"{a.dir}/{g}.pth", f"{a.dir}/hf{g}/")
        for name, dtype in (("7", "bf16"), ("7f32", "fp32"), ("7q8", "q8_0")):
            convert(a, f"{a.dir}/hf7", f"{a.dir}/{name}.gguf", "--dtype", dtype)
        failed = 0
        for function, packages in CHECKS:
            try:
                versions = [f"{m.__name__} {getattr(m, '__version__', '')}".strip()
                            for m in map(importlib.import_module, packages)]
            except ImportError as e:
                print(f"left out  {function.__doc__}: {e}")
                continue
            try:
                print(f"ok        {function.__doc__}: {function(a)} ({', '.join(versions)})")
            except Exception as e:  # one failure should not hide the others
                failed += 1
                print(f"FAILED    {function.__doc__}: {type(e).__name__} {str(e)[:300]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
