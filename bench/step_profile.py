#!/usr/bin/env python3
"""Where the processor's time goes: samples of `perf` by kind of work, one table with a column a workload.

    python bench/step_profile.py DAGMOE --model SMOLLM2 --moe MIXTRAL_FORM --data ALPACA.json [--workloads full,dag,expert_lora,eval] [--seconds 60] [--threads 2] [--json FILE] [--top 0]

full, dag and expert_lora are bench/train.py's and are sampled from the end of the first step on. eval scores the shipped records of ARC-Easy, PIQA and HellaSwag in bfloat16 and is
sampled from two seconds after its launch, or until it is done. Times are self times: products inside attention that go through LibTorch's matrix products count as products, what the
attention kernels compute themselves as attention. oneDNN's kernels, made at run time and nameless, are products too, and its few reorders with them. "Waiting" is a thread that spins or
sleeps in OpenMP until the others are done. Needs perf (Debian: linux-perf) and kernel.perf_event_paranoid <= 2; at 2, for other users than root, page faults and the kernel's copies cannot
be sampled, and the first line says so.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from train import recipe_of, write_records
from workload import RunFailed, as_mixtral, environment, machine, machine_text, write_json

FREQUENCY = 299
# Of an object file and a symbol the first that fits. dagmoe's own kernels by their names, LibTorch's by theirs.
GROUPS = [
    ("kernel (page faults, files)", r"^\[kernel|^\[guest"),
    ("waiting for a thread", r"^libgomp|^libiomp"),
    ("attention", r"[Aa]ttention|flash|row_softmax"),
    ("DAG (nodes, pairs)", r"dag_"),
    ("cross entropy", r"cross_entropy|CrossEntropy|log_softmax|log_sum_exp"),
    ("optimizer, gradient norms", r"adam|sgd|muon|foreach|grad_norm|norm_reduce|NormTwo|linalg_vector_norm"),
    ("matrix products", r"\[JIT\]|^//anon|^\[unknown\]|mkl_|brgemm_matmul|brgemm_kernel|parallel_nd|cpublas|few_rows|small_gemm"),
    ("setting products up", r"dnnl|ideep|gemm"),
    ("copies and allocation", r"^libc\.so\S* .*(mem(cpy|move|set)|alloc|free|unlink_chunk)|copy_kernel|direct_copy|copy_impl|rows_to_floats|floats_to_rows|index_select|Gather|gather_|_gather|"
                              r"cat_(serial|contig)|CatArray|index_(put|add)|[aA]llocator|raw_deleter"),
    ("element-wise kernels", r"rms_norm|rope|swiglu|silu|layer_?norm|LayerNorm|vectorized_|Vectorized|binary_kernel|unary_kernel|sum_kernel|topk|softmax|embedding|Sleef|cascade_sum|loop2d"),
    ("calls (operators, autograd)", r"at::|c10::|torch::|std::|^libc10|^libc\.so|^ld-|^libstdc|pthread_"),
]
REST = "the rest"


def group_of(dso, symbol):
    return next((name for name, pattern in GROUPS if re.search(pattern, f"{dso} {symbol}")), REST)


def command_of(workload, args, work):
    """The program to sample, and a file with a line once it is warm; without one it is given two seconds."""
    if workload == "eval":
        return [args.dagmoe, "eval", "--model", args.model, "--tasks", "arc_easy,piqa,hellaswag", "--data-dir", pathlib.Path(__file__).parents[1] / "datasets", "--dtype", "bfloat16",
                "--output", work / "eval"], None
    settings = argparse.Namespace(workload=workload, folder=args.model if workload == "full" else as_mixtral(args.moe, work), per_step=args.per_step, micro_batch_tokens=args.micro_batch_tokens, steps=100000)
    recipe = work / f"{workload}.yaml"
    recipe.write_text(json.dumps({**recipe_of(settings, write_records(args.data, 1000, work)), "output_dir": str(work / workload)}))
    return [args.dagmoe, "finetune", recipe], work / workload / "metrics.jsonl"


def wait_until_warm(process, sign, timeout, log):
    begin = time.time()
    if sign is None:
        time.sleep(2)
    while sign is not None and process.poll() is None and not (sign.exists() and '"tokens"' in sign.read_text()):
        if time.time() - begin > timeout:
            raise RunFailed(f"no first step within {timeout:.0f} s")
        time.sleep(0.1)
    if process.poll() is not None:
        raise RunFailed(f"ended before it could be sampled, exit {process.returncode}\n{log.read_text()[-2000:]}")


def sample(workload, args, work):
    """{group: samples}, {group: the largest symbols} and seconds of the steps that were sampled."""
    command, sign = command_of(workload, args, work)
    data, log = work / "perf.data", work / "log.txt"
    with open(log, "w") as out:
        process = subprocess.Popen([str(part) for part in command], env=environment(args.threads), stdout=out, stderr=out)
        try:
            wait_until_warm(process, sign, args.timeout, log)
            perf = ["perf", "record", "-q", "-F", str(FREQUENCY), "-p", str(process.pid), "-o", str(data), "--", "sleep", str(args.seconds)]
            subprocess.run(perf, check=True, stdout=subprocess.DEVNULL)
            seconds = [json.loads(line)["seconds"] for line in sign.read_text().splitlines() if '"seconds"' in line][1:] if sign else []
        finally:
            process.kill()
            process.wait()
    report = subprocess.run(["perf", "report", "-i", str(data), "--stdio", "--no-children", "-F", "period,dso,symbol", "-t", "\t", "-w", "0", "--percent-limit", "0"],
                            capture_output=True, text=True, check=True).stdout
    totals, symbols = collections.Counter(), collections.defaultdict(collections.Counter)
    for line in report.splitlines():
        parts = [part.strip() for part in line.split("\t")]
        if line.startswith("#") or len(parts) < 3:
            continue
        group = group_of(parts[1], parts[2])
        totals[group] += int(parts[0])
        symbols[group][short(parts[1], parts[2])] += int(parts[0])
    return totals, symbols, seconds


def short(dso, symbol):
    """Without parameters, and products made at run time by their object alone."""
    if "[JIT]" in dso:
        return "[JIT]"
    name = re.sub(r"0x[0-9a-f]+", "?", symbol.replace("[.] ", "").replace("[k] ", ""))
    return f"{dso}: {name[:140]}"


def table(columns):
    names = [name for name, _ in GROUPS] + [REST]
    print("\n| self time, % | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name in names:
        share = [100 * totals[name] / sum(totals.values()) for totals, _, _ in columns.values()]
        if any(share):
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in share) + " |")
    medians = [f"{statistics.median(seconds):.2f}" if seconds else "-" for _, _, seconds in columns.values()]
    print("| seconds a step | " + " | ".join(medians) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dagmoe", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="SmolLM2 as a folder")
    parser.add_argument("--moe", type=pathlib.Path, help="its upcycled form, for dag and expert_lora")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="Alpaca records")
    parser.add_argument("--workloads", default="full,dag,expert_lora,eval")
    parser.add_argument("--records", dest="per_step", type=int, default=32, help="a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--seconds", type=int, default=60, help="sampled of each")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to the end of the first step, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top", type=int, default=0, help="also print so many symbols of each kind of work")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    names = args.workloads.split(",")
    if unknown := [name for name in names if name not in ("full", "dag", "expert_lora", "eval")]:
        parser.error(f"--workloads: found {', '.join(unknown)}, known: full, dag, expert_lora, eval")
    if args.moe is None and {"dag", "expert_lora"} & set(names):
        parser.error("--moe is missing")
    if shutil.which("perf") is None:
        parser.error("perf is missing: apt-get install linux-perf")
    sees_kernel = os.geteuid() == 0 or int(pathlib.Path("/proc/sys/kernel/perf_event_paranoid").read_text()) < 2
    print(f"{machine_text(machine())}; {args.threads} threads, {args.seconds} s of each, {FREQUENCY} samples a second"
          + ("" if sees_kernel else "; the kernel's time is left out"), flush=True)
    columns, failed = {}, False
    for name in names:
        try:
            with tempfile.TemporaryDirectory(prefix="dagmoe-profile-") as work:
                columns[name] = sample(name, args, pathlib.Path(work))
        except RunFailed as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
        write_json(args.json, {key: {"samples": totals, "largest": {g: dict(s.most_common(12)) for g, s in symbols.items()}, "step_seconds": seconds}
                               for key, (totals, symbols, seconds) in columns.items()})
    if columns:
        table(columns)
    for name, (totals, symbols, _) in columns.items() if args.top else ():
        print(f"\n{name}")
        for group in totals:
            for symbol, count in symbols[group].most_common(args.top):
                print(f"  {100 * count / sum(totals.values()):5.1f} %  {group}: {symbol}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
