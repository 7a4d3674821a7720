"""Logits of SmolLM2-135M-Instruct (dequantised, fp32) at every position of eight prompts.

usage: make_smollm2_logits.py MODEL_DIR OUT_DIR [--full FULL.safetensors]
OUT_DIR gets smollm2_logits.safetensors and smollm2_logits.json.
Tensors: vocab_ids [128]; per prompt N ids.N [T], logits.N [T,128] (columns vocab_ids), logsumexp.N [T] and argmax.N [T]
over the whole vocabulary.  FULL gets ids.N and logits.N [T,49152].
"""

import argparse
import json
import os

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ap = argparse.ArgumentParser()
ap.add_argument("model")
ap.add_argument("out")
ap.add_argument("--full")
args = ap.parse_args()
torch.set_num_threads(1)
tok = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
golden = "The capital of France is Paris, and the largest city in Japan is Tokyo. Water boils at"
prompts = [
    golden,
    "Hi",
    "Question: What is 12 + 7?\nAnswer:",
    "def fib(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time there was a small fox who lived at the edge of a quiet wood. Every morning the fox went down to "
    "the river to drink, and every morning an old heron asked the same question: why do you never look at the water "
    "before you drink from it? One day the fox stopped and",
    "caf\u00e9 \u2014 \u6771\u4eac \U0001f600 1999",
    "\n\n  x = [1, 2,  3]\t# done",
]
vocab = model.config.vocab_size
vocab_ids = torch.arange(128) * (vocab // 128)
small, full, meta = {"vocab_ids": vocab_ids.int()}, {}, []
for n, text in enumerate(prompts):
    ids = torch.tensor([tok(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    small[f"ids.{n}"] = ids[0].int()
    small[f"logits.{n}"] = logits[:, vocab_ids].contiguous()
    small[f"logsumexp.{n}"] = torch.logsumexp(logits.double(), -1).float()
    small[f"argmax.{n}"] = logits.argmax(-1).int()
    full[f"ids.{n}"] = ids[0].int()
    full[f"logits.{n}"] = logits
    nll = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:]).item() if ids.shape[1] > 1 else None
    meta.append({"text": text, "ids": ids[0].tolist(), "mean_nll": None if nll is None else round(nll, 7)})
assert round(meta[0]["mean_nll"], 4) == 3.0778 and len(meta[0]["ids"]) == 19
versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
save_file(small, os.path.join(args.out, "smollm2_logits.safetensors"), metadata={"format": "pt"})
with open(os.path.join(args.out, "smollm2_logits.json"), "w") as f:
    f.write(
        '{"versions": '
        + json.dumps(versions)
        + ', "golden_nll": '
        + json.dumps(meta[0]["mean_nll"])
        + ', "prompts": [\n'
    )
    f.write(",\n".join(json.dumps(m) for m in meta) + "\n]}\n")
if args.full:
    save_file(full, args.full, metadata={"format": "pt"})
print([len(m["ids"]) for m in meta], meta[0]["mean_nll"])
