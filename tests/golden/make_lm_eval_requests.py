"""lm-eval's log-likelihoods of single requests at the edges of its rules, in fp32.

usage: make_lm_eval_requests.py MODEL_DIR OUT_DIR      writes lm_eval_requests.json
"requests": context, continuation, ll, is_greedy with the model's own maximum length; "short_requests": the same with a
maximum length of 16, so that contexts lose their first tokens; "rolling" and "short_rolling": text and ll.
"""

import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

torch.set_num_threads(1)
pairs = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " London"),
    ("The capital of France is", "Paris"),
    ("The capital of France is ", "Paris"),
    ("The capital of France is  ", "Paris"),
    ("The capital of France is\n", "Paris"),
    ("The capital of France is\n\n", " Paris, of course."),
    ("The capital of France is\u00a0", "Paris"),
    ("The capital of France is\u3000\t", "Paris"),
    ("The capital of France is\x1c", "Paris"),
    ("The capital of France is\u200b", "Paris"),
    ("", "The capital of France is Paris."),
    ("", " Paris"),
    ("", "<|im_start|>user"),
    ("", "5"),
    ("1, 2, 3, 4,", " 5"),
    ("1, 2, 3, 4,", " 5, 6, 7"),
    ("import numpy as", " np\n"),
    ("Once upon a", " time"),
    ("a b c d e f g h i", " j k l m n o p"),
    ("unbeliev", "able things"),
    ("The answer is yes", "terday, I think"),
    ("if (x)", ") {"),
    ("2 + 2 =", " 4"),
    ("x  ", "5"),
    ("x", "  5"),
    ("Question: Is it?\nAnswer:", " yes"),
    ("Question: Is it?\nAnswer:", " no"),
    ("Question: Is it?\nAnswer:", "  no"),
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello! How can I help you today?"),
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello!<|im_end|>"),
    ("a\x04", "b"),
    ("caf", "\u00e9 \u4eac\U0001f600"),
]
texts = [
    "",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen.",
    "<|im_start|>user\nHi<|im_end|>\n",
    " \n leading and trailing \n ",
    "Water boils at one hundred degrees. Ice melts at zero degrees. Between them lies the liquid that every living "
    "thing we know of needs, and that covers most of the planet on which we live.",
]


def compute(lm, pairs, texts):
    def instances(kind, args):
        return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in args]

    scores = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    rolling = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(t,) for t in texts]), disable_tqdm=True)
    return (
        [
            {"context": c, "continuation": k, "ll": round(ll, 6), "is_greedy": g}
            for (c, k), (ll, g) in zip(pairs, scores, strict=True)
        ],
        [{"text": t, "ll": round(ll, 6)} for t, ll in zip(texts, rolling, strict=True)],
    )


def make(**options):
    return HFLM(pretrained=sys.argv[1], dtype="float32", batch_size=1, device="cpu", logits_cache=False, **options)


res = dict(zip(("requests", "rolling"), compute(make(), pairs, texts)))
short = [(c, k) for c, k in pairs if len(c) > 40] + [
    ("Ice melts at zero degrees. " * 6 + "Water boils at", " one hundred degrees."),
    ("Ice melts at zero degrees. " * 6 + "Ice melts at", " zero degrees."),
    ("red, green, blue, " * 8 + "red, green,", " blue"),
    ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen", " fifteen sixteen"),
    ("one two three", " four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"),
]
res.update(zip(("short_requests", "short_rolling"), compute(make(max_length=16), short, texts)))
assert any(r["is_greedy"] for r in res["requests"]) and any(r["is_greedy"] for r in res["short_requests"])
versions = {
    "lm_eval": lm_eval.__version__,
    "transformers": transformers.__version__,
    "torch": torch.__version__.split("+")[0],
}
with open(os.path.join(sys.argv[2], "lm_eval_requests.json"), "w") as f:
    f.write('{"versions": ' + json.dumps(versions))
    for key, rows in res.items():
        f.write(f',\n"{key}": [\n' + ",\n".join(json.dumps(r) for r in rows) + "\n]")
    f.write("}\n")
