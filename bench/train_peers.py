"""What bench/train.py runs beside dagmoe, each in a process of its own: `python train_peers.py NAME SPEC`, SPEC and what is printed last being JSON objects."""
import json
import sys
import time

from measure import peak_of_this_process

RANK, ALPHA = 8, 16


def report(steps, peak_of, launched, first_end):
    """`steps`: seconds, real tokens, supervised tokens and loss of each. The first step's end counts from the launch of the process, imports included."""
    seconds, tokens, supervised, losses = zip(*steps)
    print(json.dumps({"seconds": seconds, "tokens": tokens, "supervised": supervised, "losses": losses, "peak_bytes": peak_of, "first_step_end_s": first_end - launched}))


def run_trl(spec):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(spec["threads"])
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in map(json.loads, open(spec["records"]))]
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.bfloat16 if spec["mode"] == "bf16" else torch.float32)
    adapter = None
    if spec["workload"] == "expert_lora":
        from peft import LoraConfig
        adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
                             target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], task_type="CAUSAL_LM")
    steps, ends = [], []

    class Clock(TrainerCallback):
        """From the first micro batch's forward pass to behind the optimizer; the peer's making of batches is left out."""

        def on_step_begin(self, *args, **kwargs):
            self.start = time.time()
            steps.append([0.0, 0, 0])

        def on_step_end(self, *args, **kwargs):
            ends.append(time.time())
            steps[-1][0] = ends[-1] - self.start

    micro = min(spec["peer_micro"], spec["per_step"])
    config = SFTConfig(output_dir=spec["work"], max_steps=spec["steps"], per_device_train_batch_size=micro, gradient_accumulation_steps=spec["per_step"] // micro,
                       learning_rate=spec["lr"], lr_scheduler_type="constant", max_length=spec["length"], bf16=spec["mode"] == "amp", logging_steps=1, save_strategy="no", report_to=[],
                       use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, max_grad_norm=1.0, weight_decay=0.0, train_sampling_strategy="sequential")
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter, callbacks=[Clock()])
    inner = trainer.training_step

    def counted(module, inputs, *args, **kwargs):
        steps[-1][1] += int(inputs["attention_mask"].sum())
        steps[-1][2] += int((inputs["labels"] != -100).sum())
        return inner(module, inputs, *args, **kwargs)

    trainer.training_step = counted
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report([(*step, loss) for step, loss in zip(steps, losses)], peak_of_this_process(), spec["launched"], ends[0])


def with_plain_dag(model, iterations=2, G=64):
    """transformers' Mixtral with the DAG written in PyTorch, which alone trains: edge matrices in factorised form, no (K, K, 2G) tensor of concatenated pairs."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Step(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.down = nn.LayerNorm(width, bias=False), nn.Linear(width, G, bias=False)
            self.mix, self.up = nn.Linear(G, 4 * G, bias=False), nn.Linear(G, width, bias=False)
            for linear in (self.down, self.mix):  # as dagmoe begins, so that losses compare
                nn.init.normal_(linear.weight, std=model.config.initializer_range)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            a, b, c, e = self.mix(self.down(self.norm(x))).chunk(4, -1)
            messages = F.silu(a.unsqueeze(2) + b.unsqueeze(1)) * (c.unsqueeze(2) + e.unsqueeze(1))
            return x + self.up(messages.sum(2))

    class Dag(nn.Module):
        def __init__(self, old, width, top_k):
            super().__init__()
            self.gate, self.experts, self.top_k = old.gate, old.experts, top_k
            self.steps = nn.ModuleList(Step(width) for _ in range(iterations))

        def forward(self, hidden):
            x = hidden.reshape(-1, hidden.shape[-1])
            weights, chosen = torch.topk(F.softmax(F.linear(x, self.gate.weight).float(), -1), self.top_k)
            weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
            order = chosen.reshape(-1).argsort()
            counts = torch.bincount(chosen.reshape(-1), minlength=self.experts.num_experts).tolist()
            outputs, first = [], 0
            for expert, count in enumerate(counts):
                if count:
                    token = order[first : first + count] // self.top_k
                    gate, up = F.linear(x[token], self.experts.gate_up_proj[expert]).chunk(2, -1)
                    outputs.append(F.linear(F.silu(gate) * up, self.experts.down_proj[expert]))
                first += count
            outputs = torch.cat(outputs)
            nodes = torch.zeros(x.shape[0] * self.top_k, x.shape[1], dtype=outputs.dtype).index_copy(0, order, outputs)
            # The layer adds its residual outside, so the nodes carry the hidden state's share and it is taken off at the end.
            nodes = nodes.view(-1, self.top_k, x.shape[1]) * weights.unsqueeze(-1) + x.unsqueeze(1) / self.top_k
            for step in self.steps:
                nodes = step(nodes)
            return (nodes.sum(1) - x).to(hidden.dtype).view(hidden.shape)

    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in model.model.layers:
        layer.mlp = Dag(layer.mlp, model.config.hidden_size, model.config.num_experts_per_tok)
    return model


def run_plain_dag(spec):
    """amp: float weights under bf16 autocast. bf16: frozen weights in bf16, the DAG's in float, under autocast. fp32: no autocast."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(spec["threads"])
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = with_plain_dag(AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.bfloat16 if spec["mode"] == "bf16" else torch.float32))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec["lr"], weight_decay=0.0, fused=True)
    rows = [json.loads(line) for line in open(spec["records"])]
    steps, first_end = [], None
    micro = min(spec["peer_micro"], spec["per_step"])
    for step in range(spec["steps"]):
        samples = []
        for row in rows[step * spec["per_step"] : (step + 1) * spec["per_step"]]:
            prompt = tokenizer(row["prompt"]).input_ids
            whole = tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id]
            shared = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), len(prompt))  # as TRL: learnt from where the two diverge
            samples.append((whole[: spec["length"]], ([-100] * shared + whole[shared:])[: spec["length"]]))
        supervised = sum(label != -100 for _, labels in samples for label in labels)
        total, start = 0.0, time.time()
        for begin in range(0, len(samples), micro):
            part = samples[begin : begin + micro]
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([i + [tokenizer.eos_token_id] * (width - len(i)) for i, _ in part])
            labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in part])
            mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in part])
            with torch.autocast("cpu", torch.bfloat16, enabled=spec["mode"] != "fp32"):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=supervised, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        first_end = first_end or time.time()
        steps.append((time.time() - start, sum(len(ids) for ids, _ in samples), supervised, total))
    report(steps, peak_of_this_process(), spec["launched"], first_end)


def run_gemm(spec):
    """GFLOP/s of bf16 products at the model's own shapes: {"forward", "all"}, where `all` has the gradients of inputs and weights too.

    Every matrix counts as often as the model has it, with the rows that a micro batch gives it; the head with the rows of a chunk."""
    import collections
    import torch
    import flops

    torch.set_num_threads(spec["threads"])
    config, experts = spec["config"], spec["config"].get("num_local_experts") or 1
    shapes = collections.Counter()
    for stage in flops.stages(config):
        for name, inputs, outputs, rows in stage:
            of_experts = ".experts." in name
            if rows and outputs > experts:  # not the router, which computes in float
                shapes[(spec["tokens"] * rows // (experts if of_experts else 1), inputs, outputs)] += experts if of_experts else 1
    shapes[(512, config["hidden_size"], config["vocab_size"])] += max(1, spec["supervised"] // 512)
    work = {"forward": 0.0, "all": 0.0}
    spent = dict(work)
    for (rows, inputs, outputs), count in shapes.items():
        x, w, y = (torch.randn(shape).bfloat16() for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        for i, product in enumerate((lambda: x @ w.t(), lambda: y @ w, lambda: y.t() @ x)):
            best = 1e9
            for _ in range(12):
                start = time.perf_counter()
                product()
                best = min(best, time.perf_counter() - start)
            for kind in ("forward", "all") if i == 0 else ("all",):
                work[kind] += 2.0 * count * rows * inputs * outputs
                spent[kind] += count * best
    print(json.dumps({kind: work[kind] / spent[kind] / 1e9 for kind in work}))


def run_mixtral(spec):
    """In a process of its own, so that bench/train.py itself holds no memory while the others run."""
    from workload import as_mixtral

    print(json.dumps(as_mixtral(spec["folder"], spec["work"])))


if __name__ == "__main__":
    {"mixtral": run_mixtral, "trl": run_trl, "plain_dag": run_plain_dag, "gemm": run_gemm}[sys.argv[1]](json.loads(sys.argv[2]))
