"""Records of the shared data for both programs: Hugging Face's fields for lm-eval, files in the upstream layouts for dagmoe.

Used by check_eval.py, make_lm_eval_tasks.py and bench/eval.py. Where the shared data has one file of a task, the last
quarter of it is the few-shot pool. winogrande, sciq and gpqa have no shared data: their records are made from those of
other tasks, which tests every rule but says nothing about a score.
"""

import csv
import dataclasses
import json
import os
import re


@dataclasses.dataclass
class Records:
    splits: dict  # name of the split: rows in Hugging Face's fields and order
    dataset: str  # what --dataset TASK= gets
    fewshot: str | None = None  # what --fewshot TASK= gets
    folder: str = ""  # of the task file, below lm_eval/tasks
    overrides: dict = dataclasses.field(default_factory=dict)  # of the task's config
    has_own_documents: bool = False  # the doc of lm-eval's sample has other fields than upstream's record


def read_lines(path):
    with open(path, encoding="utf-8", newline="\n") as f:
        return f.read().removesuffix("\n").split("\n")


def read_jsonl(path):
    return [json.loads(line) for line in read_lines(path)]


class Shared:
    """The folder of the data sets, and one for the files that have to be written."""

    def __init__(self, data, work):
        self.data, self.work = data, work

    def path(self, name):
        return os.path.join(self.data, name)

    def write(self, name, text):
        os.makedirs(self.work, exist_ok=True)
        path = os.path.join(self.work, name)
        with open(path, "w", encoding="utf-8", newline="") as f:
            f.write(text)
        return path

    def write_jsonl(self, name, rows):
        return self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def pool_start(rows):
    return len(rows) - len(rows) // 4


def choices_of(record):
    items = record["question"]["choices"]
    return {"text": [c["text"] for c in items], "label": [c["label"] for c in items]}


def arc(shared, name):
    stem = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}[name]
    files = {split: shared.path(f"arc/{stem}-{end}.jsonl") for split, end in
             (("train", "Train"), ("validation", "Dev"), ("test", "Test.even"))}  # fmt: skip
    rows = {
        split: [
            {
                "id": r["id"],
                "question": r["question"]["stem"],
                "choices": choices_of(r),
                "answerKey": r["answerKey"],
            }
            for r in read_jsonl(path)
        ]
        for split, path in files.items()
    }
    return Records(rows, files["test"], files["train"], "arc")


def piqa(shared, name):
    gold = [int(x) for x in read_lines(shared.path("piqa/valid-labels.even.lst"))]
    rows = [dict(r, label=g) for r, g in zip(read_jsonl(shared.path("piqa/valid.even.jsonl")), gold, strict=True)]
    pool = rows[pool_start(rows) :]
    dataset = shared.path("piqa/valid.even.jsonl") + "," + shared.path("piqa/valid-labels.even.lst")
    return Records({"train": pool, "validation": rows}, dataset, shared.write_jsonl("piqa_pool.jsonl", pool), "piqa")


def hellaswag_blocks(shared):
    lines = read_lines(shared.path("hellaswag/hellaswag_val.even.txt"))
    return [lines[i : i + 6] for i in range(0, len(lines) - 5, 6)]


def as_is(docs):
    return docs


def hellaswag(shared, name):
    """llama.cpp's text, used verbatim: lm-eval's preprocessing is left out."""
    blocks = hellaswag_blocks(shared)
    pool = blocks[pool_start(blocks) :]
    rows = {
        split: [{"query": b[0], "choices": b[2:], "gold": int(b[1]), "label": b[1]} for b in part]
        for split, part in (("train", pool), ("validation", blocks))
    }
    text = shared.write("hellaswag_pool.txt", "".join("\n".join(b) + "\n" for b in pool))
    dataset = shared.path("hellaswag/hellaswag_val.even.txt")
    return Records(rows, dataset, text, "hellaswag", {"process_docs": as_is}, True)


def hellaswag_record(index, block):
    """Upstream's fields from the text form; brackets, " [title]" and double spaces are put in for the cleaning to remove."""
    label, _, context = block[0].partition(": ")
    first, stop, second = context.rpartition(". ")
    if not stop:
        first, second = context, ""
    endings = list(block[2:])
    if index % 3 == 0:
        first += " [header] [title]  "
        endings[index % 4] = " [step] " + endings[index % 4] + "   [substeps]"
    return {
        "ind": index,
        "activity_label": label,
        "ctx_a": first + stop.strip(),
        "ctx_b": second,
        "ctx": context,
        "endings": endings,
        "source_id": f"activitynet~v_{index}",
        "split": "val",
        "split_type": "indomain",
        "label": block[1],
    }


def hellaswag_jsonl(shared, name):
    blocks = hellaswag_blocks(shared)
    rows = [hellaswag_record(i, b) for i, b in enumerate(blocks)]
    pool = rows[pool_start(rows) :]
    files = [shared.write_jsonl("hellaswag.jsonl", rows), shared.write_jsonl("hellaswag_pool.jsonl", pool)]
    return Records({"train": pool, "validation": rows}, *files, "hellaswag")


def openbookqa(shared, name):
    rows = [
        {
            "id": r["id"],
            "question_stem": r["question"]["stem"],
            "choices": choices_of(r),
            "answerKey": r["answerKey"],
        }
        for r in read_jsonl(shared.path("openbookqa/test.jsonl"))
    ]
    start = pool_start(rows)
    lines = read_lines(shared.path("openbookqa/test.jsonl"))
    pool = shared.write("openbookqa_pool.jsonl", "\n".join(lines[start:]) + "\n")
    splits = {"train": rows[start:], "validation": rows[start:], "test": rows}
    return Records(splits, shared.path("openbookqa/test.jsonl"), pool, "openbookqa")


def boolq(shared, name):
    source = read_jsonl(shared.path("boolq/val.even.jsonl"))
    rows = [
        {
            "question": r["question"],
            "passage": r["passage"],
            "idx": r["idx"],
            "label": ["false", "true"].index(r["label"]),
        }
        for r in source
    ]
    start = pool_start(rows)
    # The shared file has its labels as strings, upstream's has booleans.
    pool = shared.write_jsonl("boolq_pool.jsonl", [dict(r, label=r["label"] == "true") for r in source[start:]])
    return Records(
        {"train": rows[start:], "validation": rows}, shared.path("boolq/val.even.jsonl"), pool, "super_glue/boolq"
    )


def copa(shared, name):
    """SuperGLUE's fields from llm-foundry's: "The man turned on the faucet, therefore"."""
    rows = []
    for i, r in enumerate(read_jsonl(shared.path("copa/copa.jsonl"))):
        premise, _, connector = r["query"].rpartition(", ")
        rows.append(
            {
                "premise": premise + ".",
                "choice1": r["choices"][0][0].upper() + r["choices"][0][1:],
                "choice2": r["choices"][1][0].upper() + r["choices"][1][1:],
                "question": {"therefore": "effect", "because": "cause"}[connector],
                "idx": i,
                "label": r["gold"],
            }
        )
    pool = rows[pool_start(rows) :]
    upstream = ("premise", "choice1", "choice2", "question", "label", "idx")  # the order of SuperGLUE's val.jsonl
    files = [shared.write_jsonl(file, [{k: r[k] for k in upstream} for r in part])
             for file, part in (("copa.jsonl", rows), ("copa_pool.jsonl", pool))]  # fmt: skip
    return Records({"train": pool, "validation": rows}, *files, "super_glue/copa")


def commonsense_qa(shared, name):
    file = "commonsense_qa/dev_rand_split.jsonl"
    rows = [
        {
            "id": r["id"],
            "question": r["question"]["stem"],
            "question_concept": r["question"]["question_concept"],
            "choices": {key: choices_of(r)[key] for key in ("label", "text")},
            "answerKey": r["answerKey"],
        }
        for r in read_jsonl(shared.path(file))
    ]
    start = pool_start(rows)
    pool = shared.write("commonsense_qa_pool.jsonl", "\n".join(read_lines(shared.path(file))[start:]) + "\n")
    return Records({"train": rows[start:], "validation": rows}, shared.path(file), pool, "commonsense_qa")


def social_iqa(shared, name):
    """Upstream's fields from LLM-Adapters' instruction form; context and question are parted at the last full stop."""
    rows = []
    with open(shared.path("social_i_qa/test.json"), encoding="utf-8") as f:
        source = json.load(f)
    pattern = re.compile(r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*) Answer2: (.*) Answer3: (.*)\n\nAnswer format: answer1/answer2/answer3", re.S)  # fmt: skip
    for r in source:
        text, *answers = pattern.fullmatch(r["instruction"]).groups()
        context, _, question = text.rpartition(". ")
        rows.append(
            {
                "context": context + "." if context else "",
                "question": question,
                "answerA": answers[0],
                "answerB": answers[1],
                "answerC": answers[2],
                "label": r["answer"].removeprefix("answer"),
            }
        )
    files = []
    for file, part in (("social_iqa", rows), ("social_iqa_pool", rows[pool_start(rows) :])):
        records = shared.write_jsonl(file + ".jsonl", [{k: v for k, v in r.items() if k != "label"} for r in part])
        labels = shared.write(file + "-labels.lst", "".join(r["label"] + "\n" for r in part))
        files.append(records + "," + labels)
    return Records({"train": rows[pool_start(rows) :], "validation": rows}, *files, "siqa")


def lambada_openai(shared, name):
    rows = [
        {"text": r["context"] + " " + r["continuation"]}
        for r in read_jsonl(shared.path("lambada/lambada_openai.even.jsonl"))
    ]
    return Records({"test": rows}, shared.write_jsonl("lambada_openai.jsonl", rows), None, "lambada")


def mmlu(shared, name):
    subject = name.removeprefix("mmlu_")

    def rows(split):
        with open(shared.path(f"mmlu/{split}/{subject}_{split}.csv"), encoding="utf-8", newline="") as f:
            return [
                {"question": r[0], "subject": subject, "choices": r[1:5], "answer": "ABCD".index(r[5])}
                for r in csv.reader(f)
            ]

    files = [shared.path(f"mmlu/{split}/{subject}_{split}.csv") for split in ("test", "dev")]
    return Records({split: rows(split) for split in ("test", "dev")}, *files, "mmlu")


def bbh(shared, name):
    kind = name.removeprefix("bbh_cot_fewshot_")
    file = shared.path(f"bbh/{kind}.json")
    with open(file, encoding="utf-8") as f:
        rows = json.load(f)["examples"]
    return Records({"test": rows}, file, shared.path(f"bbh/cot-prompts/{kind}.txt"), "bbh/cot_fewshot")


def gsm8k(shared, name):
    files = [shared.path("gsm8k/test.jsonl"), shared.path("gsm8k/train.even.jsonl")]
    return Records({"test": read_jsonl(files[0]), "train": read_jsonl(files[1])}, *files, "gsm8k")


def wikitext(shared, name):
    """Pages of the token file: a page begins at a heading of the first level, as in the document-level data set."""
    with open(shared.path("corpora/wikitext-2.test.txt"), encoding="utf-8", newline="") as f:
        lines = f.read().splitlines(keepends=True)
    pages = []
    for line in lines:
        if re.fullmatch(r" = [^=].*[^=] = \n", line) or not pages:
            pages.append("")
        pages[-1] += line
    rows = [{"page": page} for page in pages if page.strip()]
    splits = {"train": rows[-2:], "validation": rows[-2:], "test": rows}
    return Records(splits, shared.write_jsonl("wikitext.jsonl", rows), None, "wikitext")


def winogrande(shared, name):
    """Made: HellaSwag's contexts with a gap where two words of the text could stand."""
    rows = []
    for i, block in enumerate(hellaswag_blocks(shared)[:1200]):
        words = block[0].split(" ")
        at = len(words) // 2 + i % 3
        options = [words[at].strip(".,"), words[at - 2].strip(".,")]
        if len(words) < 10 or not all(options) or "_" in block[0]:
            continue
        sentence = " ".join(words[:at] + ["_" + words[at][len(options[0]) :]] + words[at + 1 :])
        if i % 2:
            options.reverse()
        rows.append(
            {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": "2" if i % 2 else "1"}
        )
    pool = rows[pool_start(rows) :]
    files = [shared.write_jsonl(f"{file}.jsonl", [dict(qID=str(i), **r) for i, r in enumerate(part)])
             for file, part in (("winogrande", rows), ("winogrande_pool", pool))]  # fmt: skip
    return Records({"train": pool, "validation": rows}, *files, "winogrande")


def four_choices(shared):
    for record in arc(shared, "arc_easy").splits["test"]:
        texts, gold = record["choices"]["text"], record["choices"]["label"].index(record["answerKey"])
        if len(texts) == 4:
            yield record["question"], texts[gold], [t for i, t in enumerate(texts) if i != gold]


def sciq(shared, name):
    """Made: ARC's questions with paragraphs of WikiText as support; each third support is empty, each fifth begins with a space."""
    pages = [p["page"].split("\n") for p in wikitext(shared, "wikitext").splits["test"]]
    paragraphs = [p.strip() for page in pages for p in page if 200 < len(p) < 600]
    rows = []
    for i, (question, gold, others) in enumerate(four_choices(shared)):
        support = "" if i % 3 == 0 else paragraphs[i % len(paragraphs)]
        rows.append(
            {
                "question": question,
                "distractor3": others[2],
                "distractor1": others[0],
                "distractor2": others[1],
                "correct_answer": gold,
                "support": " " + support if i % 5 == 1 else support,
            }
        )
    files = []
    for file, part in (("sciq", rows), ("sciq_pool", rows[pool_start(rows) :])):
        files.append(shared.write(file + ".json", json.dumps(part, ensure_ascii=False, indent=2)))
    splits = {"train": rows[pool_start(rows) :], "validation": rows[pool_start(rows) :], "test": rows}
    return Records(splits, *files, "sciq")


def gpqa(shared, name):
    """Made: ARC's questions in GPQA's columns, with the spaces and brackets that its cleaning removes."""
    columns = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    rows = []
    for i, (question, gold, others) in enumerate(four_choices(shared)):
        answers = [gold, *others]
        answers[i % 4] = [" {} ", "{} [title]x", "{}  of  it", "{}\n"][i // 4 % 4].format(answers[i % 4])
        rows.append(dict(zip(columns, [question, *answers], strict=True)))
    path = os.path.join(shared.work, "gpqa.csv")
    os.makedirs(shared.work, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    return Records({"train": rows}, path, None, "gpqa/zeroshot")


MAKERS = {
    "arc_easy": arc,
    "arc_challenge": arc,
    "piqa": piqa,
    "hellaswag": hellaswag,
    "hellaswag_jsonl": hellaswag_jsonl,
    "winogrande": winogrande,
    "openbookqa": openbookqa,
    "sciq": sciq,
    "boolq": boolq,
    "copa": copa,
    "commonsense_qa": commonsense_qa,
    "social_iqa": social_iqa,
    "lambada_openai": lambada_openai,
    "gsm8k": gsm8k,
    "gpqa_main_zeroshot": gpqa,
    "gpqa_diamond_zeroshot": gpqa,
    "wikitext": wikitext,
}


def make_records(name, data, work):
    """Records of a task by lm-eval's name, and hellaswag_jsonl: hellaswag in upstream's JSON lines."""
    maker = mmlu if name.startswith("mmlu_") else bbh if name.startswith("bbh_cot_fewshot_") else MAKERS[name]
    return maker(Shared(data, work), name)


def lm_eval_name(name):
    return "hellaswag" if name == "hellaswag_jsonl" else name
