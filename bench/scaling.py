#!/usr/bin/env python3
"""How the time of a training step grows, beside the floating-point operations it needs.

    python bench/scaling.py DAGMOE TOKENIZER_FOLDER ALPACA.json [--series experts,...] [--tokens 4096] [--steps 5] [--repeats 3] [--threads 2] [--json FILE] [--svg FILE]

experts       8, 32, 64, 128 of them, 4 for a token, all of the same width; the DAG trained
experts_full  the same with every weight of the layers trained: the optimizer's pass over all experts grows with their number, and is no product
length        segments of 256 to 4,096 tokens, as many tokens a step; every weight of the layers trained
chosen        2 to 8 of 8 experts for a token; every weight of the layers and the DAG trained
layers        the last 1, 2, 4, all 8 layers trained

Random models as wide as SmolLM2 upcycled (576; experts of 384), two layers, eight for `layers`, with a DAG of L = 2, G = 64. Records of ALPACA.json are cut to segments of exactly the
length that is meant, 512 tokens where it is not the subject. Their answers are a few tokens, so that a head over 49,152 words does not hide what grows. The points of a series run in turn,
forwards, then backwards, and so on; what is given is the median of the steps after the first two, and of the repeats. Growth of the time "no faster" than the operations (bench/flops.py):
the median of the ratios to the first point of the same repeat is at most theirs; "within the spread": the least of them is. Writes what it has after each run, and goes on where one fails.
"""
import argparse
import pathlib
import statistics
import sys
import tempfile

import flops
import svg_plot
from workload import RunFailed, alpaca_text, finetune, machine, machine_text, prompt_data, recipe, smollm2_shape, spread, step_seconds, write_json, write_model, write_prompts

DAG = {"num_iterations": 2, "node_size": 64}
LENGTH = 512
ALL_LAYERS = ["model.layers.*"]
# name: (what grows, values, from a value to the model's config, what trains by name, the recipe's `trainable`, the length of a segment)
SERIES = {
    "experts": ("experts", [8, 32, 64, 128], lambda x: smollm2_shape(2, experts=x), lambda x: flops.TRAINS["dag"], lambda x: ["dag"], lambda x: LENGTH),
    "experts_full": ("experts", [8, 32, 64, 128], lambda x: smollm2_shape(2, experts=x), lambda x: flops.in_layers(0), lambda x: ALL_LAYERS, lambda x: LENGTH),
    "length": ("tokens of a segment", [256, 512, 1024, 2048, 4096], lambda x: smollm2_shape(2), lambda x: flops.in_layers(0), lambda x: ALL_LAYERS, lambda x: x),
    "chosen": ("experts for a token (K)", [2, 4, 6, 8], lambda x: smollm2_shape(2, top_k=x), lambda x: flops.in_layers(0), lambda x: ALL_LAYERS, lambda x: LENGTH),
    "layers": ("layers trained, of 8", [1, 2, 4, 8], lambda x: smollm2_shape(8), lambda x: flops.in_layers(8 - x),
               lambda x: [{"group": "model.layers.*", "layers": [f"{8 - x}..7"]}], lambda x: LENGTH),
}


class Point:
    def __init__(self, series, value):
        self.series, self.value, self.runs, self.failures = series, value, [], []
        _, _, config, trains, trainable, length = SERIES[series]
        self.config, self.trains, self.trainable, self.length = {**config(value), "dag": DAG}, trains(value), trainable(value), length(value)

    def measure(self, repeat, args, text, work):
        sequences = max(1, args.tokens // self.length)
        records, model = work / "records.jsonl", work / f"model-{self.config['num_local_experts']}-{self.config['num_experts_per_tok']}-{self.config['num_hidden_layers']}"
        if not model.exists():
            write_model(model, {key: value for key, value in self.config.items() if key != "dag"}, args.tokenizer)
        write_prompts(records, text, sequences * args.steps, self.length)
        settings = recipe(model, prompt_data(records, self.length), self.trainable, sequences, sequences * self.length, args.steps, DAG)
        lines, _ = finetune(args.program, settings, work, args.threads, args.timeout)
        if any(line["tokens"] != sequences * self.length for line in lines):
            raise RunFailed(f"{self.series} {self.value}: found steps of {sorted({line['tokens'] for line in lines})} tokens, expected {sequences * self.length} each")
        supervised = statistics.mean(line["supervised_tokens"] for line in lines)
        needed = flops.step_flops(self.config, self.trains, sequences * self.length, supervised, [self.length] * sequences)
        self.runs.append({"repeat": repeat, "seconds": step_seconds(lines), "tokens": sequences * self.length, "flops": needed, "peak_bytes": lines[-1]["peak_rss_bytes"]})

    def json(self):
        return {"series": self.series, "value": self.value, "runs": self.runs, "failures": self.failures}


def ratios(point, first):
    """Time, of each repeat that has both, and operations beside the first point's, a token."""
    per_token = lambda run: (run["seconds"] / run["tokens"], run["flops"]["total"] / run["tokens"])
    base = {run["repeat"]: per_token(run) for run in first.runs}
    times = [per_token(run)[0] / base[run["repeat"]][0] for run in point.runs if run["repeat"] in base]
    return times, per_token(point.runs[0])[1] / per_token(first.runs[0])[1]


def verdict(times, needed):
    if not times:
        return "no pair"
    if statistics.median(times) <= needed:
        return "no faster"
    return "within the spread" if min(times) <= needed else f"FASTER, by {100 * (statistics.median(times) / needed - 1):.0f} %"


def table(points):
    what = SERIES[points[0].series][0]
    print(f"\n{points[0].series}\n\n| {what} | step, s | GFLOP | GFLOP/s | peak, MB | time beside the first | operations beside the first | time grows |\n" + "|---" * 8 + "|")
    first = next((point for point in points if point.runs), None)
    for point in points:
        if not point.runs:
            print(f"| {point.value:,} | failed: {point.failures[0].splitlines()[0]} | | | | | | |")
            continue
        times, needed = ratios(point, first)
        seconds = [run["seconds"] for run in point.runs]
        work = point.runs[0]["flops"]["total"] / 1e9
        judged = "" if point is first else verdict(times, needed)
        peak = statistics.median(run["peak_bytes"] for run in point.runs) / 1e6
        print(f"| {point.value:,} | {spread(seconds)} | {work:,.0f} | {work / statistics.median(seconds):,.0f} | {peak:,.0f} | {spread(times)} | {needed:.2f} | {judged} |", flush=True)


def draw(all_points):
    panels = []
    for points in all_points:
        done = [point for point in points if point.runs]
        if len(done) < 2:
            continue
        grown = [(point.value, *ratios(point, done[0])) for point in done]
        grown = [row for row in grown if row[1]]
        time = [(x, min(times), statistics.median(times), max(times)) for x, times, _ in grown]
        panels.append((points[0].series, SERIES[points[0].series][0], [("time of a step", False, 0, time), ("operations", True, 1, [(x, needed, needed, needed) for x, _, needed in grown])]))
    return svg_plot.plot(panels) if panels else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("tokenizer", type=pathlib.Path, help="a model folder, of which the tokenizer is taken: SmolLM2")
    parser.add_argument("data", type=pathlib.Path, help="Alpaca records")
    parser.add_argument("--series", default=",".join(SERIES))
    parser.add_argument("--points", type=int, help="only the first so many of each series")
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--steps", type=int, default=5, help="of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds of a run, after which it counts as failed")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--svg", type=pathlib.Path)
    args = parser.parse_args()
    unknown = [name for name in args.series.split(",") if name not in SERIES]
    if unknown:
        parser.error(f"--series: found {', '.join(unknown)}, known: {', '.join(SERIES)}")
    about, text, all_points = machine(), alpaca_text(args.data), []
    print(f"{machine_text(about)}; {args.threads} threads, steps of {args.tokens:,} tokens, {args.repeats} runs of {args.steps} steps: median (least-most)", flush=True)
    for name in args.series.split(","):
        points = [Point(name, value) for value in SERIES[name][1]][: args.points]
        all_points.append(points)
        with tempfile.TemporaryDirectory(prefix="dagmoe-scaling-") as work:
            for repeat in range(args.repeats):
                for point in points if repeat % 2 == 0 else reversed(points):
                    try:
                        point.measure(repeat, args, text, pathlib.Path(work))
                    except RunFailed as error:
                        point.failures.append(str(error))
                        print(f"{name} {point.value}: {error}", file=sys.stderr)
                    write_json(args.json, {"machine": about, "threads": args.threads, "points": [p.json() for series in all_points for p in series]})
        table(points)
    if args.svg:
        args.svg.write_text(draw(all_points))
    return 1 if any(point.failures for points in all_points for point in points) else 0


if __name__ == "__main__":
    sys.exit(main())
