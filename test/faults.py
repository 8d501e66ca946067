"""Faults on purpose: killed processes, full disks, several at once, short memory. ``make faults``.

Whatever happens, a command ends with its results whole or absent, and the same command completes
them. Each fault is put into a command on tiny patients in a process of its own, forked from this
one, which has everything imported; what it leaves is compared with what the undisturbed command
makes. The table at the end says how often that went wrong, which is to be never.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "model"), str(ROOT / "test")]
for name in ("OMP_NUM_THREADS", "BLOSC_NTHREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[name] = "1"  # threads do not come along when a process is forked

import blosc2  # noqa: E402
import matplotlib.image  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from conftest import (  # noqa: E402
    COARSE,
    FAST_PROGNOSIS,
    short_training,
    tensors_of,
    write_input,
    write_patient,
    write_tiny_bundle,
)

from hmvnet import cli, container  # noqa: E402
from hmvnet.bundle import MANIFEST, WeightsError, fingerprint, load_bundle, write_bundle  # noqa: E402
from hmvnet.config import DataSettings  # noqa: E402
from hmvnet.experiments import (  # noqa: E402, F401
    compare_networks,
    compare_survival,
    evaluate,
    evaluate_survival,
    tune,
)
from hmvnet.files import clear_leftovers, is_leftover  # noqa: E402
from hmvnet.reading.folder import find_patients  # noqa: E402
from hmvnet.reading.images import read_image  # noqa: E402
from hmvnet.settings_file import settings_xml  # noqa: E402
from hmvnet.training import pictures, survival_bundle  # noqa: E402, F401
from hmvnet.training.cache import Cache  # noqa: E402
from hmvnet.writing.pictures import draw_prediction  # noqa: E402, F401

torch.set_num_threads(1)

PATIENTS, DESCRIBED = 3, 20
PATIENCE_S = 600.0
GIB = 2**30


# --- what a command makes, and whether it is whole -----------------------------------------------


def _image(path: Path) -> object:
    image, _ = read_image(path)
    return sitk.GetArrayFromImage(image), np.array([*image.GetSpacing(), *image.GetOrigin()])


def _json(path: Path) -> object:
    """Without times, which differ from run to run."""
    read = json.loads(path.read_text())
    if isinstance(read, dict):
        for key in ("time", "seconds", "content", "cost"):
            read.pop(key, None)
        for key in ("minutes", "minutes_a_fold"):
            read.get("trained_on", {}).pop(key, None)
    return json.dumps(read, sort_keys=True)


def _checkpoint(path: Path) -> object:
    state = torch.load(path, weights_only=True)
    return tuple(np.asarray(value) for value in state["average"].values())


def _npz(path: Path) -> object:
    with np.load(path) as stored:
        return tuple(stored[name] for name in stored.files)


READERS: Mapping[str, Callable[[Path], object]] = {
    ".gz": _image,
    ".mha": _image,
    ".json": _json,
    ".pt": _checkpoint,
    ".npz": _npz,
    ".png": matplotlib.image.imread,
    ".b2nd": lambda path: blosc2.open(str(path), mode="r")[:],
    ".csv": lambda path: path.read_bytes(),
    ".safetensors": lambda path: path.read_bytes(),
}
TIMED = ("segmentation.md", "segmentation.csv")  # they say how long it took
GROWING = (".pt", "losses.csv", "validations.csv", "cohort.csv", "index.html")  # under way


def files_in(folder: Path) -> list[Path]:
    """Results and state, relative; not logs, locks and what is not written to its end."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path
        for path in found
        if path.suffix not in (".lock", "")
        and not path.name.startswith("events.")
        and not any(is_leftover(Path(part)) for part in path.parts)
        and path.name != ".lock"
    )


def equal(one: object, other: object) -> bool:
    """Of what READERS give, to the bit."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        kinds = "fc"
        nan = np.asarray(one).dtype.kind in kinds and np.asarray(other).dtype.kind in kinds
        return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=nan)
    return bool(one == other)


def damaged(folder: Path, reference: Path, finished: bool, exact: bool = True) -> Iterator[str]:
    """What is not as the undisturbed command made it.

    Args:
        finished: all of it has to be there; else what is there has to be whole.
        exact: to the bit; else it has to be readable.
    """
    present, expected = files_in(folder), files_in(reference)
    if finished and present != expected:
        yield f"missing {set(expected) - set(present)}, too many {set(present) - set(expected)}"
    for path in present:
        if path.name in TIMED or path not in expected:
            continue
        try:
            read = READERS.get(path.suffix, Path.read_bytes)(folder / path)
        except Exception as error:
            yield f"{path}: {type(error).__name__}: {error}"
            continue
        if not finished and str(path).endswith(GROWING):
            continue
        if not finished and path.name == MANIFEST:  # whole, though perhaps not yet with all files
            yield from _damaged_bundle((folder / path).parent)
            continue
        if exact and not equal(read, READERS.get(path.suffix, Path.read_bytes)(reference / path)):
            yield f"{path}: not as undisturbed"


def _damaged_bundle(folder: Path) -> Iterator[str]:
    try:
        bundle = load_bundle(folder)
        for name in bundle.manifest.files:
            bundle.read(name)
    except WeightsError as error:
        yield f"{folder}: {error}"


def leftovers(folder: Path) -> Iterator[str]:
    """What is written to no end."""
    for path in folder.rglob("*"):
        if is_leftover(path):
            yield f"left behind: {path.relative_to(folder)}"


# --- a command in a process of its own -----------------------------------------------------------


@dataclass
class Child:
    """A forked process that works, and what it says on standard error."""

    work: Callable[[], object]
    prepare: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.said, end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _be_child(end, self.work, self.prepare)
        os.close(end)

    def end(self, after_s: float = PATIENCE_S, by: int = signal.SIGKILL) -> tuple[int, str]:
        """The exit code (that of a signal negative) and standard error.

        Args:
            after_s: when to send the signal, if it still runs.
        """
        timer = threading.Timer(
            max(0.0, after_s - time.monotonic() + self.began), os.kill, (self.pid, by)
        )
        timer.start()
        with os.fdopen(self.said, errors="replace") as said:
            text = said.read()
        # Not yet collected: the timer cannot meet another process of this number.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        timer.cancel()
        timer.join()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), text


def _be_child(said: int, work: Callable[[], object], prepare: Callable[[], object]) -> None:
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        prepare()
        code = int(work() or 0)  # type: ignore[call-overload]
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _alone(work: Callable[[], object]) -> None:
    """Done in a process of its own, so that no thread of it is here when others are forked."""
    code, said = Child(work).end()
    assert code == 0, said


# --- the commands --------------------------------------------------------------------------------


@dataclass
class Command:
    """A command that writes into a folder.

    Attributes:
        words: its arguments, given the folder.
        before: puts into the folder what the command finds there.
    """

    name: str
    words: Callable[[Path], Sequence[object]]
    main: Callable[[list[str]], object] = cli.main
    before: Callable[[Path], object] = lambda folder: None

    def start(self, folder: Path, prepare: Callable[[], object] = lambda: None) -> Child:
        """In a process of its own."""
        words = [str(word) for word in self.words(folder)]
        return Child(lambda: self.main(words), prepare)


class Workshop:
    """Inputs, commands, and what the undisturbed commands make of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = root / "bundle" / "tiny"
        self.references: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        self._count = 0
        _alone(self._make)

    def _make(self) -> None:
        write_tiny_bundle(self.root / "bundle")
        write_input(self.root / "input")
        for number in range(PATIENTS):
            write_patient(self.root / "data", f"A-{number}", "plain")
        self._write_settings("data", folds=PATIENTS)

    def _make_survival(self) -> None:
        rows = []
        for number in range(DESCRIBED):
            write_patient(self.root / "survival", f"A-{number}", "plain")
            row = {"PatientID": f"A-{number}", "Age": 50 + number, "Gender": number % 2}
            rows.append(row | {"RFS": 100 + 37 * number, "Relapse": int(number % 3 > 0)})
        pd.DataFrame(rows).to_csv(self.root / "survival" / "table.csv", index=False)
        self._write_settings("survival", folds=2, cache=str(self.root / "described"))
        bundle = load_bundle(self.bundle)
        prognosis = bundle.manifest.prognosis.model_copy(update={"seen": [fingerprint("B")]})
        manifest = bundle.manifest.model_copy(update={"prognosis": prognosis})
        write_bundle(self.root / "fitted", manifest, tensors_of(bundle))

    def _write_settings(self, name: str, **data: object) -> None:
        settings = short_training(steps=4, checkpoint_every=1, validate_every=4).model_copy(
            update={
                "data": DataSettings(root=str(self.root / name), **data),
                "prognosis": FAST_PROGNOSIS,
            }
        )
        (self.root / f"{name}.xml").write_text(settings_xml(settings))

    @property
    def commands(self) -> dict[str, Command]:
        """By name; the first ones are those that are killed."""
        weights = ("--weights", self.bundle)
        config, survival = (("--config", self.root / f"{n}.xml") for n in ("data", "survival"))
        inputs = ("--input", self.root / "input", *weights, "--device", "cpu")
        scans = ("predict", self.root / "data", *weights)
        found = [
            Command("process.py", lambda f: [*inputs, "--output", f], container.main),
            Command("predict", lambda f: [*scans, "-o", f, "--continue"]),
            Command(
                "predict --force",
                lambda f: [*scans, "-o", f, "--force"],
                before=lambda f: shutil.copytree(self.reference("predict"), f, dirs_exist_ok=True),
            ),
            Command(
                "segmentation train",
                lambda f: ["segmentation", "train", *config, "--run", f, "--fold", 0],
            ),
            Command(
                "segmentation eval",
                lambda f: ["segmentation", "eval", *config, *weights, "--run", f],
            ),
            Command(
                "segmentation tune",
                lambda f: ["segmentation", "tune", *config, *weights, "--run", f],
            ),
            Command(
                "segmentation compare",
                lambda f: (
                    ["segmentation", "compare", *config, "--run", f, "--fold", 0]
                    + ["--network", "unet3d width=4"]
                ),
            ),
            Command(
                "survival train",
                lambda f: ["survival", "train", *survival, *weights, "--run", f],
            ),
            Command(
                "survival eval",
                lambda f: (
                    ["survival", "eval", *survival, "--weights", self.root / "fitted"]
                    + ["--run", f]
                ),
            ),
            Command(
                "survival compare",
                lambda f: (
                    ["survival", "compare", *survival, *weights, "--run", f]
                    + ["--model", "icare", "--model", "coxph", "--repeats", "1"]
                ),
            ),
            Command("phantom", lambda f: ["phantom", f, "--count", 1]),
            Command(
                "export",
                lambda f: ["export", "--weights", f, "--size", "32,32,32"],
                before=lambda f: shutil.copytree(self.bundle, f, dirs_exist_ok=True),
            ),
        ]
        return {command.name: command for command in found}

    def reference(self, name: str) -> Path:
        """The folder of the undisturbed command, which is run when it is first asked for."""
        if name.startswith("survival") and not (self.root / "survival").is_dir():
            _alone(self._make_survival)
        if name not in self.references:
            command, folder = self.commands[name], self.folder()
            command.before(folder)
            child = command.start(folder)
            code, said = child.end()
            assert code == 0, f"{name} ends with {code}: {said}"
            self.seconds[name] = time.monotonic() - child.began
            self.references[name] = folder
        return self.references[name]

    def folder(self) -> Path:
        """A new one."""
        self._count += 1
        folder = self.root / "work" / str(self._count) / "run"  # whose name bundles bear
        folder.mkdir(parents=True)
        return folder


# --- the faults ----------------------------------------------------------------------------------


@dataclass
class Tally:
    """How a kind of fault went."""

    kind: str
    runs: int = 0
    succeeded: int = 0
    clean: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, ended_well: bool, problems: Sequence[str], where: str) -> None:
        """One run: it succeeded all the same, or ended cleanly, or something is wrong."""
        self.runs += 1
        if problems:
            self.wrong.append(f"{self.kind}, {where}: {'; '.join(problems)}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)
        elif ended_well:
            self.succeeded += 1
        else:
            self.clean += 1


def unclear(code: int, said: str) -> Iterator[str]:
    """What is not as a failure should be: a code, one line, no traceback."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    tried = any(line.startswith("error: output folder") for line in lines)  # before the work
    if code not in ((2,) if tried else (1, 3)):
        yield f"exit code {code}: {said[-300:]!r}"
    if "Traceback" in said or "Exception ignored" in said or not lines:
        yield f"no clear line: {said[-1500:]!r}"


def completed(command: Command, folder: Path, reference: Path) -> Iterator[str]:
    """Problems of the same command after a fault, and of what it leaves."""
    code, said = command.start(folder).end()
    if code:
        yield f"then ends with {code}: {said[-300:]!r}"
    problems = [*damaged(folder, reference, finished=True)]
    yield from problems
    if problems and not code:
        yield f"though it ended well: {said[-300:]!r}"
    yield from leftovers(folder)


def killed(shop: Workshop, name: str, by: int, count: int, rng: np.random.Generator) -> Tally:
    """At random moments, several times in a row on one folder; then it completes."""
    command, reference = shop.commands[name], shop.reference(name)
    tally = Tally(f"{name}, {signal.Signals(by).name}")
    folder = shop.folder()
    command.before(folder)
    for number in range(count):
        moment = rng.uniform(0.0, 1.1 * shop.seconds[name])
        code, said = command.start(folder).end(moment, by)
        ends = (0, 143, -signal.SIGTERM) if by == signal.SIGTERM else (0, -signal.SIGKILL)
        problems = [] if code in ends else [f"exit code {code}: {said[-1500:]!r}"]
        if by == signal.SIGTERM:
            problems += leftovers(folder)
            problems += ["a traceback"] if "Traceback" in said else []
        problems += damaged(folder, reference, finished=code == 0)
        problems += [f"said {said[-300:]!r}"] if problems else []
        if name == "predict --force":  # the last good state is there, if only moved away
            clear_leftovers(folder)
            lost = [f"A-{i} is lost" for i in range(PATIENTS) if not (folder / f"A-{i}").is_dir()]
            problems += lost
        if code == 0 or number == count - 1 or rng.random() < 0.4:
            problems += completed(command, folder, reference)
            shutil.rmtree(folder)
            folder = shop.folder()
            command.before(folder)
        tally.add(code == 0, problems, f"after {moment:.2f} s")
    return tally


def full_disk(shop: Workshop, name: str, most: int, rng: np.random.Generator) -> Tally:
    """Files of at most so many bytes, for sizes at which each kind of file is the one that fails.

    To every library a write beyond the limit is what it is on a full disk.
    """
    sizes = {p.stat().st_size for p in shop.reference(name).rglob("*") if p.is_file()}
    limits = sorted({0, 100, *(max(0, size - 1) for size in sizes)})
    if len(limits) > most:
        limits = sorted(rng.choice(limits, most, replace=False).tolist())
    tally = Tally(f"{name}, files cut")
    for limit in limits:
        _fault(shop, name, tally, lambda: _limit_files(limit), f"at {limit} bytes")  # noqa: B023
    return tally


def _limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def failing_calls(shop: Workshop, name: str, most: int, rng: np.random.Generator) -> Tally:
    """From its n-th file or folder on, the command can neither make nor rename one."""
    tally = Tally(f"{name}, no more files")
    for number in sorted({1, 2, 3, *(rng.integers(4, 60, max(0, most - 3)).tolist())})[:most]:
        code = (errno.ENOSPC, errno.EROFS)[number % 2]
        place = f"{errno.errorcode[code]} at {number}"
        _fault(shop, name, tally, lambda: _fail_from(number, code, shop.root), place)  # noqa: B023
    return tally


def _fail_from(number: int, code: int, root: Path) -> None:
    seen = 0

    def hook(event: str, given: tuple) -> None:
        nonlocal seen
        if event == "open":
            writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in ("os.mkdir", "os.rename", "os.link")
        if writes and str(given[0]).startswith(str(root)):
            seen += 1
            if seen >= number:
                raise OSError(code, os.strerror(code), str(given[0]))

    sys.addaudithook(hook)


def _fault(
    shop: Workshop, name: str, tally: Tally, prepare: Callable[[], object], where: str
) -> None:
    command, reference = shop.commands[name], shop.reference(name)
    folder = shop.folder()
    command.before(folder)
    code, said = command.start(folder, prepare).end()
    problems = [] if code == 0 else list(unclear(code, said))
    problems += damaged(folder, reference, finished=False)
    problems += leftovers(folder)
    problems += completed(command, folder, reference)
    shutil.rmtree(folder)
    tally.add(code == 0, problems, where)


def several(shop: Workshop, minutes: float, rng: np.random.Generator) -> Tally:
    """Eight processes at once on one cache and one output folder, some of them killed."""
    tally = Tally("eight at once")
    predict, data = shop.commands["predict"], find_patients(shop.root / "data")
    reference = shop.reference("predict")
    clean = Cache(shop.folder(), COARSE, "centre")
    _alone(lambda: [clean.get(patient) for patient in data] and 0)
    began = _cpu_seconds()
    while _cpu_seconds() - began < 60 * minutes:
        folder = shop.folder()

        def use_cache(folder=folder) -> int:
            cache = Cache(folder / "cache", COARSE, "centre")
            for patient in data:
                found, expected = cache.get(patient), clean.get(patient)
                same = equal(found.volume[:], expected.volume[:])
                if not same or not equal(found.label[:], expected.label[:]):
                    return 98
            return 0

        children = [Child(use_cache) for _ in range(4)]
        children += [predict.start(folder / "out") for _ in range(4)]
        fates = rng.choice([0.3, 1.0, PATIENCE_S, PATIENCE_S], 8) * rng.uniform(0.2, 1.5, 8)
        ends = [child.end(max(fate, 0.05)) for child, fate in zip(children, fates)]
        for number, (code, said) in enumerate(ends):
            # 3: the picture's folder was replaced by who came later, whose picture is there.
            right = (0, 3, -signal.SIGKILL) if number >= 4 else (0, -signal.SIGKILL)
            problems = [] if code in right else [f"exit code {code}: {said[-1500:]!r}"]
            if number == 7:
                problems += completed(predict, folder / "out", reference)
                code_, said_ = Child(use_cache).end()
                problems += [f"cache {code_}: {said_}"] if code_ else []
            tally.add(code == 0, problems, f"process {number} of 8")
        shutil.rmtree(folder)
    return tally


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def short_memory(shop: Workshop, gib: Sequence[float]) -> Tally:
    """The container on a sample case and the shipped weights, with so much memory and no more."""
    tally = Tally("process.py, memory")
    case = ROOT / "test" / "cases" / "phantom-1"
    for limit in [max(gib), *(g for g in gib if g != max(gib))]:
        output = shop.folder()
        command = [sys.executable, str(ROOT / "process.py"), "--input", str(case / "input")]
        command += ["--output", str(output), "--weights", str(ROOT / "weights" / "hmvnet-base")]
        done = subprocess.run(
            [*command, "--device", "cpu"],
            capture_output=True,
            text=True,
            preexec_fn=lambda: _limit_memory(limit),  # noqa: B023
        )
        problems = []
        if done.returncode:
            problems += list(unclear(done.returncode, done.stderr))
            problems += [f"output {path}" for path in files_in(output)]
        elif "phantom-1" not in shop.references:
            shop.references["phantom-1"] = output
        else:  # in windows, where it says that one pass did not fit, the mask is another
            exact = "did not fit into memory" not in done.stdout + done.stderr
            problems += damaged(output, shop.references["phantom-1"], finished=True, exact=exact)
        print(f"{limit} GiB: exit code {done.returncode}", flush=True)
        tally.add(done.returncode == 0, [*problems, *leftovers(output)], f"{limit} GiB")
    return tally


def _limit_memory(gib: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * GIB), int(gib * GIB)))


# --- all of them ---------------------------------------------------------------------------------


def table(tallies: Sequence[Tally]) -> str:
    """In Markdown."""
    rows = [
        {
            "kind": tally.kind,
            "runs": tally.runs,
            "succeeded": tally.succeeded,
            "ended cleanly": tally.clean,
            "wrong": len(tally.wrong),
        }
        for tally in tallies
    ]
    return pd.DataFrame(rows).to_markdown(index=False)


def main() -> int:
    """Every kind of fault; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--minutes", type=float, default=10.0, help="of CPU, for eight at once")
    parser.add_argument("--disk", type=int, default=12, help="sizes or calls tried a command")
    parser.add_argument(
        "--memory", type=float, nargs="*", default=[1, 1.5, 2, 3, 4, 6, 8, 12, 16], help="GiB"
    )
    parser.add_argument("--commands", nargs="*", help="those alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    tallies: list[Tally] = []

    def note(tally: Tally) -> None:
        print(
            f"{time.monotonic() - began:7.1f} s  {tally.kind}: {tally.runs} runs, "
            f"{len(tally.wrong)} wrong",
            flush=True,
        )
        tallies.append(tally)

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        shop = Workshop(Path(folder))
        names = options.commands or list(shop.commands)
        victims = [name for name in list(shop.commands)[:4] if name in names]
        shares = [(name, by) for by in (signal.SIGKILL, signal.SIGTERM) for name in victims]
        for number, (name, by) in enumerate(shares):
            count = options.kills // len(shares) + (number < options.kills % len(shares))
            if count:
                note(killed(shop, name, by, count, rng))
        for name in names if options.disk else ():
            note(full_disk(shop, name, options.disk, rng))
            note(failing_calls(shop, name, options.disk, rng))
        if options.minutes:
            note(several(shop, options.minutes, rng))
        if options.memory:
            note(short_memory(shop, options.memory))
    print(f"\n{table(tallies)}")
    for tally in tallies:
        for wrong in tally.wrong:
            print(f"\n{wrong}")
    return int(any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
