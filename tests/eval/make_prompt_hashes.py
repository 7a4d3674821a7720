"""Hashes of lm-evaluation-harness's prompts over the data sets of the repository, for prompt_hashes_test.cpp.

usage: make_prompt_hashes.py REPOSITORY     prints one line per task and number of shots
Each task's own file serves as its documents and as its few-shot pool. Scores come from the harness's dummy model.
"""
import hashlib
import json
import os
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval
from lm_eval.tasks import TaskManager

quickstart = os.path.join(os.path.abspath(sys.argv[1]), "datasets", "quickstart")
tasks_folder = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
work = tempfile.mkdtemp()


def read(path):
    with open(os.path.join(quickstart, path), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def add_task(name, family, split, rows):
    data = f"{work}/{name}.jsonl"
    with open(data, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    with open(f"{work}/local_{name}.yaml", "w") as f:
        f.write(f"""include: {tasks_folder}/{family}/{name}.yaml
task: local_{name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{{split}: {data}, train: {data}}}}}
""")
        if split == "test":
            f.write("validation_split: null\n")


def hugging_face_arc(row):
    choices = row["question"]["choices"]
    return {"id": row["id"], "question": row["question"]["stem"],
            "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}, "answerKey": row["answerKey"]}


with open(os.path.join(quickstart, "piqa", "piqa_valid_labels.lst")) as f:
    labels = [int(line) for line in f]
add_task("arc_easy", "arc", "test", [hugging_face_arc(row) for row in read("arc/arc_test.jsonl")])
add_task("piqa", "piqa", "validation", [dict(row, label=label) for row, label in zip(read("piqa/piqa_valid.jsonl"), labels, strict=True)])
add_task("hellaswag", "hellaswag", "validation", read("hellaswag/hellaswag_val.jsonl"))
names = ("arc_easy", "piqa", "hellaswag")
for shots in (0, 3, 10):
    results = lm_eval.simple_evaluate(model="dummy", tasks=["local_" + name for name in names], num_fewshot=shots, log_samples=True, bootstrap_iters=0,
                                      task_manager=TaskManager(include_path=work, include_defaults=False))
    for name in names:
        samples = sorted(results["samples"]["local_" + name], key=lambda sample: sample["doc_id"])
        joined = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
        print(f'{{"{name}", {shots}, "{hashlib.sha256(joined.encode()).hexdigest()}"}},')
