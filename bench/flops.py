"""Floating-point operations that one optimizer step needs, multiply and add counted apart: matrix products and attention, nothing element-wise.

Needed means: forward, gradients of inputs down to the lowest parameter that trains, gradients of what trains; the output matrix for supervised tokens alone, half of each attention
square. What a program computes besides (padding, layers run again, gradients of frozen weights) is not counted. `config` is config.json of a Llama or Mixtral folder, with `dag`
{"num_iterations", "node_size"} where there is one.
"""

EMBEDDING = "model.embed_tokens.weight"


def stages(config):
    """The model in the order of its forward pass, as lists of (name, inputs, outputs, rows per token) that read the same tensor. Norms have no rows; the experts of a layer are one."""
    D, heads = config["hidden_size"], config["num_attention_heads"]
    d = config.get("head_dim") or D // heads
    kv, F, experts = config["num_key_value_heads"] * d, config["intermediate_size"], config.get("num_local_experts")
    K = config["num_experts_per_tok"] if experts else 1
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        yield [(layer + "input_layernorm.weight", D, 1, 0)]
        yield [(layer + f"self_attn.{name}_proj.weight", D, width, 1) for name, width in (("q", heads * d), ("k", kv), ("v", kv))]
        yield [(layer + "self_attn.o_proj.weight", heads * d, D, 1)]
        yield [(layer + "post_attention_layernorm.weight", D, 1, 0)]
        part = layer + ("mlp.experts." if experts else "mlp.")
        router = [(layer + "mlp.gate.weight", D, experts, 1)] if experts else []
        yield router + [(part + "gate_proj.weight", D, F, K), (part + "up_proj.weight", D, F, K)]
        yield [(part + "down_proj.weight", F, D, K)]
        dag = config.get("dag") or {"num_iterations": 0, "node_size": 0}
        G, last = dag["node_size"], dag["num_iterations"] - 1
        for l in range(dag["num_iterations"]):
            step = layer + f"mlp.dag.{l}."
            yield [(step + "norm.weight", D, 1, 0)]
            yield [(step + "down_proj.weight", D, G, K)]
            yield [(step + "edge_proj.weight", G, 2 * G, K), (step + "node_proj.weight", G, 2 * G, K)]  # one G -> 4G product a node
            yield [(step + "up_proj.weight", G, D, K if l < last else 1)]  # the last one after the sum over nodes
    yield [("model.norm.weight", D, 1, 0)]


def step_flops(config, trains, tokens, supervised, lengths=(), lora=None):
    """{"products", "attention", "total"} of a step of `tokens` in segments of `lengths`. `trains(name)` says which parameters do; `lora` is (rank, adapts(name))."""
    d = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    square = 4.0 * config["num_attention_heads"] * d * sum(n * (n + 1) / 2 for n in lengths)
    embedding_trains = trains(EMBEDDING)
    below, products, attention = embedding_trains, 0.0, 0.0
    for stage in stages(config):
        trained = False
        for name, inputs, outputs, rows in stage:
            rows *= tokens
            products += 2.0 * rows * inputs * outputs * (1 + below + bool(trains(name)))
            adapted = lora is not None and lora[1](name)
            if adapted:
                products += 2.0 * rows * lora[0] * (inputs * (2 + below) + outputs * 3)
            trained = trained or trains(name) or adapted
        below = below or trained
        if stage[0][0].endswith("q_proj.weight"):
            attention += square * (3 if below else 1)
    head_trains = embedding_trains if config.get("tie_word_embeddings") else trains("lm_head.weight")
    products += 2.0 * supervised * config["hidden_size"] * config["vocab_size"] * (1 + below + bool(head_trains))
    return {"products": products, "attention": attention, "total": products + attention}


def in_layers(first):
    """Everything in the layers from `first` on; embeddings, last norm and head are frozen."""
    return lambda name: name.startswith("model.layers.") and int(name.split(".")[2]) >= first


TRAINS = {"full": lambda name: True, "dag": lambda name: ".dag." in name, "router": lambda name: name.endswith("mlp.gate.weight"), "none": lambda name: False}
EXPERT_LORA = lambda name: "self_attn." in name or ".experts." in name
