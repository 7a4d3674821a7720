"""Loads an exported DAG-MoE folder as a user of transformers does and checks what it computes.

usage: check_export.py FOLDER [--reference EXPECTED] [--add-code] [--prompt TEXT]
--reference   expected.safetensors as make_dagmoe_models.py writes it: ids_X and logits_X, loss of ids_a, grad.NAME,
              aux_loss, greedy. Only what the file holds is compared. Fails above 1e-4 (logits, losses) and above 1e-3
              of a tensor's largest gradient.
--add-code    on a temporary copy of FOLDER, add the code files and the auto_map that `export` writes
--prompt      greedy text of 20 tokens, if the folder has a tokenizer

Checked without a reference too: nothing missing, unexpected or mismatched when the folder loads and no warning;
`generate` equals an argmax loop without a cache; one backward is finite; save_pretrained writes the same names and
values, and code that loads again; bfloat16 loads and gives finite logits.
"""

import argparse
import json
import logging as python_logging
import os
import shutil
import sys
import tempfile
import warnings

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

CODE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src/checkpoint/remote_code")
AUTO_MAP = {
    "AutoConfig": "configuration_dagmoe.DagMoeConfig",
    "AutoModelForCausalLM": "modeling_dagmoe.DagMoeForCausalLM",
}
LOGITS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
failures = []


def report(what, value, good=True):
    print(f"{'ok  ' if good else 'FAIL'} {what}: {value}")
    if not good:
        failures.append(what)


def with_code(folder, temporary):
    copy = os.path.join(temporary, "with_code")
    os.mkdir(copy)
    for name in os.listdir(folder):
        os.symlink(os.path.abspath(os.path.join(folder, name)), os.path.join(copy, name))
    os.remove(os.path.join(copy, "config.json"))
    config = json.load(open(os.path.join(folder, "config.json")))
    json.dump({**config, "auto_map": AUTO_MAP}, open(os.path.join(copy, "config.json"), "w"), indent=2)
    for name in os.listdir(CODE):
        if name.endswith(".py"):
            shutil.copy(os.path.join(CODE, name), copy)
    return copy


def tensors_of(folder):
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors") and name != "expected.safetensors":
            with safe_open(os.path.join(folder, name), "pt") as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})
    return tensors


class Warnings(python_logging.Handler):
    def __init__(self):
        super().__init__(python_logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def load(folder, dtype):
    heard = Warnings()
    logger = python_logging.getLogger("transformers")
    logger.addHandler(heard)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=dtype, output_loading_info=True
        )
    logger.removeHandler(heard)
    bad = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    report(f"loads in {dtype}, keys amiss", bad or "none", not bad)
    texts = heard.texts + [str(w.message) for w in caught]
    report("warnings", texts or "none", not texts)
    return model.eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0].float()


def check_generate(model, prompt, count):
    ids = prompt.clone()
    for _ in range(count):
        ids = torch.cat([ids, logits_of(model, ids)[-1].argmax()[None]])
    model.generation_config.eos_token_id = None
    made = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )[0]
    report("generate equals the loop without a cache", made[len(prompt) :].tolist(), torch.equal(made, ids))
    return made[len(prompt) :]


def check_backward(model, ids):
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:])
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    unused = [n for n, g in grads.items() if g is None]
    finite = all(g.isfinite().all() for g in grads.values() if g is not None)
    report("backward", f"loss {loss.item():.6f}, {len(grads) - len(unused)} of {len(grads)} tensors reached", finite)
    only_experts = all(".experts." in n for n in unused)
    report("tensors without a gradient are experts that got no token", len(unused), only_experts)
    return loss.item(), grads


def compare(model, reference, loss, grads, generated):
    worst = 0.0
    for key in sorted(reference):
        if key.startswith("logits_"):
            ids = reference["ids_" + key[len("logits_") :]].long()
            worst = max(worst, (logits_of(model, ids) - reference[key].float()).abs().max().item())
    report("largest difference of logits", f"{worst:.2e}", worst <= LOGITS_TOLERANCE)
    if "loss" in reference:
        difference = abs(loss - reference["loss"].item())
        report("difference of loss", f"{difference:.2e}", difference <= LOGITS_TOLERANCE)
    if "aux_loss" in reference:
        with torch.no_grad():
            out = model(input_ids=reference["ids_a"].long()[None], output_router_logits=True, use_cache=False)
        difference = abs(out.aux_loss.item() - reference["aux_loss"].item())
        report("difference of aux loss", f"{difference:.2e}", difference <= LOGITS_TOLERANCE)
    worst, count = (0.0, ""), 0
    for key in sorted(reference):
        if key.startswith("grad."):
            name, theirs, count = key[len("grad.") :], reference[key].float(), count + 1
            if name not in grads:
                report("gradient of a parameter the model lacks", name, False)
                continue
            ours = torch.zeros_like(theirs) if grads[name] is None else grads[name]
            scale = max(theirs.abs().max().item(), 1e-6)
            worst = max(worst, ((ours - theirs).abs().max().item() / scale, name))
    missing = sorted(n for n in grads if count and "grad." + n not in reference)
    report("parameters without a reference gradient", missing or "none", not missing)
    if count:
        what = f"largest relative difference of {count} gradients"
        report(what, f"{worst[0]:.2e} {worst[1]}", worst[0] <= GRADIENT_TOLERANCE)
    if "greedy" in reference:
        report("greedy continuation", generated.tolist(), generated.tolist() == reference["greedy"].tolist())


def check_save(model, folder, temporary, ids):
    saved = os.path.join(temporary, "saved")
    model.save_pretrained(saved)
    before, after = tensors_of(folder), tensors_of(saved)
    report("names written back", f"{len(after)} tensors", set(before) == set(after))
    same = all(torch.equal(before[k].to(after[k].dtype), after[k]) for k in set(before) & set(after))
    report("their values", "equal" if same else "differ", same)
    again = load(saved, torch.float32)
    difference = (logits_of(again, ids) - logits_of(model, ids)).abs().max().item()
    report("saved folder loads through its own code, difference of logits", f"{difference:.2e}", difference < 1e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--reference")
    parser.add_argument("--add-code", action="store_true")
    parser.add_argument("--prompt")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = with_code(arguments.folder, temporary) if arguments.add_code else arguments.folder
        model = load(folder, torch.float32)
        code = f"{type(model).__module__.split('.')[-1]}.{type(model).__name__}"
        report("class", f"{code}, base {model.config.base_model_type}, {model.num_parameters():,} parameters")
        reference = {}
        if arguments.reference:
            with safe_open(arguments.reference, "pt") as file:
                reference = {key: file.get_tensor(key) for key in file.keys()}
        gen = torch.Generator().manual_seed(0)
        ids = reference.get("ids_a", torch.randint(3, model.config.vocab_size, (32,), generator=gen)).long()
        prompt, count = reference.get("prompt", ids[:5]).long(), len(reference.get("greedy", range(8)))
        generated = check_generate(model, prompt, count)
        loss, grads = check_backward(model, ids)
        if reference:
            compare(model, reference, loss, grads, generated)
        check_save(model, folder, temporary, ids)
        low = logits_of(load(folder, torch.bfloat16), ids)
        high = logits_of(model, ids)
        agreement = (low.argmax(-1) == high.argmax(-1)).float().mean().item()
        difference = f"{(low - high).abs().max():.3f} of {high.abs().max():.1f}"
        finite = bool(low.isfinite().all())
        report("bfloat16, difference of logits", f"{difference}, same best token at {agreement:.0%}", finite)
        if arguments.prompt:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            inputs = tokenizer(arguments.prompt, return_tensors="pt")
            text = tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)[0])
            report("text", repr(text))
    sys.exit(f"{len(failures)} checks failed: {', '.join(failures)}" if failures else 0)


main()
