"""The DAG part of a layer in float64, written pair by pair as its defining equations, with all gradients.

usage: make_dag.py OUT_DIR      writes dag.safetensors
T=7 tokens, D=24, K=4 slots, G=6, L=3 iterations.  Inputs, the same for every variant:
nodes [T,K,D]   gate times expert output, without residual
h [T,D], xn [T,D]   residual stream and normed input (two independent random tensors)
norm.l [D], down.l [G,D], edge.l [G,2G], node.l [G,2G], up.l [D,G], l = 0..L-1; eps []; dout [T,D]
Per variant V (hidden_state, normed_input, none: residual of the nodes, with layer norm; hidden_state_rms: RMS norm):
y.V [T,D]   sum of the final nodes
out.V [T,D] output of the layer: y for hidden_state and hidden_state_rms, h + y otherwise
grad.V.NAME gradient of sum(out.V * dout); NAME is an input or weight above that the variant uses
"""

import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.set_num_threads(1)
T, D, K, G, L, EPS = 7, 24, 4, 6, 3, 1e-5
gen = torch.Generator().manual_seed(0)


def rand(*shape, scale=1.0):
    return torch.randn(*shape, generator=gen, dtype=torch.float64) * scale


inputs = {"nodes": rand(T, K, D), "h": rand(T, D), "xn": rand(T, D)}
for l in range(L):
    inputs[f"norm.{l}"] = 1 + 0.2 * rand(D)
    inputs[f"down.{l}"] = rand(G, D, scale=0.2)
    inputs[f"edge.{l}"] = rand(G, 2 * G, scale=0.3)
    inputs[f"node.{l}"] = rand(G, 2 * G, scale=0.3)
    inputs[f"up.{l}"] = rand(D, G, scale=0.3)
dout = rand(T, D)


def forward(p, residual, rms):
    y = []
    for t in range(T):
        r = {"hidden_state": p["h"][t], "normed_input": p["xn"][t], "none": torch.zeros(D, dtype=torch.float64)}[
            residual
        ]
        x = [p["nodes"][t, i] + r / K for i in range(K)]
        for l in range(L):
            w = p[f"norm.{l}"]
            z = []
            for i in range(K):
                centred = x[i] if rms else x[i] - x[i].mean()
                u = centred / torch.sqrt((centred * centred).mean() + EPS) * w
                z.append(p[f"down.{l}"] @ u)
            new = []
            for i in range(K):
                s = torch.zeros(G, dtype=torch.float64)
                for j in range(K):
                    pair = torch.cat([z[i], z[j]])
                    s = s + F.silu(p[f"edge.{l}"] @ pair) * (p[f"node.{l}"] @ pair)
                new.append(p[f"up.{l}"] @ s + x[i])
            x = new
        y.append(sum(x[1:], x[0]))
    y = torch.stack(y)
    return y, (y if residual == "hidden_state" else p["h"] + y)


res = dict(inputs, dout=dout, eps=torch.tensor(EPS, dtype=torch.float64))
for name, residual, rms in (
    ("hidden_state", "hidden_state", False),
    ("normed_input", "normed_input", False),
    ("none", "none", False),
    ("hidden_state_rms", "hidden_state", True),
):
    p = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    y, out = forward(p, residual, rms)
    (out * dout).sum().backward()
    res[f"y.{name}"], res[f"out.{name}"] = y.detach(), out.detach().clone()
    for k, v in p.items():
        if v.grad is not None:
            assert v.grad.abs().max() > 0
            res[f"grad.{name}.{k}"] = v.grad
    print(name, "max |out|", out.detach().abs().max().item())
save_file(res, os.path.join(sys.argv[1], "dag.safetensors"), metadata={"format": "pt"})
os.chmod(os.path.join(sys.argv[1], "dag.safetensors"), 0o644)
