# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records that LLaMA-Factory drops or dies on, by form and stage: what is wrong with each, and good ones beside them.

`tests/unit/test_records.py` holds our reading against them, `tests/e2e/test_records_judged.py` LLaMA-Factory's own.
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pyarrow
from pyarrow import ipc, parquet

Record = t.Any
ASK, ANSWER = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}
SYSTEM = {"from": "system", "value": "Be brief."}
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
RESULT = {"from": "observation", "value": "1"}
USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
CALLING = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
TOLD = {"role": "tool", "content": "1"}
ALPACA = {"instruction": "Why?", "input": "", "output": "Because."}
TOOLS = '[{"name": "f", "description": "", "parameters": {"properties": {}, "required": []}}]'
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


class Form(t.NamedTuple):
    entry: dict[str, t.Any]
    """Of train_datasets, besides the file."""
    stage: str
    good: Record


def alpaca(**fields: t.Any) -> Record:
    return {**ALPACA, **fields}


def talk(*messages: t.Any, **fields: t.Any) -> Record:
    return {"conversations": list(messages), **fields}


def chat(*messages: t.Any, **fields: t.Any) -> Record:
    return {"messages": list(messages), **fields}


def calling(*arguments: t.Any) -> Record:
    """A message of the OpenAI API that calls f with each of these."""
    calls = [{"function": {"name": "f", "arguments": given}} for given in arguments]
    return {"role": "assistant", "content": "", "tool_calls": calls}


PAIR_COLUMNS = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
PAIR = {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."}
TALK_PAIR = talk(ASK, chosen=ANSWER, rejected={"from": "gpt", "value": "No."})
KTO = alpaca(good=True)

FORMS: dict[str, Form] = {
    "alpaca": Form({}, "sft", ALPACA),
    "alpaca pt": Form({"columns": {"prompt": "text"}}, "pt", {"text": "All of it."}),
    "alpaca ppo": Form({}, "ppo", ALPACA),
    "alpaca dpo": Form({"ranking": True, "columns": PAIR_COLUMNS}, "dpo", PAIR),
    "alpaca kto": Form(
        {"columns": {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "good"}}, "kto", KTO
    ),
    "sharegpt": Form({"formatting": "sharegpt"}, "sft", talk(ASK, ANSWER)),
    "sharegpt dpo": Form({"formatting": "sharegpt", "ranking": True}, "dpo", TALK_PAIR),
    "sharegpt kto": Form(
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "good"}},
        "kto",
        talk(ASK, ANSWER, good=True),
    ),
    "sharegpt tools": Form({"formatting": "sharegpt"}, "sft", talk(ASK, CALL, RESULT, ANSWER, tools=TOOLS)),
    "sharegpt tags": Form(
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}, "sft", chat(USER, ASSISTANT)
    ),
    "openai": Form({"formatting": "openai"}, "sft", chat(USER, ASSISTANT)),
}

BROKEN: list[tuple[str, Record, str]] = [
    # form, a broken record among good ones, what is said of it
    ("alpaca", {"instruction": "Why?"}, "'output' is missing"),
    ("alpaca", alpaca(output=None), "'output' is null"),
    ("alpaca", alpaca(output=3), "'output' is a number"),
    ("alpaca", alpaca(output=["So."]), "'output' is a list"),
    ("alpaca", alpaca(output={"text": "So."}), "'output' is an object"),
    ("alpaca", alpaca(instruction=3), "'instruction' is a number"),
    ("alpaca", alpaca(input=["x"]), "'input' is a list"),
    ("alpaca", alpaca(system={"x": "y"}), "'system' is an object"),
    ("alpaca", alpaca(history=[["x"]]), "'history' holds [\"x\"]"),
    ("alpaca", alpaca(history=[["x", "y", "z"]]), "'history' holds"),
    ("alpaca", alpaca(history=[["x", None]]), "'history' holds"),
    ("alpaca", alpaca(tools="[{"), "'tools' is no JSON text"),
    ("alpaca", alpaca(tools="5"), "'tools' is 5, no list of objects"),
    ("alpaca", alpaca(tools="null"), "'tools' is null"),
    ("alpaca", alpaca(tools='{"a": 1}'), "no list of objects"),
    ("alpaca", alpaca(tools='["f"]'), "no list of objects"),
    ("alpaca ppo", alpaca(instruction=["Why?"]), "'instruction' is a list"),
    ("alpaca dpo", {**PAIR, "chosen": None}, "'chosen' is null"),
    ("alpaca dpo", {"instruction": "Why?", "input": "", "chosen": "So."}, "'rejected' is missing"),
    ("alpaca dpo", {**PAIR, "rejected": ["No."]}, "'rejected' is a list"),
    ("alpaca kto", alpaca(), "'good' is missing"),
    ("alpaca kto", alpaca(good=None), "'good' is null"),
    ("alpaca kto", alpaca(good="yes"), "'good' is str"),
    ("sharegpt", {}, "'conversations' is missing"),
    ("sharegpt", {"conversations": None}, "'conversations' is null"),
    ("sharegpt", {"messages": [ASK, ANSWER]}, "'conversations' is missing"),
    ("sharegpt", {"conversations": "Why?"}, "'conversations' is str"),
    ("sharegpt", talk(), "it does not end with an answer"),
    ("sharegpt", talk(SYSTEM), "it does not end with an answer"),
    ("sharegpt", talk(ASK), "it does not end with an answer"),
    ("sharegpt", talk(ASK, ANSWER, ASK), "it does not end with an answer"),
    ("sharegpt", talk(ANSWER, ASK), "turn 1 is from 'gpt'"),
    ("sharegpt", talk(ASK, ASK), "turn 2 is from 'human'"),
    ("sharegpt", talk({"from": "user", "value": "Why?"}, ANSWER), "turn 1 is from 'user'"),
    ("sharegpt", talk(ASK, SYSTEM), "turn 2 is from 'system'"),
    ("sharegpt", talk(ASK, RESULT, ASK, ANSWER), "turn 2 is from 'observation'"),
    ("sharegpt", talk("Why?", ANSWER), 'message 1 is "Why?", no JSON object'),
    ("sharegpt", talk(ASK, {"from": "gpt"}), "message 2 has null in 'value'"),
    ("sharegpt", talk(ASK, {"value": "So."}), "turn 2 is from None"),
    ("sharegpt", talk(ASK, {"from": "gpt", "value": None}), "message 2 has null in 'value'"),
    ("sharegpt", talk({"role": "user", "content": "Why?"}, ANSWER), "turn 1 is from None"),
    ("sharegpt", talk(ASK, {"from": "function_call", "value": "f()"}), "message 2 calls a function and is no JSON"),
    ("sharegpt", talk(ASK, {"from": "function_call", "value": '{"name": "f"}'}), "without name and arguments"),
    ("sharegpt", talk(ASK, {"from": "function_call", "value": "Hm.<tool_call>f()</tool_call>"}), "is no JSON"),
    ("sharegpt tools", talk(ASK, CALL, RESULT, ANSWER, tools="[{"), "'tools' is no JSON text"),
    ("sharegpt tools", talk(ASK, CALL, ANSWER, tools=TOOLS), "turn 3 is from 'gpt'"),
    ("sharegpt dpo", talk(ASK, ANSWER, chosen=ANSWER, rejected=ANSWER), "it ends with an answer"),
    ("sharegpt dpo", talk(ASK, chosen=None, rejected=ANSWER), "'chosen' is null"),
    (
        "sharegpt dpo",
        talk(ASK, chosen={"from": "me", "value": "x"}, rejected=ANSWER),
        "'chosen' is no answer with a text",
    ),
    ("sharegpt dpo", talk(ASK, chosen=ANSWER, rejected={"from": "gpt"}), "'rejected' is no answer with a text"),
    ("sharegpt kto", talk(ASK, ANSWER), "'good' is missing"),
    ("sharegpt kto", talk(ASK, good=True), "it does not end with an answer"),
    ("sharegpt tags", chat(USER, {"role": "gpt", "content": "So."}), "turn 2 is from 'gpt'"),
    ("openai", chat(USER, calling({"x": 1}, {"x": "a"}), TOLD, ASSISTANT), "arguments.x' is str"),
    ("openai", chat(USER, calling({"x": [1, {"y": 2}]}), TOLD, ASSISTANT), "arguments.x[]' is "),
    ("openai", chat(USER), "it does not end with an answer"),
    ("openai", chat(ASSISTANT, USER), "turn 1 is from 'assistant'"),
    ("openai", chat(USER, {"role": "assistant", "content": None}), "message 2 has null in 'content'"),
    ("openai", chat(USER, {"role": "tool", "content": "1"}), "it does not end with an answer"),
    ("openai", chat(USER, CALLING, *[{"role": "tool", "content": None}] * 2, ASSISTANT), "has null in 'content'"),
    ("openai", chat(USER, CALLING, TOLD, {"role": "tool", "content": None}, ASSISTANT), "has null in 'content'"),
]

FINE: list[tuple[str, Record]] = [
    # what looks odd and is trained on
    ("alpaca", alpaca(output="")),
    ("alpaca", alpaca(instruction="")),
    ("alpaca", alpaca(instruction=None, input=None)),
    ("alpaca", alpaca(history=[["x", "y"]])),
    ("alpaca", alpaca(history=[])),
    ("alpaca", alpaca(system="Be brief.")),
    ("alpaca", alpaca(score=3)),
    ("alpaca", alpaca(tools="[]")),
    ("alpaca", alpaca(kto_tag=True)),
    ("alpaca ppo", {"instruction": "Why?"}),
    ("alpaca kto", alpaca(good=False)),
    ("alpaca kto", {**KTO, "output": None}),
    ("sharegpt dpo", talk(ASK, chosen=ASK, rejected=ANSWER)),
    ("sharegpt", talk(SYSTEM, ASK, ANSWER)),
    ("sharegpt", talk(ASK, ANSWER, ASK, ANSWER)),
    ("sharegpt", talk(ASK, ANSWER, tools="")),
    ("sharegpt tools", talk(ASK, ANSWER)),
    ("sharegpt", talk(ASK, {"from": "function_call", "value": f"Hm.<tool_call>{CALL['value']}</tool_call>"})),
    ("sharegpt tags", chat(USER, ASSISTANT, USER, ASSISTANT)),
    ("sharegpt tags", chat({"role": "system", "content": "Be brief."}, USER, ASSISTANT)),
    ("openai", chat({"role": "system", "content": "Be brief."}, USER, ASSISTANT)),
    ("openai", chat(USER, CALLING, TOLD, TOLD, ASSISTANT)),
    ("openai", chat(USER, calling({"x": 1}, {"x": 0.5}, {"y": None}), TOLD, ASSISTANT)),
]


MEDIA_TALK = talk({"from": "human", "value": "<image>Why?"}, ANSWER, images=["a.ppm"])
MEDIA: dict[str, Form] = {
    "image": Form({}, "sft", alpaca(instruction="<image>Why?", images=["a.ppm"])),
    "images of a talk": Form({"formatting": "sharegpt"}, "sft", MEDIA_TALK),
    "images of a pair": Form(
        {"ranking": True, "columns": {**PAIR_COLUMNS, "images": "images"}},
        "dpo",
        {**PAIR, "instruction": "<image>Why?", "images": ["a.ppm"]},
    ),
    "video": Form({}, "sft", alpaca(instruction="<video>Why?", videos=[["a.ppm", "a.ppm"]])),
}
"""With a template for media; a.ppm is there, in media_dir."""

MEDIA_BROKEN: list[tuple[str, Record, str]] = [
    ("image", alpaca(instruction="<image>Why?", images=[]), "'images' holds 0, its texts have 1 <image>"),
    ("image", alpaca(instruction="<image>Why?", images=None), "'images' holds 0"),
    ("image", alpaca(instruction="<image>Why?"), "'images' holds 0"),
    ("image", alpaca(images=["a.ppm"]), "'images' holds 1, its texts have 0 <image>"),
    ("image", alpaca(instruction="<image><image>", images=["a.ppm"]), "its texts have 2 <image>"),
    ("image", alpaca(instruction="<image>", images=["a.ppm", "a.ppm"]), "'images' holds 2"),
    ("image", alpaca(instruction="<image>", system="<image>", images=["a.ppm", "a.ppm"]), "its texts have 1"),
    ("image", alpaca(instruction="<image><video>", images=["a.ppm"]), "'videos' holds 0"),
    ("image", alpaca(instruction="<image>", images=["none.ppm"]), "there is no file"),
    ("image", alpaca(instruction="<image><image>", images=["a.ppm", "none.ppm"]), "there is no file"),
    ("image", alpaca(instruction="<image>", images=["/none/a.ppm"]), "there is no file"),
    ("image", alpaca(instruction="<image>", images=[None]), "'images' holds None, no path"),
    ("images of a talk", talk({"from": "system", "value": "<image>"}, ASK, ANSWER, images=["a.ppm"]), "texts have 0"),
    ("images of a pair", {**PAIR, "chosen": "<image>", "rejected": "", "images": ["a.ppm"]}, "its texts have 0"),
    ("images of a pair", {**PAIR, "chosen": "<image>", "rejected": "<image>", "images": ["a.ppm"] * 2}, "have 1 <im"),
    ("video", alpaca(instruction="<video>", videos=[["a.ppm", "none.ppm"]]), "there is no file"),
    ("video", alpaca(instruction="<video>", videos=[["a.ppm"], ["a.ppm"]]), "'videos' holds 2"),
]
MEDIA_FINE: list[tuple[str, Record]] = [
    ("image", alpaca(instruction="Why?", images=[])),
    ("image", alpaca(instruction="<image>", output="<image>", images=["a.ppm", "a.ppm"])),
    ("image", alpaca(instruction="Why?", input="<image>", history=[["<image>", "x"]], images=["a.ppm", "a.ppm"])),
    ("image", alpaca(instruction="<image>", images="a.ppm")),
    ("images of a talk", talk(ASK, ANSWER)),
    ("images of a pair", {**PAIR, "chosen": "<image>", "rejected": "<image>", "images": ["a.ppm"]}),
]
PICTURE = b"P6 56 56 255\n" + bytes(56 * 56 * 3)
"""What a.ppm holds."""


def write(path: Path, records: t.Sequence[Record]) -> None:
    """The records as a file of the path's ending; ValueError where a table has no column for them."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        write_table(path, table(records))


def table(records: t.Sequence[Record]) -> t.Any:
    """One column for each field, with the one type of all its values."""
    if not all(isinstance(record, dict) and record for record in records):
        raise ValueError("no record of a table")
    names = dict.fromkeys(name for record in records for name in record)
    try:
        return pyarrow.table({name: [record.get(name) for record in records] for name in names})
    except pyarrow.ArrowException as error:
        raise ValueError(error) from None


def write_table(path: Path, rows: t.Any) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(rows, path)
    else:
        with ipc.new_stream(path, rows.schema) as sink:
            sink.write_table(rows)


def column(name: str, values: t.Any) -> t.Any:
    """A table of good records with one column more."""
    return table([ALPACA] * 2).append_column(name, values)


COLUMNS = [
    # of these types `datasets` makes something
    pyarrow.array(["a", "a"]).dictionary_encode(),
    pyarrow.array(["a", "a"], pyarrow.large_string()),
    pyarrow.array([1, 1], pyarrow.timestamp("ns")),
    pyarrow.array([1, 1], pyarrow.timestamp("us", tz="Europe/Berlin")),
    pyarrow.array([1, 1], pyarrow.time64("ns")),
    pyarrow.array([1, 1], pyarrow.duration("ns")),
    pyarrow.array([[1.5], None], pyarrow.list_(pyarrow.float32(), 1)),
    pyarrow.array([b"\xff", None]),
]
NO_TABLES: list[tuple[t.Any, str]] = [
    # and of these nothing: what is said of the file
    (column("more", pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64()))), "map<"),
    (column("more", pyarrow.array([b"a", b"b"], pyarrow.binary(1))), "fixed_size_binary"),
    (
        column("more", pyarrow.array([[{"a": b"a"}], []], pyarrow.list_(pyarrow.struct({"a": pyarrow.binary(1)})))),
        "fixed_size_binary",
    ),
    (column("more", pyarrow.array(["a", "b"], pyarrow.string_view())), "string_view"),
    (column("output", pyarrow.array(["a", "b"])), "two columns are named 'output'"),
]


def as_table(form: str, record: Record) -> list[Record] | None:
    """The record between good ones where one table can hold them, else alone; None where no table can hold it."""
    good = {**FORMS, **MEDIA}[form].good
    for records in ([good, record, good], [record]):
        try:
            table(records)
        except ValueError:
            continue
        return records
    return None


GOOD = json.dumps(ALPACA)
HEAD = "instruction,input,output\n"
WIDE = json.dumps(ALPACA, indent=1)
TWICE = '{"instruction": "a", "output": "b", "output": "c"}'

FILES: list[tuple[str, str, int | None, str]] = [
    # ending, text, the first record at fault (None: there is none, 0: the file as a whole), what is said of it
    (".jsonl", f"{GOOD}\n{GOOD}\n", None, ""),
    (".jsonl", f"{GOOD}\n\n{GOOD}\n\n", None, ""),
    (".jsonl", f"\ufeff{GOOD}\n{GOOD}", None, ""),
    (".jsonl", f"{GOOD}\n  {GOOD} \n", None, ""),
    (".jsonl", f"{GOOD}\n{GOOD}{GOOD}\n", None, ""),
    (".jsonl", f"[{GOOD},{GOOD}]", None, ""),
    (".jsonl", f"{WIDE}\n{GOOD}\n", None, ""),
    (".json", f"[{GOOD}, {GOOD}]", None, ""),
    (".json", f"[\n{WIDE},\n{WIDE}\n]\n", None, ""),
    (".json", GOOD, None, ""),
    (".json", f"{GOOD}\n{GOOD}", None, ""),
    (".json", WIDE, None, ""),
    (".json", f"[{GOOD},{TWICE}]", None, ""),
    (".jsonl", f"{GOOD}\n{GOOD[:-5]}", 2, "not JSON"),
    (".jsonl", f"{GOOD}\n\nx\n", 3, "not JSON"),  # the number is the line's
    (".jsonl", f"{TWICE}\n", 1, "'output' occurs twice"),
    # keys are counted by their colons, so blanks and texts with colons must not hide one
    (".jsonl", GOOD + "\n" + TWICE.replace('":', '"\t:') + "\n", 2, "'output' occurs twice"),
    (".jsonl", '{"output" :"a", "output" :"b", "instruction": "Say \\":"}\n', 1, "'output' occurs twice"),
    (".jsonl", GOOD.replace("Why", 'Say \\"a\\": b : c') + "\n", None, ""),
    (".jsonl", GOOD.replace(", ", ",\n", 1) + "\n" + GOOD + "\n", None, ""),
    (".jsonl", "", 0, "no record"),
    (".jsonl", "\n \n", 0, "no record"),
    (".jsonl", f"{GOOD}\nnull\n", 2, "no JSON object"),
    (".json", f"[{GOOD},{GOOD[:-5]}", 2, "not JSON"),
    (".jsonl", GOOD + "\n" + GOOD.replace("Why", "\\ud83d") + "\n", 2, "half a letter"),
    (".json", "[" + GOOD + "," + GOOD.replace("Why", "\\ud83d") + "]", None, ""),
    (".json", f"{WIDE}\n" + GOOD.replace("Why", "\\ud83d"), 2, "half a letter"),
    (".json", f"{WIDE}\n{TWICE}", 2, "occurs twice"),
    (".jsonl", GOOD.replace("Why", "\\ud83d\\ude00") + "\n", None, ""),
    (".json", f"[{GOOD} {GOOD}]", 2, "a comma"),
    (".json", f"[{GOOD},]", 2, "not JSON"),
    (".json", f"[{GOOD}]x", 1, "after the list"),
    (".json", f"\ufeff[{GOOD}]", 1, "not JSON"),
    (".json", "[]", 0, "no record"),
    (".json", "", 1, "not JSON"),
    (".json", "3", 1, "no JSON list"),
    (".json", '["a"]', 1, "no JSON object"),
    (".json", f'{{"data": [{GOOD}]}}', 0, "no record has 'instruction', 'output'"),
    (".csv", HEAD + "Why?,,Because.\nHow?,,So.\n", None, ""),
    (".csv", HEAD + '"Why, oh?",,"a ""b""\nc"\n\nHow?,,1\n', None, ""),
    (".csv", "\ufeff" + HEAD + "Why?,,yes\nHow?,,2020-01-01\n", None, ""),
    (".csv", HEAD + "nan,,So\nWhy?,,1_000\n", None, ""),
    (".csv", HEAD + "Why?,,1\nHow?,,2e5\n", 1, "'output' is a number"),
    (".csv", HEAD + "Why?,,true\nHow?,,false\n", 1, "'output' is true or false"),
    (".csv", HEAD + "1,,So\n2,,So\n", 1, "'instruction' is a number"),
    (".csv", HEAD + "How?,,So\nWhy?,,\n", 2, "'output' is null"),
    (".csv", HEAD + "How?,,So\nWhy?,,NA\n", 2, "'output' is null"),
    (".csv", HEAD + "How?,,So\nWhy?\n", 2, "'output' is null"),
    (".csv", HEAD + "Why?,,c\nHow?,,a,b\n", 2, "it has 4 fields"),
    (".csv", HEAD + '"Why,,c\n', 1, "no row"),
    (".csv", "a,b\nx,y\n", 0, "no record has 'instruction', 'output'; the fields are 'a', 'b'"),
    (".csv", "instruction;output\nWhy, oh?;So\nHow?;So\n", 0, "separated by ';'"),
    (".csv", HEAD, 0, "no record"),
    (".csv", "", 0, "no record"),
    (".txt", "a\nb\n", 0, "no record has 'instruction', 'output'"),
]
