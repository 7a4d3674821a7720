#!/usr/bin/env python3
"""What `dagmoe plan` estimates beside what the run then uses: peak resident memory of short runs, one row a recipe.

    python bench/plan.py DAGMOE DENSE_FOLDER DAG_MOE_FOLDER DATA.json [--only NAME,...] [--steps N] [--json FILE] [--samples FOLDER]

DATA.json holds Alpaca records. Runs are written below a temporary folder and removed. `--samples` writes, for each run, a line for every 20 ms: seconds, anonymous and
file-backed resident bytes.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

# name: (which model, settings)
RECIPES = {
    "full": ("dense", ["trainable=[full]"]),
    "full_recompute": ("dense", ["trainable=[full]", "recompute=true"]),
    "full_adamw_8bit": ("dense", ["trainable=[full]", "optimizer.name=adamw_8bit"]),
    "full_muon": ("dense", ["trainable=[full]", "optimizer.name=muon"]),
    "full_float32": ("dense", ["trainable=[full]", "dtype=float32", "batch.micro_batch_tokens=512"]),
    "full_2048_tokens": ("dense", ["trainable=[full]", "batch.micro_batch_tokens=2048"]),
    "attention_unpacked": ("dense", ["trainable=[attention]", "batch.tokens=1024", "data.packing=false"]),
    "dag": ("moe", ["trainable=[dag]"]),
    "dag_float32": ("moe", ["trainable=[dag]", "dtype=float32", "batch.micro_batch_tokens=512"]),
    "dag_recompute": ("moe", ["trainable=[dag]", "recompute=true"]),
    "router": ("moe", ["trainable=[router]", "router_aux_loss_coef=0.01", "router_z_loss_coef=0.001"]),
    "attention": ("moe", ["trainable=[attention]"]),
    "experts_last_10": ("moe", ["trainable=[{group: experts, layers: [20..29]}]"]),
    "lora": ("dense", ["trainable=[]", "lora.targets=[attention, mlp]"]),
    "lora_float32": ("dense", ["trainable=[]", "lora.targets=[attention, mlp]", "dtype=float32", "batch.micro_batch_tokens=512"]),
    "dora": ("dense", ["trainable=[]", "lora.targets=[attention, mlp]", "lora.kind=dora"]),
    "smore": ("dense", ["trainable=[]", "lora.targets=[attention]", "lora.kind=smore", "lora.alpha=8"]),
    "smora": ("dense", ["trainable=[]", "lora.targets=[attention]", "lora.kind=smora", "lora.rank=64"]),
    "lora_experts": ("moe", ["trainable=[]", "lora.targets=[experts]"]),
    "lora_all": ("moe", ["trainable=[dag]", "lora.targets=[attention, router, experts]"]),
    "full_moe": ("moe", ["trainable=[full]"]),
    "full_moe_recompute": ("moe", ["trainable=[full]", "recompute=true"]),
}


def recipe_text(model, data, output):
    return f"""version: 1
output_dir: {output}
model: {{path: {model}}}
trainable: [full]
data:
  train:
    - {{path: {data}, format: alpaca, template: alpaca}}
  max_bad_records: 1000
batch: {{tokens: 2048, micro_batch_tokens: 1024}}
steps: 3
"""


def resident(pid):
    """Anonymous and file-backed resident bytes of a process."""
    values = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "RssFile"):
            values[key] = int(value.split()[0]) * 1024
    return values["RssAnon"], values["RssFile"]


def watch(process, file):
    started = time.monotonic()
    with open(file, "w") as out:
        while process.poll() is None:
            try:
                anonymous, mapped = resident(process.pid)
            except (OSError, KeyError):
                break
            out.write(f"{time.monotonic() - started:.2f} {anonymous} {mapped}\n")
            time.sleep(0.02)


def peak_of_run(command, run, samples):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if samples:
        watch(process, samples)
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{errors}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(line.get("peak_rss_bytes", 0) for line in lines)


def plan_of(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return json.loads(result.stdout)["memory"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dagmoe", "dense", "moe", "data"):
        parser.add_argument(name)
    parser.add_argument("--only", help="names of recipes, separated by commas")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--samples", help="a folder for the memory of each run over time")
    flags = parser.parse_args()
    names = flags.only.split(",") if flags.only else list(RECIPES)
    rows = []
    print(f"| {'recipe':20} | estimate, MB | measured, MB | ratio |\n|{'-' * 22}|---|---|---|", flush=True)
    for name in names:
        which, settings = RECIPES[name]
        with tempfile.TemporaryDirectory(prefix="dagmoe-plan-") as root:
            root = pathlib.Path(root)
            recipe = root / "recipe.yaml"
            recipe.write_text(recipe_text(getattr(flags, which), flags.data, root / "run"))
            settings = settings + [f"steps={flags.steps}"]
            plan = plan_of([flags.dagmoe, "plan", str(recipe), *settings, "--json"])
            samples = str(pathlib.Path(flags.samples) / f"{name}.txt") if flags.samples else None
            measured = peak_of_run([flags.dagmoe, "finetune", str(recipe), *settings], root / "run", samples)
        ratio = plan["total"] / measured
        rows.append({"recipe": name, "measured": measured, "ratio": ratio, "memory": plan})
        print(f"| {name:20} | {plan['total'] / 1e6:,.0f} | {measured / 1e6:,.0f} | {ratio:.2f} |", flush=True)
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
