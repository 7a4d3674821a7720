#!/usr/bin/env python3
"""Instruction data tokenized and packed: `dagmoe preview --all` beside datasets.map + tokenizers + trl's packing.

    python bench/data.py DAGMOE MODEL_FOLDER ALPACA.json [--megabytes 500] [--peer] [--json FILE] [--keep FOLDER]

The file is ALPACA.json's records again and again, each copy with another number behind its instruction, until it has so many megabytes. dagmoe's figure is one process
with two tokenizer threads that reads, checks, tokenizes, counts and packs every sample. `--peer` measures the Python side too (two processes, as datasets.map takes
them). Memory is the peak resident set of the process.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HEAD = "Below is an instruction that describes a task"


def write_file(records, path, num_bytes):
    size, copy = 0, 0
    with open(path, "w", encoding="utf-8") as f:
        while size < num_bytes:
            for record in records:
                line = json.dumps(dict(record, instruction=record["instruction"] + f" #{copy}"), ensure_ascii=False) + "\n"
                f.write(line)
                size += len(line.encode())
                if size >= num_bytes:
                    break
            copy += 1


def run_dagmoe(binary, model, data, folder, threads):
    recipe = folder / "preview.yaml"
    recipe.write_text(
        f"version: 1\noutput_dir: {folder}/run\nmodel: {{path: {model}}}\ntrainable: [full]\n"
        f"data:\n  train:\n    - {{path: {data}, format: alpaca, template: alpaca}}\n  max_seq_len: 512\n  max_bad_records: 1000000\n"
        f"  tokenizer_threads: {threads}\nbatch: {{tokens: 1024, micro_batch_tokens: 1024}}\n"
    )
    before = time.time()
    process = subprocess.Popen([binary, "preview", str(recipe), "--all", "--json", "-n", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env=dict(os.environ, OMP_NUM_THREADS="1", DAGMOE_CACHE=str(folder / "cache")))
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.time() - before
    if status:
        sys.exit(f"preview failed with status {status}")
    preview = json.loads(out)
    return {"seconds": round(seconds, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "samples": preview["samples_seen"], "tokens": preview["tokens"],
            "tokens_per_second": round(preview["tokens"] / seconds), "packing_efficiency": round(preview["packing"]["efficiency"], 4),
            "peak_megabytes": round(usage.ru_maxrss / 1000)}


PEER = r"""
import json, os, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import pack_dataset
tok = AutoTokenizer.from_pretrained(sys.argv[1]); head = sys.argv[3]
def encode(batch):
    ids, labels = [], []
    for instruction, text, output in zip(batch["instruction"], batch["input"], batch["output"]):
        prompt = (f"{head}, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{text}\n\n### Response:"
                  if text else f"{head}. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:")
        p = tok(prompt).input_ids; a = tok(output).input_ids + [tok.eos_token_id]
        ids.append((p + a)[:512]); labels.append(([-100] * len(p) + a)[:512])
    return {"input_ids": ids, "labels": labels}
cpu = lambda: sum(os.times()[:4])
cpu_before = cpu(); start = time.time(); data = load_dataset("json", data_files=sys.argv[2], split="train", cache_dir=sys.argv[4]); loaded = time.time()
data = data.map(encode, batched=True, num_proc=2, remove_columns=data.column_names); mapped = time.time()
tokens = sum(len(x) for x in data["input_ids"]); counted = time.time()
data = pack_dataset(data, 1024, "bfd"); packed = time.time()
print(json.dumps({"load_s": round(loaded - start, 1), "map_s": round(mapped - loaded, 1), "pack_s": round(packed - counted, 1), "tokens": tokens, "cpu_seconds": round(cpu() - cpu_before, 1),
                  "tokens_per_second": round(tokens / (mapped - start + packed - counted)), "tokens_per_second_without_loading": round(tokens / (mapped - loaded + packed - counted))}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dagmoe")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--keep")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(flags.keep or temporary)
        data = folder / f"alpaca_{flags.megabytes}.jsonl"
        if not data.exists():
            write_file(json.load(open(flags.data, encoding="utf-8")), data, flags.megabytes * 1_000_000)
        results = {"megabytes": flags.megabytes, "dagmoe": run_dagmoe(flags.dagmoe, flags.model, data, folder, flags.threads)}
        print(json.dumps(results), flush=True)
        if flags.peer:
            out = subprocess.run([sys.executable, "-c", PEER, flags.model, str(data), HEAD, str(folder / "hf")], check=True, capture_output=True, text=True).stdout
            results["hugging_face"] = json.loads(out.splitlines()[-1])
            results["ratio"] = round(results["dagmoe"]["tokens_per_second"] / results["hugging_face"]["tokens_per_second"], 2)
            print(json.dumps(results))
        if flags.json:
            pathlib.Path(flags.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
