"""Processes: the same results as of one, and nothing is lost when some of them die."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import SimpleITK as sitk
from conftest import run_cohort, tiny_ct, tiny_pet, write_patient
from strange_sources import Stored

from hmvnet.cluster import DIED, Workers, _outcome_of, device_of
from hmvnet.cohort import Order, Outcome, predict_cohort
from hmvnet.exits import Exit, RefusedError
from hmvnet.pipeline import load_pipeline
from hmvnet.reading.dicom import Scan
from hmvnet.reading.series import Series
from hmvnet.writing.cohort import write_cohort, write_failures

distributed = pytest.importorskip("distributed", reason="the extra 'cluster'")
from distributed import KilledWorker  # noqa: E402
from distributed.client import FutureCancelledError  # noqa: E402

TROUBLES = {"b": "broken", "d": "once", "f": "always"}


def images(folder: Path) -> Path:
    folder.mkdir()
    sitk.WriteImage(tiny_ct(), str(folder / "ct.nii.gz"))
    sitk.WriteImage(tiny_pet(), str(folder / "pet.nii.gz"))
    return folder


def report(folder: Path) -> dict:
    """A patient's, without what is of the moment."""
    found = json.loads((folder / "report.json").read_text())
    return {key: value for key, value in found.items() if key not in ("time", "seconds")}


def tables(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in ("cohort.csv", "failures.csv")]


@pytest.fixture(scope="module")
def of_two(tiny_bundle, tmp_path_factory):
    """Eight patients, one of them broken, one that costs a process, one that costs each."""
    data, output = images(tmp_path_factory.mktemp("a") / "data"), tmp_path_factory.mktemp("out")
    sources = [Stored(name, data, TROUBLES.get(name, "")) for name in "abcdefgh"]
    told = []
    result = predict_cohort(
        sources,
        Workers(str(tiny_bundle), "cpu", count=2),
        Order(output, picture=False),
        on_outcome=told.append,
    )
    return data, output, result, told


def test_processes_that_die_lose_nothing(of_two):
    data, output, result, told = of_two
    assert result.done == list("acdegh") and sorted(one.patient_id for one in told) == list(
        "abcdefgh"
    )
    assert result.refused == {"b": "no image"} and result.failed == {"f": DIED}
    assert list(result.failures) == ["b", "f"] and result.code == Exit.FAULT
    assert len(list(data.glob("d.*"))) >= 2 and len(list(data.glob("f.*"))) >= 3
    assert not list(output.rglob(".*")) and not (output / "f").exists()


def test_processes_give_the_results_of_one(of_two, tiny_bundle, tmp_path):
    data, output, result, _ = of_two
    sources = [Stored(name, data, "broken" if name == "b" else "") for name in "abcdegh"]
    alone = run_cohort(sources, load_pipeline(tiny_bundle, "cpu"), tmp_path, picture=False)
    for name in alone.done:
        assert report(tmp_path / name) == report(output / name)
        for file in ("mask.nii.gz", "lesions.csv"):
            assert (tmp_path / name / file).read_bytes() == (output / name / file).read_bytes()
    write_failures({**alone.failures, "f": DIED}, tmp_path)
    write_failures(result.failures, output)
    write_cohort(tmp_path)
    write_cohort(output)
    assert tables(tmp_path) == tables(output)


def test_a_scheduler_that_is_there_going_on_and_what_it_must_share(
    of_two, tiny_bundle, tmp_path, monkeypatch
):
    """Its worker is a thread of this process: what differs is who starts it."""
    data, output, *_ = of_two
    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address=None, protocol="inproc"
    ) as cluster:
        crew = Workers(str(tiny_bundle), "cpu", scheduler=cluster.scheduler_address)
        sources = [Stored(name, data) for name in "ac"]
        again = predict_cohort(sources, crew, Order(output, picture=False), existing="skip")
        assert again.skipped == ["a", "c"]
        result = predict_cohort(sources, crew, Order(tmp_path / "new", picture=False))
        assert result.done == ["a", "c"] and not list(tmp_path.rglob(".*"))
        monkeypatch.setattr(
            "hmvnet.cluster.shared_token", lambda folder: nullcontext(folder / "unseen")
        )
        with pytest.raises(RefusedError, match=r"does not see .* on storage that all machines"):
            predict_cohort(sources, crew, Order(tmp_path / "other", picture=False))
        monkeypatch.undo()
        other = Workers(None, "cpu", scheduler=cluster.scheduler_address)
        other.recipe = replace(other.recipe, weights=str(tiny_bundle))
        with pytest.raises(RefusedError, match="another bundle or another version"):
            predict_cohort(sources, other, Order(tmp_path / "third", picture=False))


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (None, "done"),
        (KilledWorker("x", None, 3), None),
        (ModuleNotFoundError("no hmvnet there"), "failed"),
    ],
)
def test_what_became_of_a_patient(error, found):
    def result():
        if error:
            raise error
        return Outcome("a", "done")

    outcome = _outcome_of(SimpleNamespace(result=result), Stored("a", Path()))
    assert (outcome and outcome.status) == found
    if found == "failed":
        assert outcome.why == "ModuleNotFoundError: no hmvnet there"


def test_a_scheduler_that_is_gone_is_one_line():
    def result():
        raise FutureCancelledError("x", "scheduler-connection-lost")

    with pytest.raises(OSError, match="the Dask scheduler is gone; --continue goes on"):
        _outcome_of(SimpleNamespace(result=result), Stored("a", Path()))


def test_no_scheduler_is_refused(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("hmvnet.cluster.CONNECT_S", 1)
    crew = Workers(str(tiny_bundle), scheduler="tcp://127.0.0.1:9")
    with pytest.raises(RefusedError, match=r"127\.0\.0\.1:9: no Dask scheduler answers"):
        predict_cohort([Stored("a", tmp_path)], crew, Order(tmp_path))
    crew = Workers(str(tiny_bundle), scheduler="nonsense://x")
    with pytest.raises(RefusedError, match="no Dask scheduler answers"):
        predict_cohort([Stored("a", tmp_path)], crew, Order(tmp_path))


def test_a_scan_is_handed_over_without_its_unpacked_zip():
    scan = Scan("a", Series("1", "CT", "1", ()), Series("2", "PT", "2", ()), keeps=open)
    assert pickle.loads(pickle.dumps(scan)) == Scan("a", scan.ct, scan.pet)  # noqa: S301


def test_workers_take_the_gpus_in_turn():
    assert [device_of("auto", str(i), 2) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("cuda:1", "0", 4) == "cuda:1" and device_of("auto", "0", 1) == "auto"
    assert device_of("auto", "SLURMCluster-1", 4) == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_leaves_no_process_and_nothing_half_written(number, tiny_bundle, tmp_path):
    """Ctrl-C reaches the whole group, as a terminal sends it."""
    for i in range(12):
        write_patient(tmp_path / "data", f"A-{i:02d}", "plain")
    words = ["predict", tmp_path / "data", "-o", tmp_path / "out", "--weights", tiny_bundle]
    command = [sys.executable, "-m", "hmvnet.cli", *map(str, words), "--workers", "2"]
    # A shell that runs the tests in the background lets them ignore Ctrl-C.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out").glob("*/report.json")):
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert "Traceback" not in said, said
        assert not list((tmp_path / "out").rglob(".part*"))
    assert len(list((tmp_path / "out").glob("*/report.json"))) < 12
    done = subprocess.run([*command, "--continue"], capture_output=True, text=True)
    assert done.returncode == 0 and len(list((tmp_path / "out").glob("*/report.json"))) == 12
