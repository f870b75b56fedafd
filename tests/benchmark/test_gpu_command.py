"""The parts of `benchmark gpu`: each ends alone, whatever becomes of it, and the report is whole at any time."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from benchmark.planted import part
from rich.markdown import Markdown

from sparsevid.benchmark.candidates import open_run
from sparsevid.benchmark.gpu import parent, run
from sparsevid.benchmark.gpu.parts import CHECKOUT, PARTS, NotRun, Part, Row, Settings, in_checkout
from sparsevid.benchmark.gpu.report import FILES, HEADER_KEYS, ROW_KEYS, STATUSES, PartResult, Report, check_report
from sparsevid.benchmark.gpu.tests import outcomes
from sparsevid.cli import run_tool
from sparsevid.models.presets import build_spec

LONG = 3000.0  # seconds: nothing depends on how fast this machine is
WAYS = {
    "fine": ("passed", ""),
    "wrong": ("failed", "1 of 2 rows are not as they should be: bad, error"),
    "raises": ("failed", "MemoryError: no room for this"),
    "cannot": ("not run", "there is no such thing here"),
    "silent": ("failed", "it reported nothing"),
    "is_killed": ("killed", "its process was killed by SIGKILL, as where memory is short"),
    "crashes": ("killed", "its process was killed by SIGSEGV"),
    "leaves": ("failed", "its process ended with exit status 3"),
    "hides_a_number": ("failed", "ValueError: a row's value is a number, a word or None, got <object object"),
}
DAMAGES = {
    "rows is missing": lambda values: values.pop("rows"),
    "no such status": lambda values: values["parts"][0].update(status="good"),
    "an unknown key": lambda values: values["rows"][0].update(colour="red"),
    "a value that is none": lambda values: values["rows"][0].update(value=[1]),
    "a part that is not there": lambda values: values["rows"][0].update(part="other"),
    "no command": lambda values: values["header"].pop("command"),
    "another kind of thing": lambda values: values.update(parts={}),
}


def report_of(folder: Path, *parts: Part, budget: float = LONG) -> tuple[Report, dict]:
    """What parts make, and what is in the file, which has to fit the schema."""
    report = parent.run_parts(parts, folder, command="a command", budget=budget, device="cpu", tiny=True)
    values = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    check_report(values)
    return report, values


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, Report, dict]:
    """All that goes wrong without taking time, one after the other, and what does not at the end."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "gpu.log").write_text("of before")
    return folder, *report_of(folder, *map(part, [*list(WAYS)[1:], "fine"]))


@pytest.mark.parametrize("name", WAYS)
def test_a_part_ends_alone_and_the_report_says_how(planted, name):
    _, report, values = planted
    found = {each["part"]: each for each in values["parts"]}
    status, note = WAYS[name]
    assert found[name]["status"] == status and found[name]["note"].startswith(note)
    assert not report.passed and len(found) == len(WAYS)


def test_rows_of_before_the_end_are_kept(planted):
    _, _, values = planted
    rows = {(row["part"], row["case"], row["metric"]): row for row in values["rows"]}
    for name in ("raises", "is_killed", "crashes", "leaves"):
        assert rows[name, "before", "metric"]["value"] is not None
    assert list(rows["fine", "case", "metric"]) == list(ROW_KEYS)
    assert rows["fine", "case", "metric"] | {"value": 1.5, "unit": "ms", "ok": True} == rows["fine", "case", "metric"]
    assert rows["fine", "case", "not finite"]["value"] == "inf"  # JSON has no such number


def test_the_header_says_what_ran_where(planted):
    header = planted[2]["header"]
    assert (header["command"], header["asked_device"], header["tiny"]) == ("a command", "cpu", True)
    assert header["versions"].keys() >= {"torch", "deepspeed", "cuda"} and {"device", "commit", "date"} <= header.keys()


def test_files_are_few_and_say_the_same(planted):
    folder, report, values = planted
    assert {path.name for path in folder.iterdir()} <= set(FILES) and len(FILES) <= 8
    log = (folder / "gpu.log").read_text(encoding="utf-8")
    assert "of before" not in log and "said on the way" in log and "Traceback" in log and "===== crashes" in log
    text = (folder / "gpu.md").read_text(encoding="utf-8")
    tables = [token.type for token in Markdown(text).parsed].count("table_open")
    assert tables == 1 + len({row["part"] for row in values["rows"]})
    assert report.table() in text and "as it \\| should be" in text


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_report_of_another_schema_is_refused(planted, damage):
    values = json.loads(json.dumps(planted[2]))
    damage(values)
    with pytest.raises(ValueError, match=r"gpu\.json"):
        check_report(values)


def test_a_part_that_hangs_is_ended_with_what_it_started(tmp_path):
    _, values = report_of(tmp_path, part("hangs", 1.0), part("fine", 99.0), budget=400.0)
    hangs, fine = values["parts"]
    assert hangs["status"] == "out of time" and fine["status"] == "passed"
    for row in values["rows"]:
        assert row["metric"] != "pid" or gone(row["value"])


@pytest.mark.slow
def test_rows_of_a_part_that_hangs_are_kept(tmp_path):
    _, values = report_of(tmp_path, part("hangs"), budget=40.0)
    assert values["parts"][0]["status"] == "out of time"
    (row,) = values["rows"]
    assert gone(row["value"])


def test_a_part_whose_time_no_longer_fits_is_listed_as_not_run(tmp_path):
    _, values = report_of(tmp_path, part("fine", 1e9), budget=0.1)
    assert [values["rows"], values["parts"][0]["status"]] == [[], "not run"]
    assert values["parts"][0]["note"] == "0 s are left, it needs 200000000"


def test_time_is_shared_by_what_parts_take():
    parts = [part("fine", 10.0), part("raises", 30.0)]
    assert parent.share(parts, 80.0) == 20.0 and parent.share(parts[1:], 80.0) == 80.0
    assert parent.share(parts, 4.0) == 2.0  # the least that is of any use
    assert parent.share(parts, 1.9) is None


@pytest.mark.parametrize("left", [2.0, 1.0 / 3.0 * 10, 80.1, 2999.123456789])
def test_the_last_part_gets_all_that_is_left(left):
    assert parent.share([part("fine", 10.0)], left) == left


def test_a_signal_ends_what_runs_and_the_report_is_written(tmp_path):
    assert threading.current_thread() is threading.main_thread()  # which alone hears signals
    _, values = report_of(tmp_path, part("stops_the_parent"), part("fine"))
    assert [each["status"] for each in values["parts"]] == ["stopped", "not run"]
    assert [each["note"] for each in values["parts"]] == ["by SIGTERM", "stopped by SIGTERM before"]


@pytest.mark.slow
def test_parts_end_with_a_parent_that_is_killed(tmp_path):
    code = """
import sys
from pathlib import Path
from benchmark.planted import part
from sparsevid.benchmark.gpu.parent import run_parts
if __name__ == "__main__":
    run_parts([part("kills_the_parent")], Path(sys.argv[1]), command="", budget=600, device="cpu", tiny=True)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    paths = os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT)])
    done = subprocess.run([sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": paths}, timeout=500)
    assert done.returncode == -9
    values = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    check_report(values)  # whole, as far as it came
    assert [row for row in values["rows"] if not gone(row["value"])] == []


def gone(pid: int, patience: float = 60.0) -> bool:
    """Whether a process ends."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/stat")
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def modules_after(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_parent_waits_for_no_pytorch():
    assert not modules_after("import sparsevid.benchmark.gpu.parent") & {"torch", "numpy"}


@pytest.mark.slow
def test_what_the_forkserver_imports_asks_for_no_gpu():
    """A process that came out of one that did could use none."""
    asked = "import torch; asked = []; "
    for name in ("is_available", "device_count", "init", "_lazy_init", "get_device_properties", "current_device"):
        asked += f"torch.cuda.{name} = lambda *each, name={name!r}: asked.append(name) or 0; "
    imports = "; ".join(f"import {name}" for name in parent.PRELOADED)
    assert "deepspeed" not in modules_after(f"{asked}{imports}; assert not asked, asked")


TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.skipif({skip}, reason="no GPU")
def test_one():
    assert {good}
"""


@pytest.mark.parametrize(
    ("skip", "marker", "reason"), [(True, "gpu", "1 skipped, none run"), (False, "other", "0 skipped, none run")]
)
def test_tests_that_were_all_skipped_or_deselected_were_not_run(tmp_path, skip, marker, reason):
    (tmp_path / "test_it.py").write_text(TESTS.format(skip=skip, good=True))
    with pytest.raises(NotRun, match=reason):
        list(outcomes(tmp_path, ("-m", marker, ".")))


@pytest.mark.parametrize("good", [True, False])
def test_outcomes_of_tests_are_rows(tmp_path, good):
    (tmp_path / "test_it.py").write_text(TESTS.format(skip=False, good=good))
    one, both = outcomes(tmp_path, ("-m", "gpu", "."))
    assert (one.case, one.value, one.ok) == ("test_it.py::test_one", "passed" if good else "failed", good)
    assert (both.metric, both.value, both.ok) == ("exit status", int(not good), good)


@pytest.mark.parametrize("overrides", [run.LARGER, run.TINY])
def test_the_larger_run_is_a_run(overrides, tmp_path):
    settings = Settings("", "cpu", True, tmp_path, tmp_path, time.monotonic() + LONG)
    larger = run.Run(settings, run.WHOLE, "larger", *overrides)
    spec = open_run(larger.arguments[0], larger.arguments[1:]).spec
    assert larger.config.train.steps == (150 if overrides is run.LARGER else 60)
    if overrides is run.LARGER:
        expected = build_spec("SparseLatte-S/2")
        assert (spec.layout, spec.hidden_size, spec.patch_size) == (expected.layout, expected.hidden_size, expected.patch_size)


@pytest.mark.parametrize("path", [run.WHOLE, run.STOPPED])
def test_configs_say_the_loss_that_runs_are_to_have(path):
    assert run.EXPECTED.search(in_checkout(path).read_text(encoding="utf-8"))[3] == "200"


def test_the_guide_names_every_part_status_and_key():
    """Parts with their seconds, in order."""
    text = (CHECKOUT / "docs" / "gpu.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert listed == [(each.name, str(int(each.seconds))) for each in PARTS]
    said = set(re.findall(r"`([^`\n]+)`", text))
    assert said >= {*STATUSES, *ROW_KEYS, *HEADER_KEYS, *(each.name for each in fields(PartResult))}


def test_a_missing_checkout_is_a_reason_not_to_run():
    with pytest.raises(NotRun, match=r"needs tests/nothing of a source checkout"):
        in_checkout("tests/nothing")


def test_the_command_and_two_parts(tmp_path, capsys):
    arguments = ["gpu", "--out", str(tmp_path), "--device", "cpu", "--tiny", "--budget", str(LONG)]
    assert run_tool("benchmark", [*arguments, "--parts", "attention", "environment"]) == 0
    printed = capsys.readouterr().out
    assert "| environment | passed |" in printed and "| attention | passed |" in printed
    values = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    check_report(values)
    assert [each["part"] for each in values["parts"]] == ["environment", "attention"]  # in the table's order
    assert {row["part"] for row in values["rows"]} == {"environment", "attention"}
    assert "--parts attention environment" in values["header"]["command"]


def test_a_gpu_that_is_not_there_fails_the_command(tmp_path, capsys):
    assert run_tool("benchmark", ["gpu", "--out", str(tmp_path), "--parts", "environment", "--budget", str(LONG)]) == 1
    assert "| environment | failed |" in (printed := capsys.readouterr().out) and "no device 'cuda'" in printed


@pytest.mark.slow
def test_all_parts_pass_on_a_cpu(tmp_path, capsys):
    arguments = ["gpu", "--out", str(tmp_path), "--device", "cpu", "--tiny", "--budget", str(LONG)]
    assert run_tool("benchmark", arguments) == 0, capsys.readouterr().out
    values = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    check_report(values)
    assert [(each["part"], each["status"]) for each in values["parts"]] == [(each.name, "passed") for each in PARTS]
    files = list(tmp_path.iterdir())
    assert {path.name for path in files} == set(FILES) and all(path.stat().st_size < 2**24 for path in files)


def test_values_that_are_none_are_refused():
    with pytest.raises(ValueError, match="a number, a word or None"):
        Row("case", "metric", [1])
    assert replace(Row("case", "metric", float("nan")), note="x").value == "nan"
