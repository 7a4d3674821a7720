"""Conversations under the named chat templates, as transformers renders them.

usage: make_chat_templates.py chat_templates.json      renders again, in place
The file holds the Jinja texts, as the checkpoints in "of" publish them ("alpaca" has none: Stanford's bytes, method.md
7.2), and gets for each template one text a conversation, or null where the template raises. "also" are further texts
that are to be recognized under a name. Nothing here reads a checkpoint.
"""

import json
import sys

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast

S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    ([(U, "Hi")], True),
    ([(U, "Hi")], False),
    ([(U, "Hi"), (A, "Hello!")], False),
    ([(S, "Be brief."), (U, "Hi")], True),
    ([(S, "Be brief."), (U, "Hi"), (A, "Hello!")], False),
    ([(U, "1+1?"), (A, "2"), (U, "2+2?"), (A, "4")], False),
    ([(U, "1+1?"), (A, "2"), (U, "2+2?")], True),
    ([(S, "S"), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e")], True),
    ([(U, ""), (A, "empty question")], False),
    ([(S, ""), (U, "empty system")], True),
    ([(U, "  lead and trail \n"), (A, "\n  an answer \t ")], False),
    ([(S, " \n system with spaces\t"), (U, "\u00a0x\u3000\x1f")], True),
    ([(U, "quotes ' \" and \\n {{ braces }} {% tags %}"), (A, "<b>&amp;</b> </s> <s> [INST]")], False),
    ([(U, "\u4f60\u597d \U0001f600 caf\u00e9"), (A, "\u3053\u3093\u306b\u3061\u306f\n\n\u2014 ok")], False),
    ([(U, "think"), (A, "<think>\nfirst\n\nthen\n</think>\n\nSo: 4")], False),
    (
        [(U, "a"), (A, "<think>x</think>y"), (U, "<tool_response>z</tool_response>"), (A, "<think>\n</think>\n\nw")],
        False,
    ),
    ([(U, "line one\nline two\n"), (A, "```c\nint x;\n```\n"), (U, "more")], True),
    ([(U, "a"), (U, "b")], True),
    ([(A, "I begin"), (U, "ok")], True),
    ([(S, "Only system")], False),
]


def main():
    path = sys.argv[1]
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    for template in data["templates"]:
        tok = PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
            bos_token=template["bos"] or None,
            eos_token=template["eos"] or None,
        )
        tok.chat_template = template["jinja"]
        template["rendered"] = []
        for messages, prompt in CONVERSATIONS:
            turns = [{"role": role, "content": content} for role, content in messages]
            try:
                template["rendered"].append(
                    tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
                )
            except jinja2.exceptions.TemplateError:
                template["rendered"].append(None)
    conversations = [{"messages": messages, "add_generation_prompt": prompt} for messages, prompt in CONVERSATIONS]
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    data = {"versions": versions, "conversations": conversations, "templates": data["templates"], "also": data["also"]}
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=False, indent=0)
        f.write("\n")


if __name__ == "__main__":
    main()
