"""DAG-MoE: mixture-of-experts models whose K chosen experts exchange messages before they are summed.

The equations (6)-(12) are those of arXiv:2606.01062. Attention, rotary embedding, norms and dense feed-forward layers
are transformers' own classes of the base family; the router, the experts and the DAG are here. Modules bear the names
that their weights have in the base family's checkpoints, so weights load and save without renaming.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

Tensors end in letters that say their shape: B sequences, S positions of each, T = B S tokens, D hidden_size, E experts,
K experts chosen per token, R = T K routed rows, G node size of the DAG, N rows of all layers that have experts.
"""

from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2_moe
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe
from transformers.utils import can_return_tuple

from .configuration_dagmoe import DagMoeConfig


# ---- Experts ---------------------------------------------------------------------------------------------------------


class Expert(nn.Module):
    """E_e(x) = W_down (SiLU(W_gate x) * (W_up x))"""

    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_RD):
        return self.down_proj(F.silu(self.gate_proj(x_RD)) * self.up_proj(x_RD))


class MixtralExpert(nn.Module):
    """The same under Mixtral's names: w1 gate, w2 down, w3 up."""

    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.w1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.w3 = nn.Linear(hidden_size, intermediate_size, bias=False)

    def forward(self, x_RD):
        return self.w2(F.silu(self.w1(x_RD)) * self.w3(x_RD))


def run_experts(experts, x_TD, expert_ids_TK):
    """Output [T, K, D] of each token's chosen experts. Rows that go to one expert are computed together."""
    T, K = expert_ids_TK.shape
    order_R = expert_ids_TK.flatten().argsort(stable=True)
    counts_E = expert_ids_TK.flatten().bincount(minlength=len(experts)).tolist()
    rows_E = x_TD[order_R // K].split(counts_E)
    out_RD = torch.cat([expert(rows) for expert, rows in zip(experts, rows_E) if len(rows) > 0])
    return out_RD[order_R.argsort()].view(T, K, -1)


# ---- What differs between base families ------------------------------------------------------------------------------


class Family(NamedTuple):
    attention: type
    norm: type
    rotary: type
    dense: type | None  # feed-forward layer without experts; None: the family has no such layers
    expert: type = Expert
    mixture: str = "mlp"  # what a layer calls the module that holds its router and experts
    shared: str = "shared_expert"  # and what that calls the expert that every token passes


FAMILIES = {
    "mixtral": Family(
        mixtral.MixtralAttention,
        mixtral.MixtralRMSNorm,
        mixtral.MixtralRotaryEmbedding,
        dense=None,
        expert=MixtralExpert,
        mixture="block_sparse_moe",
    ),
    "olmoe": Family(
        olmoe.OlmoeAttention,
        olmoe.OlmoeRMSNorm,
        olmoe.OlmoeRotaryEmbedding,
        dense=None,
    ),
    "qwen2_moe": Family(
        qwen2_moe.Qwen2MoeAttention,
        qwen2_moe.Qwen2MoeRMSNorm,
        qwen2_moe.Qwen2MoeRotaryEmbedding,
        dense=qwen2_moe.Qwen2MoeMLP,
    ),
    "qwen3_moe": Family(
        qwen3_moe.Qwen3MoeAttention,
        qwen3_moe.Qwen3MoeRMSNorm,
        qwen3_moe.Qwen3MoeRotaryEmbedding,
        dense=qwen3_moe.Qwen3MoeMLP,
    ),
    "deepseek_v2": Family(
        deepseek_v2.DeepseekV2Attention,
        deepseek_v2.DeepseekV2RMSNorm,
        deepseek_v2.DeepseekV2RotaryEmbedding,
        dense=deepseek_v2.DeepseekV2MLP,
        shared="shared_experts",
    ),
}


# ---- Router ----------------------------------------------------------------------------------------------------------


class Router(nn.Module):
    """Logits [T, E]. They, the scores and the combine weights are float32 whatever the activations are."""

    def __init__(self, hidden_size, num_experts, has_bias):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        # Added to the scores where experts are chosen, nowhere else (arXiv:2408.15664). No gradient reaches it.
        bias_E = torch.zeros(num_experts, dtype=torch.float32) if has_bias else None
        self.register_buffer("e_score_correction_bias", bias_E)

    def forward(self, x_TD):
        with torch.autocast(x_TD.device.type, enabled=False):
            wide = torch.promote_types(x_TD.dtype, torch.float32)
            return F.linear(x_TD.to(wide), self.weight.to(wide))


def top_k(scores, k):
    """Indices of the k largest of every row, largest first; of equal ones the lower index first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def scores_of(logits_TE, config):
    return logits_TE.softmax(-1) if config.scoring_func == "softmax" else logits_TE.sigmoid()


def ranking_of(logits_TE, config, bias_E):
    """What experts are chosen by: logits, which order as scores do but which rounding does not merge; or scores plus
    the router's bias, where it has one."""
    has_effect = bias_E is not None and bool(bias_E.any())
    return scores_of(logits_TE, config) + bias_E if has_effect else logits_TE


def eligible_experts(ranking_TE, config):
    """Mask [T, E] of the experts that may be chosen. DeepSeek-V3 can restrict each token to the topk_group groups whose
    best experts rank highest; everywhere else all experts are eligible."""
    if getattr(config, "topk_method", "greedy") != "group_limited_greedy":
        return torch.ones_like(ranking_TE, dtype=torch.bool)
    group_size = ranking_TE.shape[1] // config.n_group
    best_of_group = ranking_TE.unflatten(1, (config.n_group, group_size)).amax(-1)
    groups = top_k(best_of_group, config.topk_group)
    is_kept = torch.zeros_like(best_of_group, dtype=torch.bool).scatter(1, groups, True)
    return is_kept.repeat_interleave(group_size, dim=1)


def choose_experts(logits_TE, config, bias_E=None):
    """Indices [T, K] of the chosen experts, best first; of equal sums of score and bias the larger logit first."""
    ranking_TE = ranking_of(logits_TE, config, bias_E)
    eligible_TE = eligible_experts(ranking_TE, config)
    by_logit_TE = top_k(logits_TE, logits_TE.shape[1])
    ranking_TE = ranking_TE.masked_fill(~eligible_TE, float("-inf")).gather(1, by_logit_TE)
    return by_logit_TE.gather(1, top_k(ranking_TE, config.num_experts_per_tok))


def combine_weights(logits_TE, expert_ids_TK, config, bias_E=None):
    """g_k of equation (6): the scores of the chosen experts, by the convention of the base family, without the bias."""
    eligible_TE = eligible_experts(ranking_of(logits_TE, config, bias_E), config)
    weights_TK = scores_of(logits_TE, config).masked_fill(~eligible_TE, 0.0).gather(1, expert_ids_TK)
    if config.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK * config.routed_scaling_factor


def load_balancing_loss(router_logits, config, attention_mask=None, biases=None):
    """E sum_e f_e P_e as transformers defines it: over the N rows of all layers together, padding left out, f_e is the
    assignments to e per row and P_e the mean probability of e. Balanced routing gives K. Sigmoid scores are first
    divided by their sum over the experts. `biases`: those of the layers' routers, if they have any."""
    device = router_logits[0].device
    biases = [None] * len(router_logits) if biases is None else biases
    ids_NK = torch.cat([choose_experts(*pair).to(device) for pair in zip(router_logits, repeat(config), biases)])
    p_NE = scores_of(torch.cat([logits_TE.to(device) for logits_TE in router_logits]), config)
    p_NE = p_NE / p_NE.sum(-1, keepdim=True)
    chosen_NE = torch.zeros_like(p_NE).scatter(1, ids_NK, 1.0)
    counts_N1 = torch.ones_like(p_NE[:, :1])
    if attention_mask is not None:
        S = router_logits[0].shape[0] // attention_mask.shape[0]  # the mask also covers tokens that are in the cache
        counts_N1 = attention_mask[:, -S:].reshape(-1, 1).repeat(len(router_logits), 1).to(p_NE)
    f_E = (chosen_NE * counts_N1).sum(0) / counts_N1.sum()
    P_E = (p_NE * counts_N1).sum(0) / counts_N1.sum()
    return p_NE.shape[1] * (f_E * P_E).sum()


class Mixture(nn.Module):
    """Router, routed experts and shared experts of one layer."""

    def __init__(self, config, family):
        super().__init__()
        self.config = config
        num_experts, intermediate_size = config.experts_in_layer()
        self.gate = Router(config.hidden_size, num_experts, config.router_bias)
        self.experts = nn.ModuleList(family.expert(config.hidden_size, intermediate_size) for _ in range(num_experts))
        self.shared = family.shared if config.shared_expert_width() > 0 else None
        if self.shared is not None:
            setattr(self, self.shared, Expert(config.hidden_size, config.shared_expert_width()))
            if config.shared_expert_gate:
                self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x_TD):
        """g_k E_k(x) of the chosen experts [T, K, D], and the router's logits [T, E]."""
        logits_TE, bias_E = self.gate(x_TD), self.gate.e_score_correction_bias
        expert_ids_TK = choose_experts(logits_TE, self.config, bias_E)
        weights_TK = combine_weights(logits_TE, expert_ids_TK, self.config, bias_E).to(x_TD.dtype)
        return weights_TK[..., None] * run_experts(self.experts, x_TD, expert_ids_TK), logits_TE

    def add_shared(self, out_TD, x_TD):
        """The shared expert takes every token and stays outside the DAG."""
        if self.shared is None:
            return out_TD
        shared_TD = getattr(self, self.shared)(x_TD)
        if self.config.shared_expert_gate:
            shared_TD = self.shared_expert_gate(x_TD).sigmoid() * shared_TD
        return out_TD + shared_TD


# ---- The DAG ---------------------------------------------------------------------------------------------------------


class ZeroInitLinear(nn.Linear):
    """A linear map that is zero in a new model (DagMoePreTrainedModel._init_weights)."""


class DagStep(nn.Module):
    """One iteration l of the DAG, with its own norm and weights. W_up starts at zero: a new DAG changes nothing."""

    def __init__(self, config, family):
        super().__init__()
        D, G, eps = config.hidden_size, config.dag["node_size"], config.rms_norm_eps
        is_rms_norm = config.dag["norm"] == "rms_norm"
        self.norm = family.norm(D, eps=eps) if is_rms_norm else nn.LayerNorm(D, eps=eps, bias=False)
        self.down_proj = nn.Linear(D, G, bias=False)
        self.edge_proj = nn.Linear(2 * G, G, bias=False)  # columns: target node i first, source node j second
        self.node_proj = nn.Linear(2 * G, G, bias=False)
        self.up_proj = ZeroInitLinear(G, D, bias=False)

    def forward(self, x_TKD):
        """Messages [T, K, G] that arrive at each of the K nodes: sum over j of m_ij, j = i included."""
        z_TKG = self.down_proj(self.norm(x_TKD))  # (7), (8)
        # (9), (10): e_ij = SiLU(W_edge [z_i, z_j]) and m_ij = e_ij * (W_node [z_i, z_j]). W [z_i, z_j] is
        # W [z_i, 0] + W [0, z_j], so each node is projected once, not each of the K x K pairs.
        zero = torch.zeros_like(z_TKG)
        target, source = torch.cat([z_TKG, zero], dim=-1), torch.cat([zero, z_TKG], dim=-1)
        edge_TKKG = self.edge_proj(target)[:, :, None] + self.edge_proj(source)[:, None, :]
        node_TKKG = self.node_proj(target)[:, :, None] + self.node_proj(source)[:, None, :]
        return (F.silu(edge_TKKG) * node_TKKG).sum(2)


def combine_experts(h_TD, x_TD, expert_nodes_TKD, dag, node_residual):
    """What a layer returns: h + sum_k g_k E_k(x), plus the corrections of the DAG's steps.

    (12) sums the nodes x_i^L after the last step. Node i grew from x_i^0 by W_up sum_j m_ij at every step, and W_up
    commutes with the sum over nodes. So the sum is kept as sum_i x_i^0 + sum_l W_up^l sum_ij m_ij^l, and with W_up = 0
    the layer is the plain mixture of experts, to the bit.
    """
    out_TD = h_TD + expert_nodes_TKD.sum(1)
    if len(dag) == 0:
        return out_TD
    # (6): r is shared out among the K nodes, which add up to it again. As the residual stream h itself it is the
    # layer's own residual, already in out; the normed input comes on top of that.
    K = expert_nodes_TKD.shape[1]
    nodes_TKD = expert_nodes_TKD
    if node_residual == "hidden_state":
        nodes_TKD = nodes_TKD + (h_TD / K)[:, None]
    elif node_residual == "normed_input":
        nodes_TKD = nodes_TKD + (x_TD / K)[:, None]
        out_TD = out_TD + x_TD
    for step in dag:
        messages_TKG = step(nodes_TKD)
        out_TD = out_TD + step.up_proj(messages_TKG.sum(1))
        if step is not dag[-1]:
            nodes_TKD = nodes_TKD + step.up_proj(messages_TKG)  # (11)
    return out_TD


# ---- Decoder ---------------------------------------------------------------------------------------------------------


class DagMoeDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.family = FAMILIES[config.base_model_type]
        self.is_moe = config.is_moe_layer(layer_idx)
        self.self_attn = self.family.attention(config, layer_idx)
        self.input_layernorm = self.family.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = self.family.norm(config.hidden_size, eps=config.rms_norm_eps)
        if not self.is_moe:
            self.mlp = self.family.dense(config, intermediate_size=config.intermediate_size)
            return
        self.mlp = nn.Module()
        setattr(self, self.family.mixture, Mixture(config, self.family))
        num_steps = config.dag["num_iterations"] if config.dag else 0
        self.mlp.dag = nn.ModuleList(DagStep(config, self.family) for _ in range(num_steps))

    def forward(self, hidden_BSD, **attention_inputs):
        """The next hidden state, the router's logits [T, E] (None in a dense layer) and the attention's weights."""
        attended_BSD, attention_weights = self.self_attn(
            hidden_states=self.input_layernorm(hidden_BSD), **attention_inputs
        )
        hidden_BSD = hidden_BSD + attended_BSD
        x_BSD = self.post_attention_layernorm(hidden_BSD)
        if not self.is_moe:
            return hidden_BSD + self.mlp(x_BSD), None, attention_weights

        h_TD, x_TD = hidden_BSD.flatten(0, 1), x_BSD.flatten(0, 1)
        noise = getattr(self.config, "router_jitter_noise", 0.0)  # Mixtral's, in training only
        if self.training and noise > 0:
            x_TD = x_TD * torch.empty_like(x_TD).uniform_(1.0 - noise, 1.0 + noise)
        mixture = getattr(self, self.family.mixture)
        expert_nodes_TKD, router_logits_TE = mixture(x_TD)
        node_residual = self.config.dag["node_residual"] if self.config.dag else None
        out_TD = combine_experts(h_TD, x_TD, expert_nodes_TKD, self.mlp.dag, node_residual)
        return mixture.add_shared(out_TD, x_TD).view_as(hidden_BSD), router_logits_TE, attention_weights


class DagMoePreTrainedModel(PreTrainedModel):
    config_class = DagMoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DagMoeDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Router):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.e_score_correction_bias is not None:
                init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, ZeroInitLinear):
            init.zeros_(module.weight)


class DagMoeModel(DagMoePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        family = FAMILIES[config.base_model_type]
        # Without padding_idx: it would withhold the gradient of the end token wherever that also serves as padding.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DagMoeDecoderLayer(config, n) for n in range(config.num_hidden_layers))
        self.norm = family.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = family.rotary(config)
        self.gradient_checkpointing = False
        self.post_init()

    def router_biases(self):
        """The bias [E], or None, of each layer that has experts."""
        moe_layers = [layer for layer in self.layers if layer.is_moe]
        return [getattr(layer, layer.family.mixture).gate.e_score_correction_bias for layer in moe_layers]

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        config = self.config
        if use_cache is None:
            use_cache = config.use_cache and not (self.training and self.gradient_checkpointing)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states

        hidden_BSD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(past, past + hidden_BSD.shape[1], device=hidden_BSD.device)[None]

        def mask_of(is_sliding):
            create_mask = create_sliding_window_causal_mask if is_sliding else create_causal_mask
            return create_mask(
                config=config,
                inputs_embeds=hidden_BSD,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )

        is_sliding = [config.is_sliding_layer(n) for n in range(config.num_hidden_layers)]
        masks = {kind: mask_of(kind) for kind in set(is_sliding)}
        position_embeddings = self.rotary_emb(hidden_BSD, position_ids)

        hidden_states, attentions, router_logits = (), (), ()
        for n, layer in enumerate(self.layers):
            hidden_states += (hidden_BSD,)
            hidden_BSD, layer_router_logits, layer_attention = layer(
                hidden_BSD,
                position_embeddings=position_embeddings,
                attention_mask=masks[is_sliding[n]],
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
            attentions += (layer_attention,)
            if layer_router_logits is not None:
                router_logits += (layer_router_logits,)
        hidden_BSD = self.norm(hidden_BSD)
        return MoeModelOutputWithPast(
            last_hidden_state=hidden_BSD,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=hidden_states + (hidden_BSD,) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            router_logits=router_logits,
        )


class DagMoeForCausalLM(DagMoePreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DagMoeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_router_logits=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """As MixtralForCausalLM: with `labels` also the mean cross entropy `loss`; with `output_router_logits` also
        `aux_loss`, which `loss` then contains times router_aux_loss_coef."""
        output_router_logits = (
            self.config.output_router_logits if output_router_logits is None else output_router_logits
        )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])

        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        if output_router_logits:
            aux_loss = load_balancing_loss(
                outputs.router_logits, self.config, attention_mask, self.model.router_biases()
            )
            if labels is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if output_router_logits else None,
        )


__all__ = ["DagMoeForCausalLM", "DagMoeModel", "DagMoePreTrainedModel"]
