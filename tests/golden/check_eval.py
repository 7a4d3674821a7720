"""Every request of dagmoe's evaluation beside lm-eval 0.4.13's, HF backend, on the same records. Development only.

usage: check_eval.py --model FOLDER --data SHARED_DATA --dagmoe PROGRAM [--tasks NAMES] [--limit N] [--num-fewshot K]
                     [--dtype float32] [--cache DIR] [--plan quick|full] [--chat] [--multiturn] [--system TEXT] [--reference-only]

lm-eval runs its own task files (yaml and Python) offline; only the data sets are replaced, by eval_records.py. dagmoe
reads the same records as files in the upstream layouts. Compared, document by document: prompts, continuations, log-
likelihoods (within 1e-3, or one float32 step of lm-eval's sum where that is more), is_greedy, generated and filtered texts, hashes, each metric, its mean and standard error.
A greedy flag, a text or a metric may differ only at a near-tie: where lm-eval's two best logits (or, for a metric, its two
best scores) are closer than 1e-4. Every such place is listed. Exit status 1 when anything else differs.

--tasks: lm-eval's names; hellaswag_jsonl is hellaswag in upstream's JSON lines. `NAME:K:N` asks for K shots and N documents.
--plan: QUICK or FULL below instead of --tasks.
--cache: lm-eval's answers are kept there and reused; a key names the model's bytes, task, shots, limit, dtype and chat flags.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time

from eval_records import MAKERS, lm_eval_name, make_records

LOG_LIKELIHOOD = 1e-3
NEAR_TIE = 1e-4
SUBJECTS = ("abstract_algebra", "marketing", "college_medicine", "conceptual_physics", "philosophy", "us_foreign_policy")
REASONING = ("boolean_expressions", "sports_understanding", "word_sorting", "penguins_in_a_table")
MADE = ("hellaswag_jsonl", "winogrande", "sciq", "gpqa_main_zeroshot")  # records made from other tasks' (eval_records.py)
ZERO_SHOT = [n for n in MAKERS if n not in (*MADE, "gsm8k", "wikitext", "gpqa_diamond_zeroshot")]
# (task, shots, documents) of a quick look and of the acceptance list, the cheap ones first.
QUICK = (
    [f"{name}:0:20" for name in (*ZERO_SHOT, *MADE)]
    + [f"mmlu_{name}:5:20" for name in SUBJECTS[:2]]
    + ["gsm8k:5:8", "wikitext:0:2", "arc_easy:5:10", "hellaswag:10:5", "piqa:3:10", "copa:2:20"]
    + [f"bbh_cot_fewshot_{name}:3:4" for name in REASONING]
)
FULL = (
    [f"{name}:0:300" for name in sorted(ZERO_SHOT, key=lambda n: n == "boolq")]
    + [f"{name}:0:50" for name in MADE]
    + [f"mmlu_{name}:5:50" for name in SUBJECTS]
    + ["gsm8k:5:50", "wikitext:0:6"]
    + [f"bbh_cot_fewshot_{name}:3:20" for name in REASONING]
    + ["arc_easy:5:300", "hellaswag:10:100"]
)

PLANS = {"quick": QUICK, "full": FULL}


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dagmoe")
    parser.add_argument("--tasks", default="arc_easy,arc_challenge,piqa,hellaswag")
    parser.add_argument("--plan", choices=("quick", "full"))
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--num-fewshot", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "eval_cache"))
    parser.add_argument("--chat", action="store_true", help="--apply-chat-template in both programs")
    parser.add_argument("--multiturn", action="store_true", help="examples as turns of the conversation")
    parser.add_argument("--system", help="system instruction")
    parser.add_argument("--reference-only", action="store_true", help="only fill the cache")
    parser.add_argument("--known-only", action="store_true", help="skip tasks that the cache or dagmoe lacks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--show", type=int, default=5, help="differences printed of each task")
    return parser.parse_args()


def fingerprint(folder):
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:12]


class Reference:
    """lm-eval's answers, from the cache or computed; the model is loaded when first needed."""

    def __init__(self, args):
        self.args, self.lm, self.model_key = args, None, fingerprint(args.model)

    def model(self):
        import torch

        import local_lm_eval

        if self.lm is None:
            torch.set_num_threads(self.args.threads)
            self.lm = local_lm_eval.load_model(self.args.model, self.args.dtype, trust_remote_code=True)
        return self.lm

    def key(self, name, records, shots, limit):
        rows = hashlib.sha256(json.dumps(records.splits, sort_keys=True).encode()).hexdigest()[:8]
        chat = ""
        if self.args.chat:
            chat = "-chat" + ("-multiturn" if self.args.multiturn else "")
            chat += hashlib.sha256((self.args.system or "").encode()).hexdigest()[:6]
        return f"{self.model_key}/{name}-{shots}shot-{limit}docs-{self.args.dtype}{chat}-{rows}.json"

    def answers(self, name, records, shots, limit):
        path = os.path.join(self.args.cache, self.key(name, records, shots, limit))
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                return json.load(f)
        if self.args.known_only:
            return None
        import local_lm_eval

        lm = self.model()
        begin, busy = time.time(), time.process_time()
        chat = {"system": self.args.system, "multiturn": self.args.multiturn} if self.args.chat else None
        results, version, samples = local_lm_eval.run_task(lm, name, records, limit, shots, chat)
        answer = {
            "task": name,
            "version": version,
            "results": results,
            "samples": samples,
            "seconds": time.time() - begin,
            "cpu_seconds": time.process_time() - busy,
        }
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".partial", "w", encoding="utf-8") as f:
            json.dump(answer, f, default=str)
        os.replace(path + ".partial", path)
        print(f"lm-eval: {name}, {shots} shots, {limit} documents: {answer['seconds']:.0f} s "
              f"({answer['cpu_seconds']:.0f} s CPU)", flush=True)  # fmt: skip
        gc.collect()
        return answer


def known_tasks(program):
    return subprocess.run([program, "eval", "--list"], capture_output=True, text=True, check=True).stdout.split()


def our_name(name, known):
    """dagmoe's name of lm-eval's task."""
    task = lm_eval_name(name)
    candidates = (task, task.replace("bbh_cot_fewshot_", "bbh_"), task.removesuffix("_zeroshot"))
    return next((c for c in candidates if c in known), None)


def run_dagmoe(args, task, records, shots, limit, folder):
    command = [args.dagmoe, "eval", "--model", args.model, "--tasks", task, "--limit", str(limit)]
    command += ["--dtype", args.dtype, "--output", folder, "--log-samples", "--dataset", f"{task}={records.dataset}"]
    command += ["--num-fewshot", str(shots)]
    if shots > 0 and records.fewshot:
        command += ["--fewshot", f"{task}={records.fewshot}"]
    if args.chat:
        command += ["--apply-chat-template"] + (["--fewshot-as-multiturn"] if args.multiturn else [])
        if args.system:
            command += ["--system-instruction", args.system]
    if args.max_batch_tokens:
        command += ["--max-batch-tokens", str(args.max_batch_tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [x for x in done.stderr.strip().splitlines() if x.strip()]
        return None, f"dagmoe: exit {done.returncode}: {' | '.join(lines[-3:])[:600]}"
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as f:
        results = json.load(f)
    with open(os.path.join(folder, f"samples_{task}.jsonl"), encoding="utf-8") as f:
        samples = [json.loads(line) for line in f]
    return results, sorted(samples, key=lambda s: s["doc_id"])


def requests_of(sample):
    """[(context, continuation or None)] of a sample of either program."""
    arguments = sample["arguments"]
    if isinstance(arguments, dict):
        arguments = [[a.get("arg_0"), a.get("arg_1")] for _, a in sorted(arguments.items(), key=lambda x: int(x[0].rsplit("_", 1)[1]))]  # fmt: skip
    return [(a[0], a[1] if len(a) > 1 and isinstance(a[1], str) else None) for a in arguments]


def scores_of(sample):
    """[(log-likelihood, is_greedy or None)], or generated texts."""
    answers = []
    for response in sample["resps"]:
        first = response[0]
        if isinstance(first, list):
            answers.append((float(first[0]), str(first[1]) == "True"))
        else:
            try:
                answers.append((float(first), None))
            except ValueError:
                answers.append(first)
    return answers


def texts_of(sample):
    return [r[0] for r in sample["resps"]]


def tolerance_of(log_likelihood):
    """lm-eval's sum is a float32: beyond 16,384 nats (whole pages) one of its steps is more than 1e-3."""
    step = 2.0 ** (math.floor(math.log2(max(1.0, abs(log_likelihood)))) - 23)
    return max(LOG_LIKELIHOOD, step)


class Judge:
    """Differences of one task: hard ones, and those at near-ties."""

    def __init__(self, reference):
        self.reference, self.hard, self.ties = reference, [], []
        self.largest, self.requests, self.flags = 0.0, 0, 0

    def differ(self, what):
        self.hard.append(what)

    def compare_prompts(self, where, theirs, ours):
        pairs, mine = requests_of(theirs), requests_of(ours)
        if len(pairs) != len(mine):
            self.differ(f"{where}: lm-eval has {len(pairs)} requests, dagmoe {len(mine)}")
            return False
        for i, (a, b) in enumerate(zip(pairs, mine, strict=True)):
            for part, x, y in zip(("context", "continuation"), a, b, strict=True):
                if x != y and not (part == "continuation" and None in (x, y)):
                    at = next((k for k, (u, v) in enumerate(zip(x, y, strict=False)) if u != v), min(len(x), len(y)))
                    self.differ(f"{where}, request {i}: {part} differs at character {at}: lm-eval "
                                f"{x[max(0, at - 20) : at + 40]!r}, dagmoe {y[max(0, at - 20) : at + 40]!r}")  # fmt: skip
                    return False
        return True

    def compare_scores(self, where, theirs, ours):
        for i, ((context, continuation), a, b) in enumerate(
            zip(requests_of(theirs), scores_of(theirs), scores_of(ours), strict=True)
        ):
            self.requests += 1
            difference = abs(a[0] - b[0]) if not math.isnan(b[0]) else math.inf
            self.largest = max(self.largest, difference)
            if difference > tolerance_of(a[0]):
                self.differ(f"{where}, request {i}: log-likelihood lm-eval {a[0]:.6f}, dagmoe {b[0]:.6f} of {continuation!r}")  # fmt: skip
            if a[1] is not None and a[1] != b[1]:
                self.flags += 1
                self.judge_flag(f"{where}, request {i}: is_greedy lm-eval {a[1]}, dagmoe {b[1]}", context, continuation)

    def judge_flag(self, what, context, continuation):
        from local_lm_eval import top_gaps

        gaps = top_gaps(self.reference.model(), context, continuation)
        # Where the flag is decided: the target is one of the two best and they are close.
        gap = min((g for target, best, g in gaps if target in best), default=math.inf)
        (self.ties if gap < NEAR_TIE else self.hard).append(f"{what}; lm-eval's two best logits are {gap:.2e} apart")

    def compare_texts(self, where, theirs, ours, limits):
        for i, ((context, _), a, b) in enumerate(
            zip(requests_of(theirs), texts_of(theirs), texts_of(ours), strict=True)
        ):
            self.requests += 1
            if a == b:
                continue
            self.flags += 1
            at = next((k for k, (u, v) in enumerate(zip(a, b, strict=False)) if u != v), min(len(a), len(b)))
            what = f"{where}: texts part at character {at}: lm-eval {a[max(0, at - 20) : at + 30]!r}, dagmoe {b[max(0, at - 20) : at + 30]!r}"  # fmt: skip
            gap = self.gap_at(context, a[:at], limits)
            (self.ties if gap < NEAR_TIE else self.hard).append(f"{what}; lm-eval's two best logits there are {gap:.2e} apart")  # fmt: skip

    def gap_at(self, context, common, limits):
        """The least distance of the two best logits at the step that leaves the common text, decoded alone."""
        from local_lm_eval import generation_gaps

        lm = self.reference.model()
        steps = generation_gaps(lm, context, limits, lm.max_length - limits)
        # A step's text may still equal the common one when the next token continues a character or a word.
        for text, gap in steps:
            if len(text) > len(common) or not common.startswith(text):
                return gap
        return math.inf

    def compare_metrics(self, where, theirs, ours, is_texts):
        differing = []
        for name in theirs["metrics"]:
            a, b = theirs.get(name), ours.get(name)
            if isinstance(a, list) or isinstance(b, list):
                same = a is not None and b is not None and all(abs(float(x) - float(y)) <= tolerance_of(float(x)) for x, y in zip(flat(a), flat(b), strict=True))  # fmt: skip
            else:
                same = b is not None and (a == b or abs(float(a) - float(b)) <= (LOG_LIKELIHOOD if name == "perplexity" else 0.0))  # fmt: skip
            if not same:
                differing.append(f"{name} lm-eval {a}, dagmoe {b}")
        if differing:
            text = f"{where}: {'; '.join(differing)}"
            if is_texts and texts_of(theirs) != texts_of(ours):
                self.ties.append(text + " (texts differ, judged above)")
            elif not is_texts and score_margin(theirs) < NEAR_TIE:
                self.ties.append(f"{text}; lm-eval's two best scores are {score_margin(theirs):.2e} apart")
            else:
                self.differ(text)
        return differing


def flat(value):
    return value if isinstance(value, list) else [value]


def score_margin(sample):
    """Distance of the two best choices, by log-likelihood or by log-likelihood per character, whichever is less."""
    values = [s[0] for s in scores_of(sample)]
    if len(values) < 2:
        return math.inf
    pairs = requests_of(sample)
    lengths = [max(1, len((text or "").strip())) for _, text in pairs]
    margins = []
    for scores in (values, [v / n for v, n in zip(values, lengths, strict=True)]):
        best = sorted(scores, reverse=True)
        margins.append(best[0] - best[1])
    return min(margins)


def generation_limit(theirs):
    arguments = theirs["arguments"][0]
    keys = ("max_gen_toks", "max_new_tokens", "max_tokens")
    return next((arguments[1][k] for k in keys if isinstance(arguments[1], dict) and k in arguments[1]), 256)


def same_version(theirs, ours):
    """lm-eval calls a task file without a version "Yaml"."""
    if theirs == "Yaml" or not isinstance(ours, float | int):
        return theirs in ("Yaml", "N/A") and ours in (None, "Yaml", "N/A")
    return float(theirs) == float(ours)


def compare_means(judge, task, theirs, ours, version):
    """Every metric and standard error of the results; perplexities follow from log-likelihoods and get their tolerance."""
    mine = ours["results"].get(task, {})
    shown = []
    for key, value in theirs.items():
        if "," not in key:
            continue
        found = mine.get(key)
        inexact = any(word in key for word in ("perplexity", "bits_per_byte"))
        if isinstance(value, str) or isinstance(found, str) or found is None:
            same = str(value) == str(found)
        else:
            same = math.isclose(value, found, rel_tol=2e-4 if inexact else 1e-12, abs_tol=1e-12)
        if not same:
            list_ = judge.ties if judge.ties and not judge.hard and found is not None else judge.hard
            list_.append(f"results: {key}: lm-eval {value}, dagmoe {found}")
        if "stderr" not in key and isinstance(found, float | int):
            shown.append(f"{key.split(',')[0] if key.endswith(',none') else key} {found:.4f}")
    if not same_version(version, ours["versions"].get(task)):
        judge.differ(f"version: lm-eval {version}, dagmoe {ours['versions'].get(task)}")
    return shown


def check(args, reference, name, shots, limit, known, work):
    records = make_records(name, args.data, os.path.join(work, "records"))
    if not args.reference_only:
        task = our_name(name, known)
        if task is None:
            return ("missing", f"{name}: dagmoe has no such task")
    theirs = reference.answers(name, records, shots, limit)
    if theirs is None or args.reference_only:
        return ("skipped", f"{name}, {shots} shots, {limit} documents: not in the cache" if theirs is None else "")
    folder = tempfile.mkdtemp(dir=work)
    ours, mine = run_dagmoe(args, task, records, shots, limit, folder)
    if ours is None:
        return ("differs", f"{name}, {shots} shots: {mine}")
    judge = Judge(reference)
    by_key = {(s["doc_id"], s["filter"]): s for s in mine}
    is_texts = isinstance(theirs["samples"][0]["resps"][0][0], str) and requests_of(theirs["samples"][0])[0][1] is None
    is_texts = is_texts and "wikitext" not in name
    hashes = {"doc_hash": 0, "prompt_hash": 0, "target_hash": 0}
    documents = {s["doc_id"] for s in theirs["samples"]}
    first_filter = theirs["samples"][0]["filter"]
    for sample in theirs["samples"]:
        where = f"document {sample['doc_id']}" + ("" if sample["filter"] == "none" else f", {sample['filter']}")
        found = by_key.pop((sample["doc_id"], sample["filter"]), None)
        if found is None:
            judge.differ(f"{where}: dagmoe has no such sample")
            continue
        if judge.compare_prompts(where, sample, found) and sample["filter"] == first_filter:
            if is_texts:
                judge.compare_texts(where, sample, found, generation_limit(sample))
            else:
                judge.compare_scores(where, sample, found)
        if is_texts and texts_of(sample) == texts_of(found) and sample["filtered_resps"] != found["filtered_resps"]:
            judge.differ(f"{where}: filtered lm-eval {sample['filtered_resps']}, dagmoe {found['filtered_resps']}")
        judge.compare_metrics(where, sample, found, is_texts)
        for key in hashes:
            hashes[key] += sample[key] == found[key]
        if str(sample["target"]) != str(found["target"]):
            judge.differ(f"{where}: target lm-eval {sample['target']!r}, dagmoe {found['target']!r}")
    for doc_id, filter_name in by_key:
        judge.differ(f"document {doc_id}, {filter_name}: lm-eval has no such sample")
    total = len(theirs["samples"])
    for key, equal in hashes.items():
        if equal < total and not (key == "doc_hash" and records.has_own_documents):
            judge.differ(f"{key}: {total - equal} of {total} differ")
    means = compare_means(judge, task, theirs["results"], ours, theirs["version"])
    verdict = "differs" if judge.hard else "equal"
    what = "texts" if is_texts else f"max |d ll| {judge.largest:.1e}"
    line = (f"{name}, {shots} shots: {len(documents)} documents, {judge.requests} requests, {what}, "
            f"{judge.flags} {'texts' if is_texts else 'flags'} differ, {len(judge.ties)} near-ties, "
            f"{len(judge.hard)} differences; {', '.join(means)}")  # fmt: skip
    for text in judge.hard[: args.show]:
        line += f"\n    DIFFERS {text}"
    if len(judge.hard) > args.show:
        line += f"\n    ... and {len(judge.hard) - args.show} more"
    for text in judge.ties:
        line += f"\n    near-tie {text}"
    return (verdict, line)


def parse_tasks(args):
    for entry in PLANS[args.plan] if args.plan else args.tasks.split(","):
        name, *numbers = entry.split(":")
        shots = int(numbers[0]) if numbers else args.num_fewshot
        yield name, shots, int(numbers[1]) if len(numbers) > 1 else args.limit


def main():
    args = flags()
    if args.dagmoe is None and not args.reference_only:
        sys.exit("check_eval.py: --dagmoe: is required; expected the built program")
    reference = Reference(args)
    known = [] if args.reference_only else known_tasks(args.dagmoe)
    counts = {"equal": 0, "differs": 0, "missing": 0, "skipped": 0}
    with tempfile.TemporaryDirectory() as work:
        for name, shots, limit in parse_tasks(args):
            verdict, line = check(args, reference, name, shots, limit, known, work)
            counts[verdict] += 1
            if line:
                print(f"{verdict:8} {line}", flush=True)
    if args.reference_only:
        return 0
    print(f"\nverdict: {counts['equal']} tasks equal, {counts['differs']} differ, {counts['missing']} unknown to dagmoe, "
          f"{counts['skipped']} skipped (not in the cache)")  # fmt: skip
    return 1 if counts["differs"] or counts["missing"] or counts["equal"] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
