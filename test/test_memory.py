import psutil
import pytest

from hmvnet import memory
from hmvnet.memory import available_memory

MIB = 2**20


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A machine with 1 TiB left, whose control groups lie in a folder."""
    monkeypatch.setattr(memory, "MOUNTED", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBER", tmp_path / "member")
    monkeypatch.setattr(memory, "memory_limits", lambda: (float("inf"), float("inf")))
    left = psutil.virtual_memory()._replace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: left)
    return tmp_path


def group(folder, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def version2(folder, most: str, taken: int, cached: int = 0) -> None:
    stat = f"anon 5\ninactive_file {cached}\ntotal_inactive_file 99999999"
    group(folder, {"memory.max": most, "memory.current": str(taken), "memory.stat": stat})


def test_without_limits_it_is_the_machines(host):
    assert available_memory() == 2**40  # another system than Linux
    (host / "member").write_text("0::/\n")
    assert available_memory() == 2**40  # the topmost group has no limit
    version2(host / "cgroup", "max", 7)
    assert available_memory() == 2**40


def test_a_containers_limit_counts_less_what_is_in_use_but_for_files_content(host):
    (host / "member").write_text("0::/\n")
    version2(host / "cgroup", str(500 * MIB), 300 * MIB, 120 * MIB)
    assert available_memory() == 320 * MIB


def test_of_groups_within_groups_the_one_with_least_left_counts(host):
    """Slurm limits the job; the step's group below has none."""
    (host / "member").write_text("0::/slurm/job_1/step_0\n")
    version2(host / "cgroup" / "slurm" / "job_1" / "step_0", "max", 90 * MIB)
    version2(host / "cgroup" / "slurm" / "job_1", str(100 * MIB), 90 * MIB)
    version2(host / "cgroup" / "slurm", str(10_000 * MIB), 200 * MIB)
    assert available_memory() == 10 * MIB


def test_version_one_is_read_as_well(host):
    (host / "member").write_text("5:cpu,cpuacct:/\n4:memory:/docker/1\n0::/\n")
    group(
        host / "cgroup" / "memory",
        {
            "memory.limit_in_bytes": str(64 * MIB),
            "memory.usage_in_bytes": str(32 * MIB),
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {MIB}",
        },
    )
    assert available_memory() == 33 * MIB


def test_a_limit_of_the_process_counts_and_nothing_is_below_zero(host, monkeypatch):
    taken = psutil.Process().memory_info().vms
    monkeypatch.setattr(memory, "memory_limits", lambda: (taken + 2**36, 2**50))
    assert 2**35 < available_memory() < 2**37
    monkeypatch.setattr(memory, "memory_limits", lambda: (1, 2**50))
    assert available_memory() == 0
    # Of memory of its own, files that are mapped take nothing.
    usage = psutil.Process().memory_info()._replace(vms=2**45, data=2**30)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: usage)
    monkeypatch.setattr(memory, "memory_limits", lambda: (2**50, 3 * 2**30))
    assert available_memory() == 2 * 2**30
