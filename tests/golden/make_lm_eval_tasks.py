"""Every task of the evaluation, prompts and scores, from lm-eval 0.4.13 on small records written for this repository.

usage: make_lm_eval_tasks.py OUT_DIR [--smollm2 MODEL_DIR]
Writes lm_eval_tasks/: the records in the upstream layouts (data/), tokenizers for two committed models (mixtral/, dagmoe/),
expected_mixtral.json, expected_dagmoe.json and, with --smollm2, expected_smollm2.json.
A model folder is that of `base` with these files over it and `config` merged into its config.json. An expected file has
"base", "config", and "runs": task, shots, version, dataset and fewshot (as the flags take them), results (lm-eval's keys),
samples: [prompt hash, target hash, scores] per document and filter: scores are [log-likelihood, is_greedy] for each
request, or the generated text and what the filter made of it. Hashes are cut to 12 digits.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import sys
import tempfile

import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lm_eval  # noqa: E402
import lm_eval_records as written  # noqa: E402
import local_lm_eval  # noqa: E402
from eval_records import Records, read_jsonl, read_lines  # noqa: E402

torch.set_num_threads(1)
QUICKSTART = os.path.join(HERE, "../../datasets/quickstart")
NUM_DOCUMENTS = 6


# ---- Upstream layouts of records in Hugging Face's fields


def lines_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def allen(row, stem):
    """AI2's layout of ARC, OpenBookQA and CommonsenseQA."""
    choices = [{"text": t, "label": k} for t, k in zip(row["choices"]["text"], row["choices"]["label"], strict=True)]
    question = {"stem": row[stem], "choices": choices}
    if "question_concept" in row:
        question["question_concept"] = row["question_concept"]
    return {"id": row["id"], "question": question, "answerKey": row["answerKey"]}


def csv_text(rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def upstream(task, rows):
    """{end of the file name: text}; the first is the data file, a second one its labels."""
    if task == "openbookqa":
        return {".jsonl": lines_of(allen(r, "question_stem") for r in rows)}
    if task == "commonsense_qa":
        return {".jsonl": lines_of(allen(r, "question") for r in rows)}
    if task == "sciq":
        return {".json": json.dumps(rows, ensure_ascii=False, indent=1) + "\n"}
    if task == "boolq":
        return {".jsonl": lines_of(dict(r, label=bool(r["label"])) for r in rows)}
    if task == "social_iqa":
        records = [{k: v for k, v in r.items() if k != "label"} for r in rows]
        return {".jsonl": lines_of(records), "_labels.lst": "".join(r["label"] + "\n" for r in rows)}
    if task == "winogrande":
        return {".jsonl": lines_of(dict(qID=f"q-{i}", **r) for i, r in enumerate(rows))}
    if task.startswith("mmlu_"):
        return {".csv": csv_text([r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in rows)}
    if task.startswith("bbh_"):
        return {".json": json.dumps({"canary": "none", "examples": rows}, ensure_ascii=False) + "\n"}
    if task.startswith("gpqa_"):
        return {".csv": csv_text([list(rows[0]), *(list(r.values()) for r in rows)])}
    return {".jsonl": lines_of(rows)}


def bbh_prompt(description, examples):
    """Upstream's cot-prompts/NAME.txt."""
    parts = [f"Q: {e['input']}\nA: Let's think step by step.\n{e['target']}" for e in examples]
    return "none\n-----\n" + "\n\n".join([description, *parts])


class Golden:
    def __init__(self, out):
        self.out = out
        os.makedirs(os.path.join(out, "data"), exist_ok=True)

    def write(self, name, text):
        with open(os.path.join(self.out, "data", name), "w", encoding="utf-8", newline="") as f:
            f.write(text)
        return "data/" + name

    def files(self, task, rows, stem):
        return ",".join(self.write(stem + end, text) for end, text in upstream(task, rows).items())

    def written(self, task, folder, rows, split, pool=None, pool_split="train"):
        """Records of this repository: without a pool of their own the last ones serve, and are documents no less."""
        pool = pool if pool is not None else rows[NUM_DOCUMENTS:]
        splits = {"train": pool or rows, "validation": rows, split: rows, pool_split: pool or rows}
        stem = re.sub("bbh_cot_fewshot_", "bbh_", task)
        fewshot = self.files(task, pool, stem + "_pool") if pool else None
        return Records(splits, self.files(task, rows, stem), fewshot, folder)


def quickstart(task):
    if task.startswith("arc"):
        file = "quickstart/arc/arc_test.jsonl"
        rows = []
        for r in read_jsonl(os.path.join(QUICKSTART, "arc/arc_test.jsonl")):
            choices = r["question"]["choices"]
            choices = {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}
            rows.append({"id": r["id"], "question": r["question"]["stem"], "choices": choices, "answerKey": r["answerKey"]})  # fmt: skip
        return Records({"train": rows, "validation": rows, "test": rows}, file, file, "arc")
    if task == "piqa":
        labels = [int(x) for x in read_lines(os.path.join(QUICKSTART, "piqa/piqa_valid_labels.lst"))]
        rows = [dict(r, label=g) for r, g in zip(read_jsonl(os.path.join(QUICKSTART, "piqa/piqa_valid.jsonl")), labels, strict=True)]  # fmt: skip
        file = "quickstart/piqa/piqa_valid.jsonl,quickstart/piqa/piqa_valid_labels.lst"
        return Records({"train": rows, "validation": rows}, file, file, "piqa")
    rows = read_jsonl(os.path.join(QUICKSTART, "hellaswag/hellaswag_val.jsonl"))
    file = "quickstart/hellaswag/hellaswag_val.jsonl"
    return Records({"train": rows, "validation": rows}, file, file, "hellaswag")


def all_records(golden):
    records = {task: quickstart(task) for task in ("arc_easy", "arc_challenge", "piqa", "hellaswag")}
    w = written
    records["openbookqa"] = golden.written("openbookqa", "openbookqa", w.OPENBOOKQA, "test")
    records["sciq"] = golden.written("sciq", "sciq", w.SCIQ, "test")
    records["boolq"] = golden.written("boolq", "super_glue/boolq", w.BOOLQ, "validation")
    records["copa"] = golden.written("copa", "super_glue/copa", w.COPA, "validation")
    records["commonsense_qa"] = golden.written("commonsense_qa", "commonsense_qa", w.COMMONSENSE_QA, "validation")
    records["social_iqa"] = golden.written("social_iqa", "siqa", w.SOCIAL_IQA, "validation")
    records["winogrande"] = golden.written("winogrande", "winogrande", w.WINOGRANDE, "validation")
    records["lambada_openai"] = golden.written("lambada_openai", "lambada", w.LAMBADA, "test")
    records["mmlu_astronomy"] = golden.written("mmlu_astronomy", "mmlu", w.MMLU, "test", w.MMLU_DEV, "dev")
    for kind, (description, rows, examples) in w.BBH.items():
        task = "bbh_cot_fewshot_" + kind
        records[task] = golden.written(task, "bbh/cot_fewshot", rows, "test", [])
        records[task].fewshot = golden.write(f"bbh_{kind}_prompt.txt", bbh_prompt(description, examples))
        records[task].overrides = {"description": description + "\n\n", "fewshot_config": {"sampler": "first_n", "samples": examples}}  # fmt: skip
    records["gsm8k"] = golden.written("gsm8k", "gsm8k", w.GSM8K, "test", w.GSM8K_TRAIN)
    records["gpqa_main_zeroshot"] = golden.written("gpqa_main_zeroshot", "gpqa/zeroshot", w.GPQA, "validation", w.GPQA)
    records["wikitext"] = golden.written("wikitext", "wikitext", w.WIKITEXT, "test", [])
    return records


ZERO_SHOT = ("arc_easy", "arc_challenge", "piqa", "hellaswag", "openbookqa", "sciq", "boolq", "copa", "commonsense_qa",
             "social_iqa", "winogrande", "lambada_openai", "mmlu_astronomy", "gpqa_main_zeroshot", "wikitext")  # fmt: skip
FEW_SHOT = ("arc_easy", "piqa", "hellaswag", "openbookqa", "sciq", "boolq", "copa", "commonsense_qa", "social_iqa",
            "winogrande")  # fmt: skip
RUNS = (
    [(task, 0) for task in ZERO_SHOT]
    + [(task, 1) for task in FEW_SHOT]
    + [("bbh_cot_fewshot_boolean_expressions", 3), ("bbh_cot_fewshot_word_sorting", 3)]
    + [("mmlu_astronomy", 5), ("gsm8k", 5)]
)

# ---- Tokenizers of characters for the committed models, whose vocabularies are small


SPACE = "\u2581"


def character_tokenizer(size, characters, merges, adds_bos):
    """Llama-2's form: spaces become U+2581."""
    characters, merges = list(characters.replace(" ", SPACE)), [[part.replace(" ", SPACE) for part in m] for m in merges]
    tokens = ["<unk>", "<s>", "</s>", *characters, *(a + b for a, b in merges)]
    assert len(tokens) == size == len(set(tokens)), (len(tokens), size)
    special = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(tokens[:3])
    ]  # fmt: skip
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    post = {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": post if adds_bos else None,
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "Fuse"}],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": merges,
        },
    }


LOWER = "abcdefghijklmnopqrstuvwxyz"
MODELS = {
    # Its tokenizer adds <s>; some merges cross the border between prompt and choice.
    "mixtral": dict(
        base="tiny_mixtral",
        config={"max_position_embeddings": 2048},
        tokenizer=(97, LOWER + LOWER.upper() + "0123456789 \n.,?!:;'\"-()$#/=<>*+&%@",
                   [("t", "h"), (":", " "), (" ", "t"), ("i", "n"), ("\n", "\n"), ("e", "r"), ("a", "n"), ("e", " ")], True),
        skipped=(),
    ),
    # Contexts longer than 320 ids lose their beginning; capitals, digits and most signs are unknown.
    "dagmoe": dict(
        base="dagmoe_mixtral",
        config={"max_position_embeddings": 320},
        tokenizer=(37, LOWER + " \n.,?:'", [(".", " ")], False),
        skipped=("bbh_cot_fewshot_boolean_expressions", "bbh_cot_fewshot_word_sorting"),  # they ask for 1024 new tokens
    ),
}  # fmt: skip


def write_tokenizer(folder, spec):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(character_tokenizer(*spec), f, ensure_ascii=False)
        f.write("\n")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
              "clean_up_tokenization_spaces": False, "model_max_length": 1000000}  # fmt: skip
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(config, f, indent=1)
        f.write("\n")


def model_folder(work, name, model, tokenizer_folder):
    """The committed model with its tokenizer and, for dagmoe, the code that `export` puts beside it."""
    folder = os.path.join(work, name)
    shutil.copytree(os.path.join(HERE, model["base"]), folder)
    for file in os.listdir(tokenizer_folder):
        shutil.copy(os.path.join(tokenizer_folder, file), folder)
    with open(os.path.join(folder, "config.json")) as f:
        config = dict(json.load(f), **model["config"])
    if config["model_type"] == "dagmoe":
        code = os.path.join(HERE, "../../src/checkpoint/remote_code")
        for file in os.listdir(code):
            if file.endswith(".py"):
                shutil.copy(os.path.join(code, file), folder)
        config["auto_map"] = {
            "AutoConfig": "configuration_dagmoe.DagMoeConfig",
            "AutoModelForCausalLM": "modeling_dagmoe.DagMoeForCausalLM",
        }
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    return folder


# ---- Expected files


def sample_row(sample, is_text):
    head = [sample["prompt_hash"][:12], sample["target_hash"][:12]]
    if is_text:
        return [*head, [sample["resps"][0][0], sample["filtered_resps"][0]]]
    scores = []
    for response in sample["resps"]:
        value = response[0]
        scores.append([round(value[0], 5), value[1]] if isinstance(value, list) else [round(float(value), 4)])
    return [*head, scores]


def run_model(folder, records, skipped, path, head):
    lm = local_lm_eval.load_model(folder, "float32", trust_remote_code=True)
    runs = []
    for task, shots in RUNS:
        if task in skipped:
            continue
        r = records[task]
        is_text = task.startswith(("gsm8k", "bbh"))
        results, version, samples = local_lm_eval.run_task(lm, task, r, NUM_DOCUMENTS, shots)
        by_filter = {}
        for s in samples:
            by_filter.setdefault(s["filter"], []).append(sample_row(s, is_text))
        runs.append(
            {
                "task": task,
                "shots": shots,
                "version": version,
                "dataset": r.dataset,
                "fewshot": r.fewshot if shots else None,
                "doc_hashes": [s["doc_hash"][:12] for s in samples if s["filter"] == samples[0]["filter"]],
                "results": {k: v for k, v in results.items() if "," in k},
                "samples": by_filter,
            }
        )
        print(task, shots, {k: v for k, v in runs[-1]["results"].items() if "stderr" not in k}, flush=True)
        write_expected(path, head, runs)


def write_expected(path, head, runs):
    """One line a document, so that a change shows where it is."""
    def compact(x):
        return json.dumps(x, ensure_ascii=False, separators=(", ", ": "))

    with open(path, "w", encoding="utf-8") as f:
        f.write("{" + ", ".join(f"{compact(k)}: {compact(v)}" for k, v in head.items()) + ', "runs": [\n')
        blocks = []
        for run in runs:
            text = ", ".join(f"{compact(k)}: {compact(v)}" for k, v in run.items() if k != "samples")
            filters = ",\n".join(compact(name) + ": [\n  " + ",\n  ".join(map(compact, rows)) + "]"
                                 for name, rows in run["samples"].items())  # fmt: skip
            blocks.append("{" + text + ', "samples": {' + filters + "}}")
        f.write(",\n".join(blocks) + "\n]}\n")
    with open(path, encoding="utf-8") as f:
        json.load(f)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--smollm2")
    parser.add_argument("--only", default="mixtral,dagmoe,smollm2")
    args = parser.parse_args()
    out = os.path.join(args.out, "lm_eval_tasks")
    records = all_records(Golden(out))
    versions = {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__,
                "torch": torch.__version__.split("+")[0]}  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        for name, model in MODELS.items():
            write_tokenizer(os.path.join(out, name), model["tokenizer"])
            if name in args.only:
                folder = model_folder(work, name, model, os.path.join(out, name))
                head = {"versions": versions, "base": model["base"], "config": model["config"], "documents": NUM_DOCUMENTS}
                run_model(folder, records, model["skipped"], os.path.join(out, f"expected_{name}.json"), head)
        if args.smollm2 and "smollm2" in args.only:
            head = {"versions": versions, "documents": NUM_DOCUMENTS}
            run_model(args.smollm2, records, (), os.path.join(out, "expected_smollm2.json"), head)


if __name__ == "__main__":
    main()
