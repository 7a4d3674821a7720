"""LoRA adapters of the tiny models in families/, written by peft, and the logits that peft computes with them.

usage: make_adapters.py OUT_DIR
OUT_DIR/families/ must be there (make_families.py). OUT_DIR/adapters/BASE-NAME/ gets the folder as peft's save_pretrained
writes it, without its README and with base_model_name_or_path "families/BASE"; factors are random, B too. The folders
BASE-v4* are written here as peft wrote them over transformers 4, one module for each expert's matrix; their logits are
those of the model with each delta added to its weight.
OUT_DIR/adapters/expected.safetensors:
ids [9]               one input, the same for all
logits.BASE-NAME [9,V]
logits.BASE-NAME+BASE-NAME [9,V]     two adapters active at once
"""

import json
import os
import shutil
import sys
import warnings

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
# That a key of rank_pattern matched nothing is wrong for parameters: the factors have its rank.
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
families = os.path.join(sys.argv[1], "families")
out = os.path.join(sys.argv[1], "adapters")
shutil.rmtree(out, ignore_errors=True)
os.makedirs(out)
ids = torch.randint(3, 41, (9,), generator=torch.Generator().manual_seed(6))
expected = {"ids": ids.int()}


def load(base):
    return AutoModelForCausalLM.from_pretrained(
        os.path.join(families, base), dtype="float32", attn_implementation="eager"
    ).eval()


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0].contiguous()


def keep(name, base, model):
    """Notes the logits, which must not be the base's; the folder takes what does not depend on this machine."""
    folder = os.path.join(out, name)
    logits = logits_of(model)
    moved = (logits - logits_of(load(base))).abs().max().item()
    assert moved > 0.05, (name, moved)
    expected["logits." + name] = logits
    path = os.path.join(folder, "adapter_config.json")
    with open(path) as file:
        config = json.load(file)
    config["base_model_name_or_path"] = "families/" + base
    for key in ("target_modules", "target_parameters", "modules_to_save"):  # sets, in no order
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    with open(path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")
    if os.path.exists(os.path.join(folder, "README.md")):
        os.remove(os.path.join(folder, "README.md"))
    for entry in os.listdir(folder):
        os.chmod(os.path.join(folder, entry), 0o644)
    print(f"{name:34} changes logits by {moved:.3f}")


def make(base, name, r=3, alpha=6, converted=False, **settings):
    name = f"{base}-{name}"
    torch.manual_seed(sum(map(ord, name)))
    model = get_peft_model(load(base), LoraConfig(r=r, lora_alpha=alpha, **settings)).eval()
    start = os.path.join(out, "start")
    if converted:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(start)
        model.peft_config["default"].init_lora_weights = "pissa"
    gen = torch.Generator().manual_seed(sum(map(ord, name)))
    for key, value in sorted(model.named_parameters()):
        noise = torch.randn(value.shape, generator=gen)
        if "lora_magnitude" in key:
            value.data.mul_(1 + 0.3 * noise)
        elif "lora_" in key and settings.get("init_lora_weights") == "pissa":
            value.data.add_(0.1 * noise)
        elif "lora_" in key:
            value.data.copy_(0.3 * noise)
        elif "modules_to_save" in key:
            value.data.add_(0.1 * noise)
    folder = os.path.join(out, name)
    if converted:
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=start)
        shutil.rmtree(start)
    else:
        model.save_pretrained(folder)
    keep(name, base, model)


def make_v4(base, name, experts, r=3, alpha=6, use_rslora=False):
    """experts: for each matrix the experts that have an adapter."""
    name = f"{base}-{name}"
    gen = torch.Generator().manual_seed(sum(map(ord, name)))
    mixtral = base == "mixtral"
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    model, tensors = load(base), {}
    scale = alpha / (r**0.5 if use_rslora else r)
    for n, layer in enumerate(model.model.layers):
        prefix = f"base_model.model.model.layers.{n}.{'block_sparse_moe' if mixtral else 'mlp'}.experts."
        width = layer.mlp.experts.down_proj.shape[2]
        gate_up, down = layer.mlp.experts.gate_up_proj.data, layer.mlp.experts.down_proj.data
        for matrix, which in zip(names, experts):
            for e in which:
                weight = {names[0]: gate_up[e, :width], names[1]: gate_up[e, width:], names[2]: down[e]}[matrix]
                a = 0.3 * torch.randn((r, weight.shape[1]), generator=gen)
                b = 0.3 * torch.randn((weight.shape[0], r), generator=gen)
                weight += scale * b @ a
                tensors[f"{prefix}{e}.{matrix}.lora_A.weight"] = a
                tensors[f"{prefix}{e}.{matrix}.lora_B.weight"] = b
    folder = os.path.join(out, name)
    os.makedirs(folder)
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = dict(peft_type="LORA", r=r, lora_alpha=alpha, use_rslora=use_rslora, peft_version="0.14.0")
    config["target_modules"] = [matrix for matrix, which in zip(names, experts) if which]
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file)
    keep(name, base, model)


def make_pair(base, first, second):
    names = [f"{base}-{first}", f"{base}-{second}"]
    model = PeftModel.from_pretrained(load(base), os.path.join(out, names[0]), adapter_name="first")
    model.load_adapter(os.path.join(out, names[1]), adapter_name="second")
    model.base_model.set_adapter(["first", "second"])
    expected["logits." + "+".join(names)] = logits_of(model.eval())


attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
mlp = ["gate_proj", "up_proj", "down_proj"]
router, gate_up, down = "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"

make("llama_bias", "attention", target_modules=attention)
make("llama_bias", "rslora", target_modules=attention + mlp, use_rslora=True)
make("llama_bias", "dora", target_modules=attention + mlp, use_dora=True)
make("llama_linear", "pissa", target_modules=attention + mlp, init_lora_weights="pissa")
make("llama_linear", "pissa_rslora", target_modules=attention, init_lora_weights="pissa", use_rslora=True)
make("llama_linear", "pissa_converted", target_modules=attention, init_lora_weights="pissa", converted=True)
make("llama_linear", "dora_rslora", target_modules=attention, use_dora=True, use_rslora=True)
make("llama_linear", "lm_head", target_modules=["q_proj", "lm_head"])
make("llama_linear", "saved_lm_head", target_modules=["q_proj"], modules_to_save=["lm_head"])
make("llama_linear", "regex", target_modules=r".*\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj)")
make("llama_linear", "one_layer", target_modules=attention, layers_to_transform=[1])
make(
    "llama_linear",
    "patterns",
    target_modules=attention + mlp,
    rank_pattern={"q_proj": 5, r"layers\.1\.mlp\.(up|down)_proj": 2, "self_attn.v_proj": 1},
    alpha_pattern={"k_proj": 3.5, "model.layers.0.self_attn.q_proj": 2},
)
for base in ("mixtral", "olmoe", "qwen3_moe"):
    make(base, "attention", target_modules=attention)
    make(base, "router", target_modules=[], target_parameters=[router])
    make(base, "gate_up", target_modules=[], target_parameters=[gate_up])
    make(base, "down", target_modules=[], target_parameters=[down])
    make(base, "experts", target_modules=[], target_parameters=[gate_up, down])
    make(base, "everything", r=5, target_modules=attention, target_parameters=[down, router, gate_up])
make("mixtral", "router_module", target_modules=["gate"])
make("mixtral", "all_linear", r=2, target_modules="all-linear")
make("mixtral", "experts_rslora", target_modules=[], target_parameters=[down, gate_up], use_rslora=True)
make(
    "mixtral",
    "patterns",
    target_modules=["q_proj"],
    target_parameters=[gate_up, down, router],
    rank_pattern={"experts.gate_up_proj": 5, r"layers\.1\.mlp\.experts\.down_proj": 2, "gate.weight": 1},
    alpha_pattern={"down_proj": 9, r"layers\.0\.mlp\.gate\.weight": 2},
)
make(
    "qwen2_moe",
    "everything",
    target_modules=attention + mlp + ["shared_expert_gate"],
    target_parameters=[router, gate_up, down],
)
make(
    "deepseek_v2",
    "everything",
    target_modules=["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"] + mlp,
    target_parameters=[router, gate_up, down],
)
make_v4("mixtral", "v4", [range(4), range(4), range(4)])
make_v4("mixtral", "v4_rslora", [range(4), range(4), []], use_rslora=True)
make_v4("mixtral", "v4_some", [[1, 3], [], [0]])
make_v4("olmoe", "v4", [range(4), range(4), range(4)])
make_pair("llama_bias", "attention", "rslora")
save_file(expected, os.path.join(out, "expected.safetensors"), metadata={"format": "pt"})
print("peft", peft.__version__, "torch", torch.__version__)
