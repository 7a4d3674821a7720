#!/usr/bin/env python3
"""Fine-tuning beside the Python stack: tokens a second, memory, start-up and loss, on the same records in the same run.

    python bench/train.py full|dag|expert_lora --dagmoe BINARY --model SMOLLM2 [--moe MIXTRAL_FORM] --data ALPACA.json [--records 32] [--steps 6] [--repeats 3] [--threads 2]
                          [--peer-modes fp32,amp,bf16] [--only dagmoe] [--json FILE] [--markdown FILE]

full         every weight of SmolLM2; peer: TRL's SFTTrainer (fp32, bf16 autocast, pure bf16)
dag          only the DAG (L = 2, G = 64) of SmolLM2 upcycled to 8 experts of which 4 answer; peer: the same module written in plain PyTorch on transformers'
             Mixtral (factorised edges, bf16 autocast, frozen parameters without gradients), as a user would; its mode bf16 has the frozen weights in bf16
expert_lora  rank 8 on attention and both expert tensors; peer: peft's target_parameters through TRL

All get the same prompts and completions, the first `records` x `steps` that fit of the file in its order, the same tokens of them (compared), AdamW at the same rate. Real tokens only, without
padding; the first fifth of the steps (two at least) warms up. Programs run in turn, each in a process of its own. A peer's mode counts if its loss over the last half of the steps is within 1 %
of autocast's (where that was not run, of the first mode's). After the first turn only the fastest of these and those within 15 % of it go on. A ratio counts if dagmoe's loss is within 1 % too.
Start-up is from the launch of the process to the beginning of its first step. Operations are those that the workload needs (bench/flops.py); their share is of bf16 products at the model's own
shapes, measured in every turn, forward ones and, in brackets, all three of a layer. `6 N T` counts 6 for every weight and token, as is customary; the head over tokens that are not learnt is
in it, which nobody has to compute. With `--only dagmoe` no peer runs. Written after every run; a run that fails or takes longer than --timeout is named, and the others go on.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import flops
from train_peers import ALPHA, RANK
from workload import RunFailed, environment, failure, finetune, machine, machine_text, spread, warm_up, write_json

HEADER = "Below is an instruction that describes a task"
LENGTH, LR = 512, 2e-5
LOSS_LIMIT = 0.01
DAG = {"num_iterations": 2, "node_size": 64}


def alpaca_prompt(record):
    if record["input"]:
        return (f"{HEADER}, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n"
                f"### Instruction:\n{record['instruction']}\n\n### Input:\n{record['input']}\n\n### Response:")
    return f"{HEADER}. Write a response that appropriately completes the request.\n\n### Instruction:\n{record['instruction']}\n\n### Response:"


def write_records(data, count, folder):
    """JSON Lines with Alpaca's fields and, for the peers, prompt and completion; samples that would have to be cut are left out, as the two programs cut differently."""
    rows = []
    for record in json.loads(pathlib.Path(data).read_text()):
        if record["output"].strip() and sum(len(record[k]) for k in ("instruction", "input", "output")) < 1200:
            rows.append({**record, "prompt": alpaca_prompt(record), "completion": record["output"]})
        if len(rows) == count:
            break
    if len(rows) < count:
        sys.exit(f"{data}: found {len(rows)} records that fit, expected {count}")
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- One run of each. All give seconds, tokens, supervised, losses (a list each), peak_bytes, first_step_end_s.

def run_peer(name, spec, args):
    command = [sys.executable, str(pathlib.Path(__file__).with_name("train_peers.py")), name, json.dumps({**spec, "launched": time.time()})]
    try:
        result = subprocess.run(command, env=environment(args.threads), capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{name}: not done after {args.timeout:.0f} s") from None
    if result.returncode:
        raise RunFailed(failure(name, result.returncode, result.stderr))
    return json.loads(result.stdout.strip().splitlines()[-1])


def recipe_of(args, records):
    recipe = {"version": 1, "seed": 1, "dtype": "bfloat16", "model": {"path": str(args.folder)},
              "data": {"shuffle": False, "max_seq_len": LENGTH, "tokenization": "joined", "train": [{"path": str(records), "format": "alpaca", "template": "alpaca"}]},
              "batch": {"sequences": args.per_step, "micro_batch_tokens": args.micro_batch_tokens}, "steps": args.steps,
              "optimizer": {"name": "adamw", "lr": LR, "weight_decay": 0.0}, "schedule": {"kind": "constant"}, "max_grad_norm": 1.0,
              "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0, "checkpoint": {"every_steps": 0}}
    if args.workload == "full":
        return {**recipe, "trainable": ["full"]}
    if args.workload == "dag":
        return {**recipe, "trainable": ["dag"], "model": {**recipe["model"], "dag": DAG}}
    return {**recipe, "trainable": [], "lora": {"rank": RANK, "alpha": ALPHA, "targets": ["attention", "experts"]}}


def run_dagmoe(args, records, work):
    lines, first_end = finetune(args.dagmoe, recipe_of(args, records), work, args.threads, args.timeout, args.override)
    values = lambda key: [line[key] for line in lines]
    return {"seconds": values("seconds"), "tokens": values("tokens"), "computed": values("computed_tokens"), "supervised": values("supervised_tokens"), "losses": values("loss"),
            "peak_bytes": lines[-1]["peak_rss_bytes"], "first_step_end_s": first_end}


# ---- What the numbers say

def late_loss(run):
    return statistics.mean(run["losses"][len(run["losses"]) // 2 :])


def speed(run):
    first = warm_up(len(run["seconds"]))
    return sum(run["tokens"][first:]) / sum(run["seconds"][first:])


def start_up(run):
    return run["first_step_end_s"] - run["seconds"][0]


def operations(config, workload, run):
    """Needed, and 6 N T, of the steps that count."""
    first = warm_up(len(run["seconds"]))
    # Beginnings that samples share are computed once, and count once; a peer computes every token.
    tokens = sum(run.get("computed", run["tokens"])[first:])
    supervised, seconds = (sum(run[key][first:]) for key in ("supervised", "seconds"))
    steps = len(run["seconds"]) - first
    with_dag = {**config, "dag": DAG} if workload == "dag" else config
    trains = flops.TRAINS["none" if workload == "expert_lora" else workload]
    lora = (RANK, flops.EXPERT_LORA) if workload == "expert_lora" else None
    # Lengths matter to attention alone, a few per cent: records of the mean length.
    count = run["sequences"] * steps
    needed = flops.step_flops(with_dag, trains, tokens, supervised, [tokens / count] * count, lora)["total"]
    customary = flops.step_flops(with_dag, flops.TRAINS["full"], tokens, tokens)["products"]
    return needed / seconds / 1e9, customary / seconds / 1e9


class Comparison:
    def __init__(self, args, config):
        self.args, self.config, self.about = args, config, machine()
        self.runs, self.failures, self.rates = {}, {}, []

    def add(self, name, run):
        self.runs.setdefault(name, []).append({**run, "sequences": self.args.per_step})
        print(f"{len(self.runs[name])}: {name}: {speed(run):.1f} tokens/s, loss {late_loss(run):.4f}", file=sys.stderr, flush=True)

    def fail(self, name, error):
        self.failures.setdefault(name, []).append(str(error))
        print(f"{name} failed: {error}", file=sys.stderr, flush=True)

    def peers(self):
        return [name for name in self.runs if name != "dagmoe"]

    def keeping(self):
        """Peers' modes whose loss is that of autocast."""
        if not self.peers():
            return []
        judge = late_loss(self.runs["amp" if "amp" in self.runs else self.peers()[0]][0])
        return [name for name in self.peers() if abs(late_loss(self.runs[name][0]) / judge - 1) <= LOSS_LIMIT]

    def median_speed(self, name):
        return statistics.median(speed(run) for run in self.runs[name])

    def best_peer(self):
        return max(self.keeping(), key=self.median_speed, default=None)

    def worth_repeating(self, mode):
        """Not a mode that loses accuracy or was far slower than another in the first turn."""
        best = self.best_peer()
        return mode not in self.runs or best is None or (mode in self.keeping() and self.median_speed(mode) > 0.85 * self.median_speed(best))

    def row(self, name):
        runs = self.runs[name]
        needed, customary = zip(*(operations(self.config, self.args.workload, run) for run in runs))
        of_rate = lambda values: " | ".join([f"{statistics.median(values):,.0f}", self.share(values)])
        cells = [f"{name}{'' if len(runs) == self.args.repeats else f', {len(runs)} run' + 's' * (len(runs) > 1)}", spread([speed(run) for run in runs], 1),
                 spread([statistics.median(run["seconds"][warm_up(len(run["seconds"])) :]) for run in runs]), of_rate(needed)]
        if self.args.workload == "full":
            cells.append(self.share(customary))
        cells += [f"{statistics.median(run['peak_bytes'] for run in runs) / 1e6:,.0f}", spread([start_up(run) for run in runs], 1),
                  spread([run["seconds"][0] for run in runs]), f"{late_loss(runs[0]):.4f}"]
        return "| " + " | ".join(cells) + " |"

    def share(self, gflops):
        if not self.rates:
            return "-"
        rate = {kind: statistics.median(r[kind] for r in self.rates) for kind in ("forward", "all")}
        return f"{100 * statistics.median(gflops) / rate['forward']:.0f} % ({100 * statistics.median(gflops) / rate['all']:.0f} %)"

    def beside(self, peer):
        """None where one of the two never ran."""
        if peer is None or "dagmoe" not in self.runs:
            return None
        ours, theirs = self.runs["dagmoe"], self.runs[peer]
        memory = lambda runs: statistics.median(run["peak_bytes"] for run in runs)
        worst = max(abs(a / b - 1) for a, b in zip(ours[0]["losses"], theirs[0]["losses"]))
        return {"peer": peer, "ratios": [speed(a) / speed(b) for a, b in zip(ours, theirs)], "memory": memory(ours) / memory(theirs),
                "loss": late_loss(ours[0]) / late_loss(theirs[0]) - 1, "largest_loss_difference_of_a_step": worst,
                "tokens": sum(ours[0]["tokens"]) / sum(theirs[0]["tokens"]) - 1, "supervised_tokens": sum(ours[0]["supervised"]) / sum(theirs[0]["supervised"]) - 1}

    def markdown(self):
        args = self.args
        lines = [f"{args.workload}: {args.steps} steps of {args.per_step} records, micro batches of {args.micro_batch_tokens:,} tokens (peers: {min(args.peer_micro, args.per_step)} records), "
                 f"{args.threads} threads, up to {args.repeats} runs each in turn: median (least-most)", machine_text(self.about)]
        if self.rates:
            lines.append("bf16 products at the model's shapes, GFLOP/s: forward " + spread([r["forward"] for r in self.rates], 0) + ", with both gradients " + spread([r["all"] for r in self.rates], 0))
        customary = " share by 6 N T |" if args.workload == "full" else ""
        lines += ["", f"| | tokens/s | step, s | GFLOP/s needed | share of the products' rate |{customary} peak MB | start-up, s | first step, s | loss, last half |",
                  "|---" * (10 if customary else 9) + "|"]
        lines += [self.row(name) for name in self.runs]
        for name, errors in self.failures.items():
            lines.append(f"\n{name}: {len(errors)} of its runs failed: {errors[0].splitlines()[0]}")
        best = self.best_peer()
        for found in filter(None, map(self.beside, self.peers())):
            name = f"{found['peer']}, the best that keeps the loss" if found["peer"] == best else found["peer"]
            lines.append(f"\nbeside {name}: {spread(found['ratios'])} times the tokens a second, memory {found['memory']:.2f}, loss {100 * found['loss']:+.2f} % "
                         f"(a step at most {100 * found['largest_loss_difference_of_a_step']:.2f} %)" + ("" if abs(found["loss"]) <= LOSS_LIMIT else ": MORE THAN 1 %, the ratio does not count"))
            if found["tokens"] or found["supervised_tokens"]:
                lines.append(f"NOT THE SAME TOKENS: dagmoe has {100 * found['tokens']:+.2f} % of all and {100 * found['supervised_tokens']:+.2f} % of those that are learnt")
        return "\n".join(lines) + "\n"

    def write(self):
        write_json(self.args.json, {"workload": self.args.workload, "machine": self.about, "steps": self.args.steps, "records_per_step": self.args.per_step, "threads": self.args.threads,
                                    "gemm_gflops": self.rates, "runs": self.runs, "failures": self.failures, "best_peer": self.best_peer(), "beside": [self.beside(name) for name in self.peers()]})
        if self.args.markdown:
            self.args.markdown.write_text(self.markdown())


def compare(args, modes, work):
    if args.workload != "full":
        args.folder = pathlib.Path(run_peer("mixtral", {"folder": str(args.moe), "work": str(work)}, args))
    config = json.loads((args.folder / "config.json").read_text())
    comparison = Comparison(args, config)
    records = write_records(args.data, args.per_step * args.steps, work)
    base = {"workload": args.workload, "records": str(records), "model": str(args.folder), "threads": args.threads, "steps": args.steps, "per_step": args.per_step,
            "peer_micro": args.peer_micro, "length": LENGTH, "lr": LR, "work": str(work / "trl")}
    gemm = {"threads": args.threads, "config": config, "tokens": args.micro_batch_tokens, "supervised": args.micro_batch_tokens // 2}
    peer = "plain_dag" if args.workload == "dag" else "trl"

    def attempt(name, run, add):
        try:
            add(run())
        except RunFailed as error:
            comparison.fail(name, error)
        comparison.write()

    for _ in range(args.repeats):
        attempt("products", lambda: run_peer("gemm", gemm, args), comparison.rates.append)
        for mode in filter(comparison.worth_repeating, modes):
            attempt(mode, lambda: run_peer(peer, {**base, "mode": mode}, args), lambda run: comparison.add(mode, run))
        attempt("dagmoe", lambda: run_dagmoe(args, records, work), lambda run: comparison.add("dagmoe", run))
    return comparison


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=["full", "dag", "expert_lora"])
    parser.add_argument("--dagmoe", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, help="SmolLM2 as a folder, for full")
    parser.add_argument("--moe", type=pathlib.Path, help="its upcycled form, for the others: in Mixtral's layout, or as dagmoe upcycle writes it, whose DAG is left out")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="Alpaca records")
    parser.add_argument("--records", dest="per_step", type=int, default=32, help="a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--peer-micro", type=int, default=8, help="records of a peer's micro batch: few pad less, and throughput hardly changes above 8")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-modes", default="amp,bf16,fp32", help="in this order; default all")
    parser.add_argument("--only", choices=["dagmoe"], help="without peers")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="of dagmoe's recipe; again for more")
    parser.add_argument("--timeout", type=float, default=2400, help="seconds of a run, after which it counts as failed")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    args.folder = args.model if args.workload == "full" else args.moe
    modes = [] if args.only else args.peer_modes.split(",")
    if args.folder is None:
        parser.error("--model is missing" if args.workload == "full" else "--moe is missing")
    for path in (args.dagmoe, args.folder / "config.json", args.data):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    if unknown := [mode for mode in modes if mode not in ("fp32", "amp", "bf16")]:
        parser.error(f"--peer-modes: found {', '.join(unknown)}, known: fp32, amp, bf16")
    if args.per_step % min(args.peer_micro, args.per_step):
        parser.error(f"--records {args.per_step} is no multiple of --peer-micro {args.peer_micro}")
    with tempfile.TemporaryDirectory(prefix="dagmoe-train-") as work:
        try:
            comparison = compare(args, modes, pathlib.Path(work))
        except RunFailed as error:
            sys.exit(str(error))
    print(comparison.markdown(), end="")
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
