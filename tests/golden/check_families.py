"""What this project writes, opened by transformers: the round trip of every family. Development only; makes no file here.

usage: check_families.py DAGMOE_PROGRAM
For each folder of families/: `dagmoe export`, then transformers' stock classes must load it with nothing missing,
unexpected or mismatched, the same config, and the golden logits. For each family that can get a DAG: `dagmoe upcycle`
(dense families by each exact method, families with experts by the DAG alone), then `dagmoe export`; the remote code must
load it and give the golden logits of the source. Prints the largest difference of each; exits 1 above 1e-4.
"""

import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
program = sys.argv[1]
here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "families")
failed = False


def run(*args):
    done = subprocess.run([program, *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr}")


def check(what, folder, expected, source=None):
    global failed
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="float32", output_loading_info=True, attn_implementation="eager"
    )
    problems = {k: v for k, v in info.items() if v}
    worst = 0.0
    with torch.no_grad():
        for i in "012":
            logits = model(input_ids=expected[f"ids_{i}"][None].long(), use_cache=False).logits[0]
            worst = max(worst, (logits - expected[f"logits_{i}"]).abs().max().item())
    same_config = True
    if source is not None:
        a, b = AutoConfig.from_pretrained(source).to_dict(), AutoConfig.from_pretrained(folder).to_dict()
        for key in ("_name_or_path", "transformers_version"):
            a.pop(key, None), b.pop(key, None)
        same_config = a == b
    good = worst <= 1e-4 and not problems and same_config
    failed = failed or not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: max |logit difference| {worst:.2e}", problems or "", "" if same_config else "config differs")


with tempfile.TemporaryDirectory() as work:
    out, dag = os.path.join(work, "out"), os.path.join(work, "dag")
    for name in sorted(os.listdir(here)):
        source = os.path.join(here, name)
        expected = load_file(os.path.join(here, name.removesuffix("_fused"), "expected.safetensors"))
        run("export", "--model", source, "--output", out, "--force")
        check(f"{name}, exported", out, expected, source)
        if name in ("llama_bias", "qwen2_window"):
            continue  # no family with experts can express them; upcycle says so
        has_experts = AutoConfig.from_pretrained(source).model_type in ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2")
        for method in ["virtual_group"] if has_experts else ["virtual_group", "copy"]:
            run("upcycle", "--source", source, "--output", dag, "--method", method, "--dag-node-size", "4", "--force")
            run("export", "--model", dag, "--output", out, "--force")
            check(f"{name}, DAG by {'addition' if has_experts else method}", out, expected)
sys.exit(failed)
