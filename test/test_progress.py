import pytest

from hmvnet.progress import Lines, Remarks, show_progress, track


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Whatever the machine that runs the tests says about its terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def work(count: int, seconds_each: float, **options) -> Lines:
    """Lines of a work of so many pieces of so many seconds."""
    now = [0.0]
    lines = Lines("work", count, clock=lambda: now[0], **options)
    for _ in range(lines.done, count):
        now[0] += seconds_each
        lines.note("loss 0.5")
        lines.advance()
    lines.close()
    return lines


def test_plain_lines_off_a_terminal(capsys):
    assert list(track("abc", "segment [GTVp]")) == list("abc")
    with show_progress("train", 10, done=4) as progress:
        progress.note("loss 0.5000")
        progress.advance(6)
        progress.say("step 10: gtvp_mean_dice 0.7000")
    out, err = capsys.readouterr()
    assert not out
    assert "\x1b" not in err and "\r" not in err
    assert err.splitlines() == [
        "segment [GTVp]: 3/3 (100%), took 0:00:00",
        "step 10: gtvp_mean_dice 0.7000",
        "train: 10/10 (100%), loss 0.5000, took 0:00:00",
    ]


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with show_progress("train [fold 1]", 10) as progress:
        progress.note("loss [0.5]")
        progress.reach(10)
        progress.say("step 10: [figures]")
    out, err = capsys.readouterr()
    assert not out and "\x1b[" in err
    # Square brackets are text, not rich's markup.
    assert "train [fold 1]" in err and "loss [0.5]" in err and "10/10" in err


def test_quiet_is_silent(capsys):
    assert list(track([1, 2], "segment", quiet=True)) == [1, 2]
    with show_progress("train", 3, quiet=True) as progress:
        progress.note("loss")
        progress.advance()
        progress.say("figures")
    assert capsys.readouterr() == ("", "")


def test_fast_work_is_one_line(capsys):
    work(1000, 0.001)
    assert capsys.readouterr().err.splitlines() == [
        "work: 1000/1000 (100%), loss 0.5, took 0:00:01"
    ]


def test_a_line_every_five_percent(capsys):
    work(100, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "work: 5/100 (5%), loss 0.5, 0:03:10 left"
    assert lines[-1] == "work: 100/100 (100%), loss 0.5, took 0:03:20"


def test_slow_work_is_heard_of_every_half_minute(capsys):
    work(10_000, 10.0, done=9_990)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "work: 9993/10000 (99%)",
        "work: 9996/10000 (99%)",
        "work: 9999/10000 (99%)",
        "work: 10000/10000 (100%)",
    ]
    assert lines[0].endswith("0:01:10 left")  # at the pace of this call


def test_an_unknown_total_counts_on(capsys):
    assert list(track(iter("ab"), "read")) == ["a", "b"]
    assert capsys.readouterr().err == "read: 2, took 0:00:00\n"


def test_work_that_fails_says_how_far_it_came(capsys):
    with pytest.raises(ValueError), show_progress("train", 4) as progress:
        progress.advance()
        raise ValueError
    assert capsys.readouterr().err.startswith("train: 1/4 (25%), 0:00:0")


def test_what_is_said_of_many_patients_is_told_of_a_few_and_counted(capsys):
    remarks = Remarks()
    for name in "abcde":
        for _ in range(2):  # by two parts of a command
            remarks.tell(name, [f"{name}__CT.nii.gz: direction made orthonormal"])
    remarks.tell("b", ["x.y.mha: no\nposition", "PET image: negative"])
    told = capsys.readouterr().err.splitlines()
    assert told == [
        *(f"note: patient {name}: direction made orthonormal" for name in "abc"),
        "note: patient b: no position",
        "note: patient b: PET image: negative",
    ]
    assert remarks.summary() == [
        "note on 5 patients: direction made orthonormal",
        "note on 1 patient: no position",
        "note on 1 patient: PET image: negative",
    ]
    assert remarks.summary() == []
