"""The step times of torch's and bitsandbytes' optimizers over the tensors of optimizer_bench.cpp.

usage: optimizer.py [THREADS]      prints milliseconds for 10 million parameters, least and median
"""

import sys
import time

import torch

if len(sys.argv) > 1:
    torch.set_num_threads(int(sys.argv[1]))
HIDDEN, KV, WIDTH = 576, 192, 1536
VECTORS = [(HIDDEN,)] * 2
MATRICES = [(HIDDEN, HIDDEN), (KV, HIDDEN), (KV, HIDDEN), (HIDDEN, HIDDEN), (WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)]


def parameters(shapes):
    params = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes * 3]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def line(name, size, work):
    work()
    seconds = []
    while len(seconds) < 7 or (sum(seconds) < 1.0 and len(seconds) < 200):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    scale = 1e3 * 1e7 / size
    print(f"{name:<26} {seconds[0] * scale:9.2f} {seconds[len(seconds) // 2] * scale:9.2f}", flush=True)


params, matrices, vectors = parameters(VECTORS + MATRICES), parameters(MATRICES), parameters(VECTORS)
size = sum(p.numel() for p in params)
print(f"threads {torch.get_num_threads()}, {size} parameters, ms for 10 million")
for name, options in {"AdamW fused": {"fused": True}, "AdamW foreach": {"foreach": True}}.items():
    opt = torch.optim.AdamW(params, lr=1e-5, weight_decay=0.1, **options)
    line(f"torch {name}", size, opt.step)
try:
    import bitsandbytes

    line("bitsandbytes AdamW8bit", size, bitsandbytes.optim.AdamW8bit(params, lr=1e-5, weight_decay=0.1).step)
except ImportError:
    print("bitsandbytes is not installed")
muon = torch.optim.Muon(matrices, lr=1e-5, adjust_lr_fn="match_rms_adamw")
rest = torch.optim.AdamW(vectors, lr=1e-5, weight_decay=0.1, fused=True)
line("torch Muon (bf16) + AdamW", size, lambda: (muon.step(), rest.step()))
line("torch SGD fused", size, torch.optim.SGD(params, lr=1e-5, momentum=0.95, nesterov=True, fused=True).step)
line("torch _foreach_norm", size, lambda: torch._foreach_norm([p.grad for p in params]))
