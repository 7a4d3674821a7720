"""Configuration of a DAG-MoE model: a mixture-of-experts family of transformers plus the DAG of arXiv:2606.01062.

config.json holds the keys of the base family as that family spells them, and

    "model_type": "dagmoe"
    "base_model_type": "mixtral" | "olmoe" | "qwen2_moe" | "qwen3_moe" | "deepseek_v2"
    "dag": {"num_iterations": L, "node_size": G, "node_residual": "hidden_state" | "normed_input" | "none",
            "norm": "layer_norm" | "rms_norm", "activation": "silu"}         absent: a plain mixture of experts
    "scoring_func": "softmax" | "sigmoid"     the router, where it differs from the base family's:
    "norm_topk_prob": true | false            divide the K chosen scores by their sum
    "routed_scaling_factor": 1.0              multiplies them after that
    "router_bias": false | true               the K experts are those of the largest score + bias; the bias [E], which
                                              is trained without a gradient (arXiv:2408.15664), enters no weight
    "shared_expert_intermediate_size": F, "shared_expert_gate": true | false
                                              an expert that every token passes, where the base family's differs
"""

from transformers import (
    DeepseekV2Config,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

BASE_CONFIGS = {
    "mixtral": MixtralConfig,
    "olmoe": OlmoeConfig,
    "qwen2_moe": Qwen2MoeConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "deepseek_v2": DeepseekV2Config,
}
# The number of experts has three names; each is read for every family.
NUM_EXPERTS_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
# Mixtral and OLMoE call the width of one expert intermediate_size, the others moe_intermediate_size.
FAMILIES_WITHOUT_MOE_INTERMEDIATE_SIZE = ("mixtral", "olmoe")

DAG_DEFAULTS = {"node_residual": "hidden_state", "norm": "layer_norm", "activation": "silu"}
DAG_CHOICES = {
    "node_residual": ("hidden_state", "normed_input", "none"),
    "norm": ("layer_norm", "rms_norm"),
    "activation": ("silu",),
}


def check_choice(key, found, choices):
    if found not in choices:
        raise ValueError(f"config.json: '{key}': found {found!r}, expected one of {', '.join(map(repr, choices))}")


def complete_dag(dag):
    """The "dag" object with its defaults filled in; raises ValueError on a key that is missing, unknown or wrong."""
    dag = {**DAG_DEFAULTS, **dag}
    for key in dag:
        check_choice("dag", key, ("num_iterations", "node_size", *DAG_CHOICES))
    for key, choices in DAG_CHOICES.items():
        check_choice(f"dag.{key}", dag[key], choices)
    for key in ("num_iterations", "node_size"):
        if not isinstance(dag.get(key), int) or dag[key] < 1:
            raise ValueError(f"config.json: 'dag.{key}': found {dag.get(key)!r}, expected an integer of at least 1")
    return dag


class DagMoeConfig(PreTrainedConfig):
    model_type = "dagmoe"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        base_model_type="mixtral",
        dag=None,
        scoring_func="softmax",
        norm_topk_prob=None,
        routed_scaling_factor=1.0,
        router_bias=False,
        router_aux_loss_coef=None,
        shared_expert_intermediate_size=None,
        shared_expert_gate=None,
        **base_keys,
    ):
        check_choice("base_model_type", base_model_type, tuple(BASE_CONFIGS))
        check_choice("scoring_func", scoring_func, ("softmax", "sigmoid"))
        base_class = BASE_CONFIGS[base_model_type]
        base_keys.pop("model_type", None)
        num_experts = {base_keys.pop(key) for key in NUM_EXPERTS_KEYS if base_keys.get(key) is not None}
        if len(num_experts) > 1:
            raise ValueError(f"config.json: {', '.join(NUM_EXPERTS_KEYS)} disagree: found {sorted(num_experts)}")
        if num_experts:
            base_keys["num_experts"] = num_experts.pop()  # an alias, or the name itself, in every family

        # The base family reads its keys, in old and new spellings, and this object takes over what it made of them.
        super().__init__()
        self.__dict__.update(vars(base_class(**base_keys)))

        self.base_model_type = base_model_type
        self.dag = None if dag is None else complete_dag(dag)
        self.scoring_func = scoring_func
        # Mixtral has no such keys: it always renormalises. DeepSeek-V2 adds no balance loss of its own.
        self.norm_topk_prob = (
            getattr(base_class, "norm_topk_prob", True) if norm_topk_prob is None else norm_topk_prob
        )
        self.routed_scaling_factor = routed_scaling_factor
        self.router_bias = router_bias
        self.router_aux_loss_coef = (
            getattr(base_class, "router_aux_loss_coef", 0.0) if router_aux_loss_coef is None else router_aux_loss_coef
        )
        # As the base family has it, unless it is named: Qwen2-MoE's shared expert is gated, DeepSeek-V2's are not.
        if shared_expert_intermediate_size is not None:
            self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.shared_expert_gate = base_model_type == "qwen2_moe" if shared_expert_gate is None else shared_expert_gate
        if base_model_type == "deepseek_v2":
            check_choice("topk_method", self.topk_method, ("greedy", "group_limited_greedy"))
            check_choice("moe_layer_freq", getattr(self, "moe_layer_freq", 1), (1,))

    def experts_in_layer(self):
        """Number and width of the experts of one layer."""
        num_experts = next(getattr(self, key) for key in NUM_EXPERTS_KEYS if hasattr(self, key))
        if self.base_model_type in FAMILIES_WITHOUT_MOE_INTERMEDIATE_SIZE:
            return num_experts, self.intermediate_size
        return num_experts, self.moe_intermediate_size

    def shared_expert_width(self):
        """Width of the expert that every token passes; 0: there is none."""
        if hasattr(self, "shared_expert_intermediate_size"):
            return self.shared_expert_intermediate_size
        return self.moe_intermediate_size * self.n_shared_experts if self.base_model_type == "deepseek_v2" else 0

    def is_moe_layer(self, layer_idx):
        """Whether a layer has experts; the others keep the dense feed-forward layer of the base family."""
        if self.base_model_type == "deepseek_v2":
            return layer_idx >= self.first_k_dense_replace
        if self.base_model_type in ("qwen2_moe", "qwen3_moe"):
            return layer_idx not in self.mlp_only_layers and (layer_idx + 1) % self.decoder_sparse_step == 0
        return True

    def is_sliding_layer(self, layer_idx):
        """Whether attention sees only the last sliding_window tokens."""
        if self.base_model_type == "qwen2_moe":
            return self.layer_types[layer_idx] == "sliding_attention"
        return getattr(self, "sliding_window", None) is not None


__all__ = ["DagMoeConfig"]
