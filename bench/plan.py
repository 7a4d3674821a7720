#!/usr/bin/env python3
"""What `dagmoe plan` estimates beside what the run then uses: peak resident memory of short runs, one row a recipe.

    python bench/plan.py DAGMOE DENSE_FOLDER DAG_MOE_FOLDER DATA.json [--only NAME,...] [--steps N] [--set KEY=VALUE] [--json FILE] [--samples FOLDER]
    python bench/plan.py ... --only full,dag --budgets 4

The second form gives each recipe so many values of memory.budget_gb, from what it takes with all layers kept down to what it takes with all of them run again: how many layers the run then
runs again, beside the peak and the seconds of a step.

DATA.json holds Alpaca records. Runs are written below a temporary folder and removed. `--samples` writes, for each run, a line for every 20 ms: seconds, anonymous and
file-backed resident bytes.
"""
import argparse
import json
import math
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


def metrics_of_run(command, run, samples):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if samples:
        watch(process, samples)
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{errors}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "peak_rss_bytes" in line]
    # The first step builds programs and touches memory.
    return {"measured": max(line["peak_rss_bytes"] for line in steps), "seconds": min(line["seconds"] for line in steps[1:] or steps)}


def plan_of(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return json.loads(result.stdout)


def plan_and_run(flags, name, more, runs=True):
    """The plan of a recipe with more settings, and what a run of it measured."""
    which, settings = RECIPES[name]
    with tempfile.TemporaryDirectory(prefix="dagmoe-plan-") as root:
        root = pathlib.Path(root)
        recipe = root / "recipe.yaml"
        recipe.write_text(recipe_text(getattr(flags, which), flags.data, root / "run"))
        settings = settings + [f"steps={flags.steps}"] + flags.set + more
        plan = plan_of([flags.dagmoe, "plan", str(recipe), *settings, "--json"])
        if not runs:
            return plan, None
        samples = str(pathlib.Path(flags.samples) / f"{name}.txt") if flags.samples else None
        return plan, metrics_of_run([flags.dagmoe, "finetune", str(recipe), *settings], root / "run", samples)


def estimates(flags, names):
    print(f"| {'recipe':20} | estimate, MB | measured, MB | ratio |\n|{'-' * 22}|---|---|---|", flush=True)
    for name in names:
        plan, run = plan_and_run(flags, name, [])
        memory = plan["memory"]
        ratio = memory["total"] / run["measured"]
        yield {"recipe": name, "ratio": ratio, "memory": memory, **run}
        print(f"| {name:20} | {memory['total'] / 1e6:,.0f} | {run['measured'] / 1e6:,.0f} | {ratio:.2f} |", flush=True)


def budgets(flags, names):
    print("| recipe | budget, GB | layers run again | at most, GB | measured, GB | seconds a step | more operations |\n|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        most, least = (plan_and_run(flags, name, more, runs=False)[0]["recompute"]["most_bytes"] for more in ([], ["recompute=true"]))
        for i in range(flags.budgets):
            bytes_allowed = most + (least - most) * i / max(flags.budgets - 1, 1)
            # A plan and a run of the same recipe differ by a few MB of program.
            budget = math.ceil(bytes_allowed / 5e7) / 20
            plan, run = plan_and_run(flags, name, [f"memory.budget_gb={budget}"])
            again = plan["recompute"]
            yield {"recipe": name, "budget_gb": budget, "memory": plan["memory"], "recompute": again, **run}
            layers = f"{len(again['layers'])} of {again['layers_reached']}"
            print(f"| {name} | {budget:.2f} | {layers} | {again['most_bytes'] / 1e9:.2f} | {run['measured'] / 1e9:.2f} | {run['seconds']:.1f} "
                  f"| {100 * again['added_flops_share']:.0f} % |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dagmoe", "dense", "moe", "data"):
        parser.add_argument(name)
    parser.add_argument("--only", help="names of recipes, separated by commas")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every recipe")
    parser.add_argument("--budgets", type=int, help="so many values of memory.budget_gb for each recipe")
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--samples", help="a folder for the memory of each run over time")
    flags = parser.parse_args()
    names = flags.only.split(",") if flags.only else list(RECIPES)
    rows = list(budgets(flags, names) if flags.budgets else estimates(flags, names))
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
