"""Ten steps of torch.optim.AdamW in fp32 with recorded gradients.

usage: make_adamw.py OUT_DIR      writes adamw.safetensors
betas 0.9 and 0.999, eps 1e-8, weight decay 0.1, learning rate 1e-2.  Tensors: param.0 is the start, param.N [3,5] the
value after step N = 1..10, grad.N the gradient of step N, exp_avg and exp_avg_sq the state after step 10.
"""

import os
import sys

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
gen = torch.Generator().manual_seed(0)
p = torch.nn.Parameter(torch.randn(3, 5, generator=gen))
opt = torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False, fused=False)
scale = torch.tensor([1.0, 1e-2, 1e-6, 0.0, 30.0])  # one column without gradient: decay only
res = {"param.0": p.detach().clone()}
for n in range(1, 11):
    p.grad = torch.randn(3, 5, generator=gen) * scale
    res[f"grad.{n}"] = p.grad.clone()
    opt.step()
    res[f"param.{n}"] = p.detach().clone()
res["exp_avg"] = opt.state[p]["exp_avg"].clone()
res["exp_avg_sq"] = opt.state[p]["exp_avg_sq"].clone()
save_file(res, os.path.join(sys.argv[1], "adamw.safetensors"), metadata={"format": "pt"})
os.chmod(os.path.join(sys.argv[1], "adamw.safetensors"), 0o644)
