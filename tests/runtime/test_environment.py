"""Test the limits of containers, with fake files of control groups."""

import os
import shutil
from pathlib import Path

import pytest

from nnbuild.runtime import environment
from nnbuild.runtime.cgroups import memory_left, memory_limit, processor_limit

V2 = "30 23 0:28 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {root} /sys/fs/cgroup/{names} rw shared:9 - cgroup cgroup rw,{names}"


def tree(root: Path, group: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A file system with the control groups of a process."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(group)
    (root / "proc" / "self" / "mountinfo").write_text(
        "\n".join(["1 0 8:1 / / rw - ext4 /dev/sda rw", *mounts, ""])
    )
    for name, content in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def unified(root: Path, files: dict[str, str], *, group: str = "/", mounted: str = "/") -> Path:
    return tree(root, f"0::{group}\n", [V2.format(root=mounted)], files)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", None),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("150000 100000\n", 2),
        ("200000 100000\n", 2),
        ("200001 100000\n", 3),
        ("400000 50000\n", 8),
        ("300000\n", 3),
        ("max\n", None),
        ("\n", None),
        ("0 100000\n", None),
        ("100000 0\n", None),
        ("many 100000\n", None),
        ("-1 100000\n", None),
        ("٣ 1\n", None),
    ],
)
def test_cpu_quota_v2_is_rounded_up(tmp_path, content, expected):
    assert processor_limit(unified(tmp_path, {"cpu.max": content})) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", None), ("250000", "100000", 3), ("10000", "100000", 1), ("", "", None)],
)
@pytest.mark.parametrize("names", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_cpu_quota_v1_is_rounded_up(tmp_path, names, quota, period, expected):
    files = {f"{names}/cpu.cfs_quota_us": quota, f"{names}/cpu.cfs_period_us": period}
    root = tree(tmp_path, f"4:{names}:/\n2:memory:/x\n", [V1.format(root="/", names=names)], files)
    assert processor_limit(root) == expected


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("400000", "150000", 2), ("150000", "400000", 2), ("max", "100000", 1), ("300000", "max", 3)],
)
def test_cpu_quota_of_parents_applies(tmp_path, outer, inner, expected):
    files = {
        "pod/cpu.max": f"{outer} 100000",
        "pod/app/cpu.max": f"{inner} 100000",
        "pod/other/cpu.max": "1 100000",
    }
    assert processor_limit(unified(tmp_path, files, group="/pod/app")) == expected


def test_group_is_found_below_its_mount(tmp_path):
    """Docker mounts the container's own group of version 1, named by its path on the host."""
    names, group = "cpu,cpuacct", "/docker/3f2a"
    files = {f"{names}/cpu.cfs_quota_us": "120000", f"{names}/cpu.cfs_period_us": "100000"}
    mounts = [V1.format(root=group, names=names)]
    assert processor_limit(tree(tmp_path, f"4:{names}:{group}\n", mounts, files)) == 2


def test_group_outside_mount_reads_mount(tmp_path):
    root = unified(tmp_path, {"cpu.max": "100000 100000"}, group="/../../elsewhere", mounted="/a")
    assert processor_limit(root) == 1


def test_mount_with_a_space_is_found(tmp_path):
    mount = r"30 23 0:28 / /sys/fs/my\040groups rw - cgroup2 cgroup2 rw"
    root = tree(tmp_path, "0::/\n", [mount], {"../my groups/cpu.max": "100000 100000"})
    assert processor_limit(root) == 1


@pytest.mark.parametrize("read", [processor_limit, memory_limit])
def test_no_control_groups_is_no_limit(tmp_path, read):
    assert read(tmp_path) is None
    assert read(tree(tmp_path, "garbage\n0\n", ["a b c", "- cgroup2", ""], {})) is None
    assert read(unified(tmp_path / "empty", {})) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max"}, None),
        ({"memory.max": "536870912\n"}, 536870912),
        ({"memory.max": "4096", "job/memory.max": "2048"}, 2048),
        ({"memory.max": "1024", "job/memory.max": "max"}, 1024),
    ],
)
def test_memory_limit_v2(tmp_path, files, expected):
    assert memory_limit(unified(tmp_path, files, group="/job")) == expected


@pytest.mark.parametrize(
    ("content", "expected"), [("9223372036854771712", None), ("1073741824", 1073741824)]
)
def test_memory_limit_v1(tmp_path, content, expected):
    files = {"memory/job/memory.limit_in_bytes": content}
    mounts = [V1.format(root="/", names="memory")]
    root = tree(tmp_path, "0::/\n3:memory:/job\n", mounts, files)
    assert memory_limit(root) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max", "memory.current": "900"}, None),
        ({"memory.max": "1000"}, 1000),
        ({"memory.max": "1000", "memory.current": "900"}, 100),
        ({"memory.max": "1000", "memory.current": "1200"}, 0),
        (
            {
                "memory.max": "1000",
                "memory.current": "900",
                "memory.stat": "anon 500\ninactive_file 300\nactive_file 7\n",
            },
            400,
        ),
        (
            {
                "memory.max": "1000",
                "memory.current": "900",
                "job/memory.max": "500",
                "job/memory.current": "50",
            },
            100,
        ),
    ],
)
def test_memory_left_v2(tmp_path, files, expected):
    assert memory_left(unified(tmp_path, files, group="/job")) == expected


def test_memory_left_v1(tmp_path):
    files = {
        "memory/job/memory.limit_in_bytes": "1000",
        "memory/job/memory.usage_in_bytes": "900",
        "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n",
    }
    mounts = [V1.format(root="/", names="memory")]
    assert memory_left(tree(tmp_path, "0::/\n3:memory:/job\n", mounts, files)) == 120


def test_processors_keeps_affinity_and_quota(tmp_path, monkeypatch):
    root = unified(tmp_path, {"cpu.max": "250000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert environment.processors(root) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert environment.processors(root) == 2
    assert environment.description()["processors"] == environment.processors()


def test_code_version_covers_every_module(tmp_path, monkeypatch):
    root = Path(environment.__file__).parents[1]
    copy = shutil.copytree(root, tmp_path / "nnbuild")
    monkeypatch.setattr(environment, "__file__", str(copy / "runtime" / "environment.py"))
    versions = set()
    for path in [copy / "errors.py", *copy.glob("*/__init__.py")]:
        environment.code_version.cache_clear()
        versions.add(environment.code_version())
        path.write_text(path.read_text() + "# changed\n")
    environment.code_version.cache_clear()
    versions.add(environment.code_version())
    environment.code_version.cache_clear()
    assert len(versions) == 2 + len(list(copy.glob("*/__init__.py")))
