#!/usr/bin/env python3
"""Has the reference trainer (BlinkDL/RWKV-LM) load what we write, with its own code.

    tools/check_rwkv_lm.py --bin build/bin --rwkv-lm RWKV-LM --refs REFS --vocab VOCABULARY

RWKV-LM is a checkout: RWKV-v7/train_temp, RWKV-v4neo and RWKV-v5 are used. REFS has binidx_sample.*,
pile_style_sample.jsonl and rwkv_lm_sampler.json; VOCABULARY is rwkv_vocab_v20230424.txt. Needs
torch and numpy. The trainer's models, loaders, data sets and tokenizer run as they are; its CUDA
kernels are not compiled and Lightning's base class is torch's, since nothing is computed here.
"""
import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import types
import unittest.mock

import numpy as np
import torch
import torch.utils.cpp_extension

EPOCH = 40320  # samples of its "mini-epoch"


def program(a, name, *arguments):
    o = subprocess.run([f"{a.bin}/{name}", *arguments], capture_output=True, text=True)
    assert o.returncode == 0, o.stderr[-500:]


def stand_ins():
    """for what needs a GPU or is not installed"""
    def package(name, **members):
        sys.modules[name] = types.ModuleType(name)
        for key, value in members.items():
            setattr(sys.modules[name], key, value)
    package("pytorch_lightning", LightningModule=torch.nn.Module, __version__="2")
    package("pytorch_lightning.utilities", rank_zero_info=lambda *_: None,
            rank_zero_only=lambda f: f)
    package("pytorch_lightning.strategies", DeepSpeedStrategy=type("DeepSpeedStrategy", (), {}))
    package("pytorch_lightning.callbacks")

    def load(name, **_):
        setattr(torch.ops, name, unittest.mock.MagicMock())
        return getattr(torch.ops, name)
    torch.utils.cpp_extension.load = load
    torch.library.register_autograd = lambda *_, **__: None
    torch.jit.script = lambda f: f
    os.environ.update(RWKV_JIT_ON="0", RWKV_HEAD_SIZE="64", RWKV_T_MAX="64", RWKV_CTXLEN="64",
                      RWKV_FLOAT_MODE="fp32", RWKV_HEAD_L2WRAP_CE_CHUNK="0")


def modules_of(a, folder):
    """the package `src` of one of its versions"""
    for name in [n for n in sys.modules if n == "src" or n.startswith("src.")]:
        del sys.modules[name]
    sys.path.insert(0, os.path.join(a.rwkv_lm, folder))
    try:
        import src.binidx
        import src.dataset
        import src.model
        return sys.modules["src.model"], sys.modules["src.dataset"], sys.modules["src.binidx"]
    finally:
        sys.path.pop(0)


def arguments_of(**more):
    """what its command line would hold"""
    return types.SimpleNamespace(**{**dict(
        n_layer=3, n_embd=128, dim_att=128, vocab_size=320, ctx_len=64, head_size=64,
        head_size_divisor=8, dropout=0, my_pos_emb=0, pre_ffn=0, head_qk=0, tiny_att_dim=0,
        tiny_att_layer=-1, my_testing="x070", grad_cp=0, weight_decay=0, train_stage=2), **more})


def load_as_train_py(path):
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def its_own_weights(a, model, name):
    """Its model, saved; through our HDF5 into our .pth; loaded strictly by the same class."""
    with torch.no_grad():
        for n, p in model.state_dict().items():
            p.copy_(torch.randn(p.shape).bfloat16())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save({k: v.bfloat16() for k, v in before.items()}, f"{a.dir}/{name}.pth")
    program(a, "rwkv-convert", f"{a.dir}/{name}.pth", f"{a.dir}/{name}.h5")
    program(a, "rwkv-convert", f"{a.dir}/{name}.h5", f"{a.dir}/{name}-ours.pth", "--dtype", "bf16")
    ours = load_as_train_py(f"{a.dir}/{name}-ours.pth")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.load_state_dict(ours)  # strict
    equal = 0
    for k, v in model.state_dict().items():
        if k in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"):
            continue  # not used by the model, and zero in what we write
        assert torch.equal(v, before[k]), k
        equal += 1
    return equal


def check_pth7(a, model, *_):
    return f"{its_own_weights(a, model.RWKV(arguments_of(dim_ffn=512)), '7')} tensors equal"


def check_trained(a, model, *_):
    """A run of rwkv-train with sizes that its model has too."""
    program(a, "rwkv-data", "tokenize", "--tokenizer", "bytes", "-o", f"{a.dir}/b.h5",
            f"{a.refs}/pile_style_sample.jsonl")
    settings = (f"data.train={a.dir}/b.h5", "data.valid=", f"checkpoint.dir={a.dir}/run",
                "train.steps=2", "sample.every=0")
    program(a, "rwkv-train", "--config", "quickstart", "--quiet",
            *(x for s in settings for x in ("--set", s)))
    program(a, "rwkv-convert", f"{a.dir}/run", f"{a.dir}/run.pth")
    ours = load_as_train_py(f"{a.dir}/run.pth")
    net = model.RWKV(arguments_of(dim_ffn=512, vocab_size=257))
    net.load_state_dict(ours)
    assert all(torch.equal(v, ours[k]) for k, v in net.state_dict().items())
    return f"{len(ours)} tensors"


def check_pth4(a, model, *_):
    net = model.RWKV(arguments_of(dim_ffn=512, my_testing=""))
    n = its_own_weights(a, net, "4")
    file = f"{a.dir}/4r.pth"
    reference = f"{a.refs}/tiny_rwkv4_bf16.pth"
    program(a, "rwkv-convert", reference, f"{a.dir}/4r.h5")
    program(a, "rwkv-convert", f"{a.dir}/4r.h5", file, "--dtype", "bf16")
    want = load_as_train_py(reference)
    layers = 1 + max(int(k.split(".")[1]) for k in want if k.startswith("blocks."))
    vocab, width = want["emb.weight"].shape
    net = model.RWKV(arguments_of(n_layer=layers, n_embd=width, dim_att=width, vocab_size=vocab,
                                  dim_ffn=want["blocks.0.ffn.key.weight"].shape[0], my_testing=""))
    net.load_state_dict(load_as_train_py(file))
    assert all(torch.equal(v, want[k].float().reshape(v.shape))
               for k, v in net.state_dict().items())
    return f"{n} tensors equal, and {len(want)} of the reference model"


def samples(dataset, data, tokens, ctx_len, prime):
    d = dataset.MyDataset(arguments_of(data_file=data, data_type="binidx", my_pile_version=1,
                                       my_pile_stage=3, my_qa_mask=0, my_random_steps=0,
                                       my_pile_shift=0, epoch_steps=EPOCH // 8,
                                       real_bsz=8, micro_bsz=8, magic_prime=prime,
                                       ctx_len=ctx_len, vocab_size=65536))
    assert d.data_size == tokens
    d.world_size, d.global_rank, out = 1, 0, []
    for d.real_epoch in (0, 1, 7):
        out += [d[i] for i in (*range(0, EPOCH, 97), EPOCH - 1)]
    return out


def check_binidx(a, model, dataset, binidx):
    """Its sample data through our token file and back: equal files, equal samples."""
    with open(f"{a.refs}/rwkv_lm_sampler.json") as f:
        about = json.load(f)
    copy, tokens = f"{a.dir}/copy", about["dataset"]["tokens"]
    program(a, "rwkv-data", "convert", f"{a.refs}/binidx_sample.bin", f"{a.dir}/copy.h5",
            "--tokenizer", "world", "--vocab", a.vocab)
    program(a, "rwkv-data", "convert", f"{a.dir}/copy.h5", f"{copy}.bin")
    for end in (".bin", ".idx"):
        assert filecmp.cmp(copy + end, f"{a.refs}/binidx_sample{end}", shallow=False), end
    # The older version wants a prime closer to the number of slots.
    ctx_len, prime = (32, 971) if "v4" in model.__file__ else (64, 479)
    theirs, ours = (samples(dataset, f, tokens, ctx_len, prime)
                    for f in (f"{a.refs}/binidx_sample", copy))
    assert all(torch.equal(x, u) and torch.equal(y, v)
               for (x, y), (u, v) in zip(theirs, ours)), "samples differ"
    data = binidx.MMapIndexedDataset(copy)
    for s in about["first_samples_ctx64"]:
        got = data.get(idx=0, offset=s["offset"], length=65)
        assert got.tolist() == s["tokens"], s["offset"]
    return f"equal bytes, {len(ours)} samples equal"


def check_corpus(a, _, __, binidx):
    """Documents tokenised by us are those of its tokenizer with 0 behind each."""
    sys.path.insert(0, f"{a.rwkv_lm}/RWKV-v5/tokenizer")
    from rwkv_tokenizer import TRIE_TOKENIZER
    theirs = TRIE_TOKENIZER(a.vocab)
    source = f"{a.refs}/pile_style_sample.jsonl"
    program(a, "rwkv-data", "tokenize", "--vocab", a.vocab, "-o", f"{a.dir}/c.h5", source)
    program(a, "rwkv-data", "convert", f"{a.dir}/c.h5", f"{a.dir}/c.bin")
    data = binidx.MMapIndexedDataset(f"{a.dir}/c")
    with open(source, encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f if line.strip()]
    assert len(data) == len(texts) and data.doc_idx.tolist() == list(range(len(texts) + 1))
    for i, text in enumerate(texts):
        assert data[i].dtype == np.uint16 and data[i].tolist() == theirs.encode(text) + [0], i
    return f"{len(texts)} documents, {int(data.sizes.sum())} tokens equal"


CHECKS = [
    ("RWKV-v7/train_temp", check_pth7, "its model to .pth to HDF5 to .pth to its strict loader"),
    ("RWKV-v7/train_temp", check_trained, "a model that rwkv-train trained in its strict loader"),
    ("RWKV-v4neo", check_pth4, "the same for RWKV-4, and the reference model"),
    ("RWKV-v7/train_temp", check_binidx, "its data set reads binidx that we wrote"),
    ("RWKV-v4neo", check_binidx, "its data set reads binidx that we wrote"),
    ("RWKV-v7/train_temp", check_corpus, "a corpus tokenised by us, read by it"),
]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bin", default="build/bin")
    for name in ("--rwkv-lm", "--refs", "--vocab"):
        p.add_argument(name, required=True)
    a = p.parse_args()
    a.bin, a.refs, a.vocab = map(os.path.abspath, (a.bin, a.refs, a.vocab))
    stand_ins()
    failed = 0
    with tempfile.TemporaryDirectory() as a.dir:
        for folder, function, what in CHECKS:
            os.environ["RWKV_MY_TESTING"] = "x070" if "v7" in folder else ""
            try:
                print(f"ok      {folder}: {what}: {function(a, *modules_of(a, folder))}")
            except Exception as e:  # one failure should not hide the others
                failed += 1
                print(f"FAILED  {folder}: {what}: {type(e).__name__} {str(e)[:500]}")
    print(f"torch {torch.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
