from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from pyssl_fast import backend
from pyssl_fast.benchmark import machine
from pyssl_fast.cli import info, main


def _told() -> dict:
    result = CliRunner().invoke(info.info, ["--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_info_names_every_operator_and_its_backend() -> None:
    result = CliRunner().invoke(info.info, [])
    assert result.exit_code == 0, result.output
    for word in ("similarity", "contrast", "contrast_backward", torch.__version__, "reference"):
        assert word in result.output


def test_info_json_holds_what_auto_chooses() -> None:
    (similarity,) = [entry for entry in _told()["kernels"] if entry["family"] == "similarity"]
    assert {"contrast", "contrast_backward", "neighbours"} <= set(similarity["operators"])
    assert similarity["auto"]["cpu"] == backend.choose("similarity", torch.empty(1))
    for device, chosen in similarity["auto"].items():
        assert chosen not in similarity["cannot_run"][device]
        assert "reference" not in similarity["cannot_run"][device]


def test_info_says_auto_whatever_was_selected() -> None:
    with backend.use_backend("reference"):
        told = _told()
    assert told["backend"] == "reference"
    assert told["kernels"] == _told()["kernels"]


def test_info_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "extension", lambda name: None)
    told = _told()
    assert told["extensions"]["_cpu"] == {"built": False, "compiler": None, "openmp": None, "targets": None}
    assert told["machine"]["isas"] == []
    assert told["machine"]["isa"] is None
    result = CliRunner().invoke(info.info, [])
    assert result.exit_code == 0
    assert "not built" in result.output


def test_info_says_why_an_extension_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def extension(name: str) -> None:
        raise ImportError("instruction set 'mmx' is not usable on this machine")

    monkeypatch.setattr(machine, "extension", extension)
    result = CliRunner().invoke(info.info, [])
    assert result.exit_code == 1
    assert result.output == "Error: instruction set 'mmx' is not usable on this machine\n"


def test_info_tells_the_extension_it_has() -> None:
    from pyssl_fast import _cpu as cpu

    told = _told()
    assert told["extensions"]["_cpu"]["built"]
    assert told["machine"]["isas"] == cpu.isas()


def test_every_operator_is_listed() -> None:
    # All that is registered, seen from torch's side, in a process of its own.
    script = (
        "import json, torch, pyssl_fast.ops; from pyssl_fast.cli import info;"
        "registered = [name.partition('::')[2].partition('.')[0] for name in torch._C._dispatch_get_all_op_names()"
        " if name.startswith('pyssl_fast::')];"
        "listed = sum(info.operators.values(), []);"
        "assert sorted(listed) == sorted(registered), (listed, registered)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_machine_facts_are_json_and_named_as_documented() -> None:
    from pyssl_fast.benchmark import report

    facts = machine.facts()
    json.dumps(facts)
    assert facts.keys() == report.MACHINE.keys()
    assert facts["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("arguments", [["trai"], ["bench", "--mode", "x"], ["info", "--nonsense"]])
def test_wrong_words_are_one_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
