"""What benchmarks that drive `dagmoe` share: random models, records of one length, runs and their metrics, the machine, tables."""
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time

WARM_UP_STEPS = 2


class RunFailed(Exception):
    """A program ended with an error or did not end in time; the text says which and shows the end of what it printed."""


# ---- Models and data

def smollm2_shape(layers, experts=8, top_k=4, **changes):
    """config.json of a Mixtral as wide as SmolLM2 upcycled with four shards: experts of 384, so that the top 4 are as many weights as its dense layer."""
    return {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 384, "num_hidden_layers": layers,
            "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "num_local_experts": experts, "num_experts_per_tok": top_k, "vocab_size": 49152,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "sliding_window": None, "tie_word_embeddings": True, "initializer_range": 0.02,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", **changes}


def paper_s_shape(top_k=4):
    """The s configuration of arXiv 2606.01062: 32 experts, sigmoid scores that are not renormalised, an untied head over 128,256 words."""
    return smollm2_shape(4, 32, top_k, architectures=["DagmoeForCausalLM"], model_type="dagmoe", base_model_type="mixtral", scoring_func="sigmoid", norm_topk_prob=False,
                         routed_scaling_factor=1.0, hidden_size=512, intermediate_size=256, num_attention_heads=32, num_key_value_heads=8, head_dim=16, vocab_size=128256,
                         rope_theta=500000.0, tie_word_embeddings=False)


def write_model(folder, config, tokenizer):
    """A folder of random bfloat16 weights with the tokenizer of another folder, whose words may be fewer than the config's."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    D, F, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    matrix = lambda rows, columns: (torch.randn(rows, columns) * config["initializer_range"]).bfloat16()
    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], D), "model.norm.weight": torch.ones(D).bfloat16()}
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = torch.ones(D).bfloat16()
        for name, rows, columns in (("q", wide, D), ("k", narrow, D), ("v", narrow, D), ("o", D, wide)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = matrix(rows, columns)
        tensors[f"{layer}block_sparse_moe.gate.weight"] = matrix(config["num_local_experts"], D)
        for e in range(config["num_local_experts"]):
            for name, rows, columns in (("w1", F, D), ("w3", F, D), ("w2", D, F)):
                tensors[f"{layer}block_sparse_moe.experts.{e}.{name}.weight"] = matrix(rows, columns)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(config["vocab_size"], D)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    copy_tokenizer(tokenizer, folder)


def as_mixtral(folder, work):
    """The path of a model that stock transformers reads: a copy below `work` of a dagmoe folder (base mixtral) without its DAG, or the folder itself where it is no dagmoe."""
    from safetensors.torch import load_file, save_file

    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "dagmoe":
        return str(folder)
    if config["base_model_type"] != "mixtral":
        raise ValueError(f"{folder}/config.json: found base_model_type {config['base_model_type']}, expected mixtral")
    target = pathlib.Path(work) / (folder.resolve().name + "-mixtral")
    target.mkdir()
    for key in ("dag", "base_model_type", "scoring_func", "norm_topk_prob", "routed_scaling_factor", "auto_map"):
        config.pop(key, None)
    config.update(model_type="mixtral", architectures=["MixtralForCausalLM"])
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".mlp.dag." not in k}, target / "model.safetensors", metadata={"format": "pt"})
    copy_tokenizer(folder, target)
    return str(target)


def copy_tokenizer(source, target):
    for file in pathlib.Path(source).iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "chat_template")):
            shutil.copy(file, target)


def alpaca_text(data):
    return "\n".join(record["instruction"] + "\n" + record["output"] for record in json.loads(pathlib.Path(data).read_text()))


def write_document(path, text, tokens):
    """One text for text_data(), every token of which is learnt. It is longer than `tokens`, so that every sample has the full length."""
    size = 10 * tokens  # English has fewer characters a token
    path.write_text(json.dumps({"text": (text * (1 + size // len(text)))[:size]}) + "\n")


def write_prompts(path, text, count, length):
    """`count` records that prompt_data() makes samples of exactly `length` tokens of: a prompt that is too long, and an answer of few tokens, so that the head costs little."""
    size = 10 * length
    begins = (i * 7919 % max(1, len(text) - size) for i in range(count))
    path.write_text("".join(json.dumps({"prompt": text[begin : begin + size], "completion": " Yes, it is."}) + "\n" for begin in begins))


def text_data(path, length):
    return {"shuffle": False, "max_seq_len": length, "train": [{"path": str(path), "format": "text"}]}


def prompt_data(path, length):
    return {"shuffle": False, "max_seq_len": length, "long_samples": "truncate_prompt", "train": [{"path": str(path), "format": "prompt_completion", "template": "plain"}]}


# ---- Runs

def recipe(model, data, trainable, sequences, micro_batch_tokens, steps, dag=None, **settings):
    source = {"path": str(model), **({"dag": dag} if dag else {})}
    return {"version": 1, "seed": 1, "dtype": "bfloat16", "model": source, "data": data, "trainable": trainable, "batch": {"sequences": sequences, "micro_batch_tokens": micro_batch_tokens},
            "steps": steps, "optimizer": {"name": "adamw", "lr": 2e-5, "weight_decay": 0.0}, "schedule": {"kind": "constant"}, "max_grad_norm": 1.0,
            "checkpoint": {"every_steps": 0}, **settings}


def environment(threads):
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def finetune(program, settings, work, threads, timeout, overrides=()):
    """Runs a recipe in `work` and gives its steps' lines of metrics.jsonl and the seconds from launch to the end of the first one. Nothing of the run stays. Raises RunFailed."""
    output = work / "run"
    shutil.rmtree(output, ignore_errors=True)
    file = work / "recipe.yaml"
    file.write_text(json.dumps({**settings, "output_dir": str(output)}))  # JSON is YAML
    begin, first, metrics = time.time(), None, output / "metrics.jsonl"
    with open(work / "stderr.txt", "w+") as errors:
        process = subprocess.Popen([str(program), "finetune", str(file), *overrides], env=environment(threads), stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                if first is None and metrics.exists() and '"tokens"' in metrics.read_text():
                    first = time.time() - begin
                if time.time() - begin > timeout:
                    raise RunFailed(f"dagmoe finetune: not done after {timeout} s")
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            errors.seek(0)
            raise RunFailed(failure("dagmoe finetune", process.returncode, errors.read()))
    lines = [line for line in map(json.loads, metrics.read_text().splitlines()) if "tokens" in line and "loss" in line]
    shutil.rmtree(output, ignore_errors=True)
    return lines, first


def failure(program, code, errors):
    """The text of a RunFailed: on its first line what the program said last."""
    said = [line for line in errors.splitlines() if line.strip()] or ["it said nothing"]
    return f"{program}: exit {code}: {said[-1][:300]}\n{errors[-3000:]}"


def warm_up(num_steps):
    """Steps that do not count: a fifth, two at least where enough are left."""
    return min(max(WARM_UP_STEPS, num_steps // 5), num_steps - 1)


def step_seconds(lines):
    return statistics.median(line["seconds"] for line in lines[warm_up(len(lines)) :])


# ---- The machine and the tables

def machine():
    """The processor as the tables name it: what products it has, and how many cores and how much memory there are."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    line = lambda key: next((row.partition(":")[2].strip() for row in info.splitlines() if row.startswith(key)), "unknown")
    flags = set(line("flags").split())
    memory = int(next(row.split()[1] for row in open("/proc/meminfo") if row.startswith("MemTotal"))) / 2**20
    return {"cpu": line("model name"), "family": f"{line('vendor_id')} family {line('cpu family')} model {line('model	')}", "cores": os.cpu_count(), "memory_gib": round(memory, 1),
            **{name: flag in flags for name, flag in (("avx2", "avx2"), ("avx512", "avx512f"), ("avx512_bf16", "avx512_bf16"), ("amx_bf16", "amx_bf16"))}}


def machine_text(about):
    has = ", ".join(f"{name.replace('_', ' ')} {'yes' if about[name] else 'no'}" for name in ("avx2", "avx512", "avx512_bf16", "amx_bf16"))
    return f"{about['cpu']} ({about['family']}), {about['cores']} cores, {about['memory_gib']} GiB; {has}"


def spread(values, digits=2, scale=1.0):
    """Median (least-most)."""
    values = [value * scale for value in values]
    if not values:
        return "-"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def write_json(path, value):
    """Whole or not at all, as it is written after every run."""
    if path:
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        temporary.replace(path)
