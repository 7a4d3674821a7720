"""Adapters that `dagmoe finetune` wrote, in peft: the same answers, and the same training. Development only; makes no
file here.

usage: check_adapters.py DAGMOE_PROGRAM SMOLLM2 DATA_DIR [--only TEXT] [--steps 30] [--questions 8]
SMOLLM2 is the imported SmolLM2-135M-Instruct; DATA_DIR the shared data (alpaca/random_9k.json, arc/ARC-Easy-Dev.jsonl).
--only leaves out the checks without TEXT in their names.

1. Interchange: each kind of adapter trains for a few steps at a high rate; peft loads final/ on transformers' model,
   with no key missing or unexpected. `dagmoe eval --adapter --log-samples` and peft then give the log-likelihood of
   every choice of ARC questions. Every one must agree within 1e-4 nats a token, the adapter must have moved them by at
   least 0.05 in all, and where the program has `merge`, transformers' logits of the merged folder must be peft's within
   1e-4 of the largest.
2. Training: check_training.py --lora, 30 steps of real Alpaca records with peft and torch.optim.AdamW from the same
   factors, for linear layers (SmolLM2) and for experts and router (a tiny random Mixtral): every loss and merged weight
   within 1e-3.
Exits 1 when one does not hold.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import warnings

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging

TOLERANCE = 1e-4
KINDS = {
    "smollm2": {
        "lora": {"targets": ["attention", "mlp"]},
        "dora": {"targets": ["attention"], "kind": "dora"},
    },
    "tiny_llama": {
        "rslora": {"targets": ["attention", "mlp"], "rslora": True},
        "dora": {"targets": ["attention", "mlp"], "kind": "dora"},
        "dora_rslora": {"targets": ["mlp"], "kind": "dora", "rslora": True},
        "pissa": {"targets": ["attention", "mlp"], "init": "pissa"},
        "pissa_rslora": {
            "targets": ["attention"],
            "init": "pissa",
            "rslora": True,
            "patterns": [{"target": "q_proj", "rank": 5, "alpha": 3}],
        },
        "patterns": {
            "targets": ["attention", "model.layers.[0-1].mlp.up_proj"],
            "patterns": [{"target": "q_proj", "rank": 5}, {"target": "model.layers.1.*", "rank": 2, "alpha": 7.5}],
        },
        "head": {"targets": ["lm_head", "q_proj"]},
    },
    "tiny_mixtral": {
        "experts_router_attention": {"targets": ["attention", "router", "experts"], "rank": 3},
        "gate_up": {"targets": ["gate_up_proj"], "rank": 5},
        "down": {"targets": ["down_proj"], "rank": 5},
        "one_layer": {"targets": ["model.layers.1.*"], "rank": 3, "rslora": True},
        "patterns": {"targets": ["experts", "router"], "patterns": [{"target": "down_proj", "rank": 2, "alpha": 3}]},
        "rslora": {"targets": ["experts"], "rank": 3, "rslora": True},
    },
    "tiny_olmoe": {"experts_router_attention": {"targets": ["attention", "router", "experts"], "rank": 3}},
    "tiny_qwen3_moe": {
        "experts_router_attention": {"targets": ["attention", "router", "experts"], "rank": 3},
        "router": {"targets": ["router"], "rank": 3, "alpha": 64},
    },
}
TRAINED = {  # a learning rate that moves the loss in 30 steps, and the section lora
    "smollm2": (1e-3, {"rank": 8, "alpha": 16, "targets": ["attention", "mlp"]}),
    "tiny_mixtral": (1e-2, {"rank": 3, "alpha": 6, "targets": ["experts", "router"]}),
}

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("smollm2")
parser.add_argument("data")
parser.add_argument("--only", default="")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--questions", type=int, default=8)
args = parser.parse_args()
logging.set_verbosity_error()
logging.disable_progress_bar()
alpaca = os.path.join(args.data, "alpaca", "random_9k.json")
questions = os.path.join(args.data, "arc", "ARC-Easy-Dev.jsonl")
failures = []


def check(holds, text):
    print(("ok    " if holds else "FAIL  ") + text, flush=True)
    if not holds:
        failures.append(text)


def dagmoe(*arguments):
    done = subprocess.run([args.program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"dagmoe {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()


def make_tiny(work, name, model_class, config_class, **more):
    """Random weights for SmolLM2's vocabulary, with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(args.smollm2)
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )
    folder = os.path.join(work, name)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(folder, run, lora):
    recipe = {
        "version": 1,
        "output_dir": run,
        "dtype": "float32",
        "model": {"path": folder},
        "lora": {"rank": 4, "alpha": 8, **lora},
        "data": {
            "train": [{"path": alpaca, "format": "alpaca", "template": "alpaca"}],
            "limit": 64,
            "max_seq_len": 128,
        },
        "batch": {"sequences": 2},
        "steps": 3,
        "optimizer": {"lr": 5e-3},
        "schedule": {"kind": "constant"},
    }
    with open(run + ".yaml", "w") as file:
        json.dump(recipe, file)  # JSON is YAML
    dagmoe("finetune", run + ".yaml")
    return os.path.join(run, "final")


def our_answers(folder, adapter, output):
    """(context, continuation, log-likelihood) of every choice."""
    adapters = [] if adapter is None else ["--adapter", adapter]
    settings = ["--dtype", "float32", "--limit", str(args.questions), "--output", output, "--log-samples"]
    dagmoe("eval", "--model", folder, *adapters, "--tasks", "arc_easy", "--dataset", f"arc_easy={questions}", *settings)
    answers = []
    (path,) = glob.glob(os.path.join(output, "samples_*.jsonl"))
    with open(path) as file:
        for sample in map(json.loads, file):
            for request, response in zip(sample["arguments"].values(), sample["resps"]):
                answers.append((request["arg_0"], request["arg_1"], float(response[0][0])))
    return answers


def log_likelihood(model, tokenizer, context, continuation):
    prompt = tokenizer(context).input_ids
    ids = tokenizer(context + continuation).input_ids
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return sum(scores[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))), len(ids) - len(prompt)


def has_merge():
    return "merge" in dagmoe("--help").split()


def check_interchange(name, folder, lora, without, work):
    """`without`: the answers of the model without an adapter."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = train(folder, os.path.join(work, name), lora)
    ours = our_answers(folder, adapter, os.path.join(work, name + "-with"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load(folder), adapter).eval()
    amiss = [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message)]
    check(not amiss, f"{name}: peft finds every key it expects, and no other {amiss or ''}")
    worst = moved = 0.0
    for (context, continuation, value), (_, _, before) in zip(ours, without):
        theirs, num_tokens = log_likelihood(model, tokenizer, context, continuation)
        worst, moved = max(worst, abs(value - theirs) / num_tokens), max(moved, abs(value - before))
    check(worst <= TOLERANCE, f"{name}: {len(ours)} log-likelihoods differ by at most {worst:.1e} nats a token")
    check(moved >= 0.05, f"{name}: the adapter moves a log-likelihood by up to {moved:.2f} nats")
    if not has_merge():
        return
    merged = os.path.join(work, name + "-merged")
    dagmoe("merge", "--model", folder, "--adapter", adapter, "--output", merged)
    ids = torch.tensor([tokenizer(ours[0][0] + ours[0][1]).input_ids])
    with torch.no_grad():
        expected, found = model(input_ids=ids).logits, load(merged)(input_ids=ids).logits
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    check(error <= TOLERANCE, f"{name}: logits of the merged model differ by at most {error:.1e} of the largest")


def check_training(name, model, lr, lora):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "check_training.py")
    arguments = [args.program, model, alpaca, str(args.steps), "--lora", json.dumps(lora), "--sequences", "4"]
    arguments += ["--tokenizer", args.smollm2, "--max-seq-len", "128", "--lr", str(lr)]
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(("FAIL", "largest", "clipped", " ")) and "self_attn" not in line:
            print("      " + line)
    check(done.returncode == 0, f"{name}: {args.steps} steps beside peft, {lora['targets']}")


with tempfile.TemporaryDirectory() as work:
    folders = {
        "smollm2": args.smollm2,
        "tiny_llama": make_tiny(work, "tiny_llama", LlamaForCausalLM, LlamaConfig),
        "tiny_mixtral": make_tiny(
            work, "tiny_mixtral", MixtralForCausalLM, MixtralConfig, num_local_experts=8, num_experts_per_tok=2
        ),
        "tiny_olmoe": make_tiny(
            work, "tiny_olmoe", OlmoeForCausalLM, OlmoeConfig, num_experts=8, num_experts_per_tok=2
        ),
        "tiny_qwen3_moe": make_tiny(
            work,
            "tiny_qwen3_moe",
            Qwen3MoeForCausalLM,
            Qwen3MoeConfig,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=96,
            head_dim=16,
        ),
    }
    for base, kinds in KINDS.items():
        wanted = {f"interchange-{base}-{kind}": lora for kind, lora in kinds.items()}
        wanted = {name: lora for name, lora in wanted.items() if args.only in name}
        without = our_answers(folders[base], None, os.path.join(work, base + "-without")) if wanted else []
        for name, lora in wanted.items():
            check_interchange(name, folders[base], lora, without, work)
    for base, (lr, lora) in TRAINED.items():
        name = f"training-{base}"
        if args.only in name:
            check_training(name, folders[base] if base == "smollm2" else base, lr, lora)
if not failures:
    print("all hold")
sys.exit(bool(failures))
