#!/usr/bin/env python3
"""Fine-tuning beside the Python stack: tokens a second, memory and loss, on the same records in the same run.

    python bench/train.py full|dag|expert_lora --dagmoe BINARY --model SMOLLM2 [--moe MIXTRAL_FORM] --data ALPACA.json
                          [--records 8] [--steps 12] [--repeats 3] [--threads 2] [--peer-modes amp,bf16] [--json FILE]

full         every weight of SmolLM2; peer: TRL's SFTTrainer (fp32, bf16 autocast, pure bf16)
dag          only the DAG (L = 2, G = 64) of SmolLM2 upcycled to 8 experts of which 4 answer; peer: the same module written in plain PyTorch on transformers'
             Mixtral (factorised edges, bf16 autocast, frozen parameters without gradients), as a user would
expert_lora  rank 8 on attention and both expert tensors; peer: peft's target_parameters through TRL

Both programs get the same prompts and completions in the order of the file, `records` of them a step, AdamW at the same rate. Real tokens only, without padding; the first fifth
of the steps (two at least) warms up. Programs run in turn, each in a process of its own. The peer's best mode is the fastest whose loss over the last half of the steps is within
1 % of its own fp32 autocast run's. A ratio counts if dagmoe's loss is within 1 % of that mode's. Needs transformers, trl and peft; an idle machine.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from measure import peak_of_this_process

HEADER = "Below is an instruction that describes a task"
LENGTH, LR = 512, 2e-5
RANK, ALPHA = 8, 16


def alpaca_prompt(record):
    if record["input"]:
        return (f"{HEADER}, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n"
                f"### Instruction:\n{record['instruction']}\n\n### Input:\n{record['input']}\n\n### Response:")
    return f"{HEADER}. Write a response that appropriately completes the request.\n\n### Instruction:\n{record['instruction']}\n\n### Response:"


def write_records(data, count, folder):
    """JSON Lines with Alpaca's fields and, for the peers, prompt and completion; samples that would have to be cut are left out, as the two programs cut differently."""
    rows = []
    for record in json.loads(pathlib.Path(data).read_text()):
        if record["output"].strip() and sum(len(record[k]) for k in ("instruction", "input", "output")) < 1200:
            rows.append({**record, "prompt": alpaca_prompt(record), "completion": record["output"]})
        if len(rows) == count:
            break
    if len(rows) < count:
        sys.exit(f"{data}: found {len(rows)} records that fit, expected {count}")
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- Peers: each runs in a process of its own and prints one JSON object.

def report(seconds, tokens, losses, start):
    warm = max(2, len(seconds) // 5)
    print(json.dumps({"tokens_per_second": sum(tokens[warm:]) / sum(seconds[warm:]), "losses": losses, "peak_bytes": peak_of_this_process(),
                      "first_step_after_s": start, "step_s": statistics.median(seconds[warm:])}))


def run_trl(spec):
    import time
    begin = time.time()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(spec["threads"])
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in map(json.loads, open(spec["records"]))]
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.bfloat16 if spec["mode"] == "bf16" else torch.float32)
    adapter = None
    if spec["workload"] == "expert_lora":
        from peft import LoraConfig
        adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
                             target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], task_type="CAUSAL_LM")
    seconds, tokens, first = [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.time()
            tokens.append(0)

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.time() - self.start)
            first.append(time.time() - begin)

    # Small micro batches pad less; TRL's throughput hardly changes above 8 records.
    micro = min(8, spec["per_step"])
    config = SFTConfig(output_dir=spec["work"], max_steps=spec["steps"], per_device_train_batch_size=micro, gradient_accumulation_steps=spec["per_step"] // micro,
                       learning_rate=LR, lr_scheduler_type="constant", max_length=LENGTH, bf16=spec["mode"] == "amp", logging_steps=1, save_strategy="no", report_to=[],
                       use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, max_grad_norm=1.0, train_sampling_strategy="sequential")
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter, callbacks=[Clock()])
    inner = trainer.training_step

    def counted(module, inputs, *args, **kwargs):
        tokens[-1] += int(inputs["attention_mask"].sum())
        return inner(module, inputs, *args, **kwargs)

    trainer.training_step = counted
    trainer.train()
    report(seconds, tokens, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], first[0])


def run_plain_dag(spec):
    import time
    begin = time.time()
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(spec["threads"])
    L, G = 2, 64
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)

    class Step(nn.Module):
        """One iteration with its edge matrices in factorised form: no (K, K, 2G) tensor of concatenated pairs."""

        def __init__(self, width):
            super().__init__()
            self.norm, self.down = nn.LayerNorm(width, bias=False), nn.Linear(width, G, bias=False)
            self.mix, self.up = nn.Linear(G, 4 * G, bias=False), nn.Linear(G, width, bias=False)
            for linear in (self.down, self.mix):  # as dagmoe begins, so that losses compare
                nn.init.normal_(linear.weight, std=model.config.initializer_range)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            a, b, c, e = self.mix(self.down(self.norm(x))).chunk(4, -1)
            messages = F.silu(a.unsqueeze(2) + b.unsqueeze(1)) * (c.unsqueeze(2) + e.unsqueeze(1))
            return x + self.up(messages.sum(2))

    class Dag(nn.Module):
        def __init__(self, old, width, top_k):
            super().__init__()
            self.gate, self.experts, self.top_k = old.gate, old.experts, top_k
            self.steps = nn.ModuleList(Step(width) for _ in range(L))

        def forward(self, hidden):
            x = hidden.reshape(-1, hidden.shape[-1])
            weights, chosen = torch.topk(F.softmax(F.linear(x, self.gate.weight).float(), -1), self.top_k)
            weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
            order = chosen.reshape(-1).argsort()
            counts = torch.bincount(chosen.reshape(-1), minlength=self.experts.num_experts).tolist()
            outputs, first = [], 0
            for expert, count in enumerate(counts):
                if count:
                    token = order[first : first + count] // self.top_k
                    gate, up = F.linear(x[token], self.experts.gate_up_proj[expert]).chunk(2, -1)
                    outputs.append(F.linear(F.silu(gate) * up, self.experts.down_proj[expert]))
                first += count
            outputs = torch.cat(outputs)
            nodes = torch.zeros(x.shape[0] * self.top_k, x.shape[1], dtype=outputs.dtype).index_copy(0, order, outputs)
            # The layer adds its residual outside, so the nodes carry the hidden state's share and it is taken off at the end.
            nodes = nodes.view(-1, self.top_k, x.shape[1]) * weights.unsqueeze(-1) + x.unsqueeze(1) / self.top_k
            for step in self.steps:
                nodes = step(nodes)
            return (nodes.sum(1) - x).view(hidden.shape)

    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in model.model.layers:
        layer.mlp = Dag(layer.mlp, model.config.hidden_size, model.config.num_experts_per_tok)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    rows = [json.loads(line) for line in open(spec["records"])]
    seconds, tokens, losses, first = [], [], [], None
    micro = min(8, spec["per_step"])
    for step in range(spec["steps"]):
        start = time.time()
        samples = []
        for row in rows[step * spec["per_step"] : (step + 1) * spec["per_step"]]:
            prompt = tokenizer(row["prompt"]).input_ids
            whole = tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id]
            samples.append((whole[:LENGTH], ([-100] * len(prompt) + whole[len(prompt) :])[:LENGTH]))
        supervised = sum(label != -100 for _, labels in samples for label in labels)
        total = 0.0
        for begin_micro in range(0, len(samples), micro):
            part = samples[begin_micro : begin_micro + micro]
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([i + [2] * (width - len(i)) for i, _ in part])
            labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in part])
            mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in part])
            with torch.autocast("cpu", torch.bfloat16, enabled=spec["mode"] == "amp"):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=supervised).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.time() - start)
        first = first or time.time() - begin
        tokens.append(sum(len(ids) for ids, _ in samples))
        losses.append(total)
    report(seconds, tokens, losses, first)


# ---- The two in turn

def run_peer(spec, environment):
    command = [sys.executable, __file__, "--peer", json.dumps(spec)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{spec['workload']} {spec['mode']}: the peer failed\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def recipe_of(args, records, folder):
    recipe = {"version": 1, "seed": 1, "output_dir": str(folder), "dtype": "bfloat16", "model": {"path": str(args.model if args.workload == "full" else args.moe)},
              "data": {"shuffle": False, "max_seq_len": LENGTH, "train": [{"path": str(records), "format": "alpaca", "template": "alpaca"}]},
              "batch": {"sequences": args.per_step, "micro_batch_tokens": args.micro_batch_tokens}, "steps": args.steps,
              "optimizer": {"name": "adamw", "lr": LR, "weight_decay": 0.0}, "schedule": {"kind": "constant"}, "max_grad_norm": 1.0,
              "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0, "checkpoint": {"every_steps": 100000}}
    if args.workload == "full":
        recipe["trainable"] = ["full"]
    elif args.workload == "dag":
        recipe["model"]["dag"] = {"num_iterations": 2, "node_size": 64}
        recipe["trainable"] = ["dag"]
    else:
        recipe["lora"] = {"rank": RANK, "alpha": ALPHA, "targets": ["attention", "experts"]}
        recipe["trainable"] = []
    return recipe


def run_dagmoe(args, records, work, environment):
    import time
    folder = work / "dagmoe"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(args, records, folder)))  # JSON is YAML
    begin = time.time()
    process = subprocess.Popen([str(args.dagmoe), "finetune", str(recipe)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first, metrics = None, folder / "metrics.jsonl"
    while process.poll() is None:
        if first is None and metrics.exists() and metrics.stat().st_size:
            first = time.time() - begin
        time.sleep(0.02)
    _, error = process.communicate()
    if process.returncode:
        sys.exit(f"dagmoe finetune failed\n{error[-3000:]}")
    lines = [line for line in map(json.loads, metrics.read_text().splitlines()) if "loss" in line]
    warm = max(2, len(lines) // 5)
    return {"tokens_per_second": sum(line["tokens"] for line in lines[warm:]) / sum(line["seconds"] for line in lines[warm:]), "losses": [line["loss"] for line in lines],
            "peak_bytes": lines[-1]["peak_rss_bytes"], "first_step_after_s": first, "step_s": statistics.median(line["seconds"] for line in lines[warm:])}


def late_loss(run):
    return statistics.mean(run["losses"][len(run["losses"]) // 2 :])


def gemm_rate(threads):
    """GFLOP/s of bf16 products at the shapes of SmolLM2's layers over 2,048 tokens, by the time each takes in a layer."""
    import time
    import torch
    torch.set_num_threads(threads)
    flops = spent = 0.0
    for inputs, outputs in ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)):
        x, w = torch.randn(2048, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
        best = 1e9
        for _ in range(20):
            start = time.time()
            torch.nn.functional.linear(x, w)
            best = min(best, time.time() - start)
        flops += 2 * 2048 * inputs * outputs
        spent += best
    return flops / spent / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="?", choices=["full", "dag", "expert_lora"])
    parser.add_argument("--dagmoe", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, help="SmolLM2 as a folder")
    parser.add_argument("--moe", type=pathlib.Path, help="its upcycled form without a DAG, in Mixtral's layout")
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--records", dest="per_step", type=int, default=32, help="records a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-modes", default="")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        spec = json.loads(args.peer)
        return run_plain_dag(spec) if spec["workload"] == "dag" else run_trl(spec)
    missing = [name for name in ("workload", "dagmoe", "model", "data") if getattr(args, name) is None] + (["moe"] if args.workload != "full" and args.moe is None else [])
    if missing:
        parser.error("missing: " + ", ".join(missing))
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    modes = args.peer_modes.split(",") if args.peer_modes else {"full": ["fp32", "amp", "bf16"], "dag": ["amp"], "expert_lora": ["fp32", "amp", "bf16"]}[args.workload]
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        records = write_records(args.data, args.per_step * args.steps, work)
        base = {"workload": args.workload, "records": str(records), "model": str(args.model if args.workload == "full" else args.moe), "threads": args.threads,
                "steps": args.steps, "per_step": args.per_step, "work": str(work / "trl")}
        rate = gemm_rate(args.threads)
        runs = {"dagmoe": [], **{mode: [] for mode in modes}}
        for repeat in range(args.repeats):
            for mode in modes:
                runs[mode].append(run_peer({**base, "mode": mode}, environment))
                print(f"{repeat + 1}: peer {mode}: {runs[mode][-1]['tokens_per_second']:.1f} tokens/s, loss {late_loss(runs[mode][-1]):.4f}", file=sys.stderr)
            runs["dagmoe"].append(run_dagmoe(args, records, work, environment))
            print(f"{repeat + 1}: dagmoe: {runs['dagmoe'][-1]['tokens_per_second']:.1f} tokens/s, loss {late_loss(runs['dagmoe'][-1]):.4f}", file=sys.stderr)
    median = lambda name, key: statistics.median(run[key] for run in runs[name])
    judge = late_loss(runs["amp"][0]) if "amp" in runs else late_loss(runs[modes[0]][0])
    keep = [mode for mode in modes if abs(late_loss(runs[mode][0]) / judge - 1) <= 0.01]
    best = max(keep, key=lambda mode: median(mode, "tokens_per_second"))
    ratios = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in zip(runs["dagmoe"], runs[best])]
    print(f"{args.workload}, {args.steps} steps of {args.per_step} records, {args.threads} threads, {args.repeats} runs each in turn; bf16 products at the model's shapes: {rate:.0f} GFLOP/s\n")
    print("| | tokens/s (spread) | step, s | peak MB | start to end of first step, s | loss, last half |\n|---|---|---|---|---|---|")
    for name in runs:
        speeds = [run["tokens_per_second"] for run in runs[name]]
        print(f"| {name} | {statistics.median(speeds):.1f} ({min(speeds):.1f}-{max(speeds):.1f}) | {median(name, 'step_s'):.2f} | {median(name, 'peak_bytes') / 1e6:,.0f} | "
              f"{median(name, 'first_step_after_s'):.1f} | {late_loss(runs[name][0]):.4f} |")
    difference = late_loss(runs["dagmoe"][0]) / late_loss(runs[best][0]) - 1
    print(f"\nbeside {best}: {statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f}), memory {median('dagmoe', 'peak_bytes') / median(best, 'peak_bytes'):.2f}, "
          f"loss {100 * difference:+.2f} %" + ("" if abs(difference) <= 0.01 else ": MORE THAN 1 %, the ratio does not count"))
    if args.json:
        args.json.write_text(json.dumps({"workload": args.workload, "gemm_gflops": rate, "runs": runs, "best_peer_mode": best, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
