"""Scores ARC-Easy, PIQA and HellaSwag records with lm-eval in fp32 and keeps every log-likelihood.

ARC-Easy and PIQA run under lm-eval's own task files, fed from local records.  HellaSwag records are the lines
of a text file (context, gold index, four endings), taken as they are, with the delimiter " ".
The shared-logits cache of lm-eval is off: it scores some requests at wrong positions.

usage: make_lm_eval.py MODEL_DIR DATA_DIR OUT.json [--full FULL.json] [--limit 200] [--keep 20] [--threads 1]
OUT.json gets the first KEEP documents and the totals over LIMIT documents; FULL.json gets all LIMIT documents.
"""

import argparse
import json
import os
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

ap = argparse.ArgumentParser()
ap.add_argument("model")
ap.add_argument("data")
ap.add_argument("out")
ap.add_argument("--full")
ap.add_argument("--limit", type=int, default=200)
ap.add_argument("--keep", type=int, default=20)
ap.add_argument("--threads", type=int, default=1)
ap.add_argument("--batch", type=int, default=8)
args = ap.parse_args()
torch.set_num_threads(args.threads)
work = tempfile.mkdtemp()
tasks_dir = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")


def lines(path):
    with open(os.path.join(args.data, path), encoding="utf-8", newline="\n") as f:
        return f.read().removesuffix("\n").split("\n")


def dump(name, rows):
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n")


rows = []
for r in map(json.loads, lines("arc/ARC-Easy-Test.even.jsonl")):
    c = r["question"]["choices"]
    rows.append(
        {
            "question": r["question"]["stem"],
            "answerKey": r["answerKey"],
            "choices": {"text": [x["text"] for x in c], "label": [x["label"] for x in c]},
        }
    )
dump("arc_easy", rows)
gold = [int(x) for x in lines("piqa/valid-labels.even.lst")]
rows = [
    {"goal": r["goal"], "sol1": r["sol1"], "sol2": r["sol2"], "label": g}
    for r, g in zip(map(json.loads, lines("piqa/valid.even.jsonl")), gold, strict=True)
]
dump("piqa", rows)
text = lines("hellaswag/hellaswag_val.even.txt")
rows = [{"ctx": text[i], "choices": text[i + 2 : i + 6], "gold": int(text[i + 1])} for i in range(0, len(text) - 5, 6)]
dump("hellaswag", rows)

for name, split in (("arc_easy", "test"), ("piqa", "validation")):
    folder = name.split("_")[0]
    with open(f"{work}/local_{name}.yaml", "w") as f:
        f.write(f"""include: {tasks_dir}/{folder}/{name}.yaml
task: local_{name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{{split}: {work}/{name}.jsonl}}}}
training_split: null
validation_split: {"validation" if split == "validation" else "null"}
test_split: {"test" if split == "test" else "null"}
""")
with open(f"{work}/local_hellaswag.yaml", "w") as f:
    f.write(f"""task: local_hellaswag
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {work}/hellaswag.jsonl}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""")

lm = HFLM(pretrained=args.model, dtype="float32", batch_size=args.batch, device="cpu", logits_cache=False)
manager = TaskManager(include_path=work, include_defaults=False)
versions = {
    "lm_eval": lm_eval.__version__,
    "transformers": transformers.__version__,
    "torch": torch.__version__.split("+")[0],
}
small = {"versions": versions, "limit": args.limit, "tasks": {}}
full = {"versions": versions, "limit": args.limit, "tasks": {}}
for name in ("arc_easy", "piqa", "hellaswag"):
    r = lm_eval.simple_evaluate(
        model=lm, tasks=["local_" + name], limit=args.limit, num_fewshot=0, task_manager=manager, log_samples=True
    )
    m = r["results"]["local_" + name]
    samples = sorted(r["samples"]["local_" + name], key=lambda s: s["doc_id"])
    assert [s["doc_id"] for s in samples] == list(range(args.limit))
    docs = [[[float(x[0]), bool(x[1])] for x in s["filtered_resps"]] for s in samples]
    totals = {k: m[k + ",none"] for k in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")}
    print(name, totals, flush=True)
    margin = [sorted(x[0] for x in d)[-1] - sorted(x[0] for x in d)[-2] for d in docs]
    full["tasks"][name] = dict(
        totals,
        docs=docs,
        contexts=[s["arguments"][0][0] for s in samples],
        continuations=[[a[1] for a in s["arguments"]] for s in samples],
        gold=[int(s["target"]) for s in samples],
        close_documents=[i for i, x in enumerate(margin) if x < 2e-3],
    )
    small["tasks"][name] = dict(totals, docs=[[[round(x, 6), g] for x, g in d] for d in docs[: args.keep]])
    if args.full:
        with open(args.full, "w") as f:
            json.dump(full, f)


def compact(x):
    return json.dumps(x, separators=(", ", ": "))


with open(args.out, "w") as f:
    f.write('{"versions": ' + compact(versions) + f', "limit": {args.limit}, "tasks": {{\n')
    for i, (name, t) in enumerate(small["tasks"].items()):
        head = ", ".join(f'"{k}": {compact(v)}' for k, v in t.items() if k != "docs")
        f.write(
            f'"{name}": {{{head}, "docs": [\n'
            + ",\n".join(compact(d) for d in t["docs"])
            + "\n]}"
            + (",\n" if i < 2 else "\n")
        )
    f.write("}}\n")
with open(args.out) as f:
    assert json.load(f) == json.loads(json.dumps(small))
