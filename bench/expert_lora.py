#!/usr/bin/env python3
"""LoRA on experts beside peft: what a step costs as the number of experts grows and the active size stays.

    python bench/expert_lora.py DAGMOE TOKENIZER_FOLDER DATA.json [--experts 8,32,128] [--steps N] [--threads N]

Random Qwen3-MoE models of 4 layers, hidden size 256, experts of width 256, 4 of them for each token, so that a token meets the same number of weights in
each. fp32; both programs take the same records of DATA.json (Alpaca's form) in the order of the file, rank 8 on gate_up_proj and down_proj, AdamW. Prints
the median seconds of a step and the peak of memory above the model's own weights, which dagmoe leaves in their file and transformers loads. Needs
transformers and peft. The programs run one after the other, each in a process of its own.
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

TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SEQUENCES, LENGTH = 4, 256


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


def run_peft(folder, data, steps):
    """Runs in a process of its own; prints one JSON object."""
    import resource

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=[], target_parameters=TARGETS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    records = [r for r in json.loads(pathlib.Path(data).read_text()) if r["output"]]
    text = "\n".join(r["instruction"] + "\n" + r["output"] for r in records[: 40 * steps])
    ids = tok(text)["input_ids"]
    seconds = []
    for step in range(steps):
        batch = torch.tensor(ids[step * SEQUENCES * LENGTH : (step + 1) * SEQUENCES * LENGTH]).view(SEQUENCES, LENGTH)
        started = time.monotonic()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - started)
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run_dagmoe(program, folder, data, steps, work):
    records = [r for r in json.loads(pathlib.Path(data).read_text()) if r["output"]]
    text = work / "text.jsonl"
    # Long texts, learnt in parts of the same length as the other program's.
    text.write_text("\n".join(json.dumps({"text": "\n".join(r["instruction"] + "\n" + r["output"] for r in records[i : i + 200])}) for i in range(0, 40 * steps, 200)) + "\n")
    recipe = work / "recipe.yaml"
    recipe.write_text(f"""version: 1
output_dir: {work / "run"}
dtype: float32
model: {{path: {folder}}}
lora: {{rank: 8, alpha: 16, targets: [experts]}}
data:
  train: [{{path: {text}, format: text}}]
  max_seq_len: {LENGTH}
batch: {{sequences: {SEQUENCES}}}
steps: {steps}
optimizer: {{lr: 1.0e-3}}
""")
    subprocess.run([program, "finetune", str(recipe)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    # Per token: the last part of a text may be shorter.
    rate = statistics.median(line["seconds"] / line["tokens"] for line in lines[1:])
    return {"seconds": rate * SEQUENCES * LENGTH, "peak": max(line["peak_rss_bytes"] for line in lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("tokenizer")
    parser.add_argument("data")
    parser.add_argument("--experts", default="8,32,128")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peft", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peft:
        return run_peft(args.peft, args.data, args.steps)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print("| experts | weights, MB | dagmoe: s a step | MB above weights | peft: s a step | MB above weights | peft / dagmoe, time |\n|---|---|---|---|---|---|---|")
    for experts in map(int, args.experts.split(",")):
        with tempfile.TemporaryDirectory() as name:
            work = pathlib.Path(name)
            folder = work / "model"
            make_model(folder, args.tokenizer, experts)
            weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
            ours = run_dagmoe(args.program, folder, args.data, args.steps, work)
            done = subprocess.run([sys.executable, __file__, args.program, args.tokenizer, args.data, "--steps", str(args.steps), "--peft", str(folder)],
                                  check=True, capture_output=True, text=True)
            theirs = json.loads(done.stdout.splitlines()[-1])
            mb = lambda result: f"{(result['peak'] - weights) / 1e6:,.0f}"
            print(f"| {experts} | {weights / 1e6:,.0f} | {ours['seconds']:.2f} | {mb(ours)} | {theirs['seconds']:.2f} | {mb(theirs)} | {theirs['seconds'] / ours['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
