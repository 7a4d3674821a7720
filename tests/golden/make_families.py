"""Tiny random Hugging Face models of every family, each with a quirk on, and what transformers computes with them.

usage: make_families.py OUT_DIR
OUT_DIR/families/NAME/ gets the folder as save_pretrained writes it (fp32) and expected.safetensors:
ids_0 [11], ids_1 [6], ids_2 [3]; logits_0 .. logits_2 [T,V]     three inputs, each run on its own
loss []       mean cross entropy of input 0, logits at t against the id at t + 1, plus 0.01 times aux_loss where there is one
aux_loss []   load_balancing_loss_func of input 0 (families with experts; transformers has none for DeepSeek-V2, whose
              loss is the same function of the logits that its routers return; absent with group-limited routing, which
              that function does not know)
grad.NAME     gradient of loss; NAME as in model.safetensors of the per-expert layout
Folders NAME_fused hold the model of NAME in the fused layout (save_original_format=False), without expected.safetensors.
"""

import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
out = os.path.join(sys.argv[1], "families")
common = dict(
    vocab_size=41,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
    dtype="float32",
)
moe = dict(num_experts_per_tok=2, output_router_logits=True)


def rope(kind, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **more))


def per_expert(config, name, value):
    """The names of model.safetensors for one in-memory tensor."""
    mixtral = config.model_type == "mixtral"
    if name.endswith("mlp.gate.weight") and mixtral:
        return {name.replace("mlp.gate", "block_sparse_moe.gate"): value}
    if ".mlp.experts." not in name:
        return {name: value}
    head = name.split(".mlp.experts.")[0] + (".block_sparse_moe.experts." if mixtral else ".mlp.experts.")
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    res = {}
    for e in range(value.shape[0]):
        if name.endswith("gate_up_proj"):
            res[f"{head}{e}.{gate}.weight"], res[f"{head}{e}.{up}.weight"] = value[e].chunk(2)
        else:
            res[f"{head}{e}.{down}.weight"] = value[e]
    return res


def router_logits(model, ids):
    """The logits of every router, in order: what output_router_logits returns, also where a family returns nothing."""
    found, hooks = [], []
    for n, m in model.named_modules():
        if n.endswith("mlp.gate"):
            hooks.append(m.register_forward_hook(lambda _m, _i, o: found.append(o[0].view(-1, o[0].shape[-1]))))
    logits = model(input_ids=ids[None], use_cache=False, output_router_logits=False).logits[0]
    for h in hooks:
        h.remove()
    return logits, tuple(found)


def make(name, model, fused=False):
    config = model.config
    gen = torch.Generator().manual_seed(len(name) * 1000 + sum(map(ord, name)))
    for n, p in sorted(model.named_parameters()):
        r = torch.randn(p.shape, generator=gen)
        p.data.copy_(1 + 0.1 * r if "norm" in n else 0.25 * r)
    model.eval()
    res = {}
    for i, length in enumerate((11, 6, 3)):
        ids = torch.randint(3, 41, (length,), generator=gen)
        res[f"ids_{i}"] = ids
        with torch.no_grad():
            res[f"logits_{i}"] = model(input_ids=ids[None], use_cache=False).logits[0]
    logits, routers = router_logits(model, res["ids_0"])
    assert torch.equal(logits, res["logits_0"]) or (logits - res["logits_0"]).abs().max() < 1e-6
    loss = torch.nn.functional.cross_entropy(logits[:-1], res["ids_0"][1:])
    if routers:
        k = config.num_experts_per_tok
        if getattr(config, "topk_method", "greedy") == "greedy":
            for r in routers:
                top = r.softmax(-1).sort(-1, descending=True).values
                assert (top[:, k - 1] - top[:, k]).min() > 1e-4, "a routing decision is too close"
            res["aux_loss"] = load_balancing_loss_func(routers, routers[0].shape[-1], k)
            loss = loss + 0.01 * res["aux_loss"]
    res["loss"] = loss
    loss.backward()
    for n, p in model.named_parameters():
        for disk, value in per_expert(config, n, p.grad if p.grad is not None else torch.zeros_like(p)).items():
            res["grad." + disk] = value
    folder = os.path.join(out, name)
    for target, original in [(folder, True)] + ([(folder + "_fused", False)] if fused else []):
        shutil.rmtree(target, ignore_errors=True)
        model.save_pretrained(target, save_original_format=original)
        os.path.exists(os.path.join(target, "generation_config.json")) and os.remove(
            os.path.join(target, "generation_config.json")
        )
    disk = load_file(os.path.join(folder, "model.safetensors"))
    assert {k: v.shape for k, v in disk.items()} == {k[5:]: v.shape for k, v in res.items() if k.startswith("grad.")}
    res = {k: (v.int() if v.dtype == torch.int64 else v.detach()).contiguous() for k, v in res.items()}
    save_file(res, os.path.join(folder, "expected.safetensors"), metadata={"format": "pt"})
    for target in [folder] + ([folder + "_fused"] if fused else []):
        for f in os.listdir(target):
            os.chmod(os.path.join(target, f), 0o644)
    print(name, "loss", loss.item(), "aux", float(res.get("aux_loss", 0)))


llama = lambda **more: LlamaForCausalLM(LlamaConfig(**{**common, **more}))  # noqa: E731
make("llama_bias", llama(attention_bias=True, mlp_bias=True, head_dim=6, tie_word_embeddings=True))
make("llama_linear", llama(**rope("linear", factor=4.0)))
make(
    "llama_llama3",
    llama(
        head_dim=16,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
)
make("llama_yarn", llama(head_dim=16, **rope("yarn", factor=4.0, original_max_position_embeddings=16)))
make("mistral", MistralForCausalLM(MistralConfig(**common, sliding_window=4)))
make("qwen2", Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=True)))
make(
    "qwen2_window",
    Qwen2ForCausalLM(Qwen2Config(**common, use_sliding_window=True, sliding_window=3, max_window_layers=1)),
)
make("qwen3", Qwen3ForCausalLM(Qwen3Config(**common, head_dim=8)))
make(
    "mixtral",
    MixtralForCausalLM(MixtralConfig(**common, **moe, num_local_experts=4, sliding_window=5)),
    fused=True,
)
make(
    "olmoe",
    OlmoeForCausalLM(OlmoeConfig(**common, **moe, num_experts=4, clip_qkv=0.6, norm_topk_prob=False)),
    fused=True,
)
make("olmoe_norm", OlmoeForCausalLM(OlmoeConfig(**common, **moe, num_experts=4, norm_topk_prob=True)))
qwen2_moe = dict(
    common, **moe, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=12, num_hidden_layers=3
)
make("qwen2_moe", Qwen2MoeForCausalLM(Qwen2MoeConfig(**qwen2_moe, mlp_only_layers=[1])), fused=True)
make(
    "qwen2_moe_step",
    Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**qwen2_moe, decoder_sparse_step=2, norm_topk_prob=True, qkv_bias=False, tie_word_embeddings=True)
    ),
)
qwen3_moe = dict(common, **moe, num_experts=4, moe_intermediate_size=8, head_dim=6)
make(
    "qwen3_moe",
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**qwen3_moe, norm_topk_prob=True, attention_bias=True)),
    fused=True,
)
make("qwen3_moe_raw", Qwen3MoeForCausalLM(Qwen3MoeConfig(**qwen3_moe, norm_topk_prob=False, mlp_only_layers=[0])))
deepseek = dict(
    common,
    num_key_value_heads=4,
    num_experts_per_tok=2,
    n_routed_experts=4,
    n_shared_experts=2,
    moe_intermediate_size=8,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=7,
    first_k_dense_replace=1,
)
make(
    "deepseek_v2",
    DeepseekV2ForCausalLM(DeepseekV2Config(**deepseek, q_lora_rank=None, routed_scaling_factor=1.5)),
    fused=True,
)
make(
    "deepseek_v2_group",
    DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **{**deepseek, "n_routed_experts": 6},
            q_lora_rank=9,
            topk_method="group_limited_greedy",
            n_group=3,
            topk_group=2,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=32,
                beta_slow=1,
                mscale=0.7,
                mscale_all_dim=0.9,
            ),
        )
    ),
)
