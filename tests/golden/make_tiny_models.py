"""Tiny random HF models in fp32 with their logits, loss, gradients and greedy continuation.

usage: make_tiny_models.py OUT_DIR
OUT_DIR gets tiny_llama/, tiny_llama_tied/ and tiny_mixtral/, each a folder as save_pretrained writes it, plus
expected.safetensors:
ids_a [11], logits_a [11,V], ids_b [5], logits_b [5,V]   two rows, each run on its own
loss []                                                  mean cross entropy of row a, logits at t against the id at t+1
grad.NAME                                                gradient of loss; NAME as in model.safetensors (one per expert)
prompt [3], greedy [8]                                   greedy continuation, end tokens ignored
tiny_mixtral only: router_logits_a.N [11,E], experts_a.N [11,K] (best first), aux_loss [] (HF's definition, unit
coefficient, row a); the loss does not contain it
"""

import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
out = sys.argv[1]
common = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.2,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
    dtype="float32",
)


def per_expert(name, value):
    """The names of model.safetensors for one in-memory tensor."""
    if name.endswith("mlp.gate.weight"):
        return {name.replace("mlp.gate", "block_sparse_moe.gate"): value}
    if ".mlp.experts." not in name:
        return {name: value}
    head = name.split(".mlp.experts.")[0] + ".block_sparse_moe.experts."
    res = {}
    for e in range(value.shape[0]):
        if name.endswith("gate_up_proj"):
            res[f"{head}{e}.w1.weight"], res[f"{head}{e}.w3.weight"] = value[e].chunk(2)
        else:
            res[f"{head}{e}.w2.weight"] = value[e]
    return res


def make(name, model, seed):
    gen = torch.Generator().manual_seed(seed)
    for n, p in sorted(model.named_parameters()):
        r = torch.randn(p.shape, generator=gen)
        p.data.copy_(1 + 0.1 * r if "norm" in n else 0.2 * r)
    model.eval()
    ids_a = torch.randint(3, 97, (11,), generator=gen)
    ids_b = torch.randint(3, 97, (5,), generator=gen)
    prompt = torch.randint(3, 97, (3,), generator=gen)
    moe = model.config.model_type == "mixtral"
    res = {"ids_a": ids_a, "ids_b": ids_b, "prompt": prompt}
    a = model(input_ids=ids_a[None], use_cache=False, **({"output_router_logits": True} if moe else {}))
    res["logits_a"] = a.logits[0]
    with torch.no_grad():
        res["logits_b"] = model(input_ids=ids_b[None], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(a.logits[0, :-1], ids_a[1:])
    with torch.no_grad():
        assert torch.allclose(loss, model(input_ids=ids_a[None], labels=ids_a[None], use_cache=False).loss)
    loss.backward()
    res["loss"] = loss
    grads = {}
    for n, p in model.named_parameters():
        grads.update(per_expert(n, p.grad))
    res.update({"grad." + n: g for n, g in grads.items()})
    if moe:
        k = model.config.num_experts_per_tok
        for i, r in enumerate(a.router_logits):
            res[f"router_logits_a.{i}"] = r
            res[f"experts_a.{i}"] = r.topk(k).indices
            top = r.topk(k + 1).values
            assert (top[:, k - 1] - top[:, k]).min() > 1e-3, "a routing decision is too close"
        res["aux_loss"] = load_balancing_loss_func(a.router_logits, model.config.num_local_experts, k)
    ids = prompt.clone()
    with torch.no_grad():
        for _ in range(8):
            top = model(input_ids=ids[None], use_cache=False).logits[0, -1].topk(2)
            assert top.values[0] - top.values[1] > 1e-3, "a greedy decision is too close"
            ids = torch.cat([ids, top.indices[:1]])
    res["greedy"] = ids[3:]
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    disk = load_file(os.path.join(folder, "model.safetensors"))
    assert {k: v.shape for k, v in disk.items()} == {k: v.shape for k, v in grads.items()}
    for n, p in model.named_parameters():
        assert all(torch.equal(disk[k], v) for k, v in per_expert(n, p.data).items())
    res = {k: (v.int() if v.dtype == torch.int64 else v.detach()).contiguous() for k, v in res.items()}
    save_file(res, os.path.join(folder, "expected.safetensors"), metadata={"format": "pt"})
    for f in os.listdir(folder):
        os.chmod(os.path.join(folder, f), 0o644)
    print(
        name,
        "loss",
        loss.item(),
        "max |logit|",
        res["logits_a"].abs().max().item(),
        "greedy",
        res["greedy"].tolist(),
        *(["aux", res["aux_loss"].item()] if moe else []),
    )


make("tiny_llama", LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=False)), 1)
make("tiny_llama_tied", LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=True)), 2)
make(
    "tiny_mixtral",
    MixtralForCausalLM(
        MixtralConfig(
            **dict(common, intermediate_size=40),
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=None,
            tie_word_embeddings=False,
        )
    ),
    3,
)
