"""Four steps of bitsandbytes' AdamW8bit on the processor with recorded gradients, and its two maps.

usage: make_adamw_8bit.py OUT_DIR      writes adamw_8bit.safetensors
betas 0.9 and 0.999, eps 1e-8, weight decay 0.1, learning rate 1e-2.  Tensors: signed_map and unsigned_map [256]; param.0
[4196] (16 blocks of 256 and a part of one), grad.N the gradient of step N = 1..4, and after that step param.N, the codes
m.N and v.N [4196] and the scales m_scale.N and v_scale.N [17].

bitsandbytes 0.50.2 searches the nearest level of fp32 on the processor with a coarse table: of the small second moments
every fifth lands on another level than the nearest, which its CUDA kernel finds.  So this script sends the values
through the search that the package keeps for other dtypes, which is exact.
"""

import os
import sys

import bitsandbytes
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file



def quantize_exactly(values, code, absmax_out, codes_out, blocksize):
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
    codes_out.copy_(codes)
    absmax_out.copy_(absmax)


cpu_ops._quant_blockwise_fp32_direct = quantize_exactly
torch.set_num_threads(1)
SIZE, STEPS = 16 * 256 + 100, 4
gen = torch.Generator().manual_seed(0)
p = torch.nn.Parameter(torch.randn(SIZE, generator=gen))
opt = bitsandbytes.optim.AdamW8bit([p], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
res = {"signed_map": create_dynamic_map(True), "unsigned_map": create_dynamic_map(False), "param.0": p.detach().clone()}
size = torch.exp(torch.randn(SIZE, generator=gen))  # two decades of gradient sizes within a block
for n in range(1, STEPS + 1):
    p.grad = torch.randn(SIZE, generator=gen) * size
    res[f"grad.{n}"] = p.grad.clone()
    opt.step()
    state = opt.state[p]
    res[f"param.{n}"] = p.detach().clone()
    for ours, theirs in {"m": "state1", "v": "state2", "m_scale": "absmax1", "v_scale": "absmax2"}.items():
        res[f"{ours}.{n}"] = state[theirs].clone()
path = os.path.join(sys.argv[1], "adamw_8bit.safetensors")
save_file(res, path, metadata={"format": "pt"})
os.chmod(path, 0o644)
