"""Every request of dagmoe's evaluation beside lm-eval 0.4.13's, HF backend, on the same records. Development only.

usage: check_eval.py --model FOLDER --data SHARED_DATA --dagmoe PROGRAM [--tasks NAMES] [--limit N] [--num-fewshot K]
                     [--dtype float32] [--cache DIR] [--runs DIR] [--plan quick|full] [--chat] [--multiturn] [--system TEXT]
                     [--reference-only [--device cuda]]

lm-eval runs its own task files (yaml and Python) offline; only the data sets are replaced, by eval_records.py. dagmoe
reads the same records as files in the upstream layouts. Compared, document by document: prompts, continuations, log-
likelihoods (within 1e-3, or one float32 step of lm-eval's sum where that is more), is_greedy, generated and filtered texts, hashes, each metric, its mean and standard error.
A greedy flag, a text or a metric may differ only at a near-tie: where lm-eval's two best logits (or, for a metric, its two
best scores) are closer than 1e-4. Every such place is listed. Exit status 1 when anything else differs.

--tasks: lm-eval's names; hellaswag_jsonl is hellaswag in upstream's JSON lines. `NAME:K:N` asks for K shots and N documents.
  mmlu and bbh are the groups of all subjects that have records, N documents each, in one run; the group's score is compared too.
--plan: QUICK or FULL below instead of --tasks.
--cache: lm-eval's answers are kept there and reused; a key names the model's bytes, task, shots, limit, dtype and chat flags.
--runs: dagmoe's output is kept there, by the program's bytes too, and reused; a run that was cut off is resumed.
--device cuda: lm-eval's side on a GPU, in exact float32; its cache is then copied to where dagmoe runs.
--softmax-dtype float64: lm-eval's option of that name. On a CPU torch's float32 log_softmax over 49,152 classes makes each
  token's log-probability 8e-6 too high: beyond 1e-3 from 100 tokens on. A GPU's does not.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

from eval_judge import Judge, compare_means, generation_limit, requests_of, texts_of
from eval_records import MAKERS, Records, lm_eval_name, make_records

SUBJECTS = ("abstract_algebra", "marketing")
REASONING = ("boolean_expressions", "sports_understanding", "word_sorting", "penguins_in_a_table")
# Groups: the score that lm-eval's task file names, and the records of each part below the shared data.
GROUPS = {
    "mmlu": ("acc", "mmlu_", "mmlu/test", "_test.csv"),
    "bbh": ("exact_match", "bbh_cot_fewshot_", "bbh", ".json"),
}
MADE = ("hellaswag_jsonl", "winogrande", "sciq", "gpqa_main_zeroshot")  # records made from other tasks' (eval_records.py)
ZERO_SHOT = [n for n in MAKERS if n not in (*MADE, "gsm8k", "wikitext", "gpqa_diamond_zeroshot")]
# (task, shots, documents) of a quick look and of the acceptance list, the cheap ones first.
QUICK = (
    [f"{name}:0:20" for name in (*ZERO_SHOT, *MADE)]
    + [f"mmlu_{name}:5:20" for name in SUBJECTS]
    + ["gsm8k:5:8", "wikitext:0:2", "arc_easy:5:10", "hellaswag:10:5", "piqa:3:10", "copa:2:20"]
    + [f"bbh_cot_fewshot_{name}:3:4" for name in REASONING]
)
# 300 documents of each task or all there are; 18 subjects of MMLU and 21 of BIG-Bench Hard make 306 and 315.
FULL = (
    [f"{name}:0:300" for name in sorted(ZERO_SHOT, key=lambda n: n == "boolq")]
    + ["arc_easy:5:300", "mmlu:5:17", "hellaswag:10:300", "gsm8k:5:300", "bbh:3:15", "wikitext:0:300"]
    + [f"{name}:0:300" for name in MADE]
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
    parser.add_argument("--runs")
    parser.add_argument("--device", default="cpu", help="of lm-eval's side")
    parser.add_argument("--softmax-dtype", help="of lm-eval's side")
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
            self.lm = local_lm_eval.load_model(
                self.args.model,
                self.args.dtype,
                device=self.args.device,
                softmax_dtype=self.args.softmax_dtype,
                trust_remote_code=True,
            )
        return self.lm

    def key(self, name, records, shots, limit):
        rows = hashlib.sha256(json.dumps(records.splits, sort_keys=True).encode()).hexdigest()[:8]
        chat = ""
        if self.args.chat:
            chat = "-chat" + ("-multiturn" if self.args.multiturn else "")
            chat += hashlib.sha256((self.args.system or "").encode()).hexdigest()[:6]
        softmax = f"-softmax-{self.args.softmax_dtype}" if self.args.softmax_dtype else ""
        return f"{self.model_key}/{name}-{shots}shot-{limit}docs-{self.args.dtype}{softmax}{chat}-{rows}.json"

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
    done = subprocess.run([program, "eval", "--list"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_eval.py: {program} eval --list: {done.stderr.strip()}")
    return done.stdout.split()


def our_name(name, known):
    """dagmoe's name of lm-eval's task."""
    task = lm_eval_name(name)
    candidates = (task, task.replace("bbh_cot_fewshot_", "bbh_"), task.removesuffix("_zeroshot"))
    return next((c for c in candidates if c in known), None)


@dataclasses.dataclass
class Part:
    """One task of a run of dagmoe."""

    name: str  # lm-eval's
    task: str  # dagmoe's
    records: Records
    theirs: dict  # lm-eval's answers


def command_of(args, parts, shots, limit, folder, group):
    tasks = group or ",".join(p.task for p in parts)
    command = [args.dagmoe, "eval", "--model", args.model, "--tasks", tasks, "--limit", str(limit)]
    command += ["--dtype", args.dtype, "--output", folder, "--log-samples", "--num-fewshot", str(shots)]
    for part in parts:
        command += ["--dataset", f"{part.task}={part.records.dataset}"]
        if shots > 0 and part.records.fewshot:
            command += ["--fewshot", f"{part.task}={part.records.fewshot}"]
    if args.chat:
        command += ["--apply-chat-template"] + (["--fewshot-as-multiturn"] if args.multiturn else [])
        if args.system:
            command += ["--system-instruction", args.system]
    if args.max_batch_tokens:
        command += ["--max-batch-tokens", str(args.max_batch_tokens)]
    return command + (["--resume"] if os.path.exists(folder) else [])


def run_dagmoe(args, parts, shots, limit, folder, group=None):
    """(results, samples of each task), or (None, why not). An output folder with results is read and nothing runs."""
    if not os.path.exists(os.path.join(folder, "results.json")):
        command = command_of(args, parts, shots, limit, folder, group)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            lines = [x for x in done.stderr.strip().splitlines() if x.strip()]
            return None, f"dagmoe: exit {done.returncode}: {' | '.join(lines[-3:])[:600]}"
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as f:
        results = json.load(f)
    samples = {}
    for part in parts:
        with open(os.path.join(folder, f"samples_{part.task}.jsonl"), encoding="utf-8") as f:
            samples[part.task] = sorted((json.loads(line) for line in f), key=lambda s: s["doc_id"])
    return results, samples


def compare_part(args, reference, part, ours, mine, shots):
    """(judge, line) of one task."""
    theirs, judge = part.theirs, Judge(reference)
    by_key = {(s["doc_id"], s["filter"]): s for s in mine}
    is_texts = isinstance(theirs["samples"][0]["resps"][0][0], str) and requests_of(theirs["samples"][0])[0][1] is None
    is_texts = is_texts and "wikitext" not in part.name
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
        if equal < total and not (key == "doc_hash" and part.records.has_own_documents):
            judge.differ(f"{key}: {total - equal} of {total} differ")
    means = compare_means(judge, part.task, theirs["results"], ours, theirs["version"])
    what = "texts" if is_texts else f"max |d ll| {judge.largest:.1e}"
    line = (f"{part.name}, {shots} shots: {len(documents)} documents, {judge.requests} requests, {what}, "
            f"{judge.flags} {'texts' if is_texts else 'flags'} differ, {len(judge.ties)} near-ties, "
            f"{len(judge.hard)} differences; {', '.join(means)}")  # fmt: skip
    return judge, line + report_of(args, judge)


def report_of(args, judge):
    text = "".join(f"\n    DIFFERS {x}" for x in judge.hard[: args.show])
    if len(judge.hard) > args.show:
        text += f"\n    ... and {len(judge.hard) - args.show} more"
    return text + "".join(f"\n    near-tie {x}" for x in judge.ties)


def compare_group(args, name, parts, ours, has_ties):
    """(judge, line) of a group's score, beside lm-eval's own sum of its tasks' results."""
    from local_lm_eval import group_results

    theirs = group_results(name, GROUPS[name][0], {p.task: p.theirs["results"] for p in parts})
    judge = Judge(None)
    if has_ties:
        judge.ties.append("the score of a task differs at a near-tie, see above")
    means = compare_means(judge, name, theirs, ours, "N/A")
    documents, found = theirs["sample_len"], ours["results"].get(name, {}).get("sample_len")
    if documents != found:
        judge.differ(f"documents: lm-eval {documents}, dagmoe {found}")
    return judge, f"{name} of {len(parts)} tasks: {documents} documents; {', '.join(means)}" + report_of(args, judge)


def group_file(name, parts, work):
    """dagmoe's task file of a group of these tasks."""
    path = os.path.join(work, f"{name}.yaml")
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"group: {name}\ntasks: [{', '.join(p.task for p in parts)}]\nmetrics: [{GROUPS[name][0]}]\n")
    return path


def run_folder(args, reference, name, parts, shots, limit, work):
    if not args.runs:
        return os.path.join(tempfile.mkdtemp(dir=work), "run")
    keys = [reference.key(p.name, p.records, shots, limit) for p in parts]
    with open(args.dagmoe, "rb") as f:
        program = hashlib.file_digest(f, "sha256").hexdigest()
    digest = hashlib.sha256("\n".join([program, str(args.max_batch_tokens), *keys]).encode()).hexdigest()[:12]
    return os.path.join(args.runs, f"{name}-{shots}shot-{limit}docs-{digest}")


def check(args, reference, name, shots, limit, known, work):
    """Yields (verdict, line) for each task, and for the group."""
    parts = []
    for member in members_of(name, args.data):
        records = make_records(member, args.data, os.path.join(work, "records"))
        task = None if args.reference_only else our_name(member, known)
        if task is None and not args.reference_only:
            yield "missing", f"{member}: dagmoe has no such task"
            continue
        theirs = reference.answers(member, records, shots, limit)
        if theirs is None:
            yield "skipped", f"{member}, {shots} shots, {limit} documents: not in the cache"
        elif not args.reference_only:
            parts.append(Part(member, task, records, theirs))
    if not parts:
        return
    folder = run_folder(args, reference, name, parts, shots, limit, work)
    group = group_file(name, parts, work) if name in GROUPS else None
    ours, mine = run_dagmoe(args, parts, shots, limit, folder, group)
    if ours is None:
        yield "differs", f"{name}, {shots} shots: {mine}"
        return
    has_ties = False
    for part in parts:
        judge, line = compare_part(args, reference, part, ours, mine[part.task], shots)
        has_ties = has_ties or bool(judge.ties)
        yield "differs" if judge.hard else "equal", line
    if group:
        judge, line = compare_group(args, name, parts, ours, has_ties)
        yield "differs" if judge.hard else "equal", line


def members_of(name, data):
    """The tasks of a group that have records; of a task, itself."""
    if name not in GROUPS:
        return [name]
    _, prefix, folder, end = GROUPS[name]
    return [prefix + f.removesuffix(end) for f in sorted(os.listdir(os.path.join(data, folder))) if f.endswith(end)]


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
            for verdict, line in check(args, reference, name, shots, limit, known, work):
                counts[verdict] += 1
                print(f"{verdict:8} {line}", flush=True)
    if args.reference_only:
        return 0
    print(f"\nverdict: {counts['equal']} tasks and groups equal, {counts['differs']} differ, {counts['missing']} unknown to dagmoe, "
          f"{counts['skipped']} skipped (not in the cache)")  # fmt: skip
    return 1 if counts["differs"] or counts["missing"] or counts["equal"] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
