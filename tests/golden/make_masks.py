"""Token ids and labels of real records as the reference programs make them, for tests/data/masks_test.cpp.

usage: make_masks.py SHARED_DATA masks.json

References: Stanford Alpaca's rule (tatsu-lab/stanford_alpaca, train.py: prompt + output + EOS encoded at once, as many labels masked as the prompt alone has tokens); TRL's
SFTTrainer for prompt and completion; transformers' apply_chat_template with the assistant's turns found by the tokens of the text before and up to them. Each case
reads the first 500 records of a file. The golden file holds one SHA-256 for every 50 records of the text of their ids and labels, "1 2 3|-100 2 3\n" a record.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import torch
import transformers
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COUNT, BLOCK = 500, 50
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def alpaca(instruction, text, output):
    return (WITH_INPUT if text else NO_INPUT).format(instruction=instruction, input=text), output


def read(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    return rows[:COUNT]


def metamath(row):
    head, _, rest = row["query"].partition("\n")
    return alpaca(head, rest, row["response"])


# format -> (file below SHARED_DATA, record -> prompt and answer)
SINGLE = {
    "alpaca": ("alpaca/alpaca_en_demo.json", lambda r: alpaca(r["instruction"], r.get("input") or "", r["output"])),
    "dolly": ("dolly/dolly_first1000.json", lambda r: alpaca(r["instruction"], r["input"], r["output"])),
    "gsm8k": ("gsm8k/train.even.jsonl", lambda r: alpaca(r["question"], "", r["answer"])),
    "metamath": ("metamath/GSM8K_test.jsonl", metamath),
    "mathinstruct": ("alpaca/alpaca_en_demo.json", lambda r: alpaca(r["instruction"], "", r["output"])),
}


def stanford(tokenizer, prompt, answer):
    ids = tokenizer(prompt + answer + tokenizer.eos_token).input_ids
    masked = len(tokenizer(prompt).input_ids)
    return ids, [-100] * masked + ids[masked:]


def prompt_completion(tokenizer, rows):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(output_dir=folder, max_length=None, completion_only_loss=True, report_to=[], use_cpu=True)
        dataset = Dataset.from_list([{"prompt": r["instruction"], "completion": " " + r["output"]} for r in rows])
        trainer = trl.SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
        for row in trainer.train_dataset:
            yield row["input_ids"], row["labels"]


def conversation(rows, i):
    """Two exchanges, behind a system turn for every other record."""
    turns = [{"role": "system", "content": "Answer briefly."}] if i % 2 else []
    for row in (rows[i], rows[(i + 1) % len(rows)]):
        turns += [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
    return turns


def chat(tokenizer, turns):
    def render(messages, prompt=False):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    def count(text):
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    ids = tokenizer(render(turns), add_special_tokens=False).input_ids
    labels = [-100] * len(ids)
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        # The line feed behind the end token belongs to the next turn.
        begin, end = count(render(turns[:i], True)), count(render(turns[: i + 1]).removesuffix("\n"))
        labels[begin:end] = ids[begin:end]
    return ids, labels


def block_hashes(samples):
    lines = [" ".join(map(str, ids)) + "|" + " ".join(map(str, labels)) + "\n" for ids, labels in samples]
    assert len(lines) == COUNT, len(lines)
    return [hashlib.sha256("".join(lines[i : i + BLOCK]).encode()).hexdigest() for i in range(0, COUNT, BLOCK)]


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main():
    shared, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    torch.manual_seed(0)
    folder = shared / "tokenizers"
    olmo = PreTrainedTokenizerFast(tokenizer_file=str(folder / "olmo-gpt-neox/tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|padding|>")
    minimind = PreTrainedTokenizerFast(tokenizer_file=str(folder / "minimind/tokenizer.json"), bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    minimind.chat_template = CHATML
    templates = {t["name"]: t["jinja"] for t in json.loads((pathlib.Path(__file__).parent / "chat_templates.json").read_text())["templates"]}
    olmo.chat_template = templates["olmo"]
    tokenizers = {"olmo-gpt-neox": olmo, "minimind": minimind}
    cases = []
    for name, tokenizer in tokenizers.items():
        for record_format, (file, prompt_and_answer) in SINGLE.items():
            rows = [stanford(tokenizer, *prompt_and_answer(row)) for row in read(shared / file)]
            cases.append({"reference": "stanford", "tokenizer": name, "format": record_format, "template": "alpaca", "file": file, "blocks": block_hashes(rows)})
        file = "alpaca/alpaca_en_demo.json"
        rows = read(shared / file)
        cases.append({"reference": "trl", "tokenizer": name, "format": "prompt_completion", "template": "plain", "file": file,
                      "blocks": block_hashes(prompt_completion(tokenizer, rows))})
        template = "chatml" if name == "minimind" else "olmo"
        for record_format in ("messages", "sharegpt"):
            samples = [chat(tokenizer, conversation(rows, i)) for i in range(COUNT)]
            cases.append({"reference": "transformers", "tokenizer": name, "format": record_format, "template": template, "file": file, "blocks": block_hashes(samples)})
    versions = {"transformers": transformers.__version__, "trl": trl.__version__}
    target.write_text(json.dumps({"versions": versions, "count": COUNT, "block": BLOCK, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
