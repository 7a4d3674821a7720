"""Six steps of torch.optim.Muon in fp32 with recorded gradients, a tall, a wide and a square matrix.

usage: make_muon.py OUT_DIR      writes muon.safetensors
learning rate 0.02, weight decay 0.1, momentum 0.95, nesterov, adjust_lr_fn="match_rms_adamw", 5 Newton-Schulz steps.
Tensors: NAME.param.0 is the start, NAME.param.N the value after step N = 1..6, NAME.grad.N the gradient of step N,
NAME.momentum_buffer the state after step 6; NAME is tall [24,10], wide [8,20] or square [12,12].  torch iterates in
bfloat16.  NAME.param_fp32.N is the same run with its iteration in fp32 (the module's own function with its cast to
bfloat16 left out), so that the rest of the update can be compared closely.
"""

import inspect
import os
import sys

import torch
from safetensors.torch import save_file

from torch.optim import _muon

torch.set_num_threads(1)
SHAPES = {"tall": (24, 10), "wide": (8, 20), "square": (12, 12)}
STEPS = 6

gen = torch.Generator().manual_seed(0)
start = {name: torch.randn(shape, generator=gen) * 0.1 for name, shape in SHAPES.items()}
grads = {name: [torch.randn(shape, generator=gen) * 0.01 for _ in range(STEPS)] for name, shape in SHAPES.items()}


def run():
    params = {name: torch.nn.Parameter(p.clone()) for name, p in start.items()}
    opt = torch.optim.Muon(params.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    history = {name: [] for name in params}
    for n in range(STEPS):
        for name, p in params.items():
            p.grad = grads[name][n].clone()
        opt.step()
        for name, p in params.items():
            history[name].append(p.detach().clone())
    return history, {name: opt.state[p]["momentum_buffer"].clone() for name, p in params.items()}


res = {}
history, buffers = run()
for name in SHAPES:
    res[f"{name}.param.0"] = start[name]
    res[f"{name}.momentum_buffer"] = buffers[name]
    for n in range(STEPS):
        res[f"{name}.grad.{n + 1}"] = grads[name][n]
        res[f"{name}.param.{n + 1}"] = history[name][n]

source = inspect.getsource(_muon._zeropower_via_newtonschulz)
assert source.count("grad.bfloat16()") == 1
exec(source.replace("grad.bfloat16()", "grad.clone()"), _muon.__dict__)
history, _ = run()
for name in SHAPES:
    for n in range(STEPS):
        res[f"{name}.param_fp32.{n + 1}"] = history[name][n]

path = os.path.join(sys.argv[1], "muon.safetensors")
save_file({name: t.contiguous() for name, t in res.items()}, path, metadata={"format": "pt"})
os.chmod(path, 0o644)
worst = max((res[f"{n}.param.{STEPS}"] - res[f"{n}.param_fp32.{STEPS}"]).abs().max().item() for n in SHAPES)
print(f"largest difference that bfloat16 makes after {STEPS} steps: {worst:.3g}")
