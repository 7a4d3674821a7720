"""Values of lm-evaluation-harness's own metrics and filters, for metrics_test.cpp, answer_filter_test.cpp and group_scores_test.cpp.

usage: make_metric_values.py      prints them
"""
import os

os.environ["DISABLE_MULTIPROC"] = "1"

from lm_eval.api import metrics
from lm_eval.filters.extraction import RegexFilter

SCORES = [-1.5, -0.25, -3.75, -2.0, -0.125, -7.5]
print("perplexity", repr(metrics.perplexity(SCORES)), repr(metrics.bootstrap_stderr(metrics.perplexity, SCORES, 100000)))
PAGES = [(-120.5, 30), (-64.25, 17), (-9.0, 4)]
print("word_perplexity", repr(metrics.weighted_perplexity(PAGES)), "bits_per_byte", repr(metrics.bits_per_byte(PAGES)))
ERRORS, SIZES = [0.05, 0.0125, 0.1], [100, 400, 25]
print("pooled", repr(float(metrics.pooled_sample_stderr(ERRORS, SIZES))), "unweighted", repr(float(metrics.unweighted_mean_stderr(ERRORS))))
print("groups", repr(metrics.aggregate_subtask_metrics([0.5, 0.25, 0.75], SIZES)), repr(metrics.aggregate_subtask_metrics([0.5, 0.25, 0.75], SIZES, False)))

STRICT = dict(regex_pattern=r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = dict(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
BBH = dict(regex_pattern=r"(?<=the answer is )(.*)(?=.)")
TEXTS = ["It is 5 + 6 = 11.\n#### 11", "#### -1,250.5 and #### 7", "no number", "so $1,000. Then 3", "so the answer is (B). Or the answer is no.",
         "the answer is", "the answer is Q\nthe answer is valid. ", "costs $ 5.", "é 12 ½", "٣ the answer is  x y . "]
for name, settings in (("strict", STRICT), ("flexible", FLEXIBLE), ("bbh", BBH)):
    for text, (found,) in zip(TEXTS, RegexFilter(**settings).apply([[t] for t in TEXTS], [])):
        print(name, repr(text), repr(found))
GSM = dict(ignore_case=True, regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"])
for answer, target in (("1,250.", "a\nb #### 1250"), ("$12", "x #### 12"), ("12.0", "#### 12"), ("ABC", "abc"), ("[invalid]", "#### 3"), ("12.\n", "12")):
    print("exact_match", repr(answer), repr(target), metrics.exact_match_fn(predictions=[answer], references=[target], **GSM)["exact_match"])
PLAIN = dict(ignore_punctuation=True, ignore_numbers=True)
for answer, target in (("a, b! 3", "a b "), ("a_b", "ab"), ("A", "a")):
    print("exact_match plain", repr(answer), repr(target), metrics.exact_match_fn(predictions=[answer], references=[target], **PLAIN)["exact_match"])
