#!/usr/bin/env python3
"""Compares rwkv-train with the reference trainer, step by step. README.md beside this file says how.

  fidelity.py build     --reference DIR
  fidelity.py prepare   --reference DIR --work DIR --tokens FILE.h5
  fidelity.py reference --reference DIR --work DIR --kernel NAME --name NAME
  fidelity.py compare   --work DIR --log LOG.jsonl --checkpoint FILE.h5
"""
import argparse
import hashlib
import json
import os
import re
import sys
import time

import h5py
import numpy as np
import torch

sys.dont_write_bytecode = True
import reference as ref

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = ["@rwkv3", ""]  # values of the reference's --kernel: rwkv7_clampw_v3, rwkv7_clampw
WINDOW, LIMIT = 20, 0.01


def steps_of(config):
    train = config["train"]
    return -(-train["exit_tokens"] // (train["context"] * train["batch"]))


def used(name):
    """The first layer has no value residual: its v0, v1, v2 take no part."""
    return re.fullmatch(r"blocks\.0\.att\.v[012]", name) is None


def prepare(o, config):
    """Initial weights by the reference (init.pt, and init.h5 for rwkv-train), the tokens in its
    format, and the hash of the ids in their order."""
    ref.enter(o.reference, KERNELS[0], jit=False)
    ref.import_without_kernels()
    with h5py.File(o.tokens) as file:
        tokens = file["tokens"][:]
    ref.write_binidx(os.path.join(o.work, "data"), tokens)
    args = ref.arguments(config, len(tokens), os.path.join(o.work, "data"), o.device)
    digest, steps = hashlib.sha256(), steps_of(config)
    for x, y in ref.batches(args, steps):
        assert torch.equal(x[:, 1:], y[:, :-1])
        digest.update(torch.cat([x, y[:, -1:]], 1).numpy().astype("<i4").tobytes())
    weights = ref.initial_weights(args, seed=1)
    torch.save(weights, os.path.join(o.work, "init.pt"))
    with h5py.File(os.path.join(o.work, "init.h5"), "w") as file:
        file["model/format"] = "greylag-model 1"
        file["model/config"] = json.dumps(config["model"])
        for name, w in weights.items():
            assert w.dtype == torch.bfloat16
            if used(name):
                file["weights/" + name] = w.float().numpy()
    facts = {"tokens": len(tokens), "magic_prime": args.magic_prime, "steps": steps,
             "order_sha256": digest.hexdigest()}
    with open(os.path.join(o.work, "data.json"), "w") as file:
        json.dump(facts, file)
    print(json.dumps(facts))


def run_reference(o, config):
    ref.enter(o.reference, o.kernel, jit=True)
    import src.model
    with open(os.path.join(o.work, "data.json")) as file:
        facts = json.load(file)
    args = ref.arguments(config, facts["tokens"], os.path.join(o.work, "data"), o.device)
    run = ref.Run(args, torch.load(os.path.join(o.work, "init.pt")), o.device)
    results, begin = [], time.time()
    for x, y in ref.batches(args, facts["steps"]):
        results.append(run.step(x, y, config["train"]["clip"]))
    losses = torch.stack([r[0].double() for r in results]).tolist()
    out = {"kernel": o.kernel, "seconds": time.time() - begin, "loss": losses,
           "grad_norm": torch.stack([r[1] for r in results]).tolist(),
           "lr": [r[2] for r in results], "torch": torch.__version__,
           "device": torch.cuda.get_device_name() if o.device == "cuda" else "cpu"}
    with open(os.path.join(o.work, o.name + ".json"), "w") as file:
        json.dump(out, file)
    torch.save(run.masters(), os.path.join(o.work, o.name + ".pt"))
    print(f"{o.name}: {facts['steps']} steps in {out['seconds']:.1f} s, loss {losses[0]:.6f} to "
          f"{losses[-1]:.6f}, grad norm {out['grad_norm'][0]:.6f} at the first step")


def window_means(x):
    return [float(np.mean(x[i : i + WINDOW])) for i in range(0, len(x), WINDOW)]


def differences(a, b):
    """Of two loss curves: by window, the largest of those, and of single steps."""
    windows = [p - q for p, q in zip(window_means(a), window_means(b))]
    steps = np.abs(np.array(a) - np.array(b))
    return {"windows": [round(w, 6) for w in windows], "largest_window": max(map(abs, windows)),
            "largest_step": float(steps.max()), "first_step": float(steps[0])}


def moves(names, init, a, b):
    """For each kind of parameter: the distance that training covered in a over that in b, and the
    cosine of the two."""
    sums = {}
    for name in names:
        kind = re.sub(r"^blocks\.\d+\.", "", name)
        start = init[name].double().flatten()
        x, y = a[name].double().flatten() - start, b[name].double().flatten() - start
        s = sums.setdefault(kind, np.zeros(3))
        s += [float(x @ x), float(y @ y), float(x @ y)]
    return {k: {"ratio": round(float(np.sqrt(s[0] / s[1])), 4),
                "cosine": round(float(s[2] / np.sqrt(s[0] * s[1])), 4)}
            for k, s in sums.items()}


def compare(o, config):
    work = lambda name: os.path.join(o.work, name)
    first, second = (json.load(open(work(n))) for n in ["reference.json", "control.json"])
    with open(o.log) as file:
        lines = [json.loads(line) for line in file]
    run = next(line for line in lines if line["type"] == "run")
    ours = {k: [line[k] for line in lines if line["type"] == "step"]
            for k in ["loss", "grad_norm", "lr"]}
    assert len(ours["loss"]) == len(first["loss"]) == steps_of(config)
    lr = max(abs(a - b) / a for a, b in zip(first["lr"], ours["lr"]))
    norm = np.array(ours["grad_norm"]) / np.array(first["grad_norm"])
    init = torch.load(work("init.pt"))
    masters, control = torch.load(work("reference.pt")), torch.load(work("control.pt"))
    with h5py.File(o.checkpoint) as file:
        final = {n: torch.from_numpy(file["weights/" + n][:]) for n in init if used(n)}
    main = differences(ours["loss"], first["loss"])
    good = main["largest_window"] <= LIMIT and lr < 1e-12
    report = {
        "good": bool(good), "limit": LIMIT, "window_steps": WINDOW, "config": config,
        "data": json.load(open(work("data.json"))), "device": first["device"],
        "torch": first["torch"], "ours": {"code_version": run["code_version"], "wkv": run["wkv"]},
        "seconds": {"reference": first["seconds"], "control": second["seconds"],
                    "ours": max(line.get("elapsed_s", 0) for line in lines)},
        "window_means": {"ours": window_means(ours["loss"]),
                         "reference": window_means(first["loss"]),
                         "control": window_means(second["loss"])},
        "ours_minus_reference": main,
        "control_minus_reference": differences(second["loss"], first["loss"]),
        "largest_relative_lr_difference": lr,
        "grad_norm_ratio": {"first": norm[0], "median": float(np.median(norm)),
                            "min": norm.min(), "max": norm.max()},
        "moves_ours_to_reference": moves(final, init, final, masters),
        "moves_control_to_reference": moves(final, init, control, masters),
        "loss": {"ours": ours["loss"], "reference": first["loss"], "control": second["loss"]},
        "grad_norm": {"ours": ours["grad_norm"], "reference": first["grad_norm"]},
    }
    with open(work("report.json"), "w") as file:
        json.dump(report, file)
    for key, value in report.items():
        if key not in ("loss", "grad_norm", "config"):
            print(key, json.dumps(value))
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "prepare", "reference", "compare"])
    parser.add_argument("--reference", help="RWKV-v7/train_temp of the reference's repository")
    parser.add_argument("--work", help="folder for everything that is written")
    parser.add_argument("--tokens", help="token file of rwkv-data")
    parser.add_argument("--kernel", default=KERNELS[0])
    parser.add_argument("--name", default="reference")
    parser.add_argument("--log")
    parser.add_argument("--checkpoint")
    parser.add_argument("--config", default=os.path.join(HERE, "config.json"))
    parser.add_argument("--device", default="cuda")
    o = parser.parse_args()
    for key in ["reference", "work", "tokens", "config"]:
        if getattr(o, key):
            setattr(o, key, os.path.abspath(getattr(o, key)))
    if o.command == "build":
        return 0 if ref.build(o.reference, KERNELS) else 1
    with open(o.config) as file:
        config = json.load(file)
    command = {"prepare": prepare, "reference": run_reference, "compare": compare}[o.command]
    return 1 if command(o, config) is False else 0


if __name__ == "__main__":
    sys.exit(main())
