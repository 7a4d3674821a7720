"""The evaluation beside lm-eval 0.4.13 (HF backend, CPU): same records, dtype, threads and machine, in turn. Development only.

usage: eval.py DAGMOE MODEL SHARED_DATA [--cases NAMES] [--dtypes float32,bfloat16] [--limit N] [--repeats 3] [--threads 2]
               [--json FILE] [--max-batch-tokens N]

lm-eval runs at the fastest of the batch sizes 8, 16, 32 and 64 on the first documents of each case (found once, in a process
of its own, so that a slower try leaves no trace in the peak of memory), with its own sorting by length and its logits cache.
Time is that of scoring alone in both programs: what lm-eval spends inside loglikelihood or generate_until, and the seconds
that dagmoe's results.json gives as spent by the model. Loading is reported beside it. Peaks are those of each process
(VmHWM of lm-eval's, wait4 of dagmoe's). Share is dagmoe's arithmetic (2 x weights x tokens computed, and 2 x vocabulary x
hidden size x rows scored; attention is left out) over what this machine's matrix products reach at the model's shapes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from measure import peak_of_this_process

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/golden"))

SUBJECTS = ("marketing", "conceptual_physics", "us_foreign_policy")
# name: (tasks, shots, documents of each task, documents of the trial of batch sizes)
CASES = {
    "arc_easy": (("arc_easy",), 0, 200, 16),
    "hellaswag": (("hellaswag",), 0, 200, 16),
    "piqa": (("piqa",), 0, 200, 32),
    "hellaswag_10": (("hellaswag",), 10, 40, 4),
    "mmlu_5": (tuple("mmlu_" + s for s in SUBJECTS), 5, 40, 8),
    "gsm8k_5": (("gsm8k",), 5, 24, 24),
}
BATCHES = (8, 16, 32, 64)
TRIAL_NEW_TOKENS = 32


# ---- In a process of its own: lm-eval


def make_all(spec):
    from eval_records import make_records

    return {name: make_records(name, spec["data"], os.path.join(spec["work"], "records")) for name in spec["tasks"]}


class Clock:
    """Time inside lm-eval's scoring methods, and the tokens its passes computed, padding included."""

    def __init__(self, lm):
        self.seconds, self.tokens = 0.0, 0
        for name in ("loglikelihood", "generate_until"):
            setattr(lm, name, self.timed(getattr(lm, name)))
        model_call = lm._model_call

        def counted(ids, *args, **kwargs):
            self.tokens += ids.numel()
            return model_call(ids, *args, **kwargs)

        lm._model_call = counted

    def timed(self, method):
        def call(*args, **kwargs):
            begin = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds += time.perf_counter() - begin
            return result

        return call


def peer(spec):
    begin = time.perf_counter()
    import torch

    torch.set_num_threads(spec["threads"])
    import local_lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=spec["model"], dtype=spec["dtype"], batch_size=spec["batches"][0], device="cpu")
    load_seconds = time.perf_counter() - begin
    clock = Clock(lm)
    records = make_all(spec)
    manager = local_lm_eval.task_manager([r.folder for r in records.values()])
    seconds, scores = {}, {}
    if len(spec["batches"]) > 1:  # a first pass is slow; a single batch size is what a user waits for
        first = next(iter(records))
        local_lm_eval.run_task(lm, first, records[first], 2, spec["shots"], manager=manager, bootstrap_iters=0)
    for batch in spec["batches"]:
        lm.batch_size_per_gpu = batch
        clock.seconds, clock.tokens = 0.0, 0
        for name, record in records.items():
            overrides = {}
            if spec["new_tokens"]:
                lm_limit = {"generation_kwargs": {"max_gen_toks": spec["new_tokens"], "do_sample": False, "until": ["</s>"]}}
                overrides = lm_limit if name == "gsm8k" else {}
            record.overrides = {**record.overrides, **overrides}
            results, _, _ = local_lm_eval.run_task(
                lm, name, record, spec["limit"], spec["shots"], manager=manager, bootstrap_iters=0
            )
            scores[name] = {k: v for k, v in results.items() if "," in k and "stderr" not in k}
        seconds[batch] = clock.seconds
    out = {"seconds": seconds, "load_seconds": load_seconds, "tokens": clock.tokens, "peak_rss_bytes": peak_of_this_process(), "scores": scores}
    with open(spec["out"], "w") as f:
        json.dump(out, f, default=float)


# ---- In a process of its own: the rate of matrix products at the model's shapes


def gemm(spec):
    import torch

    torch.set_num_threads(spec["threads"])
    config = spec["config"]
    dtype = getattr(torch, spec["dtype"])
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    # (rows, columns of the weight, how often in a layer)
    shapes = {"query": (hidden, wide, 1), "key": (hidden, narrow, 2), "output": (wide, hidden, 1),
              "gate": (hidden, inner, 2), "down": (inner, hidden, 1)}  # fmt: skip
    rates, flops, seconds = {}, 0.0, 0.0
    for name, (k, n, times) in {**shapes, "head": (hidden, config["vocab_size"], 0)}.items():
        x, w = torch.randn(2048, k).to(dtype), torch.randn(n, k).to(dtype)
        runs = []
        end = time.perf_counter() + spec["least_seconds"]
        while time.perf_counter() < end or len(runs) < 5:
            begin = time.perf_counter()
            torch.nn.functional.linear(x, w)
            runs.append(time.perf_counter() - begin)
        best = statistics.median(sorted(runs)[: max(3, len(runs) // 4)])
        rates[name] = 2 * 2048 * k * n / best
        flops += times * 2 * 2048 * k * n
        seconds += times * best
    with open(spec["out"], "w") as f:
        json.dump({"rates": rates, "layers": flops / seconds}, f)


# ---- This process: no LibTorch here, so that its own memory does not show in its children's


def child(kind, spec, work, threads):
    path = os.path.join(work, "spec.json")
    out = os.path.join(work, "out.json")
    with open(path, "w") as f:
        json.dump({**spec, "threads": threads, "work": work, "out": out}, f)
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    done = subprocess.run([sys.executable, os.path.abspath(__file__), kind, path], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"lm-eval: {done.stderr[-3000:]}")
    with open(out) as f:
        return json.load(f)


def run_waiting(command, threads):
    """(seconds of the process, its peak resident bytes); stops the program on an error."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=dict(os.environ, OMP_NUM_THREADS=str(threads)))  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}: {errors.read().decode()[-2000:]}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def run_dagmoe(flags, case, dtype, limit, work):
    tasks, shots, _, _ = CASES[case]
    records = make_all({"data": flags.data, "work": work, "tasks": tasks})
    output = os.path.join(work, "dagmoe")
    command = [flags.dagmoe, "eval", "--model", flags.model, "--tasks", ",".join(tasks), "--dtype", dtype]
    command += ["--limit", str(limit), "--num-fewshot", str(shots), "--output", output]
    for name, record in records.items():
        command += ["--dataset", f"{name}={record.dataset}"]
        if shots:
            command += ["--fewshot", f"{name}={record.fewshot}"]
    if flags.max_batch_tokens:
        command += ["--max-batch-tokens", str(flags.max_batch_tokens)]
    wall, peak = run_waiting(command, flags.threads)
    with open(os.path.join(output, "results.json")) as f:
        results = json.load(f)
    # A program that counts nothing says 0.
    engines = [results.get("engine", {}).get(t, {}) for t in tasks]
    engines = [e if e.get("tokens_computed", 0) > 0 and e.get("seconds", 0) > 0 else None for e in engines]
    seconds = sum(results["configs"][t]["seconds"] if e is None else e["seconds"] for t, e in zip(tasks, engines, strict=True))
    total = lambda key: None if None in engines else sum(e.get(key, 0) for e in engines)  # noqa: E731
    scores = {t: {k: v for k, v in results["results"][t].items() if "," in k and "stderr" not in k} for t in tasks}
    return {"seconds": seconds, "load_seconds": wall - seconds, "peak_rss_bytes": peak, "scores": scores,
            "tokens": total("tokens_computed"), "tokens_requested": total("tokens_requested"), "rows": total("rows_scored")}  # fmt: skip


def model_flops(config, tokens, rows):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer = 2 * hidden * wide + 2 * hidden * narrow + 3 * hidden * inner
    return 2 * config["num_hidden_layers"] * layer * tokens + 2 * config["vocab_size"] * hidden * rows


def best_batch(flags, case, dtype, work):
    tasks, shots, _, trial = CASES[case]
    generates = case == "gsm8k_5"
    # A pass's logits and their log-softmax must fit: the longest few-shot prompts have about 100 tokens an example.
    longest = 200 * (shots + 1)
    fits = flags.memory_gb * 1e9 / (longest * flags.config["vocab_size"] * 8)
    batches = [b for b in BATCHES if generates or b <= fits] or [BATCHES[0]]
    spec = {"model": flags.model, "data": flags.data, "dtype": dtype, "tasks": tasks, "shots": shots, "limit": trial,
            "batches": batches, "new_tokens": TRIAL_NEW_TOKENS if generates else 0}  # fmt: skip
    seconds = child("--peer", spec, work, flags.threads)["seconds"]
    return int(min(seconds, key=seconds.get)), {int(k): v for k, v in seconds.items()}


def run_peer(flags, case, dtype, limit, batch, work):
    tasks, shots, _, _ = CASES[case]
    spec = {"model": flags.model, "data": flags.data, "dtype": dtype, "tasks": tasks, "shots": shots, "limit": limit,
            "batches": [batch], "new_tokens": 0}  # fmt: skip
    result = child("--peer", spec, work, flags.threads)
    return {**result, "seconds": next(iter(result["seconds"].values()))}


def spread(values, digits=2):
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def differing_scores(a, b):
    return [f"{t} {k}: lm-eval {a[t][k]:.4f}, dagmoe {b[t].get(k, float('nan')):.4f}"
            for t in a for k in a[t] if abs(a[t][k] - b[t].get(k, float("nan"))) > 1e-9 or k not in b[t]]  # fmt: skip


def row_of(flags, case, dtype, batch, theirs, ours, rate):
    ratio = [a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    share = "-"
    if ours[0]["tokens"] is not None and "num_local_experts" not in flags.config and "num_experts" not in flags.config:
        flops = model_flops(flags.config, ours[0]["tokens"], ours[0]["rows"])
        share = f"{statistics.median(flops / b['seconds'] / rate['layers'] for b in ours):.0%}"
    peaks = [statistics.median(r["peak_rss_bytes"] for r in runs) / 1e6 for runs in (theirs, ours)]
    tokens = f"{theirs[0]['tokens']:,} / {ours[0]['tokens']:,}" if ours[0]["tokens"] is not None else f"{theirs[0]['tokens']:,} / -"
    loads = [statistics.median(r["load_seconds"] for r in runs) for runs in (theirs, ours)]
    return (f"| {case} | {dtype} | {batch} | {spread([r['seconds'] for r in theirs])} | {spread([r['seconds'] for r in ours])} | "
            f"{spread(ratio)} | {tokens} | {share} | {peaks[0]:,.0f} / {peaks[1]:,.0f} | {peaks[1] / peaks[0]:.2f} | "
            f"{loads[0]:.1f} / {loads[1]:.1f} |")  # fmt: skip


HEADER = """
| case | dtype | lm-eval's batch | lm-eval, s | dagmoe, s | ratio | tokens computed | dagmoe's share of the GEMM rate | peaks, MB | of lm-eval's | loading, s |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dagmoe")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--cases", "--tasks", default=",".join(CASES), help="of " + ", ".join(CASES))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--limit", type=int, help="documents of each task instead of the case's own number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-gb", type=float, default=8.0, help="that lm-eval's logits may take")
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--json")
    flags = parser.parse_args()
    with open(os.path.join(flags.model, "config.json")) as f:
        flags.config = json.load(f)
    cases = flags.cases.split(",")
    unknown = [c for c in cases if c not in CASES]
    if unknown:
        sys.exit(f"--cases: '{unknown[0]}' is none; known: {', '.join(CASES)}")
    record = {"threads": flags.threads, "cases": {}, "gemm": {}}
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as work:
        for dtype in flags.dtypes.split(","):
            rate = child("--gemm", {"config": flags.config, "dtype": dtype, "least_seconds": 1.0}, work, flags.threads)
            record["gemm"][dtype] = rate
            notes.append(f"{dtype}: matrix products at the model's shapes reach {rate['layers'] / 1e9:.0f} GFLOP/s "
                         f"({', '.join(f'{k} {v / 1e9:.0f}' for k, v in rate['rates'].items())}), {flags.threads} threads")  # fmt: skip
            for case in cases:
                limit = flags.limit or CASES[case][2]
                batch, tried = best_batch(flags, case, dtype, work)
                print(f"{case}, {dtype}: lm-eval's trial " + ", ".join(f"batch {b} {s:.1f} s" for b, s in tried.items()), flush=True)
                theirs, ours = [], []
                for _ in range(flags.repeats):
                    theirs.append(run_peer(flags, case, dtype, limit, batch, work))
                    ours.append(run_dagmoe(flags, case, dtype, limit, work))
                record["cases"][f"{case}, {dtype}"] = {"batch": batch, "trial": tried, "limit": limit, "lm_eval": theirs, "dagmoe": ours}
                rows.append(row_of(flags, case, dtype, batch, theirs, ours, rate))
                print(rows[-1], flush=True)
                notes += [f"{case}, {dtype}: {text}" for text in differing_scores(theirs[0]["scores"], ours[0]["scores"])]
                if flags.json:
                    with open(flags.json, "w") as f:
                        json.dump(record, f, indent=1)
    print(HEADER)
    print("\n".join(rows))
    print(f"\nMedians of {flags.repeats} (least-most); scoring alone. tokens and peaks: lm-eval's / dagmoe's.")
    print("\n".join(notes))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("--peer", "--gemm"):
        with open(sys.argv[2]) as f:
            {"--peer": peer, "--gemm": gemm}[sys.argv[1]](json.load(f))
    else:
        main()
