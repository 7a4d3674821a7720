"""lm-eval 0.4.13's HF backend on local records, with lm-eval's own task definitions. Nothing is fetched.

Used by check_eval.py, make_lm_eval_tasks.py and bench/eval.py.
"""

import json
import os
import tempfile
import types

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import datasets
import lm_eval
import lm_eval.api.task
import torch
from lm_eval.api.group import AggMetricConfig, Group
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from eval_records import lm_eval_name

datasets.disable_progress_bars()
_splits = {}  # task: rows of each split, for download()


def _download(self, dataset_kwargs=None, **kwargs):
    # Data sets on disk, as the hub's are: only those have a cache that keeps one shuffle of GPQA's choices.
    folder = tempfile.mkdtemp()
    rows = {split: datasets.Dataset.from_list(rows) for split, rows in _splits[self.config.task].items()}
    datasets.DatasetDict(rows).save_to_disk(folder)
    self.dataset = datasets.load_from_disk(folder)


lm_eval.api.task.ConfigurableTask.download = _download


class ReferenceLM(HFLM):
    """The HF backend with the batch bounded by tokens. Its logits cache serves only where it scores the right positions.

    Requests with equal ids share a pass. If they also split at different points, 0.4.13 scores some at wrong positions,
    so then the cache is off.
    """

    batch_tokens, batch_rows, batch_texts = 4096, 32, 16

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        lengths = {}
        for _, context, continuation in requests:
            lengths.setdefault(tuple(context + continuation[:-1]), set()).add(len(continuation))
        self.logits_cache = all(len(group) == 1 for group in lengths.values())
        longest = min(max(map(len, lengths)), self.max_length)
        self.batch_size_per_gpu = max(1, min(self.batch_rows, self.batch_tokens // longest))
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        self.batch_size_per_gpu = 1  # windows are as long as the model's maximum
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests, disable_tqdm=False):
        self.batch_size_per_gpu = self.batch_texts
        return super().generate_until(requests, disable_tqdm=True)


def be_exact():
    """float32 products in float32, attention written out: no TF32 and no fused kernel, which may use it."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_model(folder, dtype, kind=ReferenceLM, batch=8, device="cpu", **options):
    lm = kind(pretrained=folder, dtype=dtype, batch_size=batch, device=device, logits_cache=False, **options)
    if device != "cpu":
        be_exact()
        lm.batch_tokens, lm.batch_rows, lm.batch_texts = 8192, 64, 64
    return lm


def task_manager(folders):
    root = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
    return TaskManager(include_path=[os.path.join(root, f) for f in sorted(set(folders))], include_defaults=False)


def run_task(lm, name, records, limit=None, shots=None, chat=None, manager=None, bootstrap_iters=100000):
    """simple_evaluate's results and samples of one task. `chat`: None, or {"system", "multiturn"}."""
    task = lm_eval_name(name)
    _splits[task] = records.splits
    manager = manager or task_manager([records.folder])
    spec = task
    if records.overrides:
        spec = manager._factory.build(manager._entry(task), overrides=records.overrides, registry=manager._index)
    options = {}
    if chat is not None:
        options = {"apply_chat_template": True, "fewshot_as_multiturn": chat["multiturn"]}
        options["system_instruction"] = chat["system"]
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=[spec],
        limit=limit,
        num_fewshot=shots,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=bootstrap_iters,
        **options,
    )
    samples = sorted(results["samples"][task], key=lambda s: s["doc_id"])
    return results["results"][task], results["versions"][task], json.loads(json.dumps(samples, default=str))


class NamedGroup(Group):
    """lm-eval's group over tasks that are known by name only."""

    def get_all_tasks(self, recursive=True):
        return [types.SimpleNamespace(task_name=name) for name in self.names]


def group_results(name, metric, results):
    """lm-eval's score of a group of tasks, all weighted by their documents, from each task's results."""
    group = NamedGroup(name, aggregate_metric_list=[AggMetricConfig(metric)])
    group.names = list(results)
    return group.aggregate(results)


def top_gaps(lm, context, continuation):
    """Of each position of the continuation: the target's id, the two best ids and their distance in logits, unbatched."""
    if context:
        ids, targets = lm._encode_pair(context, continuation)
    else:
        targets = lm.tok_encode(continuation, add_special_tokens=False)
        ids = [lm.prefix_token_id]
        if targets[0] == ids[0]:
            targets = targets[1:]
    whole = (ids + targets)[-(lm.max_length + 1) :][:-1]
    with torch.no_grad():
        logits = lm.model(torch.tensor([whole], device=lm.device)).logits[0, -len(targets) :].float()
    best = logits.topk(2, dim=-1)
    return [
        (target, pair, float(value[0] - value[1]))
        for target, pair, value in zip(targets, best.indices.tolist(), best.values, strict=True)
    ]


def generation_gaps(lm, context, max_tokens, max_context):
    """Greedy decoding of one request alone: (text so far, distance of the two best logits) at each step."""
    ids = lm.tok_encode(context)[-max_context:]
    start, cache, feed = len(ids), None, torch.tensor([ids], device=lm.device)
    steps = []
    with torch.no_grad():
        for _ in range(max_tokens):
            out = lm.model(feed, past_key_values=cache, use_cache=True)
            best = out.logits[0, -1].float().topk(2)
            cache = out.past_key_values
            ids = ids + [int(best.indices[0])]
            steps.append((lm.tok_decode(ids[start:]), float(best.values[0] - best.values[1])))
            if ids[-1] == lm.eot_token_id:
                break
            feed = torch.tensor([ids[-1:]], device=lm.device)
    return steps
