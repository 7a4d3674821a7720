"""Two samples of one document, lm-eval's and dagmoe's, side by side. Used by check_eval.py."""

import math

LOG_LIKELIHOOD = 1e-3
NEAR_TIE = 1e-4


def requests_of(sample):
    """[(context, continuation or None)] of a sample of either program."""
    arguments = sample["arguments"]
    if isinstance(arguments, dict):
        arguments = [[a.get("arg_0"), a.get("arg_1")] for _, a in sorted(arguments.items(), key=lambda x: int(x[0].rsplit("_", 1)[1]))]  # fmt: skip
    return [(a[0], a[1] if len(a) > 1 and isinstance(a[1], str) else None) for a in arguments]


def scores_of(sample):
    """[(log-likelihood, is_greedy or None)], or generated texts."""
    answers = []
    for response in sample["resps"]:
        first = response[0]
        if isinstance(first, list):
            answers.append((float(first[0]), str(first[1]) == "True"))
        else:
            try:
                answers.append((float(first), None))
            except ValueError:
                answers.append(first)
    return answers


def texts_of(sample):
    return [r[0] for r in sample["resps"]]


def tolerance_of(log_likelihood):
    """lm-eval's sum is a float32: beyond 16,384 nats (whole pages) one of its steps is more than 1e-3."""
    step = 2.0 ** (math.floor(math.log2(max(1.0, abs(log_likelihood)))) - 23)
    return max(LOG_LIKELIHOOD, step)


class Judge:
    """Differences of one task: hard ones, and those at near-ties."""

    def __init__(self, reference):
        self.reference, self.hard, self.ties = reference, [], []
        self.largest, self.requests, self.flags = 0.0, 0, 0

    def differ(self, what):
        self.hard.append(what)

    def compare_prompts(self, where, theirs, ours):
        pairs, mine = requests_of(theirs), requests_of(ours)
        if len(pairs) != len(mine):
            self.differ(f"{where}: lm-eval has {len(pairs)} requests, dagmoe {len(mine)}")
            return False
        for i, (a, b) in enumerate(zip(pairs, mine, strict=True)):
            for part, x, y in zip(("context", "continuation"), a, b, strict=True):
                if x != y and not (part == "continuation" and None in (x, y)):
                    at = next((k for k, (u, v) in enumerate(zip(x, y, strict=False)) if u != v), min(len(x), len(y)))
                    self.differ(f"{where}, request {i}: {part} differs at character {at}: lm-eval "
                                f"{x[max(0, at - 20) : at + 40]!r}, dagmoe {y[max(0, at - 20) : at + 40]!r}")  # fmt: skip
                    return False
        return True

    def compare_scores(self, where, theirs, ours):
        for i, ((context, continuation), a, b) in enumerate(
            zip(requests_of(theirs), scores_of(theirs), scores_of(ours), strict=True)
        ):
            self.requests += 1
            difference = abs(a[0] - b[0]) if not math.isnan(b[0]) else math.inf
            self.largest = max(self.largest, difference)
            if difference > tolerance_of(a[0]):
                self.differ(f"{where}, request {i}: log-likelihood lm-eval {a[0]:.6f}, dagmoe {b[0]:.6f} of {continuation!r}")  # fmt: skip
            if a[1] is not None and a[1] != b[1]:
                self.flags += 1
                self.judge_flag(f"{where}, request {i}: is_greedy lm-eval {a[1]}, dagmoe {b[1]}", context, continuation)

    def judge_flag(self, what, context, continuation):
        from local_lm_eval import top_gaps

        gaps = top_gaps(self.reference.model(), context, continuation)
        # Where the flag is decided: the target is one of the two best and they are close.
        gap = min((g for target, best, g in gaps if target in best), default=math.inf)
        (self.ties if gap < NEAR_TIE else self.hard).append(f"{what}; lm-eval's two best logits are {gap:.2e} apart")

    def compare_texts(self, where, theirs, ours, limits):
        for i, ((context, _), a, b) in enumerate(
            zip(requests_of(theirs), texts_of(theirs), texts_of(ours), strict=True)
        ):
            self.requests += 1
            if a == b:
                continue
            self.flags += 1
            at = next((k for k, (u, v) in enumerate(zip(a, b, strict=False)) if u != v), min(len(a), len(b)))
            what = f"{where}: texts part at character {at}: lm-eval {a[max(0, at - 20) : at + 30]!r}, dagmoe {b[max(0, at - 20) : at + 30]!r}"  # fmt: skip
            gap = self.gap_at(context, a[:at], limits)
            (self.ties if gap < NEAR_TIE else self.hard).append(f"{what}; lm-eval's two best logits there are {gap:.2e} apart")  # fmt: skip

    def gap_at(self, context, common, limits):
        """The least distance of the two best logits at the step that leaves the common text, decoded alone."""
        from local_lm_eval import generation_gaps

        lm = self.reference.model()
        steps = generation_gaps(lm, context, limits, lm.max_length - limits)
        # A step's text may still equal the common one when the next token continues a character or a word.
        for text, gap in steps:
            if len(text) > len(common) or not common.startswith(text):
                return gap
        return math.inf

    def compare_metrics(self, where, theirs, ours, is_texts):
        differing = []
        for name in theirs["metrics"]:
            a, b = theirs.get(name), ours.get(name)
            if isinstance(a, list) or isinstance(b, list):
                same = a is not None and b is not None and all(abs(float(x) - float(y)) <= tolerance_of(float(x)) for x, y in zip(flat(a), flat(b), strict=True))  # fmt: skip
            else:
                same = b is not None and (a == b or abs(float(a) - float(b)) <= (LOG_LIKELIHOOD if name == "perplexity" else 0.0))  # fmt: skip
            if not same:
                differing.append(f"{name} lm-eval {a}, dagmoe {b}")
        if differing:
            text = f"{where}: {'; '.join(differing)}"
            if is_texts and texts_of(theirs) != texts_of(ours):
                self.ties.append(text + " (texts differ, judged above)")
            elif not is_texts and score_margin(theirs) < NEAR_TIE:
                self.ties.append(f"{text}; lm-eval's two best scores are {score_margin(theirs):.2e} apart")
            else:
                self.differ(text)
        return differing


def flat(value):
    return value if isinstance(value, list) else [value]


def score_margin(sample):
    """Distance of the two best choices, by log-likelihood or by log-likelihood per character, whichever is less."""
    values = [s[0] for s in scores_of(sample)]
    if len(values) < 2:
        return math.inf
    pairs = requests_of(sample)
    lengths = [max(1, len((text or "").strip())) for _, text in pairs]
    margins = []
    for scores in (values, [v / n for v, n in zip(values, lengths, strict=True)]):
        best = sorted(scores, reverse=True)
        margins.append(best[0] - best[1])
    return min(margins)


def generation_limit(theirs):
    arguments = theirs["arguments"][0]
    keys = ("max_gen_toks", "max_new_tokens", "max_tokens")
    return next((arguments[1][k] for k in keys if isinstance(arguments[1], dict) and k in arguments[1]), 256)


def same_version(theirs, ours):
    """lm-eval calls a task file without a version "Yaml"."""
    if theirs == "Yaml" or not isinstance(ours, float | int):
        return theirs in ("Yaml", "N/A") and ours in (None, "Yaml", "N/A")
    return float(theirs) == float(ours)


def compare_means(judge, task, theirs, ours, version):
    """Every metric and standard error of the results; perplexities follow from log-likelihoods and get their tolerance."""
    mine = ours["results"].get(task, {})
    shown = []
    for key, value in theirs.items():
        if "," not in key:
            continue
        found = mine.get(key)
        inexact = any(word in key for word in ("perplexity", "bits_per_byte"))
        if isinstance(value, str) or isinstance(found, str) or found is None:
            same = str(value) == str(found)
        else:
            same = math.isclose(value, found, rel_tol=2e-4 if inexact else 1e-12, abs_tol=1e-12)
        if not same:
            list_ = judge.ties if judge.ties and not judge.hard and found is not None else judge.hard
            list_.append(f"results: {key}: lm-eval {value}, dagmoe {found}")
        if "stderr" not in key and isinstance(found, float | int):
            shown.append(f"{key.split(',')[0] if key.endswith(',none') else key} {found:.4f}")
    if not same_version(version, ours["versions"].get(task)):
        judge.differ(f"version: lm-eval {version}, dagmoe {ours['versions'].get(task)}")
    return shown
