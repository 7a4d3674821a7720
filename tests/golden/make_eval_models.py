"""Two small random MoE models with SmolLM2's tokenizer, for check_eval.py: mixtral/ and dagmoe/ (with a DAG).

usage: make_eval_models.py SMOLLM2_DIR OUT_DIR
Nothing is kept here. Export the second as a user does, `dagmoe export OUT_DIR/dagmoe --output FOLDER`, and give FOLDER to
check_eval.py: lm-eval then loads it through the code beside it.
"""

import os
import shutil
import sys

import torch
from transformers import MixtralConfig, MixtralForCausalLM

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src/checkpoint"))
from remote_code.configuration_dagmoe import DagMoeConfig  # noqa: E402
from remote_code.modeling_dagmoe import DagMoeForCausalLM  # noqa: E402

torch.set_num_threads(1)
smollm2, out = sys.argv[1:3]
COMMON = dict(
    vocab_size=49152,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_local_experts=6,
    num_experts_per_tok=3,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    dtype="float32",
)


def make(name, model, seed):
    generator = torch.Generator().manual_seed(seed)
    for key, value in sorted(model.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        # A sharp head: of 49,152 words the two best are seldom close.
        value.data.copy_(1 + 0.1 * noise if "norm" in key else noise * (0.5 if "lm_head" in key else 0.15))
    folder = os.path.join(out, name)
    model.eval().save_pretrained(folder)
    for file in os.listdir(smollm2):
        if file.startswith("tokenizer") or file.endswith(".jinja"):
            shutil.copy(os.path.join(smollm2, file), folder)


make("mixtral", MixtralForCausalLM(MixtralConfig(**COMMON)), 1)
dag = dict(num_iterations=2, node_size=16, node_residual="hidden_state", norm="layer_norm", activation="silu")
make("dagmoe", DagMoeForCausalLM(DagMoeConfig(base_model_type="mixtral", dag=dag, **COMMON)), 2)
