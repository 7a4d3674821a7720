"""Tiny random models as GGUF files, with what transformers 5.23.0 knows them by.

usage: make_tiny_gguf.py OUT_DIR
OUT_DIR/tiny_gguf/ARCHITECTURE.gguf: 2 layers, hidden size 32, 64 tokens, 4 experts of width 16 where there are any. Tensors have the
names of the gguf package's own map and metadata the keys that llama.cpp's converter writes; rows of q and k are permuted where it does so.
OUT_DIR/tiny_gguf.json: for each file `config` (the keys of its Hugging Face config.json that a GGUF can tell, in v4 spelling) and
`tensors`, name in the Hugging Face folder: [shape, SHA-256 of its values as fp32]. Rows are quantised one by one, so these values
come from the model's own rows, not from the permuted ones.
"""
import hashlib
import json
import os
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

transformers.utils.logging.disable_progress_bar()
Quant = gguf.GGMLQuantizationType
num_layers, num_experts, vocab_size = 2, 4, 64
common = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=num_layers, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=vocab_size, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1, pad_token_id=2)
moe = dict(num_experts_per_tok=2)
models = {
    "llama": ("Llama", gguf.MODEL_ARCH.LLAMA, dict(rope_theta=50000.0)),
    "mixtral": ("Mixtral", gguf.MODEL_ARCH.LLAMA, dict(num_local_experts=num_experts, intermediate_size=16, **moe)),
    "qwen2": ("Qwen2", gguf.MODEL_ARCH.QWEN2, dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", gguf.MODEL_ARCH.QWEN3, dict(head_dim=16, rope_theta=1000000.0)),
    "olmoe": ("Olmoe", gguf.MODEL_ARCH.OLMOE, dict(num_experts=num_experts, intermediate_size=16, **moe)),
    "qwen2moe": ("Qwen2Moe", gguf.MODEL_ARCH.QWEN2MOE, dict(num_experts=num_experts, moe_intermediate_size=16,
                                                          shared_expert_intermediate_size=32, **moe)),
    "qwen3moe": ("Qwen3Moe", gguf.MODEL_ARCH.QWEN3MOE, dict(num_experts=num_experts, moe_intermediate_size=16, head_dim=16,
                                                          norm_topk_prob=True, **moe)),
}
pre_tokenizers = {"llama": "llama-bpe", "mixtral": "gpt-2", "olmoe": "olmo"}
# What a GGUF file can tell; the rest of a config.json are defaults of its family.
config_keys = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
               "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
               "tie_word_embeddings", "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob", "clip_qkv",
               "moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "qkv_bias",
               "attention_bias", "use_sliding_window"]


def storage_type(name, shape):
    """A type that fits the rows, so that several of them occur in each file."""
    if len(shape) == 1 or name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")):
        return Quant.F32
    if shape[-1] % 32 != 0:
        return Quant.F16
    return {"o_proj.weight": Quant.Q5_0, "down_proj.weight": Quant.Q4_1, "lm_head.weight": Quant.BF16}.get(".".join(name.split(".")[-2:]), Quant.Q8_0)


def stored(values, qtype):
    """Values as they are in the file, and as they are read from it."""
    if qtype in (Quant.F32, Quant.F16):
        data = values.astype(np.float32 if qtype == Quant.F32 else np.float16)
        return data, data.astype(np.float32)
    data = gguf.quants.quantize(values, qtype)
    return data, gguf.quants.dequantize(data, qtype)


def interleaved(values, num_heads):
    """Row i of each half of a head becomes row 2 i or 2 i + 1, as llama.cpp's converter has it for architecture llama."""
    return values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def add_metadata(writer, config, arch):
    writer.add_block_count(num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim or config.hidden_size // config.num_attention_heads)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def add_tokenizer(writer, pre):
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)] + list("ABCDEFGHIJKLMNOPQRST")
    merged = ["th", "he", "the", "in", "an"]
    tokens = special + letters + merged
    assert len(tokens) == vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (vocab_size - 3))
    writer.add_token_merges(["t h", "h e", "th e", "i n", "a n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)


def merged_experts(tensors, arch):
    """The tensors of one expert each, stacked under the names that the gguf package maps."""
    res, stacks = {}, {}
    for name, values in tensors.items():
        if ".experts." not in name:
            res[name] = values
            continue
        head, tail = name.split(".experts.")
        expert, part = tail.split(".", 1)
        if head.endswith("block_sparse_moe"):
            head = head.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
        stacks.setdefault(f"{head}.experts.{part}", {})[int(expert)] = values
    for name, experts in stacks.items():
        res[name] = np.stack([experts[e] for e in range(num_experts)])
    return res


def write_gguf(path, name, arch, config, tensors):
    """Writes a model; returns its tensors as they are read back, by their names in the Hugging Face folder."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    add_metadata(writer, config, arch)
    add_tokenizer(writer, pre_tokenizers.get(name, "qwen2"))
    names = gguf.get_tensor_name_map(arch, num_layers)
    types = {key: storage_type(key, values.shape) for key, values in tensors.items()}
    for key, values in merged_experts(tensors, arch).items():
        if arch == gguf.MODEL_ARCH.LLAMA and key.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleaved(values, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        theirs = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if theirs.endswith("_shexp.weight") and values.shape[0] == 1:
            values = values[0]
        qtype = storage_type(key, values.shape)
        writer.add_tensor(theirs, stored(values, qtype)[0], raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types


def per_expert(state):
    """In-memory tensors under the names of model.safetensors, one for each expert (Mixtral's own names left out)."""
    res = {}
    for name, values in state.items():
        head, fused, part = name.partition(".mlp.experts.")
        for e in range(num_experts if fused else 0):
            parts = dict(zip(("gate_proj", "up_proj"), values[e].chunk(2))) if part == "gate_up_proj" else {part: values[e]}
            res.update({f"{head}.mlp.experts.{e}.{key}.weight": value for key, value in parts.items()})
        if not fused:
            res[name] = values
    return {name: values.numpy() for name, values in res.items()}


def common_name(name):
    for theirs, ours in ((".block_sparse_moe.", ".mlp."), (".w1.", ".gate_proj."), (".w2.", ".down_proj."), (".w3.", ".up_proj.")):
        name = name.replace(theirs, ours)
    return name


def check_with_transformers(folder, file, config, expected):
    """Whether transformers decodes the file to the same values. It overlooks several sizes in the metadata: it gets the config."""
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, config=config, dtype=torch.float32)
    except Exception as error:
        return f"does not read it ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    found = per_expert(model.state_dict())
    differing = [key for key, values in expected.items() if not np.array_equal(found.get(common_name(key)), values)]
    return "agrees" if not differing else f"differs in {len(differing)} of {len(expected)}: {differing[:4]}"


def main():
    torch.manual_seed(1)
    out_dir = os.path.join(sys.argv[1], "tiny_gguf")
    os.makedirs(out_dir, exist_ok=True)
    res = {}
    for name, (family, arch, settings) in models.items():
        config = getattr(transformers, family + "Config")(**{**common, **settings})
        model = getattr(transformers, family + "ForCausalLM")(config)
        for param in model.parameters():
            torch.nn.init.normal_(param, std=0.3)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tensors = {key: values.numpy() for key, values in load_file(os.path.join(folder, "model.safetensors")).items()}
            saved = json.load(open(os.path.join(folder, "config.json")))
        file = name + ".gguf"
        types = write_gguf(os.path.join(out_dir, file), name, arch, config, tensors)
        expected = {key: stored(values, types[key])[1] for key, values in tensors.items()}
        kept = {key: saved[key] for key in config_keys if key in saved}
        kept["rope_theta"] = saved["rope_parameters"]["rope_theta"]
        res[name] = {"config": kept, "tensors": {
            key: [list(values.shape), hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()]
            for key, values in sorted(expected.items())}}
        print(name, os.path.getsize(os.path.join(out_dir, file)), len(expected), "transformers:",
              check_with_transformers(out_dir, file, config, expected))
    with open(os.path.join(sys.argv[1], "tiny_gguf.json"), "w") as stream:
        lines = ",\n".join(f'  "{name}": {{\n    "config": {json.dumps(entry["config"])},\n    "tensors": {{\n' + ",\n".join(
            f'      "{key}": {json.dumps(value)}' for key, value in entry["tensors"].items()) + "\n    }\n  }" for name, entry in res.items())
        stream.write("{\n" + lines + "\n}\n")


main()
