"""Loading a model folder: this project beside transformers, in turn, on the same folders. Development only.

usage: load.py LOAD_BENCH FOLDER [FOLDER ...] [--repeats N] [--dtype float32|bfloat16] [--json FILE]
LOAD_BENCH is build/bench/load_bench. Both programs load a folder with frozen weights and compute the logits of 16 tokens.
Prints medians and spread of: seconds from process start to exit (what a user waits, imports included), seconds from the
first statement after imports to the logits, and peak resident memory; with the ratio transformers / ours, pair by pair.
A dagmoe folder is loaded by transformers as the Mixtral it becomes without its DAG (made beside it once, in /tmp).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from workload import as_mixtral

PEER = "--peer"


def peer(folder, dtype):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.requires_grad_(False)
    load = time.perf_counter() - begin
    ids = (torch.arange(16) * 37 + 11) % model.config.vocab_size
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    print(
        json.dumps(
            {
                "load_seconds": load,
                "first_forward_seconds": time.perf_counter() - begin,
                # Not getrusage: its maximum outlives exec, so it may be that of the program which started this one.
                "peak_rss_bytes": int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024,
                "argmax": int(logits[-1].argmax()),
            }
        )
    )


def run(command):
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "process_seconds": time.perf_counter() - begin}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json")
    flags = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for folder in flags.folders:
            plain = as_mixtral(folder, work)
            ours, theirs = [], []
            for repeat in range(flags.repeats + 1):  # the first of each warms the file cache
                a = run([flags.program, plain, flags.dtype])
                b = run([sys.executable, os.path.abspath(__file__), PEER, plain, flags.dtype])
                if flags.dtype == "float32" and a["argmax"] != b["argmax"]:
                    sys.exit(f"{folder}: the two programs predict other tokens")
                if repeat > 0:
                    ours.append(a), theirs.append(b)
            size = os.path.getsize(os.path.join(plain, "model.safetensors"))
            print(f"\n{folder} ({size / 1e6:.0f} MB), {flags.dtype}, medians of {flags.repeats} (min-max)\n")
            print("| | ours | transformers | ratio |\n|---|---|---|---|")
            results[folder] = {"ours": ours, "transformers": theirs, "bytes": size}
            for key, unit, scale in (
                ("process_seconds", "s", 1),
                ("load_seconds", "s", 1),
                ("first_forward_seconds", "s", 1),
                ("peak_rss_bytes", "MB", 1e-6),
            ):
                x, y = [r[key] * scale for r in ours], [r[key] * scale for r in theirs]
                ratio = statistics.median(v / u for u, v in zip(x, y))
                text = lambda v: f"{statistics.median(v):.3g} {unit} ({min(v):.3g}-{max(v):.3g})"  # noqa: E731
                print(f"| {key.replace('_', ' ')} | {text(x)} | {text(y)} | {ratio:.1f} |")
    if flags.json:
        json.dump(results, open(flags.json, "w"), indent=1)


if len(sys.argv) > 1 and sys.argv[1] == PEER:
    peer(*sys.argv[2:4])
else:
    main()
