"""Small tokenizers of every kind and the ids that the reference libraries give for hard lines.

usage: make_small_tokenizers.py CORPUS.txt OUT_DIR      CORPUS: any English text; ours is tiny Shakespeare
Writes small_tokenizers/{bytes.json, chars.json, unigram.model} and small_tokenizers.json: the texts, and for each
variant the parts of tokenizer.json that it changes (a null removes) and the ids of every text. "framed" are ids with
special tokens on. Variants stand for the families: DeepSeek-V2 and V3, OLMo, Qwen2, Llama-3, SmolLM2 on bytes.json;
Llama-2 and Mistral fast files (normalizer form, legacy true and false), and rarer options, on chars.json.
"""

import io
import json
import os
import random
import sys

import sentencepiece
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_REGEX = dict(BYTE_LEVEL, use_regex=False)
GPT_CONTRACTIONS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_LETTERS = "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
DEEPSEEK_V2 = [
    "[\r\n]",
    "\\s?[" + DEEPSEEK_LETTERS + "]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "\\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
]
DEEPSEEK_V3 = [
    "\\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(*items):
    def item(name):
        return {"Sequence": {"id": "A", "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [item(name) for name in items],
        "pair": [item("A"), {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [IDS[name]], "tokens": [name]} for name in items if name != "A"},
    }


IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {
    "gpt-2": {},
    "smollm2": {"pre_tokenizer": sequence(DIGITS, BYTE_LEVEL)},
    "olmo": {"normalizer": {"type": "NFC"}, "post_processor": dict(BYTE_LEVEL)},
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": sequence(split(GPT_CONTRACTIONS % r"\p{N}"), NO_REGEX)},
    "llama-3": {
        "pre_tokenizer": sequence(split(GPT_CONTRACTIONS % r"\p{N}{1,3}"), NO_REGEX),
        "model.ignore_merges": True,
        "post_processor": {"type": "Sequence", "processors": [dict(BYTE_LEVEL), template("<s>", "A")]},
    },
    "deepseek-v2": {
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": sequence(*map(split, DEEPSEEK_V2), DIGITS, NO_REGEX),
        "post_processor": template("<s>", "A"),
    },
    "deepseek-v3": {"pre_tokenizer": sequence(*map(split, DEEPSEEK_V3), NO_REGEX), "post_processor": template("A")},
}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}
CHARS = {
    "normalizer": {"normalizer": PREPEND, "post_processor": template("<s>", "A")},
    "always": {"pre_tokenizer": METASPACE, "post_processor": template("<s>", "A", "</s>")},
    "first": {"pre_tokenizer": dict(METASPACE, prepend_scheme="first"), "post_processor": template("A", "</s>")},
    "never": {"pre_tokenizer": dict(METASPACE, prepend_scheme="never")},
    "split": {"pre_tokenizer": dict(METASPACE, split=True)},
    "ignore_merges": {"pre_tokenizer": dict(METASPACE, split=True), "model.ignore_merges": True},
    "no byte fallback": {"pre_tokenizer": METASPACE, "model.byte_fallback": False},
    "unknown tokens not fused": {"pre_tokenizer": METASPACE, "model.byte_fallback": False, "model.fuse_unk": False},
}

# fmt: off
TEXTS = [
    "", " ", "  ", "   ", "a", " a", "  a", "a ", "a  ", "a\n", "\n", "\n\n", "\t", "\r\n", "a  b", "a   b\tc", "Hello", " Hello", "Hello, world!",
    "</s>Hello", "a</s>b", " </s> Hello", "<s>", "<s></s>", "a <s> b</s>\n", "<s", "What is 12 + 7?", "3.14159 and 1,000,000", "x = 0x1F;", "12345678901234567890",
    "don't I'LL we've THEY'RE", "'s 't", "ROMEO: But, soft! what light", "the the the  the", "\u2581", "a\u2581b", "\u2581\u2581a", "caf\u00e9 cafe\u0301", "\u1112\u1161\u11ab",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf", "\ud55c\uad6d\uc5b4 text", "\U0001f600", "a\U0001f468\u200d\U0001f469b", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "\u0643\u064a\u0641",
    "\u0000\u0001\u001f", "a\u00a0b\u3000c\u2028d", "\ufeffx", "\u00bd \u2167 \u0663\u0664", "def f(x):\n    return x  # 2x\n\n", "    indented\n\t\ttabs\n", "if (a<=b) { c[i] += 1; }",
    "<0x0A>", "--------", "........................", "a" * 70, "the king " * 9, "\u017fo 'S\u017f", "(well)!?\n\n  next", "$5 @home #tag", "[unk] <unk> x",
]
# fmt: on


def trained(texts, kind):
    tok = Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True) if kind == "chars" else models.BPE()
    )
    if kind == "bytes":
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["<unk>", "<s>", "</s>"]
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", split=True)
        tok.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
        special = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    document = json.loads(tok.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if t["id"] < 3]
    document["pre_tokenizer"] = BYTE_LEVEL if kind == "bytes" else None
    return document


def changed(document, changes):
    document = json.loads(json.dumps(document))
    for key, value in changes.items():
        *path, last = key.split(".")
        part = document
        for name in path:
            part = part[name]
        part[last] = value
    return Tokenizer.from_str(json.dumps(document))


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        lines = [line for line in f if line.strip()]
    random.Random(1).shuffle(lines)
    folder = os.path.join(sys.argv[2], "small_tokenizers")
    os.makedirs(folder, exist_ok=True)
    result = {
        "versions": {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__},
        "texts": TEXTS,
    }
    for kind, variants in (("bytes", BYTES), ("chars", CHARS)):
        document = trained(lines[:4000], kind)
        with open(os.path.join(folder, kind + ".json"), "w", encoding="utf-8") as f:
            json.dump(document, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
        result[kind] = {}
        for name, changes in variants.items():
            tok = changed(document, changes)
            ids = [tok.encode(text, add_special_tokens=False).ids for text in TEXTS]
            result[kind][name] = {"changes": changes, "ids": ids, "framed": tok.encode("the king").ids}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.strip() for line in lines[:4000]),
        model_writer=model,
        model_type="unigram",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=["[tool]"],
        character_coverage=1.0,
        remove_extra_whitespaces=False,
        num_threads=1,
    )
    with open(os.path.join(folder, "unigram.model"), "wb") as f:
        f.write(model.getvalue())
    unigram = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = TEXTS + ["call [tool] now[tool]", "[tool", "and thou, and thee; wherefore art thou Romeo?"]
    result["unigram"] = {"texts": texts, "ids": [unigram.encode(text) for text in texts]}
    path = os.path.join(sys.argv[2], "small_tokenizers.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(result, f, separators=(",", ":"))
        f.write("\n")
    for name in [path] + [os.path.join(folder, n) for n in sorted(os.listdir(folder))]:
        print(name, os.path.getsize(name))


if __name__ == "__main__":
    main()
