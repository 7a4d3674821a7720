"""Random quantized blocks with their values, as the gguf package 0.19.0 decodes them.

usage: make_gguf_blocks.py OUT_DIR
OUT_DIR/gguf_blocks.safetensors: TYPE.bytes [n] and TYPE.values [m], eight blocks (or values) a type. All bits are random, except
that scales are ordinary numbers; the first block of each type has subnormal scales.
"""
import os
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(1)
num_blocks = 8
scale_offsets = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q6_K": [208], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2],
                 "Q5_K": [0, 2]}
res = {}
for name in ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q6_K", "Q5_0", "Q5_1", "Q4_K", "Q5_K"]:
    qtype = gguf.GGMLQuantizationType[name]
    num_bytes = gguf.GGML_QUANT_SIZES[qtype][1]
    if name == "F16":
        data = rng.standard_normal(num_blocks).astype(np.float16)
        data[:2] = [6e-8, -3e-5]
        data = data.view(np.uint8).reshape(num_blocks, num_bytes)
    elif name == "BF16":
        data = (rng.standard_normal(num_blocks).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        data = data.view(np.uint8).reshape(num_blocks, num_bytes)
    else:
        data = rng.integers(0, 256, (num_blocks, num_bytes), dtype=np.uint8)
        for at in scale_offsets[name]:
            scales = (0.02 * rng.standard_normal(num_blocks)).astype(np.float16)
            scales[0] = 5e-6
            data[:, at:at + 2] = scales.view(np.uint8).reshape(num_blocks, 2)
    values = gguf.quants.dequantize(data.reshape(-1) if name == "BF16" else data, qtype) if name != "F16" else data.view(np.float16)
    res[name + ".bytes"] = data.reshape(-1).copy()
    res[name + ".values"] = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
path = os.path.join(sys.argv[1], "gguf_blocks.safetensors")
save_file(res, path, metadata={"format": "pt"})
os.chmod(path, 0o644)
