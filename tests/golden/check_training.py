"""What `dagmoe finetune` does to the weights, step by step beside transformers and torch.optim. Development only; makes
no file here.

usage: check_training.py DAGMOE_PROGRAM MODEL DATA.json STEPS [options; see --help]
MODEL is a model folder, or tiny_mixtral, tiny_olmoe or tiny_qwen3_moe: random weights for the vocabulary of
--tokenizer. DATA.json holds records as Alpaca has them; those without an answer are left out. Both programs train in
fp32 on the same records in the order of the file: AdamW with weight decay, cosine schedule with warm-up, clipping, and
the family's own balance loss where it has experts. The other program is a plain loop here: padded batches with an
attention mask, transformers' model and balance loss, torch's clip_grad_norm_ and AdamW. With --lora an adapter trains:
in the loop it is peft's, with the factors that dagmoe begins with, which a step at a learning rate of 0 leaves in final/.

Prints for each step both losses (and balance losses) and their relative differences, then per tensor ||a - b|| / ||b||
of the final weights (with --lora: of the merged ones), experts one by one. The same of the updates (final minus initial weights) is stricter and is shown
but does not count. Exits 1 when a loss or a final weight differs by more than 1e-3, tokens, supervised tokens or
learning rate of a step differ, or a weight changed that should not train.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging

TOLERANCE = 1e-3
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
TINY = dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=2,
    max_position_embeddings=512,
    # Large enough for the routers to prefer some experts.
    initializer_range=0.1,
    tie_word_embeddings=False,
    # None: transformers gives a padding token's embedding no gradient, and SmolLM2 pads with its end token.
    pad_token_id=None,
)
TINY_MODELS = {
    "tiny_mixtral": (MixtralForCausalLM, MixtralConfig, dict(intermediate_size=96, num_local_experts=8)),
    "tiny_olmoe": (OlmoeForCausalLM, OlmoeConfig, dict(intermediate_size=96, num_experts=8)),
    "tiny_qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        dict(intermediate_size=96, moe_intermediate_size=96, num_experts=8, head_dim=16, norm_topk_prob=True),
    ),
}

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("data")
parser.add_argument("steps", type=int)
parser.add_argument("--tokenizer", help="folder with the tokenizer of a tiny model")
parser.add_argument("--dag", type=int, metavar="NODE_SIZE", help="add a DAG first; the plain loop runs its export")
parser.add_argument("--trainable", choices=("full", "dag"), default="full")
parser.add_argument(
    "--lora", type=json.loads, metavar="JSON", help="the recipe's section lora instead of --trainable; both merge at the end"
)
parser.add_argument("--sequences", type=int, default=8, help="records a step")
parser.add_argument("--max-seq-len", type=int, default=256)
parser.add_argument("--micro-batch-tokens", type=int, help="of dagmoe; default: the whole step at once")
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--weight-decay", type=float, default=0.1)
parser.add_argument("--warmup-steps", type=int, default=5)
parser.add_argument("--max-grad-norm", type=float, default=1.0)
parser.add_argument("--aux-loss-coef", type=float, default=0.01)
args = parser.parse_args()
logging.set_verbosity_error()
logging.disable_progress_bar()
failures = []


def fail(text):
    failures.append(text)
    print("FAIL", text)


def dagmoe(*arguments):
    done = subprocess.run([args.program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"dagmoe {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")


def is_dagmoe(folder):
    with open(os.path.join(folder, "config.json")) as file:
        return json.load(file)["model_type"] == "dagmoe"


def has_experts(config):
    return any(hasattr(config, key) for key in ("num_local_experts", "num_experts", "n_routed_experts"))


def load(folder, work):
    """The model of a folder, in transformers."""
    if is_dagmoe(folder):
        exported = os.path.join(work, "exported")
        dagmoe("export", "--model", folder, "--output", exported, "--force")
        folder = exported
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="float32", attn_implementation="eager", output_loading_info=True
    )
    amiss = {key: value for key, value in info.items() if value}
    if amiss:
        sys.exit(f"{folder}: does not load as it is: {amiss}")
    return model


def tensors_of(model):
    """Copies of all weights by name, experts that are held in one tensor one by one."""
    tensors = {}
    for name, value in model.named_parameters():
        value = value.detach().clone()
        parts = {f"{name}[{e}]": value[e] for e in range(value.shape[0])} if value.dim() == 3 else {name: value}
        tensors.update(parts)
    return tensors


def make_model(work):
    """The folder that both programs start from."""
    folder = args.model
    if folder in TINY_MODELS:
        if args.tokenizer is None:
            sys.exit(f"{folder} needs --tokenizer FOLDER")
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        model_class, config_class, own = TINY_MODELS[folder]
        torch.manual_seed(0)
        ids = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
        model = model_class(config_class(**TINY, **own, **ids))
        folder = os.path.join(work, folder)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if args.dag is not None:
        with_dag = os.path.join(work, "with_dag")
        dagmoe("upcycle", "--source", folder, "--output", with_dag, "--dag-node-size", str(args.dag))
        folder = with_dag
    return folder


def start_dagmoe(folder, data, run, balance_coef, *overrides):
    """The training process; it writes the run folder `run`."""
    recipe = {
        "version": 1,
        "output_dir": run,
        "dtype": "float32",
        "model": {"path": folder},
        **({"lora": args.lora} if args.lora else {"trainable": [args.trainable]}),
        "data": {
            "train": [{"path": data, "format": "alpaca", "template": "alpaca"}],
            "max_seq_len": args.max_seq_len,
            "shuffle": False,
        },
        "batch": {
            "sequences": args.sequences,
            "micro_batch_tokens": args.micro_batch_tokens or args.sequences * args.max_seq_len,
        },
        "steps": args.steps,
        "optimizer": {"name": "adamw", "lr": args.lr, "weight_decay": args.weight_decay},
        "schedule": {"kind": "cosine", "warmup_steps": args.warmup_steps},
        "max_grad_norm": args.max_grad_norm,
        "router_aux_loss_coef": balance_coef,
    }
    path = run + ".yaml"
    with open(path, "w") as file:
        json.dump(recipe, file)  # JSON is YAML
    with open(run + ".log", "w") as log:
        return subprocess.Popen([args.program, "finetune", path, *overrides], stdout=log, stderr=subprocess.STDOUT)


def finish_dagmoe(process, run):
    """The lines of metrics.jsonl."""
    if process.wait() != 0:
        with open(run + ".log") as log:
            sys.exit(f"dagmoe finetune: exit {process.returncode}\n{log.read()}")
    with open(os.path.join(run, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [line for line in lines if "loss" in line]


def with_first_adapter(model, folder, data, work, balance_coef):
    """The model with peft's adapter, to be trained from dagmoe's first factors."""
    run = os.path.join(work, "first")
    still = ("steps=1", "optimizer.lr=0", "schedule.warmup_steps=0")
    finish_dagmoe(start_dagmoe(folder, data, run, balance_coef, *still), run)
    return PeftModel.from_pretrained(model, os.path.join(run, "final"), is_trainable=True)


def final_tensors(folder, run, work):
    """Of what dagmoe trained; an adapter is merged by peft."""
    final = os.path.join(run, "final")
    if not args.lora:
        return tensors_of(load(final, work))
    return tensors_of(PeftModel.from_pretrained(load(folder, work), final).merge_and_unload())


def batches(records, tokenizer):
    """Padded batches of all records, once: ids, mask and labels [B, S], -100 where a token is not to be learned."""
    examples = []
    for record in records:
        prompt = (WITH_INPUT if record["input"] else WITHOUT_INPUT).format_map(record)
        prompt = tokenizer(prompt).input_ids
        answer = tokenizer(record["output"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        ids = torch.tensor((prompt + answer)[: args.max_seq_len])
        labels = ids.clone()
        labels[: len(prompt)] = -100
        if (labels[1:] != -100).any():
            examples.append((ids, labels))
        if len(examples) == args.sequences:
            pad = torch.nn.utils.rnn.pad_sequence
            ids = pad([ids for ids, _ in examples], batch_first=True, padding_value=0)
            mask = pad([torch.ones_like(ids) for ids, _ in examples], batch_first=True, padding_value=0)
            yield ids, mask, pad([labels for _, labels in examples], batch_first=True, padding_value=-100)
            examples = []


def lr_at(step):
    """Of the step with this number, from 0: up in equal steps to the full rate, then half a cosine down to 0."""
    if step < args.warmup_steps:
        return args.lr * (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    return args.lr * 0.5 * (1 + math.cos(math.pi * progress))


def plain_loop(model, records, tokenizer, balance_coef):
    """Trains the model; returns what metrics.jsonl would say of each step."""
    part = "lora_" if args.lora else "" if args.trainable == "full" else ".dag."
    trained = [(n, p) for n, p in model.named_parameters() if part in n]
    model.requires_grad_(False)
    for _, parameter in trained:
        parameter.requires_grad_(True)
        # torch leaves out what has no gradient, dagmoe lets it decay: an expert that got no token has a gradient of 0.
        parameter.grad = torch.zeros_like(parameter)
    parameters = [parameter for _, parameter in trained]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=args.weight_decay)
    model.train()
    lines = []
    for step, (ids, mask, labels) in zip(range(args.steps), batches(records, tokenizer)):
        optimizer.zero_grad(set_to_none=False)
        asked = {"output_router_logits": True} if balance_coef > 0 else {}
        output = model(input_ids=ids, attention_mask=mask, use_cache=False, **asked)
        num_targets = int((labels[:, 1:] != -100).sum())
        loss = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        loss = loss / num_targets
        objective = loss + balance_coef * output.aux_loss if balance_coef > 0 else loss
        objective.backward()
        # torch adds the squares of a tensor in float, which loses up to 5e-4 of a large embedding's norm. Shown is the
        # sum in double; torch's is what clips.
        norm = math.sqrt(sum(parameter.grad.double().square().sum().item() for parameter in parameters))
        torch_norm = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm).item()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        optimizer.step()
        print(f"plain loop: step {step + 1} of {args.steps}", file=sys.stderr)
        lines.append(
            {
                "loss": loss.item(),
                "aux_loss": output.aux_loss.item() if balance_coef > 0 else 0.0,
                "grad_norm": norm,
                "torch_grad_norm": torch_norm,
                "lr": lr_at(step),
                "tokens": int(mask.sum()),
                "supervised_tokens": num_targets,
            }
        )
    return lines, {name for name, _ in trained}


def relative(ours, theirs):
    return abs(ours - theirs) / abs(theirs) if ours != theirs else 0.0


def compare_steps(ours, theirs, judged):
    if len(ours) != args.steps or len(theirs) != args.steps:
        fail(f"{len(ours)} and {len(theirs)} steps, expected {args.steps}")
    shown = [*judged, "grad_norm"]
    print("step  " + "  ".join(f"{key + ': dagmoe':>20} {'plain loop':>12} {'rel. diff.':>10}" for key in shown))
    worst = dict.fromkeys(shown, 0.0)
    for step, (a, b) in enumerate(zip(ours, theirs)):
        for key in ("tokens", "supervised_tokens"):
            if a[key] != b[key]:
                fail(f"step {step + 1}: {key} {a[key]} against {b[key]}: not the same batch")
        if abs(a["lr"] - b["lr"]) > 1e-9 * args.lr:
            fail(f"step {step + 1}: lr {a['lr']} against {b['lr']}")
        differences = {key: relative(a[key], b[key]) for key in shown}
        worst = {key: max(worst[key], differences[key]) for key in shown}
        columns = (f"{a[key]:20.6f} {b[key]:12.6f} {differences[key]:10.2e}" for key in shown)
        print(f"{step + 1:4}  " + "  ".join(columns))
    for key in shown:
        print(f"largest relative difference of {key}: {worst[key]:.2e}")
        if key in judged and not worst[key] <= TOLERANCE:
            fail(f"{key} differs by {worst[key]:.2e}")
    clipped = sum(line["torch_grad_norm"] > args.max_grad_norm for line in theirs)
    print(f"clipped steps: {clipped} of {len(theirs)}")
    error = max(relative(line["torch_grad_norm"], line["grad_norm"]) for line in theirs)
    print(f"largest error of clip_grad_norm_'s norm: {error:.2e}")


def distance(a, b, scale):
    difference, size = (a - b).norm().item(), scale.norm().item()
    return 0.0 if difference == 0 else difference / size if size > 0 else math.inf


def compare_weights(ours, theirs, initial, trained):
    if ours.keys() != theirs.keys():
        fail("the models do not have the same tensors")
    print(f"{'tensor':60} {'weight':>9} {'update':>9} {'moved by':>9}")
    weights, updates = {}, {}
    for name, b in theirs.items():
        a, start = ours[name], initial[name]
        if name.split("[")[0] not in trained:
            if not torch.equal(a, start):
                fail(f"{name} changed and should not train")
            continue
        weights[name], updates[name] = distance(a, b, b), distance(a, b, b - start)
        print(f"{name:60} {weights[name]:9.2e} {updates[name]:9.2e} {distance(b, start, start):9.2e}")
    for what, values in (("a final weight", weights), ("an update", updates)):
        name = max(values, key=values.get)
        print(f"largest relative difference of {what}: {values[name]:.2e} {name} (of {len(values)} tensors)")
    if len(trained) < len({name.split("[")[0] for name in theirs}):
        print(f"weights that do not train: {len(theirs) - len(weights)}, each compared with its value before")
    if not max(weights.values()) <= TOLERANCE:
        fail(f"a final weight differs by {max(weights.values()):.2e}")


with tempfile.TemporaryDirectory() as work:
    folder = make_model(work)
    with open(args.data) as file:
        records = [record for record in json.load(file) if record["output"]]
    data = os.path.join(work, "records.json")
    with open(data, "w") as file:
        json.dump(records, file)
    model = load(folder, work)
    initial = tensors_of(model)
    balance_coef = args.aux_loss_coef if has_experts(model.config) else 0.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    run = os.path.join(work, "run")
    process = start_dagmoe(folder, data, run, balance_coef)  # beside the plain loop
    try:
        if args.lora:
            model = with_first_adapter(model, folder, data, work, balance_coef)
        theirs, trained = plain_loop(model, records, tokenizer, balance_coef)
        their_tensors = tensors_of(model.merge_and_unload() if args.lora else model)
        del model
        ours = finish_dagmoe(process, run)
    finally:
        process.kill()
    our_tensors = final_tensors(folder, run, work)
    if args.lora:
        changed = (name for name, value in their_tensors.items() if not torch.equal(value, initial[name]))
        trained = {name.split("[")[0] for name in changed}
    compare_steps(ours, theirs, ["loss", "aux_loss"] if balance_coef > 0 else ["loss"])
    compare_weights(our_tensors, their_tensors, initial, trained)
sys.exit(bool(failures))
