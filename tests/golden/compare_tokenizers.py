"""Compares the token ids of encode_lines with those of the reference libraries, line by line.

usage: compare_tokenizers.py ENCODE_LINES DATA_DIR WORK_DIR [--model MODEL_DIR] [--lines N] [--only NAME]
DATA_DIR is the shared data folder (tokenizers, corpora, checkpoints); MODEL_DIR a SmolLM2 folder. WORK_DIR gets the
fast files that transformers converts from the .model files there, and files with the pre-tokenizers of further
families. Prints one row per tokenizer: lines, lines that differ; exit status 1 when any does.

Lines (fixed seed): English, code, numbers, emoji, CJK, control characters, random Unicode, mixed white space, control
tokens of the tokenizer, and bytes that are no UTF-8, which the reference gets as bytes.decode("utf-8", "replace").
"""

import argparse
import glob
import json
import os
import random
import shutil
import subprocess
import sys

import make_small_tokenizers
import sentencepiece
import tokenizers

SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u2028",
    "\u0085",
    "\u200b",
    "\ufeff",
]
EMOJI = [
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd",
    "\U0001f1eb\U0001f1f7",
    "\u2764\ufe0f",
    "1\ufe0f\u20e3",
    "\U0001f9ff",
    "\u2603",
]
SYMBOLS = list("!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+~`") + [
    "\u2026",
    "\u2019",
    "\u201c",
    "\u2014",
    "\u20ac",
    "\u2192",
    "\u2581",
    "\u00bd",
    "\u0301",
    "\u00ad",
]
WORDS = [
    "don't",
    "I'LL",
    "we've",
    "caf\u00e9",
    "cafe\u0301",
    "na\u00efve",
    "stra\u00dfe",
    "\u0130stanbul",
    "\u03b8\u03ad\u03bb\u03c9",
    "\u043f\u0440\u0438\u0432\u0435\u0442",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\ud55c\uad6d\uc5b4",
    "\u1112\u1161\u11ab",
    "\ufb01ne",
    "\uff21\uff22",
    "\u2167",
    "\u017fo",
]


def prose(data):
    lines = []
    for path in sorted(glob.glob(os.path.join(data, "corpora/*.txt"))):
        with open(path, encoding="utf-8", errors="replace") as f:
            lines += [line.rstrip("\n") for line in f if line.strip()]
    return lines


def code_line(rng, names):
    parts = [
        "def ",
        "return ",
        "if (",
        ") {",
        "}",
        "for (int i = 0; i < ",
        "; ++i)",
        " == ",
        "->",
        "::",
        "0x%x" % rng.getrandbits(32),
        "    ",
        "\t",
        "\t\t",
        "// ",
        "# ",
        '"%s"',
        "[%d]",
        "std::vector<",
        ">",
        "lambda x: ",
        "import ",
        "\n",
        ";\n",
        "\n    ",
    ]
    return "".join(rng.choice(parts) if rng.random() < 0.6 else rng.choice(names) for _ in range(rng.randrange(2, 30)))


def number_line(rng):
    forms = [
        lambda: str(rng.randrange(10 ** rng.randrange(1, 20))),
        lambda: "%.5g" % rng.uniform(-1e6, 1e6),
        lambda: "%d/%d" % (rng.randrange(99), rng.randrange(99)),
        lambda: "{:,}".format(rng.randrange(10**9)),
        lambda: "%.2e" % rng.uniform(0, 1e9),
        lambda: "2024-%02d-%02d" % (rng.randrange(1, 13), rng.randrange(1, 29)),
        lambda: "".join(chr(0x660 + rng.randrange(10)) for _ in range(3)),
        lambda: "".join(chr(0xFF10 + rng.randrange(10)) for _ in range(4)),
        lambda: rng.choice("\u00bd\u2167\u2460\u0bf0\u00b2"),
    ]
    return rng.choice(["", " ", "x = ", "$", "  "]).join(rng.choice(forms)() for _ in range(rng.randrange(1, 9)))


def cjk_line(rng):
    ranges = [
        (0x4E00, 0x9FFF),
        (0x3040, 0x30FF),
        (0xAC00, 0xD7A3),
        (0x3400, 0x4DBF),
        (0x20000, 0x2A6DF),
        (0xFF00, 0xFF60),
        (0x3000, 0x303F),
    ]
    text = ""
    for _ in range(rng.randrange(1, 30)):
        low, high = rng.choice(ranges[:3] if rng.random() < 0.8 else ranges)
        text += chr(rng.randrange(low, high + 1))
    return text


def any_char(rng):
    while True:
        c = rng.randrange(rng.choice([0x80, 0x800, 0x3000, 0x10000, 0x110000]))
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def mixed_line(rng, names):
    pools = [SPACES, SPACES, EMOJI, SYMBOLS, WORDS, names, names]
    return "".join(
        rng.choice(rng.choice(pools)) if rng.random() < 0.93 else any_char(rng) for _ in range(rng.randrange(1, 25))
    )


def invalid_bytes(rng, names):
    text = bytearray()
    for _ in range(rng.randrange(1, 10)):
        kind = rng.randrange(4)
        if kind == 0:
            text += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
        elif kind == 1:
            text += any_char(rng).encode()[:-1]
        elif kind == 2:
            text += rng.choice(
                [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\x80", b"\xe4\xb8", b"\xf0\x9f\x98"]
            )
        text += rng.choice(names).encode()
    return bytes(text)


def make_lines(data, count):
    rng = random.Random(20240607)
    english = prose(data)
    names = sorted({word for line in rng.sample(english, 400) for word in line.split()})
    share = count // 20
    lines = [b"", b" ", b"  ", b"\n"]
    lines += [line.encode() for line in rng.sample(english, 6 * share)]
    lines += [
        (a + "\n" + b + "\n\n" + a).encode() for a, b in zip(rng.sample(english, share), rng.sample(english, share))
    ]
    lines += [code_line(rng, names).encode() for _ in range(3 * share)]
    lines += [number_line(rng).encode() for _ in range(2 * share)]
    lines += [
        rng.choice(["", " "])
        .join(rng.choice(EMOJI if rng.random() < 0.7 else names) for _ in range(rng.randrange(1, 12)))
        .encode()
        for _ in range(share)
    ]
    lines += [cjk_line(rng).encode() for _ in range(share)]
    lines += [
        "".join(
            (
                chr(rng.randrange(32) if rng.random() < 0.5 else 0x7F + rng.randrange(33))
                if rng.random() < 0.5
                else rng.choice(names)
            )
            for _ in range(rng.randrange(1, 20))
        ).encode()
        for _ in range(share)
    ]
    lines += ["".join(any_char(rng) for _ in range(rng.randrange(1, 30))).encode() for _ in range(share)]
    lines += [mixed_line(rng, names).encode() for _ in range(3 * share)]
    lines += [(rng.choice("ab=-. \n\u4e2d") * rng.randrange(50, 400)).encode() for _ in range(40)]
    lines += [invalid_bytes(rng, names) for _ in range(share)]
    return lines, names


def with_specials(lines, specials, names):
    rng = random.Random(7)
    if not specials:
        return lines
    some = specials if len(specials) <= 40 else rng.sample(specials, 40)
    extra = [
        "".join(
            rng.choice([rng.choice(some), rng.choice(names), rng.choice(SPACES), rng.choice(some)[:-1]])
            for _ in range(rng.randrange(1, 12))
        ).encode()
        for _ in range(1000)
    ]
    return lines + extra


def encode_ours(program, path, lines, raw):
    # JSON texts cannot hold broken UTF-8: such lines go in as lists of byte values.
    rows = []
    for line in lines:
        try:
            rows.append(json.dumps(line.decode(), ensure_ascii=False))
        except UnicodeDecodeError:
            rows.append(json.dumps(list(line)))
    done = subprocess.run(
        [program, path] + (["--raw"] if raw else []),
        input="\n".join(rows) + "\n",
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{path}: {done.stderr}")
    return [[int(x) for x in row.split()] for row in done.stdout.split("\n")[: len(lines)]], done.stderr.strip().split(
        "\n"
    )


def merges_by_score(model):
    """Vocabulary and merges of a sentencepiece BPE model as transformers 4 converted them: best score first."""
    proto = sentencepiece.SentencePieceProcessor(model_file=model)
    pieces = [proto.id_to_piece(i) for i in range(proto.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(pieces):
        halves = [(piece[:n], piece[n:]) for n in range(1, len(piece)) if piece[:n] in vocab and piece[n:] in vocab]
        merges += [
            (*pair, proto.get_score(i)) for pair in sorted(halves, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ]
    return {"vocab": vocab, "merges": [merge[:2] for merge in sorted(merges, key=lambda merge: -merge[2])]}


def convert_fast(model, folder, name, legacy, by_score):
    """The fast file that transformers makes of a sentencepiece BPE model; `legacy` None: the normalizer form."""
    from transformers.convert_slow_tokenizer import SentencePieceExtractor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    # transformers 5.23.0 ranks the merges by id instead, which puts runs of spaces before words.
    parts = merges_by_score(model) if by_score else SentencePieceExtractor(model).extract(models.BPE)
    tok = Tokenizer(
        models.BPE(
            parts["vocab"], [tuple(m) for m in parts["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    if legacy is None:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(
            "\u2581", prepend_scheme="always" if legacy else "first", split=False
        )
    tok.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    proto = sentencepiece.SentencePieceProcessor(model_file=model)
    control = [
        proto.id_to_piece(i) for i in range(proto.get_piece_size()) if proto.is_control(i) or proto.is_unknown(i)
    ]
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    out = os.path.join(folder, name)
    os.makedirs(out, exist_ok=True)
    tok.save(os.path.join(out, "tokenizer.json"))
    return os.path.join(out, "tokenizer.json")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("data")
    parser.add_argument("work")
    parser.add_argument("--model")
    parser.add_argument("--lines", type=int, default=20000)
    parser.add_argument("--only")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    shared = os.path.join(args.data, "tokenizers")
    cases = [(os.path.basename(os.path.dirname(p)), p) for p in sorted(glob.glob(shared + "/*/tokenizer.json"))]
    cases += [(os.path.relpath(p, shared), p) for p in sorted(glob.glob(shared + "/*/*.model*"))]
    cases.append(("stories260K/tok512.model", os.path.join(args.data, "checkpoints/stories260K/tok512.model")))
    if args.model:
        cases.append(("SmolLM2", os.path.join(args.model, "tokenizer.json")))
    folder = os.path.join(args.work, "gpt2")
    os.makedirs(folder, exist_ok=True)
    shutil.copy(shared + "/gpt2/gpt2_vocab.json", folder + "/vocab.json")
    shutil.copy(shared + "/gpt2/gpt2_merges.txt", folder + "/merges.txt")
    with open(folder + "/tokenizer_config.json", "w") as f:
        json.dump({"tokenizer_class": "GPT2Tokenizer"}, f)
    cases.append(("gpt2 (vocab.json + merges.txt)", folder))
    folder = os.path.join(args.work, "qwen2")
    shutil.copytree(os.path.join(args.work, "gpt2"), folder, dirs_exist_ok=True)
    with open(folder + "/tokenizer_config.json", "w") as f:
        json.dump({"tokenizer_class": "Qwen2Tokenizer"}, f)
    cases.append(("gpt2's vocabulary as Qwen2Tokenizer", folder))
    for name, model in [
        ("llama2", "llama2/tokenizer.model"),
        ("mistral-v1", "mistral-v1/tokenizer.model.v1"),
        ("mistral-v3", "mistral-v3/mistral_instruct_tokenizer_240323.model.v3"),
    ]:
        for by_score in (True, False):
            for legacy, form in [(None, "normalizer"), (True, "always"), (False, "first")]:
                label = f"{name} fast, {form}{'' if by_score else ', merges by id'}"
                out = f"{name}-{form}-{'score' if by_score else 'id'}"
                if not args.only or args.only in label:
                    cases.append((label, convert_fast(os.path.join(shared, model), args.work, out, legacy, by_score)))
    for family, changes in make_small_tokenizers.BYTES.items():
        if family in ("deepseek-v2", "deepseek-v3", "qwen2", "llama-3", "smollm2", "olmo"):
            with open(shared + "/minimind/tokenizer.json", encoding="utf-8") as f:
                document = json.load(f)
            document.update({key: value for key, value in changes.items() if key in ("normalizer", "pre_tokenizer")})
            document["model"]["ignore_merges"] = changes.get("model.ignore_merges", False)
            path = os.path.join(args.work, f"minimind-{family}.json")
            with open(path, "w", encoding="utf-8") as f:
                json.dump(document, f)
            cases.append((f"minimind's vocabulary, {family}'s pieces", path))
    base, names = make_lines(args.data, args.lines)
    wrong = 0
    print(f"{'tokenizer':46} {'lines':>7} {'differ':>7}  ours")
    for name, path in cases:
        if args.only and args.only not in name:
            continue
        raw = False
        if os.path.isdir(path):
            from transformers import AutoTokenizer

            tok = AutoTokenizer.from_pretrained(path)
            encode = lambda text: tok(text, add_special_tokens=False).input_ids
            specials = tok.all_special_tokens
        elif path.endswith(".json"):
            tok = tokenizers.Tokenizer.from_file(path)
            encode = lambda text: tok.encode(text, add_special_tokens=False).ids
            specials = [t.content for t in tok.get_added_tokens_decoder().values()]
        else:  # sentencepiece itself never parses control tokens
            tok = sentencepiece.SentencePieceProcessor(model_file=path)
            encode = tok.encode
            specials = [tok.id_to_piece(i) for i in range(tok.get_piece_size()) if tok.is_control(i)]
            raw = True
        lines = with_specials(base, specials, names)
        ours, notes = encode_ours(args.program, path, lines, raw)
        bad = [i for i, line in enumerate(lines) if encode(line.decode("utf-8", "replace")) != ours[i]]
        wrong += len(bad)
        speed = notes[-1].split(", ")[4].split(";")[0] if len(notes) > 1 else ""
        print(f"{name:46} {len(lines):7} {len(bad):7}  {notes[0]}; {speed}", flush=True)
        for i in bad[:3]:
            print(
                "   ",
                lines[i][:200],
                "\n     reference",
                encode(lines[i].decode("utf-8", "replace"))[:40],
                "\n     ours     ",
                ours[i][:40],
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
