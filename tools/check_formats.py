#!/usr/bin/env python3
"""Loads files that rwkv-convert wrote in the programs they are for, and compares.

    tools/check_formats.py --bin build/bin --refs REFS [--device cuda] [--neox 20B_tokenizer.json]

REFS has tiny_rwkv7_bf16.pth, tiny_rwkv4_bf16.pth, the first also as tiny_rwkv7_fla/ and
tiny_rwkv7.gguf, and the logits of the rwkv package in tiny_rwkv{7,4}_expected.json. Most checks
need a Python package (torch, safetensors, gguf, transformers, fla, rwkv, llama_cpp); those that are
missing are named and left out. --device cuda also computes on the GPU, ourselves and in fla. For
people who change data/io or model/: nothing of Greylag needs Python at run time. The reference
trainer's own loaders are in check_rwkv_lm.py.
"""
import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

CHECKS = []
# Of one position's logits computed in bf16, see relative(): that of tests/unit/
# cuda_inference_test.cpp, twice that of the golden files, which is for the mean over many.
BF16_LIMIT = 6e-2


class LeftOut(Exception):
    pass


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
    assert len(got) == len(want)
    return max(abs(float(x) - y) for x, y in zip(got, want))


def relative(got, want):
    """2-norm of the difference over that of what is wanted"""
    assert len(got) == len(want)
    return math.sqrt(sum((float(x) - y) ** 2 for x, y in zip(got, want)) /
                     sum(y * y for y in want))


def rwkv_eval_logits(a, model, cases, *arguments):
    """of the last position of each case"""
    lines = "".join(json.dumps(c["tokens"]) + "\n" for c in cases)
    o = subprocess.run([f"{a.bin}/rwkv-eval", "logits", "--model", model, "--last", *arguments],
                       input=lines, capture_output=True, text=True)
    assert o.returncode == 0, o.stderr[-500:]
    return [json.loads(line) for line in o.stdout.splitlines()]


@check()
def own_logits(a):
    """rwkv-eval logits of every encoding of the reference models: those of the rwkv package"""
    out, fine = [], True
    runs = [("CPU f32", ())]
    if a.device == "cuda":
        runs += [("CUDA f32", ("--device", "cuda", "--dtype", "f32")),
                 ("CUDA bf16", ("--device", "cuda", "--dtype", "bf16")),
                 ("CUDA bf16 serial", ("--device", "cuda", "--dtype", "bf16", "--wkv", "serial"))]
    files = {"7": [f"{a.refs}/tiny_rwkv7_bf16.pth", f"{a.refs}/tiny_rwkv7_fla",
                   f"{a.refs}/tiny_rwkv7.gguf", f"{a.dir}/7.h5", f"{a.dir}/7.pth",
                   f"{a.dir}/hf7", f"{a.dir}/7.gguf"],
             "4": [f"{a.refs}/tiny_rwkv4_bf16.pth", f"{a.dir}/4.h5", f"{a.dir}/4.pth",
                   f"{a.dir}/hf4"]}
    for name, arguments in runs:
        for g in "74":
            cases = list(expected(a, g))
            first = None
            for file in files[g]:
                got = rwkv_eval_logits(a, file, cases, *arguments)
                first = first or got
                assert got == first, f"{file} gives other logits than {files[g][0]}"
            error = max(worst(x, c["last_logits"]) for x, c in zip(first, cases))
            off = max(relative(x, c["last_logits"]) for x, c in zip(first, cases))
            fine = fine and (off <= BF16_LIMIT if "bf16" in name else error <= 1e-4)
            out.append(f"{name} RWKV-{g} worst {error:.1e} (relative {off:.1e})")
    assert fine, out
    return f"{', '.join(out)}; the same from all {sum(map(len, files.values()))} files"


@check()
def states_between_devices(a):
    """a state written on one device goes on on the other: the greedy tokens of one run"""
    if a.device != "cuda":
        raise LeftOut("only with --device cuda")
    devices = {"cpu": ["--device", "cpu"], "cuda": ["--device", "cuda", "--dtype", "f32"]}

    def run(device, wkv, *more):
        o = subprocess.run([f"{a.bin}/rwkv-generate", "--model", f"{a.dir}/7.h5", "--temperature",
                            "0", "--ids", "--ignore-end", "--wkv", wkv, *devices[device], *more],
                           capture_output=True, text=True)
        assert o.returncode == 0, o.stderr[-500:]
        return o.stdout.split()

    n = 0
    for wkv in ("auto", "fp16-dithered"):
        for there, here in (("cuda", "cpu"), ("cpu", "cuda")):
            state = f"{a.dir}/{there}.state"
            run(there, wkv, "--max-tokens", "0", "--state-out", state, "--prompt-ids", "300", "12")
            # Prompts whose greedy tokens are no close calls: both kinds of state give the same.
            for tail in (["1", "2", "3"], ["250"]):
                want = run(there, wkv, "--max-tokens", "24", "--prompt-ids", "300", "12", *tail)
                got = run(here, wkv, "--max-tokens", "24", "--state-in", state, "--prompt-ids",
                          *tail)
                assert len(want) == 24 and got == want, (wkv, there, here, got, want)
                n += 24
    return f"{n} tokens equal, f32 and binary16 states"


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


def one_configuration_per_kernel():
    """Triton would time dozens of each; which one it takes changes no result."""
    from triton.runtime import autotuner
    init = autotuner.Autotuner.__init__

    def shorter(self, fn, names, configs, *more, **named):
        init(self, fn, names, configs[:1], *more, **named)
    autotuner.Autotuner.__init__ = shorter


@check("torch", "transformers", "fla")
def fla_logits(a):
    """fla's RWKV7ForCausalLM on the GPU, from our folder: the expected logits"""
    import torch
    from fla.models import RWKV7ForCausalLM
    if a.device != "cuda":
        raise LeftOut("only with --device cuda")
    cases = list(expected(a, "7"))
    out, fine = [], True
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        m = RWKV7ForCausalLM.from_pretrained(f"{a.dir}/hf7", dtype=dtype).cuda().eval()
        # fla takes its recurrent kernel for short inputs, the chunked one where gradients are on.
        for form, grad in (("recurrent", False), ("chunked", True)):
            with torch.set_grad_enabled(grad):
                got = [m(torch.tensor([c["tokens"]]).cuda(), use_cache=False).logits[0, -1].tolist()
                       for c in cases]
            error = max(worst(x, c["last_logits"]) for x, c in zip(got, cases))
            off = max(relative(x, c["last_logits"]) for x, c in zip(got, cases))
            out.append(f"{name} {form} worst {error:.1e} (relative {off:.1e})")
            exact = name == "f32" and form == "recurrent"  # the chunked one multiplies in TF32
            fine = fine and (error <= 1e-4 if exact else off <= BF16_LIMIT)
    assert fine, out
    return ", ".join(out)


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


@check("tensorboard")
def tensorboard_events(a):
    """TensorBoard's reader: the numbers of the log, of a run that was resumed"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with open(f"{a.dir}/text.txt", "w") as f:
        f.write("It was a bright cold day in April, and the clocks were striking. " * 200)
    data, run = f"{a.dir}/text.h5", f"{a.dir}/run"
    subprocess.run([f"{a.bin}/rwkv-data", "tokenize", "--tokenizer", "bytes", "-o", data,
                    f"{a.dir}/text.txt"], check=True, capture_output=True)
    for steps, more in ((4, []), (7, ["--resume"])):
        settings = (f"data.train={data}", f"data.valid={data}", f"checkpoint.dir={run}",
                    f"train.steps={steps}")
        o = subprocess.run([f"{a.bin}/rwkv-train", "--config", "quickstart", "--quiet", *more,
                            *(x for s in settings for x in ("--set", s))],
                           capture_output=True, text=True)
        assert o.returncode == 0, o.stderr[-500:]
    with open(f"{run}/log.jsonl") as f:
        log = [json.loads(line) for line in f]
    read = EventAccumulator(run, size_guidance={"scalars": 0, "tensors": 0}).Reload()
    n = 0
    for tag, kind, key in (("loss", "step", "loss"), ("lr", "step", "lr"),
                           ("grad_norm", "step", "grad_norm"),
                           ("valid_loss", "valid", "valid_loss")):
        want = [(x["step"], x[key]) for x in log if x["type"] == kind]
        got = [(e.step, e.value) for e in read.Scalars(tag)]
        assert [s for s, _ in got] == [s for s, _ in want], (tag, got, want)
        assert all(math.isclose(x, y, rel_tol=1e-6) for (_, x), (_, y) in zip(got, want)), tag
        n += len(got)
    texts = [e.tensor_proto.string_val[0].decode() for e in read.Tensors("sample")]
    assert texts == [x["text"] for x in log if x["type"] == "sample"], texts
    return f"{n} scalars and {len(texts)} texts equal"


@check("torch", "gguf", "llama_cpp")
def gguf_neox(a):
    """GGUF with a NeoX vocabulary: gguf's reader; llama.cpp's ids and greedy tokens; read back"""
    import gguf
    import torch
    from llama_cpp import Llama
    if not a.neox:
        raise LeftOut("only with --neox 20B_tokenizer.json")
    with open(a.neox, encoding="utf-8") as f:
        vocabulary = json.load(f)
    weights = torch.load(f"{a.refs}/tiny_rwkv7_bf16.pth", weights_only=True)
    for i, name in enumerate(("emb.weight", "head.weight")):
        weights[name] = torch.randn(50304, weights[name].shape[1],
                                    generator=torch.Generator().manual_seed(i)).bfloat16()
    torch.save(weights, f"{a.dir}/n.pth")
    convert(a, f"{a.dir}/n.pth", f"{a.dir}/n.gguf", "--dtype", "fp32", "--vocab", a.neox)
    fields = gguf.GGUFReader(f"{a.dir}/n.gguf").fields
    tokens, merges = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "merges"))
    want = dict(vocabulary["model"]["vocab"])
    want.update({t["content"]: t["id"] for t in vocabulary["added_tokens"]})
    assert len(tokens) == 50304 and all(tokens[i] == text for text, i in want.items())
    assert merges == vocabulary["model"]["merges"]

    m = Llama(f"{a.dir}/n.gguf", n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False,
              logits_all=True)
    prompts = ("The Eiffel tower is in the city of", "def f(x):\n    return x**2\n",
               "It was a dark night, 1234567890 stars")

    def own(model, prompt, *more):
        o = subprocess.run([f"{a.bin}/rwkv-generate", "--model", model, "--max-tokens", "24",
                            "--temperature", "0", "--ids", "--ignore-end", "--no-start-token",
                            "--prompt", prompt, *more], capture_output=True, text=True)
        assert o.returncode == 0, o.stderr[-500:]
        return list(map(int, o.stdout.split()))

    for prompt in prompts:
        m.reset()
        m.eval(m.tokenize(prompt.encode(), add_bos=False))
        greedy = []
        for _ in range(24):
            greedy.append(int(m.scores[m.n_tokens - 1].argmax()))
            m.eval(greedy[-1:])
        # From the GGUF itself, and from the file it was made of with the published vocabulary.
        assert own(f"{a.dir}/n.gguf", prompt) == greedy, prompt
        assert own(f"{a.dir}/n.pth", prompt, "--vocab", a.neox) == greedy, prompt
    return f"{len(want)} tokens, {len(merges)} merges; greedy tokens equal for {len(prompts)} texts"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bin", default="build/bin")
    p.add_argument("--refs", required=True)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--neox", metavar="FILE", help="20B_tokenizer.json")
    p.add_argument("--only", nargs="+", metavar="CHECK",
                   help=" ".join(function.__name__ for function, _ in CHECKS))
    a = p.parse_args()
    if a.device == "cuda" and importlib.util.find_spec("triton"):
        one_configuration_per_kernel()
    with tempfile.TemporaryDirectory() as a.dir:
        for g in "74":
            convert(a, f"{a.refs}/tiny_rwkv{g}_bf16.pth", f"{a.dir}/{g}.h5")
            convert(a, f"{a.dir}/{g}.h5", f"{a.dir}/{g}.pth", "--dtype", "bf16")
            convert(a, f"{a.dir}/{g}.pth", f"{a.dir}/hf{g}/")
        for name, dtype in (("7", "bf16"), ("7f32", "fp32"), ("7q8", "q8_0")):
            convert(a, f"{a.dir}/hf7", f"{a.dir}/{name}.gguf", "--dtype", dtype)
        failed = 0
        for function, packages in CHECKS:
            if a.only and function.__name__ not in a.only:
                continue
            try:
                versions = [f"{m.__name__} {getattr(m, '__version__', '')}".strip()
                            for m in map(importlib.import_module, packages)]
            except ImportError as e:
                print(f"left out  {function.__doc__}: {e}")
                continue
            try:
                result = function(a)
                with_what = f" ({', '.join(versions)})" if versions else ""
                print(f"ok        {function.__doc__}: {result}{with_what}", flush=True)
            except LeftOut as e:
                print(f"left out  {function.__doc__}: {e}")
            except Exception as e:  # one failure should not hide the others
                failed += 1
                print(f"FAILED    {function.__doc__}: {type(e).__name__} {str(e)[:300]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
