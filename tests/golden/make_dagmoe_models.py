"""Tiny random DAG-MoE models of every base family, computed by the modeling file that `export` ships.

usage: make_dagmoe_models.py OUT_DIR [NAME...]
OUT_DIR gets dagmoe_NAME/ for each entry of MODELS (or those named), with config.json, model.safetensors (one tensor per expert) and
expected.safetensors:
ids_a [11], ids_b [5], ids_c [1], logits_X [..,V]   three rows, each run on its own
loss []                                             mean cross entropy of row a, logits at t against the id at t+1
grad.NAME                                           gradient of loss; NAME as in model.safetensors
router_logits_a.M [11,E], experts_a.M [11,K]        of the M-th layer that has experts; experts best first
aux_loss []                                         load-balancing loss of row a; the loss does not contain it
prompt [3], greedy [8]                              greedy continuation, end tokens ignored

Before a folder is written, the modeling file is checked against programs that share no code with it:
- without a DAG its logits are those of transformers' own model of the base family, read from the same tensors;
- the DAG gives what the equations (6)-(12) of arXiv:2606.01062 give when they are written pair by pair in float64;
- the load-balancing loss is transformers' (softmax routers);
- `generate` with its cache picks the tokens of an argmax loop without one, alone and in a left-padded batch;
- every parameter gets a finite gradient that is not zero, the same with gradient checkpointing;
- what save_pretrained writes loads again without a missing or unexpected tensor.
"""

import json
import os
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src/checkpoint"))
from remote_code.configuration_dagmoe import BASE_CONFIGS, DagMoeConfig  # noqa: E402
from remote_code.modeling_dagmoe import (  # noqa: E402
    DagMoeForCausalLM,
    choose_experts,
    combine_experts,
    ranking_of,
)

torch.set_num_threads(1)
logging.disable_progress_bar()
torch.use_deterministic_algorithms(True)
V = 37
COMMON = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
    attn_implementation="eager",
    dtype="float32",
)
LATENT_ATTENTION = dict(
    num_key_value_heads=4, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
)
MODELS = {
    "mixtral": dict(
        base_model_type="mixtral",
        dag=dict(num_iterations=2, node_size=6),
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=6,
    ),
    # A router and a DAG unlike those of the base family; K = 3 is no power of two.
    "mixtral_sigmoid": dict(
        base_model_type="mixtral",
        dag=dict(num_iterations=1, node_size=5, node_residual="none", norm="rms_norm"),
        num_local_experts=5,
        num_experts_per_tok=3,
        head_dim=4,
        scoring_func="sigmoid",
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        tie_word_embeddings=True,
    ),
    # A bias for choosing experts, trained without a gradient.
    "mixtral_bias": dict(
        base_model_type="mixtral",
        dag=dict(num_iterations=1, node_size=4),
        num_local_experts=5,
        num_experts_per_tok=2,
        intermediate_size=6,
        scoring_func="sigmoid",
        router_bias=True,
    ),
    # What upcycling by SPRI makes of a Llama: the dense network as a shared expert without a gate.
    "mixtral_shared": dict(
        base_model_type="mixtral",
        dag=dict(num_iterations=1, node_size=4),
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_expert_intermediate_size=10,
    ),
    "olmoe": dict(
        base_model_type="olmoe",
        dag=dict(num_iterations=2, node_size=4, node_residual="normed_input"),
        num_experts=5,
        num_experts_per_tok=3,
        intermediate_size=6,
        clip_qkv=1.5,
        norm_topk_prob=False,
    ),
    "qwen2_moe": dict(
        base_model_type="qwen2_moe",
        dag=dict(num_iterations=2, node_size=6, norm="rms_norm"),
        num_experts=4,
        num_experts_per_tok=2,
        intermediate_size=10,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=10,
        mlp_only_layers=[0],
        norm_topk_prob=False,
    ),
    "qwen3_moe": dict(
        base_model_type="qwen3_moe",
        dag=dict(num_iterations=1, node_size=6, node_residual="hidden_state", norm="layer_norm"),
        num_experts=4,
        num_experts_per_tok=2,
        intermediate_size=10,
        moe_intermediate_size=8,
        head_dim=6,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
    "deepseek_v2": dict(
        base_model_type="deepseek_v2",
        dag=dict(num_iterations=2, node_size=4, node_residual="none"),
        **LATENT_ATTENTION,
        q_lora_rank=None,
        n_routed_experts=4,
        num_experts_per_tok=2,
        intermediate_size=12,
        moe_intermediate_size=8,
        n_shared_experts=2,
        first_k_dense_replace=1,
        routed_scaling_factor=1.7,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=10000.0,
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=32,
            beta_slow=1,
            mscale=0.7,
            mscale_all_dim=0.7,
        ),
    ),
    "deepseek_v2_groups": dict(
        base_model_type="deepseek_v2",
        dag=dict(num_iterations=1, node_size=4, norm="rms_norm"),
        **LATENT_ATTENTION,
        q_lora_rank=10,
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=4,
        n_shared_experts=1,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.0,
    ),
}


def no_cache_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0]


def greedy_loop(model, prompt, count):
    ids = prompt.clone()
    for _ in range(count):
        top = no_cache_logits(model, ids)[-1].topk(2)
        assert top.values[0] - top.values[1] > 1e-3, "a greedy decision is too close"
        ids = torch.cat([ids, top.indices[:1]])
    assert len(set(ids[len(prompt) :].tolist())) > 2, "a continuation that repeats itself shows little"
    return ids[len(prompt) :]


def pair_by_pair(layer, dag, h_TD, x_TD, nodes_TKD):
    """The layer's output by the equations as they stand, one token and one pair of nodes at a time."""
    T, K, D = nodes_TKD.shape
    rows = []
    for t in range(T):
        r = {"hidden_state": h_TD[t], "normed_input": x_TD[t], "none": torch.zeros(D, dtype=h_TD.dtype)}
        x = [nodes_TKD[t, i] + r[dag["node_residual"]] / K for i in range(K)]  # (6)
        for step in layer.mlp.dag:
            z = []
            for i in range(K):  # (7), (8)
                centred = x[i] - x[i].mean() if dag["norm"] == "layer_norm" else x[i]
                u = centred / torch.sqrt((centred * centred).mean() + COMMON["rms_norm_eps"]) * step.norm.weight
                z.append(step.down_proj.weight @ u)
            received = []
            for i in range(K):
                messages = []
                for j in range(K):
                    p = torch.cat([z[i], z[j]])  # (9)
                    e = step.edge_proj.weight @ p
                    messages.append(e * torch.sigmoid(e) * (step.node_proj.weight @ p))  # (10)
                received.append(sum(messages))
            x = [step.up_proj.weight @ received[i] + x[i] for i in range(K)]  # (11)
        y = sum(x)  # (12)
        rows.append(y if dag["node_residual"] == "hidden_state" else h_TD[t] + y)
    return torch.stack(rows)


def check_dag(model, gen):
    """Largest relative difference of output and of the gradient of its square, between DAG and equations."""
    layer = model.model.layers[-1].double()
    K, dag, worst = model.config.num_experts_per_tok, model.config.dag, 0.0
    inputs = [torch.randn(s, generator=gen, dtype=torch.float64) for s in ((5, 32), (5, 32), (5, K, 32))]
    weights = [p for p in layer.mlp.dag.parameters()]
    results = []
    for function in (
        lambda h, x, n: combine_experts(h, x, n, layer.mlp.dag, dag["node_residual"]),
        lambda h, x, n: pair_by_pair(layer, dag, h, x, n),
    ):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        grads = torch.autograd.grad(out.square().sum(), leaves + weights, allow_unused=True)
        results.append([out] + [g for g in grads if g is not None])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    layer.float()
    # transformers' RMS norms compute in float32 whatever they are given.
    assert worst < (1e-12 if dag["norm"] == "layer_norm" else 1e-5), worst
    return worst


def check_base_family(model, folder, ids):
    """Largest difference of logits and loss from transformers' own model, the DAG left out; None where transformers has
    no such model."""
    config = json.load(open(os.path.join(folder, "config.json")))
    has_foreign_expert = config["base_model_type"] == "mixtral" and "shared_expert_intermediate_size" in config
    if config["scoring_func"] != "softmax" or has_foreign_expert:
        return None
    tensors = {k: v for k, v in load_file(os.path.join(folder, "model.safetensors")).items() if ".mlp.dag." not in k}
    base_type = config.pop("base_model_type")
    if base_type == "mixtral":
        assert config.pop("norm_topk_prob") and config.pop("routed_scaling_factor") == 1.0
    for key in ("dag", "scoring_func", "architectures", "shared_expert_gate"):
        config.pop(key, None)
    config["model_type"] = base_type
    with tempfile.TemporaryDirectory() as plain:
        save_file(tensors, os.path.join(plain, "model.safetensors"), metadata={"format": "pt"})
        json.dump(config, open(os.path.join(plain, "config.json"), "w"))
        stock, info = AutoModelForCausalLM.from_pretrained(
            plain, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
        )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert type(stock.config) is BASE_CONFIGS[base_type]
    up = [p for n, p in model.named_parameters() if n.endswith("up_proj.weight") and ".mlp.dag." in n]
    saved = [p.detach().clone() for p in up]
    for p in up:
        p.data.zero_()
    dag, model.config.dag = model.config.dag, dict(model.config.dag)
    if dag["node_residual"] == "normed_input":  # this one adds the normed input whatever the DAG's weights are
        model.config.dag["node_residual"] = "none"
    ours, theirs = no_cache_logits(model, ids), no_cache_logits(stock, ids)
    worst = (ours - theirs).abs().max().item()
    assert worst < 1e-5, worst
    for p, value in zip(up, saved):
        p.data.copy_(value)
    model.config.dag = dag
    effect = (no_cache_logits(model, ids) - theirs).abs().max().item()
    assert effect > 0.1, "the DAG hardly changes the logits"
    return worst, effect


def check_generate(model, prompt, other, greedy):
    model.generation_config.eos_token_id = None
    options = dict(max_new_tokens=len(greedy), do_sample=False, pad_token_id=0)
    alone = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], **options)
    assert alone[0, len(prompt) :].tolist() == greedy.tolist(), (alone, greedy)
    padding = len(other) - len(prompt)
    batch = torch.stack([torch.cat([torch.zeros(padding, dtype=torch.long), prompt]), other])
    mask = torch.ones_like(batch)
    mask[0, :padding] = 0
    together = model.generate(batch, attention_mask=mask, **options)
    assert together[0, len(other) :].tolist() == greedy.tolist(), (together, greedy)
    model.generation_config.eos_token_id = model.config.eos_token_id


def gradients_of(model, ids, **options):
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False, **options).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_gradients(model, gen):
    ids = torch.randint(0, V, (8, 24), generator=gen)
    grads = gradients_of(model, ids, output_router_logits=True)
    for name, _ in model.named_parameters():
        assert name in grads and grads[name].isfinite().all() and grads[name].abs().max() > 0, name
    model.activation_checkpointing_enable()
    model.train()
    checkpointed = gradients_of(model, ids, output_router_logits=True)
    model.eval()
    model.activation_checkpointing_disable()
    assert all(torch.allclose(checkpointed[n], g, rtol=1e-5, atol=1e-7) for n, g in grads.items())


def check_balance_loss(model, ids):
    config = model.config
    if config.scoring_func != "softmax" or getattr(config, "n_group", None):
        return
    padded = torch.cat([ids, torch.zeros(3, dtype=torch.long)])[None]
    mask = torch.tensor([[1] * len(ids) + [0] * 3])
    for inputs in (dict(input_ids=ids[None]), dict(input_ids=padded, attention_mask=mask)):
        with torch.no_grad():
            out = model(**inputs, labels=inputs["input_ids"], output_router_logits=True, use_cache=False)
            without = model(**inputs, labels=inputs["input_ids"], use_cache=False)
        theirs = load_balancing_loss_func(
            out.router_logits,
            config.experts_in_layer()[0],
            config.num_experts_per_tok,
            inputs.get("attention_mask"),
        )
        assert torch.allclose(out.aux_loss, theirs, rtol=1e-6, atol=0), (out.aux_loss, theirs)
        assert torch.allclose(out.loss - without.loss, config.router_aux_loss_coef * theirs, atol=1e-6)


def expected_of(model, rows, prompt):
    res = {"ids_" + k: v for k, v in rows.items()}
    a = model(input_ids=rows["a"][None], use_cache=False, output_router_logits=True)
    for k, v in rows.items():
        res["logits_" + k] = no_cache_logits(model, v)
    loss = torch.nn.functional.cross_entropy(a.logits[0, :-1], rows["a"][1:])
    model.zero_grad()
    loss.backward()
    for name, p in model.named_parameters():
        res["grad." + name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
    for m, (logits, bias) in enumerate(zip(a.router_logits, model.model.router_biases())):
        if bias is not None:
            chosen = choose_experts(logits, model.config, bias).sort(-1).values
            unbiased = choose_experts(logits, model.config).sort(-1).values
            assert not torch.equal(chosen, unbiased), "the bias changes no choice"
        # Groups are chosen by their best expert, which may lie anywhere in the order.
        ordered = ranking_of(logits, model.config, bias).sort(-1, descending=True).values
        k = model.config.num_experts_per_tok
        decisive = ordered if getattr(model.config, "n_group", None) else ordered[:, : k + 1]
        assert decisive.diff(dim=-1).abs().min() > 1e-3, "a routing decision is too close"
        res[f"router_logits_a.{m}"] = logits
        res[f"experts_a.{m}"] = choose_experts(logits, model.config, bias)
    res.update(loss=loss, aux_loss=a.aux_loss, prompt=prompt, greedy=greedy_loop(model, prompt, 8))
    return {k: (v.int() if v.dtype == torch.int64 else v.detach()).contiguous() for k, v in res.items()}


def make(out, name, settings, seed):
    model = DagMoeForCausalLM(DagMoeConfig(**{**COMMON, **settings}))
    gen = torch.Generator().manual_seed(seed)
    for bias in model.model.router_biases():
        if bias is not None:
            bias.copy_(0.1 * torch.randn(bias.shape, generator=gen))
    for n, p in sorted(model.named_parameters()):
        r = torch.randn(p.shape, generator=gen)
        p.data.copy_(1 + 0.1 * r if "norm" in n else 0.25 * r if ".mlp.dag." in n else 0.2 * r)
    model.eval()
    rows = {k: torch.randint(3, V, (n,), generator=gen) for k, n in (("a", 11), ("b", 5), ("c", 1))}
    prompt = torch.randint(3, V, (3,), generator=gen)
    expected = expected_of(model, rows, prompt)

    folder = os.path.join(out, "dagmoe_" + name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    disk = load_file(os.path.join(folder, "model.safetensors"))
    biases = {k for k in disk if k.endswith(".e_score_correction_bias")}
    assert len(biases) == sum(b is not None for b in model.model.router_biases())
    assert set(disk) - biases == {k[len("grad.") :] for k in expected if k.startswith("grad.")}
    again, info = DagMoeForCausalLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert all(torch.equal(again.state_dict()[n], p) for n, p in model.state_dict().items())
    # Tensors lie at other addresses now, which moves the last digit of some products.
    assert (no_cache_logits(again, rows["a"]) - expected["logits_a"]).abs().max() < 1e-5

    base = check_base_family(model, folder, rows["a"])
    dag = check_dag(model, gen)
    check_balance_loss(model, rows["a"])
    check_generate(model, prompt, rows["b"], expected["greedy"])
    check_gradients(model, gen)
    save_file(expected, os.path.join(folder, "expected.safetensors"), metadata={"format": "pt"})
    size = 0
    for f in os.listdir(folder):
        os.chmod(os.path.join(folder, f), 0o644)
        size += os.path.getsize(os.path.join(folder, f))
    print(
        f"{name}: loss {expected['loss'].item():.4f}, aux {expected['aux_loss'].item():.4f}, greedy "
        f"{expected['greedy'].tolist()}, {size // 1000} kB; "
        + (f"without DAG {base[0]:.1e} from transformers, DAG changes logits by {base[1]:.2f}; " if base else "")
        + f"DAG and its gradients {dag:.1e} from the equations"
    )


for model_name, model_settings in MODELS.items():
    if sys.argv[2:] and model_name not in sys.argv[2:]:
        continue
    make(sys.argv[1], model_name, model_settings, seed=0)  # under which no routing or greedy decision is close
