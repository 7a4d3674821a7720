"""Learning-rate factors of transformers' schedules.

usage: make_schedules.py OUT_DIR      writes schedules.json
Each entry: our configuration (kind, warmup_steps, min_lr_ratio, decay_fraction, decay), num_steps, steps and their
factors.  transformers' warm-up begins at 0, ours at 1 / warmup_steps, so only steps from the end of the warm-up on are
kept, and there both must agree.  Our shape sqrt is transformers' "1-sqrt".
"""

import json
import os
import sys

import torch
from transformers import optimization

NUM_STEPS = 200


def factors(make, steps):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = make(opt).lr_lambdas[0]
    return [factor(step) for step in steps]


def entry(make, warmup_steps, num_steps=NUM_STEPS, **config):
    steps = sorted({*range(warmup_steps, num_steps, max(1, num_steps // 25)), num_steps - 1})
    config = {"warmup_steps": warmup_steps, "min_lr_ratio": 0.0, "decay_fraction": 0.2, "decay": "cosine", **config}
    return {**config, "num_steps": num_steps, "steps": steps, "factors": factors(make, steps)}


def wsd(decay, decay_type, floor):
    return entry(
        lambda opt: optimization.get_wsd_schedule(
            opt, 20, 50, num_training_steps=NUM_STEPS, decay_type=decay_type, min_lr_ratio=floor
        ),
        20,
        kind="wsd",
        decay=decay,
        decay_fraction=0.25,
        min_lr_ratio=floor,
    )


entries = [
    entry(lambda opt: optimization.get_linear_schedule_with_warmup(opt, 10, NUM_STEPS), 10, kind="linear"),
    entry(lambda opt: optimization.get_cosine_schedule_with_warmup(opt, 10, NUM_STEPS), 10, kind="cosine"),
    entry(
        lambda opt: optimization.get_cosine_with_min_lr_schedule_with_warmup(opt, 10, NUM_STEPS, min_lr_rate=0.1),
        10,
        kind="cosine",
        min_lr_ratio=0.1,
    ),
    entry(lambda opt: optimization.get_inverse_sqrt_schedule(opt, 30), 30, kind="inverse_sqrt"),
    entry(lambda opt: optimization.get_inverse_sqrt_schedule(opt, 0), 0, num_steps=50_000, kind="inverse_sqrt"),
    wsd("cosine", "cosine", 0.0),
    wsd("cosine", "cosine", 0.1),
    wsd("linear", "linear", 0.1),
    wsd("sqrt", "1-sqrt", 0.1),
]
with open(os.path.join(sys.argv[1], "schedules.json"), "w") as file:
    file.write("[" + ",\n ".join(json.dumps(entry) for entry in entries) + "]\n")
