#!/usr/bin/env python3
"""What the DAG adds to a training step, beside its share of the step's floating-point operations.

    python bench/dag_share.py DAGMOE TOKENIZER_FOLDER ALPACA.json [--moe FOLDER] [--cases smollm2_full,smollm2_frozen,paper_s] [--steps 6] [--repeats 3] [--threads 2] [--json FILE]

smollm2_full    SmolLM2's width, 30 layers, 8 experts of which 4 answer, L = 2, G = 64, against the weighted sum; Alpaca records, every weight trained
smollm2_frozen  the same with the DAG alone trained, against the router alone: both need the gradients of all layers' inputs
paper_s         the s configuration of arXiv 2606.01062 whole (512 wide, 4 layers, 32 experts of 256, K = 4, head over 128,256 words), L = 2, G = 64, every weight trained on text of
                which every token is learnt, in segments of 512 tokens. It is small enough that nothing had to be left out

`--moe` is an upcycled model, in Mixtral's form or as `dagmoe upcycle` writes it (the DAG is left out, and added by the recipe); without it the weights are random. The two variants run in turn on the same records, each in a process of
its own, and which one begins alternates. Added time is that of a step with the DAG over that of the same step without, less one, the median over the steps after the first two of a pair
of runs; the operations (bench/flops.py) are compared alike. Limits: 1.2 times the operations at SmolLM2's width, 5 % in the paper's configuration.
"""
import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import flops
from train import write_records
from workload import RunFailed, alpaca_text, as_mixtral, finetune, machine, machine_text, paper_s_shape, recipe, smollm2_shape, spread, text_data, warm_up, write_document, write_json, write_model

DAG = {"num_iterations": 2, "node_size": 64}
LENGTH = 512
# name: (config, what trains with the DAG, without it, the most that may be added, given the operations that are)
CASES = {
    "smollm2_full": (smollm2_shape(30), "full", "full", lambda added: 1.2 * added),
    "smollm2_frozen": (smollm2_shape(30), "dag", "router", lambda added: 1.2 * added),
    "paper_s": (paper_s_shape(), "full", "full", lambda added: 0.05),
}


class Case:
    def __init__(self, name, args, work):
        self.name, self.args, self.work, self.pairs, self.failures = name, args, work, [], []
        self.config, self.trains_with, self.trains_without, self.limit = CASES[name]
        self.is_alpaca = name != "paper_s"
        if args.layers:
            self.config = {**self.config, "num_hidden_layers": args.layers}
        if args.moe and self.is_alpaca:
            self.model = pathlib.Path(as_mixtral(args.moe, work))
            self.config = json.loads((self.model / "config.json").read_text())
        else:
            self.model = work / name
            write_model(self.model, self.config, args.tokenizer)
        self.sequences = max(1, args.tokens // (128 if self.is_alpaca else LENGTH))  # an Alpaca record has about 128 tokens
        self.data = self.make_data()

    def make_data(self):
        if self.is_alpaca:
            records = write_records(self.args.data, self.sequences * self.args.steps, self.work)
            return {"shuffle": False, "max_seq_len": LENGTH, "train": [{"path": str(records), "format": "alpaca", "template": "alpaca"}]}
        path = self.work / "text.jsonl"
        write_document(path, alpaca_text(self.args.data), self.sequences * self.args.steps * LENGTH)
        return text_data(path, LENGTH)

    def run(self, trained, dag):
        settings = recipe(self.model, self.data, [trained], self.sequences, self.args.tokens, self.args.steps, dag)
        lines, _ = finetune(self.args.program, settings, self.work, self.args.threads, self.args.timeout)
        return [{key: line[key] for key in ("seconds", "tokens", "computed_tokens", "supervised_tokens", "sequences", "peak_rss_bytes")} for line in lines]

    def measure(self, repeat):
        variants = [("with", self.trains_with, DAG), ("without", self.trains_without, None)]
        pair = {name: self.run(trained, dag) for name, trained, dag in (variants if repeat % 2 == 0 else reversed(variants))}
        if [line["tokens"] for line in pair["with"]] != [line["tokens"] for line in pair["without"]]:
            raise RunFailed("the two variants learnt different tokens")
        self.pairs.append(pair)

    def added(self, pair):
        first = warm_up(len(pair["with"]))
        return statistics.median(a["seconds"] / b["seconds"] for a, b in list(zip(pair["with"], pair["without"]))[first:]) - 1

    def operations(self, trained, dag, lines):
        """Mean of a step. The lengths of Alpaca's records are taken as equal, which matters to attention alone."""
        total = lambda line: flops.step_flops({**self.config, "dag": dag}, flops.TRAINS[trained], line["computed_tokens"], line["supervised_tokens"],
                                              [line["computed_tokens"] / line["sequences"]] * line["sequences"])["total"]
        return statistics.mean(total(line) for line in lines[warm_up(len(lines)) :])

    def result(self):
        pair = self.pairs[0]
        needed = self.operations(self.trains_with, DAG, pair["with"]) / self.operations(self.trains_without, None, pair["without"]) - 1
        added = [self.added(p) for p in self.pairs]
        seconds = {name: [statistics.median(line["seconds"] for line in p[name][warm_up(len(p[name])) :]) for p in self.pairs] for name in pair}
        return {"added_time": added, "added_operations": needed, "limit": self.limit(needed), "seconds": seconds}

    def json(self):
        return {"case": self.name, "trains": {"with": self.trains_with, "without": self.trains_without}, "pairs": self.pairs, "failures": self.failures,
                **(self.result() if self.pairs else {})}

    def print_row(self):
        if not self.pairs:
            return print(f"| {self.name} | failed: {self.failures[0].splitlines()[0]} | | | | | |", flush=True)
        r = self.result()
        median = statistics.median(r["added_time"])
        judged = "yes" if median <= r["limit"] else "within the spread" if min(r["added_time"]) <= r["limit"] else "NO"
        print(f"| {self.name} | {spread(r['seconds']['without'])} | {spread(r['seconds']['with'])} | {spread(r['added_time'], 1, 100)} | {100 * r['added_operations']:.1f} | "
              f"{100 * r['limit']:.1f} | {judged} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("tokenizer", type=pathlib.Path, help="a model folder, of which the tokenizer is taken: SmolLM2")
    parser.add_argument("data", type=pathlib.Path, help="Alpaca records")
    parser.add_argument("--moe", type=pathlib.Path, help="SmolLM2 upcycled, for the first two cases")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--tokens", type=int, default=4096, help="of a step, about, and of a micro batch at most")
    parser.add_argument("--layers", type=int, help="other than the cases', for a quick try with random weights")
    parser.add_argument("--steps", type=int, default=6, help="of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a run, after which it counts as failed")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    unknown = [name for name in args.cases.split(",") if name not in CASES]
    if unknown:
        parser.error(f"--cases: found {', '.join(unknown)}, known: {', '.join(CASES)}")
    if args.moe and args.layers:
        parser.error("--layers is for random weights, without --moe")
    about, cases = machine(), []
    print(f"{machine_text(about)}; {args.threads} threads, steps of about {args.tokens:,} tokens, {args.repeats} pairs of runs of {args.steps} steps: median (least-most)\n")
    print("| | without, s | with the DAG, s | time added, % | operations added, % | limit, % | kept |\n|---|---|---|---|---|---|---|", flush=True)
    for name in args.cases.split(","):
        with tempfile.TemporaryDirectory(prefix="dagmoe-share-") as work:
            case = Case(name, args, pathlib.Path(work))
            cases.append(case)
            for repeat in range(args.repeats):
                try:
                    case.measure(repeat)
                except RunFailed as error:
                    case.failures.append(str(error))
                    print(f"{name}: {error}", file=sys.stderr)
                write_json(args.json, {"machine": about, "threads": args.threads, "tokens": args.tokens, "cases": [c.json() for c in cases]})
            case.print_row()
    return 1 if any(case.failures for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
