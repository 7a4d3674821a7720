"""Hard strings with their SmolLM2 token ids.

usage: make_tokenizer_cases.py MODEL_DIR OUT_DIR      writes tokenizer_cases.json
Each case: text, ids (no special tokens added, special tokens in the text parsed), lost (bytes outside the vocabulary,
which vanish without a trace), decoded (only if it differs from text).
"""

import json
import os
import sys

import tokenizers
import transformers
from transformers import AutoTokenizer

tok = AutoTokenizer.from_pretrained(sys.argv[1])
vocab = tok.get_vocab()
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
alphabet = {b: chr(b) for b in printable}
alphabet.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in printable)})
missing = {b for b in range(256) if alphabet[b] not in vocab}
assert sorted(missing) == [4, 6, 19, 20, 22, 29, 192, 193, 241, 242, *range(245, 256)]

# fmt: off
cases = [
    # empty, white space
    "", " ", "  ", "   ", "    ", " " * 7, " " * 8, " " * 63, " " * 64, " " * 65, " " * 200, "\t", "\t\t",
    "\t\t\t\t\t", "\n", "\n\n", "\n\n\n", "\n" * 40,
    "\r", "\r\n", "\r\n\r\n", "a\r\nb", "a\rb", "\v", "\f", "a\vb\fc", " \n", "\n ", " \n ", "  \n  \n  ", "\t \t ",
    "a ", "a  ", "a   ", " a", "  a", "   a",
    "a b", "a  b", "a   b", "a\tb", "a\t\tb", "a \tb", "a\t b", "a\n\nb", "a \n b", "a\n b", "a \nb",
    "word \n\n\n  word",
    # white space outside ASCII
    "a\u00a0b", "a\u00a0\u00a0b", "\u00a0", " \u00a0 ", "a\u0085b", "\u0085", "a\u3000b", "\u3000\u3000a", "a\u2003b",
    "a\u2028b\u2029c", "a\u202fb", "a\u1680b",
    "a\u205fb", "a\u200bb", "a\u200b b", "\ufeffabc", "a\ufeffb", "a\u180eb", "x\u00a05", "x \u00a05", "x\u3000 5",
    "x\u00855", "x\u2028\u20285",
    # digits
    "5", " 5", "  5", "x  5", "x   5", "a   12 b", "\n\n 42", "\n\n42", "\t\t7", "12345678901234567890", "1 2  3   4",
    "3.14159", "1,000,000", "-5", "1e-10", "0x1F",
    "a1b2c3", "v2.0", "2024-01-31", "12:30", "50%", "$3.50", "1st 2nd", "Question: What is 12 + 7?\nAnswer:",
    "\u00bd", "a \u00bd b", "a  \u00bd", "x\u00b2+y\u00b3", "\u2167 \u2460 \u3007",
    "\u0663\u0664\u0665", "a \u0663", "a  \u0663", "\u0e51\u0e52\u0e53", " \u0e51", "\u0967\u0968", "\uff11\uff12",
    "  \uff11", "\u4e00\u4e8c\u4e09", "\U0001d7d8\U0001d7d9", "\U0001f101", "\u06f1\u06f2 \u09e7",
    # contractions
    "don't", "DON'T", "don'T", "I'll we've they're I'm he'd it's", "'s", " 's", "''s", "'S 'T 'RE 'VE 'M 'LL 'D",
    "don\u2019t", "rock'n'roll", "o'clock'll", "'tis 'twas", "x'ss", "'re're",
    # punctuation and symbols
    "!", "!!", "!!!!!!!!!!", "...", "....", " ...", "\u2026", "--- ===", "a--b", "a - b", "(a)", "[1, 2,  3]",
    "{\"k\": [1]}", "<>&\"'", "\\n\\t\\\\", "a_b_c", "__init__", "http://x.org/a?b=c&d=%20#e",
    "user@example.com", "C++", "#include <stdio.h>", "\u00ab\u00bb\u201c\u201d\u2018\u2019", "\u20ac\u00a3\u00a5",
    "\u2192\u21d2\u2200", "\u00a7\u00b6", "\u00ad", "a\u00adb", "\u00aa\u00ba",
    # letters
    "Hello, world!", "hello", "HELLO", "hElLo WoRlD", "caf\u00e9", "cafe\u0301", "na\u00efve \u00c5ngstr\u00f6m",
    "A\u030angstro\u0308m", "\u0301", " \u0301", "e\u0301\u0302\u0303", "\u00df\u1e9e", "\u0130\u0131",
    "\ufb01\ufb02",
    "\u0391\u03b8\u03ae\u03bd\u03b1", "\u041c\u043e\u0441\u043a\u0432\u0430", "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627", "\u0639\u064e\u0631\u064e\u0628\u064a\u0651",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u6771\u4eac", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca",
    "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab", "\U00020000\U0002a6d6", "\U00010330\U00010331",
    "\U0001d400\U0001d401", "\u02b0\u02c8\u02e0", "\u2160\u2161",
    # emoji
    "\U0001f600", " \U0001f600", "\U0001f600\U0001f601", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7", "\u2764\ufe0f", "1\ufe0f\u20e3", "ok\U0001f44dok",
    # special tokens inside text and near misses
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "a<|im_end|>b", "a <|im_end|> b", "<|im_end|><|im_end|>",
    "<|im_end|", "<|IM_END|>", "<<|im_end|>>", "<|im_<|im_start|>", "<repo_name>x<reponame>",
    "<file_sep><filename>a.py",
    "<gh_stars>5", "<jupyter_output><empty_output>", "x  <|im_end|>  5", "<|im_start|> 5",
    "<issue_start><issue_comment><issue_closed>", "<filename", "</s><s><unk>",
    # bytes without a token, controls
    "a\x04b", "\x04", "\x04\x06\x13\x14\x16\x1d", "!\x04!", "a\x04 b", " \x04 ", "1\x062", "a\x00b", "\x00",
    "\x01\x02\x03\x05\x07\x08", "\x0e\x0f\x10\x11\x12\x15\x17\x18\x19\x1a\x1b\x1c\x1e\x1f\x7f", "a\x1cb", "a\x1fb",
    "\x1b[0m",
    "\u0080\u009f", "\U00040000", "a\U00090000b", "\U000fffff", "\U0010ffff", "\ue000", "\ufffd", "\uffff", "\u0378",
    # long runs
    "a" * 100, "ab" * 50, "A" * 33, "0" * 40, "-" * 80, "=" * 81, "." * 100, "_" * 65, "\u4e2d" * 20, "ha" * 31,
    "x" + "\n" * 10 + "y", "aaaa bbbb  cccc   dddd    eeee",
    # mixed
    "def f(x):\n    return x  # 2x\n\n\nprint(f(10))\n", "| a | b |\n|---|---|\n| 1 |  2 |\n",
    "  * item\n    - sub 1\n\t\t- sub 2", "The  quick   brown\tfox \u2014 jumped\u2026 over\u00a013 lazy dogs!\r\n",
    "SELECT * FROM t WHERE a=1 AND b='x''y';", "\u00c0\u00c1\u00f1\u00f5\u00ff",
    "E=mc\u00b2 \u2248 9\u00d710\u00b9\u2076 J", "antidisestablishmentarianism",
    "Supercalifragilisticexpialidocious12",
]
# fmt: on
assert len(set(cases)) == len(cases)
rows = []
for text in cases:
    ids = tok(text, add_special_tokens=False).input_ids
    rest = text
    for t in tok.all_special_tokens + list(tok.added_tokens_encoder):
        rest = rest.replace(t, "")
    row = {"text": text, "ids": ids, "lost": sum(b in missing for b in rest.encode())}
    decoded = tok.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if decoded != text:
        assert row["lost"], text
        row["decoded"] = decoded
    rows.append(row)
versions = {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__}
path = os.path.join(sys.argv[2], "tokenizer_cases.json")
with open(path, "w") as f:
    f.write('{"versions": ' + json.dumps(versions) + ', "cases": [\n')
    f.write(",\n".join(json.dumps(r) for r in rows) + "\n]}\n")
print(len(rows), os.path.getsize(path))
