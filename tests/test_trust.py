"""What a file of somebody else's can do: be read, or be refused in one line. Nothing else.

`benchmarks/faults_files.py` makes the same mutants and bombs by the thousand, each in a process of
its own, and measures their time and memory.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import resource
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from darts_bio import bounded
from darts_bio.bounded import MOST_VALUES, check_archive, open_file, parse_yaml
from darts_bio.cli import main
from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.config.files import read_run, read_yaml
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError, unknown_name
from darts_bio.evaluation.alignment import Alignment, LayerAlignment
from darts_bio.figures.drawing import Box, Drawing, Text
from darts_bio.interop.hub_card import hub_card
from darts_bio.invocation import called
from darts_bio.networks import build_network
from darts_bio.networks.naming import WeightName
from darts_bio.reports.alignment import AlignmentComparison
from darts_bio.reports.choice import choice_card
from darts_bio.reports.findings import Findings
from darts_bio.reports.markdown import block, code, escaped, markdown_table, recipe
from darts_bio.runs.alignment import alignments_by_epoch
from darts_bio.runs.files import epochs_of
from darts_bio.spaces import SPACES, Nb201Table, from_darts_text, load_genotype
from darts_bio.storage.checkpoint import FORMAT, write_checkpoint
from darts_bio.storage.logs import EPOCHS_FILE, METRICS_FILE, read_records
from darts_bio.training.provenance import Provenance
from darts_bio.training.trained import Trained, load_trained

HOSTILE = "x|y`z\n## Result\n\n**99.99 %** [a](http://b) <script>alert(1)</script>\x1b[2J\u202e```"
"""A name that would be a heading, a result, a link, a tag, a table's bar and a terminal's order."""


def refused(call: Callable[[], Any]) -> str:
    """Call, and return the message of the InputError, which has to be one short line."""
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert len(message) < 493
    assert message.isprintable()
    assert time.process_time() - began < 5
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(levels: int, width: int = 9) -> str:
    """YAML in which each level repeats the one before it by aliases."""
    lines = ["a0: &a0 [x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


BOMBS = {
    "aliases": lines_of(10),
    "merged aliases": "a: &a {x: 1}\nb: &b {<<: [" + "*a, " * 200 + "*a]}\n"
    "c: &c {<<: [" + "*b, " * 200 + "*b]}",
    "an alias of itself": "a: &a [*a]",
    "keys": "\n".join(f"key{i}: 1" for i in range(MOST_VALUES)),
    "a repeated key at the end": "\n".join(f"k{i}: 1" for i in range(4000)) + "\nk0: 1",
    "items": "rules: [" + "a," * 60_000 + "]",
    "depth": "a: " + "[" * 2000,
    "sequences in sequences": "- " * 2000,
    "digits": "seed: " + "9" * 100_000,
    "hexadecimal": "channels: 0x" + "f" * 100_000,
    "a base of sixty": "seed: 1" + ":1" * 20_000,
    "layers": "layers: 100000",
    "bytes": "# " + "x" * 300_000,
    "tags": "a: !!python/object/apply:os.system [exit]",
    "a long key": "k" * 200_000 + ": 1",
    "binary": b"\x00\xff\xfe" * 100,
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=list(BOMBS))
def test_a_bomb_in_yaml_is_refused_at_once(tmp_path: Path, content: str | bytes) -> None:
    path = write(tmp_path / "a.yaml", content)
    refused(lambda: SearchConfig(**read_yaml(path, SearchConfig)))


def test_aliases_of_modest_size_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_VALUES", 200)
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: *a}", "f")["b"] == {"x": 1, "y": {"x": 1}}
    assert len(parse_yaml(lines_of(2), "f")) == 2
    within = "[" + ", ".join("a" * 199) + "]"
    assert len(parse_yaml(within, "f")) == 199
    assert "values" in refused(lambda: parse_yaml(within[:-1] + ", a]", "f"))


def edges(count: int) -> str:
    """A genotype whose cells have this many edges."""
    data = json.loads(load_genotype("fair_darts_a").to_json())
    for cell in data["cells"].values():
        cell["edges"] *= count
    return json.dumps(data)


def spec(space: str) -> str:
    return json.dumps(json.loads(load_genotype("darts_v2").to_json()) | {"space": space})


GENOTYPE_BOMBS = [
    pytest.param("{" + ",".join(f'"{i}": 1' for i in range(70_000)) + "}", id="fields"),
    pytest.param("{" + '"a": 1,' * 80_000 + '"a": 1}', id="one-field-again-and-again"),
    pytest.param("[" * 900_000, id="depth"),
    pytest.param('{"a": ' + "9" * 900_000 + "}", id="digits"),
    pytest.param(" " * 1_000_001, id="bytes"),
    pytest.param(edges(400), id="edges"),
    pytest.param(spec("by_depth(space=darts, cells=1000000000000)"), id="cells"),
    pytest.param(spec("darts(nodes=1000000000)"), id="nodes"),
    pytest.param(spec("x" * 500_000), id="a-long-name"),
    pytest.param(spec(HOSTILE), id="a-hostile-name"),
]


@pytest.mark.parametrize("content", GENOTYPE_BOMBS)
def test_a_bomb_in_a_genotype_is_refused_at_once(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "genotype.json", content)
    refused(lambda: load_genotype(path))


def test_a_pasted_text_of_megabytes_is_refused_at_once() -> None:
    for text in ("Genotype(" + "x" * 10_000_000, "|" * 10_000_000, "y" * 10_000_000):
        assert "at most 100,000 characters, found 10" in refused(lambda t=text: load_genotype(t))


TABLE_BOMBS = [
    ("a.csv", "a,b\n" * 110_000),
    ("a.csv", "arch," + "c" * 200_000 + "\n"),
    ("a.csv", "arch,cifar10\n\0,1\n"),
    ("a.json", "[" * 1_000_000),
    ("a.json", "[" + "{}," * 200_000 + "{}]"),
    ("a.json", '{"a": ["' + "x" * 1_000_000 + '"]}'),
    ("a.json", " " * 16_000_001),
]


@pytest.mark.parametrize(
    ("name", "content"),
    TABLE_BOMBS,
    ids=["lines", "a-long-entry", "nul", "depth", "fields", "a-long-text", "bytes"],
)
def test_a_bomb_in_a_table_is_refused_at_once(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    refused(lambda: Nb201Table(path))


@pytest.fixture
def odd(tmp_path: Path) -> list[Path]:
    return odd_files(tmp_path)


def odd_files(tmp_path: Path) -> list[Path]:
    """A named pipe, a socket, a folder, and a link to an endless device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    return [tmp_path / "pipe", tmp_path / "socket", tmp_path / "folder", tmp_path / "link"]


def test_only_regular_files_are_opened(odd: list[Path]) -> None:
    for path in [*odd, Path("/dev/zero")]:
        with pytest.raises(OSError, match="it is a .*, not a file"):
            open_file(path)
        refused(lambda p=path: read_yaml(p, SearchConfig))
        refused(lambda p=path: Nb201Table(p))
        refused(lambda p=path: load_genotype(p))
        refused(lambda p=path: load_trained(p))
        refused(lambda p=path: read_records(p))


def test_an_image_that_is_a_pipe_or_a_bomb_is_named_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(9):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    load_data("folder", str(tmp_path), 8)
    pipe = tmp_path / "cat" / "x.png"
    os.mkfifo(pipe)
    assert "it is a named pipe" in refused(lambda: load_data("folder", str(tmp_path), 8))
    pipe.unlink()
    Image.new("1", (10_000, 10_000)).save(pipe)  # 12 kB that would be 300 MB
    assert "decompression bomb" in refused(lambda: load_data("folder", str(tmp_path), 8))


def archive(path: Path, compressed: bool = False, size: int = 1000, name: str = "a/data/0") -> Path:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr(name, bytes(size))
    return path


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    check_archive(archive(path))
    assert "compressed" in refused(lambda: check_archive(archive(path, compressed=True)))
    assert "data.pkl" in refused(
        lambda: check_archive(archive(path, name="a/data.pkl", size=17_000_000))
    )
    # Ten entries of the directory for the bytes of one.
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", bytes(1000))
        file.filelist *= 10
    assert "bytes described" in refused(lambda: check_archive(path))
    assert "another file" in refused(lambda: check_archive(write(path, pickle.dumps({"a": 1}))))


def checkpoint(path: Path, **changes: Any) -> Path:
    """The checkpoint of a training, as small as can be, with other entries in its task."""
    genotype, form = load_genotype("darts_v2"), {"channels": 2, "layers": 3, "num_classes": 2}
    form |= {"in_channels": 1}
    task = {
        "network": build_network(genotype, **form).state_dict(),
        "genotype": genotype.to_json(),
        "form": form,
        "image_size": (8, 8),
        "classes": ("a", "b"),
        "normalisation": {"mean": torch.zeros(1), "std": torch.ones(1)},
    }
    state = {"format": FORMAT, "kind": "train", "config": {}, "command": "", "step": 0}
    write_checkpoint(path, {**state, "task": {**task, **changes}})
    return path


FORMS = [
    {"layers": 100_000},
    {"layers": 30},
    {"channels": 4_000},
    {"channels": 2**40},
    {"channels": 10**400},
    {"layers": 10**400},
    {"num_classes": 10_000_000},
    {"in_channels": 2**50},
    {"layers": "many"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_checkpoint_builds_no_larger_network_than_it_holds(
    tmp_path: Path, form: dict[str, Any]
) -> None:
    sizes = {"channels": 2, "layers": 3, "num_classes": 2, "in_channels": 1}
    path = checkpoint(tmp_path / "checkpoint.pt", form=sizes | form)
    refused(lambda: load_trained(path))


class Call:
    """An object that calls a function where a pickle is read as Python reads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def calls(place: Path) -> dict[str, Call]:
    """Calls that make a folder at `place`, by what is called."""
    return {
        "os.system": Call(os.system, f"mkdir '{place}'"),
        "exec": Call(exec, f"import os\nos.mkdir({str(place)!r})"),
        "os.mkdir": Call(os.mkdir, str(place)),
        "subprocess.run": Call(subprocess.run, ["mkdir", str(place)]),
    }


@pytest.mark.parametrize("called", calls(Path("done")))
def test_nothing_that_a_checkpoint_calls_is_called(tmp_path: Path, called: str) -> None:
    done = tmp_path / "done"
    path = checkpoint(tmp_path / "checkpoint.pt", network=calls(done)[called])
    assert "not a readable checkpoint" in refused(lambda: load_trained(path))
    assert not done.exists()
    torch.load(path, weights_only=False)
    assert done.exists()


def test_a_tensor_that_repeats_one_number_is_no_weight(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoint.pt")
    assert load_trained(path).step == 0
    form = {"channels": 128, "layers": 3, "num_classes": 2, "in_channels": 1}
    network = build_network(load_genotype("darts_v2"), **form)
    shapes = {
        n: torch.zeros((), dtype=w.dtype).expand(w.shape) for n, w in network.state_dict().items()
    }
    path = checkpoint(path, form=form, network=shapes)
    assert "bytes of weights, found" in refused(lambda: load_trained(path))


def test_a_plug_in_is_not_imported_because_a_run_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "mischief.py").write_text(f"open({str(tmp_path / 'done')!r}, 'w').close()")
    (tmp_path / "config.yaml").write_text("plugin: [mischief]\n")
    checkpoint(tmp_path / "checkpoint.pt")
    sys.path.insert(0, str(tmp_path))
    try:
        for call in (
            lambda: read_run(tmp_path, SearchConfig),
            lambda: load_genotype(tmp_path),
            lambda: load_trained(tmp_path),
        ):
            assert "code that no run folder can bring" in refused(call)
    finally:
        sys.path.remove(str(tmp_path))
    assert "mischief" not in sys.modules
    assert not (tmp_path / "done").exists()


def test_messages_are_one_short_line_for_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (HOSTILE, "x" * 100_000, "\x1b]0;title\x07", "\udcff\u2028\x85", "a\r\nb"):
        assert "\x1b" not in refused(lambda n=name: load_genotype(n))
        assert main(["audit", name]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert len(printed) < 500
        assert "\x1b" not in printed
    assert len(str(unknown_name("option", "x" * 10**6, ["a" * 50] * 50))) < 490


def is_harmless(page: str, *, fenced: bool = False) -> None:
    """Check that the hostile name neither begins a line of the page nor is anything in it.

    The oracle is Markdown's own: outside of code, no bar, backtick, bracket or tag of the name
    stands without a backslash; code ends by no backticks but its own.
    """
    assert "\x1b" not in page
    assert "\u202e" not in page
    ticks, outside = "", []
    for line in page.splitlines():
        fence = re.match(r" {0,3}(`{3,})[^`]*$", line)
        if fence and not ticks:
            ticks = fence[1]
        elif fence and ticks and len(fence[1]) >= len(ticks) and not line.strip(" `"):
            ticks = ""
        elif not ticks:
            outside.append(line)
    assert not ticks
    text = "\n".join(outside)
    assert page.count("\n## Result\n") - text.count("\n## Result\n") <= 2 * fenced
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)  # code within a line
    for mark in ("<script", "[a](http", "**99.99"):
        assert not re.search(r"(?<!\\)" + re.escape(mark), text), mark


def test_the_functions_that_write_markdown_keep_a_hostile_name_in_its_place() -> None:
    assert "\n" not in escaped(HOSTILE) + code(HOSTILE)
    rows = markdown_table(("a", HOSTILE), [(HOSTILE, "1"), (code(HOSTILE), "2")])
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    for line in (escaped(HOSTILE), "\n".join(rows), code(HOSTILE), "\n".join(block(HOSTILE))):
        is_harmless(line, fenced=True)
    ticks, *_, last = block("````\n# forged")
    assert ticks == last == "`````"


def test_hostile_names_in_reports_forge_nothing(tmp_path: Path) -> None:
    genotype = load_genotype("darts_v2").with_provenance(note=HOSTILE)
    search = SearchConfig(dataset=HOSTILE, data_dir=f"/home/me/{HOSTILE}")
    training = RetrainConfig(genotype=HOSTILE, dataset=HOSTILE, holdout=5, epochs=1)
    is_harmless("\n".join(recipe(training, HOSTILE)), fenced=True)
    candidates = tuple(
        SimpleNamespace(seed=s, accuracy=0.5, loss=1.0, identity="d", genotype=genotype)
        for s in (0, 1)
    )
    choice: Any = SimpleNamespace(
        candidates=candidates, chosen=candidates[0], reason="the best", alike=()
    )
    found = Findings(SPACES.build(search.space), genotype)
    card = choice_card(
        search, training, HOSTILE, choice, genotype, HOSTILE, found, 5, {"searches": 1.0}, HOSTILE
    )
    is_harmless(card, fenced=True)
    form = {"channels": 4, "layers": 3, "num_classes": 2, "in_channels": 1}
    form_of_run = {**form, "stem": "cifar", "auxiliary": False}
    trained = Trained(
        build_network(genotype, **form).eval(),
        genotype,
        (HOSTILE, "b"),
        (0.5,),
        (0.5,),
        (8, 8),
        form_of_run,
        {"dataset": HOSTILE, "supernet": "/home/me/run", "note": HOSTILE},
        0,
        Provenance(HOSTILE, HOSTILE, 0.5, 10),
    )
    page = hub_card(trained, HOSTILE)
    front, _, body = page.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["model-index"][0]["name"] == HOSTILE
    is_harmless(body, fenced=True)
    assert "/home/me" not in page
    comparison = AlignmentComparison.__new__(AlignmentComparison)
    object.__setattr__(
        comparison, "alignments", {HOSTILE: SimpleNamespace(layers=(), gradient_cosine=None)}
    )
    is_harmless(comparison.table())


def test_svg_shows_a_hostile_name_as_text() -> None:
    drawing = Drawing(99, 99, (Text(1, 1, HOSTILE), Box(1, 1, 2, 2, title=HOSTILE)))
    svg = drawing.svg()
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
    assert "\x1b" not in svg


def test_no_page_that_is_passed_on_names_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RetrainConfig(
        genotype="/home/me/g.json", data_dir="/home/me/data/cifar/", plugin=("a",), out="/home/me/o"
    )
    page = "\n".join(recipe(config, "darts-bio train"))
    assert "/home" not in page
    assert "data_dir: cifar\n" in page
    assert "genotype: g.json\n" in page
    assert "data_dir: /home/me/data/cifar/" in config.to_yaml()  # for --resume
    words = ["/home/me/x/evaluate/train_cifar.py", "--out", "/home/me/o", "--data-dir=/home/me/d"]
    monkeypatch.setattr(sys, "argv", words)
    assert called(["/usr/bin/python"]) == "python evaluate/train_cifar.py --out o --data-dir=d"


ALIGNMENT = Alignment(
    (
        LayerAlignment(
            "stem.0", WeightName("stem", "Conv2d"), "fa", 0, 60.0, 1.1, 30.0, 0.8, 0.5, None
        ),
    ),
    0.8,
    0.5,
    None,
)
VALID = {
    "genotype.json": load_genotype("darts_v2").to_json(),
    "config.yaml": SearchConfig(rules=("usf", "fa"), strategy="darts(order=2)").to_yaml(),
    "table.csv": "arch,cifar10,cifar100\n"
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|,10.0,1.0\n",
    "table.json": '{"|none~0|+|none~0|none~1|+|none~0|none~1|none~2|": {"cifar10": 91.5}}',
    "text": "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=[2], "
    "reduce=[('max_pool_3x3', 0), ('dil_conv_5x5', 1)], reduce_concat=range(2, 3))",
    METRICS_FILE: "".join(
        json.dumps({"event": event, "step": 8, "epoch": 1, "train/loss": 2.25, "seconds": 0.5})
        + "\n"
        for event in ("record", "epoch")
    ),
    EPOCHS_FILE: json.dumps({"step": 8, "epoch": 1, **ALIGNMENT.as_dict()}) + "\n",
}
READERS: dict[str, Callable[[Path], Any]] = {
    "genotype.json": load_genotype,
    "config.yaml": lambda path: read_yaml(path, SearchConfig),
    "table.csv": Nb201Table,
    "table.json": Nb201Table,
    "text": lambda path: from_darts_text(
        path.read_text(encoding="utf-8", errors="surrogateescape")
    ),
    METRICS_FILE: lambda path: epochs_of(path.parent),
    EPOCHS_FILE: lambda path: str(alignments_by_epoch(path.parent)),
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes of a file: bytes, a part that is missing, repeated, huge or moved."""
    odd = (b"\0", b"\xff", b"\n", b"9" * 5000, b"[" * 3000, b"-1", b"1e999", b"null", b"\\u0000",
           b"&a ", b"*a ", b"\x1b[2J", b"{" * 900, b"'" , b'"', b"true", b"x" * 3000, "\u202e".encode())  # fmt: skip
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        kind = rng.randrange(5)
        if kind == 0:
            content = content[:at] + rng.choice(odd) + content[at:]
        elif kind == 1:
            content = content[:at] + rng.choice(odd) + content[to:]
        elif kind == 2:
            content = content[:at] + content[to:]
        elif kind == 3:
            content = content[:to] + content[at:]
        else:
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    return content


@pytest.mark.parametrize("name", VALID)
def test_mutants_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / name
    READERS[name](write(path, VALID[name]))
    messages, began = [], time.process_time()
    for _ in range(100):
        write(path, mutated(VALID[name].encode(), rng))
        try:
            READERS[name](path)
        except InputError as error:
            messages.append(str(error))
    assert time.process_time() - began < 5
    assert len(messages) > 40
    assert all(len(message) < 493 and message.isprintable() for message in messages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # KiB


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "loss": 1.5}', "step 3: event: expected a text, found None"),
        ('{"event": 7, "step": 3}', "step 3: event: expected a text, found 7"),
        (
            '{"event": "epoch", "step": 3, "train/loss": "2"}',
            "train/loss: expected a number, found",
        ),
        (
            '{"event": "epoch", "step": 3, "seconds": null}',
            "seconds: expected a number, found None",
        ),
        ('{"event": "epoch", "step": 3, "epoch": [1]}', r"epoch: expected a number, found \[1\]"),
        (
            '{"event": "epoch", "step": true}',
            "line 1: expected a record, a JSON object with a step",
        ),
        ("[" * 100_000, "line 1: expected a record, a JSON object with a step"),
    ],
)
def test_records_of_other_types(line: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / METRICS_FILE, line + "\n")
    with pytest.raises(InputError, match=f"metrics.jsonl: .*{message}.*; put back the file that"):
        epochs_of(tmp_path)
