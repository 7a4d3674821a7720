#!/usr/bin/env python3
"""LoRA on experts beside peft: what a step costs as the number of experts grows and the active size stays.

    python bench/expert_lora.py DAGMOE TOKENIZER_FOLDER DATA.json [--experts 8,32,128] [--steps N] [--threads N]

Random Qwen3-MoE models of 4 layers, hidden size 256, experts of width 256, 4 of them for each token, so that a token meets the same number of weights in
each. fp32; both programs take the same records of DATA.json (Alpaca's form) in the order of the file, rank 8 on gate_up_proj and down_proj, AdamW. Prints
the median seconds of a step and the peak of memory above the model's own weights, which dagmoe leaves in their file and transformers loads; and what dagmoe
needs with the adapter on attention instead, so that the difference is what LoRA on experts adds. A second table has 32 experts and other numbers of tokens a
step. Needs transformers and peft. The programs run one after the other, each in a process of its own.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from measure import peak_of_this_process

TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LENGTH = 256


def make_model(folder, tokenizer, experts):
    import torch
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(1)
    tok = AutoTokenizer.from_pretrained(tokenizer)
    config = Qwen3MoeConfig(
        vocab_size=len(tok), hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64, intermediate_size=256,
        moe_intermediate_size=256, num_experts=experts, num_experts_per_tok=4, norm_topk_prob=True, max_position_embeddings=1024, tie_word_embeddings=True,
        initializer_range=0.1, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)


def run_peft(folder, data, steps, sequences):
    """Runs in a process of its own; prints one JSON object."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=[], target_parameters=TARGETS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    records = [r for r in json.loads(pathlib.Path(data).read_text()) if r["output"]]
    text = "\n".join(r["instruction"] + "\n" + r["output"] for r in records[: 12 * sequences * steps])
    ids = tok(text)["input_ids"]
    seconds = []
    for step in range(steps):
        batch = torch.tensor(ids[step * sequences * LENGTH : (step + 1) * sequences * LENGTH]).view(sequences, LENGTH)
        started = time.monotonic()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - started)
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak": peak_of_this_process()}))


def run_dagmoe(program, folder, data, steps, sequences, targets, work):
    records = [r for r in json.loads(pathlib.Path(data).read_text()) if r["output"]]
    text = work / "text.jsonl"
    # Long texts, learnt in parts of the same length as the other program's.
    text.write_text("\n".join(json.dumps({"text": "\n".join(r["instruction"] + "\n" + r["output"] for r in records[i % 8000 : i % 8000 + 200])}) for i in range(0, 200 * sequences * steps, 200)) + "\n")
    recipe = work / "recipe.yaml"
    recipe.write_text(f"""version: 1
output_dir: {work / targets}
dtype: float32
model: {{path: {folder}}}
lora: {{rank: 8, alpha: 16, targets: [{targets}]}}
data:
  train: [{{path: {text}, format: text}}]
  max_seq_len: {LENGTH}
batch: {{sequences: {sequences}, micro_batch_tokens: {sequences * LENGTH}}}
steps: {steps}
optimizer: {{lr: 1.0e-3}}
""")
    subprocess.run([program, "finetune", str(recipe)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (work / targets / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    # Per token: the last part of a text may be shorter.
    rate = statistics.median(line["seconds"] / line["tokens"] for line in lines[1:])
    return {"seconds": rate * sequences * LENGTH, "peak": max(line["peak_rss_bytes"] for line in lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("tokenizer")
    parser.add_argument("data")
    parser.add_argument("--experts", default="8,32,128")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peft", help=argparse.SUPPRESS)
    parser.add_argument("--sequences", type=int, default=4, help="of 256 tokens each, a step of the first table")
    args = parser.parse_args()
    if args.peft:
        return run_peft(args.peft, args.data, args.steps, args.sequences)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    for cases in ([(int(e), args.sequences) for e in args.experts.split(",")], [(32, n) for n in (2, 4, 8)]):
        print("\n| experts | tokens | weights, MB | attention: s | MB | experts: s | MB | peft, experts: s | MB | peft / dagmoe, time |\n|" + "---|" * 10)
        for experts, sequences in cases:
            one_row(args, experts, sequences)


def one_row(args, experts, sequences):
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        folder = work / "model"
        make_model(folder, args.tokenizer, experts)
        weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        base, ours = (run_dagmoe(args.program, folder, args.data, args.steps, sequences, targets, work) for targets in ("attention", "experts"))
        command = [sys.executable, __file__, args.program, args.tokenizer, args.data, "--steps", str(args.steps), "--sequences", str(sequences), "--peft", str(folder)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        cells = [f"{r['seconds']:.2f} | {(r['peak'] - weights) / 1e6:,.0f}" for r in (base, ours, theirs)]
        print(f"| {experts} | {sequences * LENGTH:,} | {weights / 1e6:,.0f} | {' | '.join(cells)} | {theirs['seconds'] / ours['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
