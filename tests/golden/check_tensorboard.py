"""Reads the event files of run folders with TensorBoard's own reader and compares every scalar with metrics.jsonl.

Needs: pip install tensorboard (2.20.0 was used)
Run:   python tests/golden/check_tensorboard.py RUN...
"""
import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def numbers(line, prefix=""):
    """The numbers of one metrics line by tag, nested objects as outer/inner."""
    for key, value in line.items():
        if isinstance(value, dict):
            yield from numbers(value, prefix + key + "/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, value


def check(run):
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    expected = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for tag, value in numbers({key: value for key, value in line.items() if key != "step"}):
            expected.setdefault(tag, {})[line["step"]] = float32(value)
    tags = accumulator.Tags()["scalars"]
    problems = []
    for tag in tags:
        events = accumulator.Scalars(tag)
        found = {event.step: event.value for event in events}
        if len(found) != len(events):
            problems.append(f"{tag}: a step occurs twice")
        if found != expected.get(tag):
            problems.append(f"{tag}: differs from metrics.jsonl")
    for tag in set(expected) - set(tags):
        problems.append(f"{tag}: not among the events")
    print(f"{run}: {len(tags)} tags, {sum(len(accumulator.Scalars(tag)) for tag in tags)} scalars,",
          "; ".join(problems) or "all equal to metrics.jsonl")
    return not problems


if __name__ == "__main__":
    results = [check(Path(run)) for run in sys.argv[1:]]
    sys.exit(0 if results and all(results) else 1)
