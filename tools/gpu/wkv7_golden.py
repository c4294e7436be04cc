#!/usr/bin/env python3
"""Writes the cases of wkv7_ops.h5 as flat files for `wkv7_dev golden`: wkv7_golden.py H5 FOLDER"""
import sys

import h5py
import numpy as np

with h5py.File(sys.argv[1]) as file:
    for name, case in file.items():
        if "size" not in case:
            continue
        size = case["size"]
        has_state = int(size["has_state"][()])
        with open(f"{sys.argv[2]}/{name}.bin", "wb") as out:
            out.write(np.array([size[x][()] for x in "BTH"] + [has_state], np.int32).tobytes())
            inputs = ["r", "w_logit", "k", "v", "a", "b", "dy"] + ["s0", "ds_out"] * has_state
            for x in inputs:
                out.write(case[x][()].astype(np.float32).tobytes())
            results = ["y"] + ["s_out"] * has_state
            results += ["dr", "dw_logit", "dk", "dv", "da", "db"] + ["ds0"] * has_state
            for x in results:
                out.write(case[x][()].astype(np.float64).tobytes())
