"""Which cgroups are ours, as the kernel tells it on hosts of every kind, and which of them holds which limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from integrity.errors import PrivilegeError, SettingsError
from launcher.cgroups import CgroupTree, CgroupTrees
from launcher.controllers import Limits, OwnCgroup, own_cgroups, share

V1 = """\
12:pids:/system.slice/dagseal.service
5:cpu,cpuacct:/system.slice/dagseal.service
4:memory:/system.slice/dagseal.service
2:cpuset:/
1:name=systemd:/system.slice/dagseal.service
"""
V1_MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
33 31 0:30 / /sys/fs/cgroup/pids rw,nosuid shared:15 - cgroup cgroup rw,pids
34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:16 master:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpuset rw,nosuid - cgroup cgroup rw,cpuset
"""
ALL = Limits(memory_max_bytes=1 << 30, pids_max=100, cpu_percent=150)


def v2_mount(folder: Path, root: str = "/") -> str:
    return f"41 31 0:38 {root} {folder} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def v2(folder: Path, controllers: str) -> Path:
    """Our cgroup at `folder`, as far as it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers + "\n")
    return folder


def folders(found: list[OwnCgroup]) -> dict[str, str]:
    return {" ".join(sorted(own.controllers)): f"v{own.version} {own.folder}" for own in found}


def test_only_v1() -> None:
    assert folders(own_cgroups(V1, V1_MOUNTS)) == {
        "pids": "v1 /sys/fs/cgroup/pids/system.slice/dagseal.service",
        "cpu cpuacct": "v1 /sys/fs/cgroup/cpu,cpuacct/system.slice/dagseal.service",
        "memory": "v1 /sys/fs/cgroup/memory/system.slice/dagseal.service",
        "cpuset": "v1 /sys/fs/cgroup/cpuset",
        "name=systemd": "v1 /sys/fs/cgroup/systemd/system.slice/dagseal.service",
    }


def test_hybrid_with_v2_first(tmp_path: Path) -> None:
    own = v2(tmp_path / "system.slice/dagseal.service", "hugetlb")
    found = own_cgroups(V1 + "0::/system.slice/dagseal.service\n", V1_MOUNTS + v2_mount(tmp_path))
    assert found[0] == OwnCgroup(version=2, folder=own, controllers=frozenset({"hugetlb"}))
    assert len(found) == 6


def test_only_v2(tmp_path: Path) -> None:
    own = v2(tmp_path / "system.slice/dagseal.service", "cpuset cpu io memory pids")
    found = own_cgroups("0::/system.slice/dagseal.service\n", v2_mount(tmp_path))
    assert folders(found) == {"cpu cpuset io memory pids": f"v2 {own}"}


def test_v2_without_delegation_has_no_controllers(tmp_path: Path) -> None:
    assert folders(own_cgroups("0::/user.slice\n", v2_mount(tmp_path))) == {"": f"v2 {tmp_path}/user.slice"}


def test_a_mount_of_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    """A container without a cgroup namespace: the mount begins at its own cgroup."""
    own = v2(tmp_path, "memory")
    assert own_cgroups("0::/docker/abc\n", v2_mount(tmp_path, "/docker/abc"))[0].folder == own
    assert own_cgroups("0::/docker/abc/below\n", v2_mount(tmp_path, "/docker/abc"))[0].folder == own / "below"


@pytest.mark.parametrize(
    "path", ["/elsewhere", "/docker/abcd", "/../outside-of-our-namespace", "/docker/abc/../x", "/.."]
)
def test_a_cgroup_that_the_mount_does_not_show_is_not_ours(tmp_path: Path, path: str) -> None:
    assert own_cgroups(f"0::{path}\n", v2_mount(tmp_path, "/docker/abc")) == []


def test_outside_of_the_cgroup_namespace(tmp_path: Path) -> None:
    assert own_cgroups("0::/../other\n", v2_mount(tmp_path)) == []


def test_the_mount_that_shows_it_is_taken(tmp_path: Path) -> None:
    mounts = v2_mount(tmp_path / "part", "/other") + v2_mount(tmp_path / "whole")
    assert own_cgroups("0::/docker/abc\n", mounts)[0].folder == tmp_path / "whole/docker/abc"


def test_escaped_mount_points(tmp_path: Path) -> None:
    mounts = v2_mount(Path(str(tmp_path / "a b\\c").replace("\\", "\\134").replace(" ", "\\040")))
    assert own_cgroups("0::/\n", mounts)[0].folder == tmp_path / "a b\\c"


def test_a_path_may_hold_colons() -> None:
    assert folders(own_cgroups("4:memory:/a:b\n", V1_MOUNTS)) == {"memory": "v1 /sys/fs/cgroup/memory/a:b"}


def test_nothing_mounted() -> None:
    assert own_cgroups(V1, V1_MOUNTS.splitlines()[0] + "\n") == []
    assert own_cgroups("", "") == []


def test_each_limit_goes_where_its_controller_is(tmp_path: Path) -> None:
    v2(tmp_path, "hugetlb memory")
    shared = share(ALL, own_cgroups(V1 + "0::/\n", V1_MOUNTS + v2_mount(tmp_path)))
    assert {str(own.folder): asked for own, asked in shared.items() if asked} == {
        str(tmp_path): {"memory": 1 << 30},
        "/sys/fs/cgroup/pids/system.slice/dagseal.service": {"pids": 100},
        "/sys/fs/cgroup/cpu,cpuacct/system.slice/dagseal.service": {"cpu": 150},
    }


def test_nothing_asked_for_nothing_shared() -> None:
    assert not any(share(Limits(), own_cgroups(V1, V1_MOUNTS)).values())


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(memory_max_bytes=1 << 30), "memory"),
        (Limits(pids_max=10), "pids"),
        (Limits(cpu_percent=50), "cpu"),
        (ALL, "memory"),
    ],
)
def test_a_limit_that_no_hierarchy_can_hold_is_refused_by_name(tmp_path: Path, limits: Limits, name: str) -> None:
    v2(tmp_path, "cpuset io")
    with pytest.raises(PrivilegeError, match=rf"no controller {name} \(v2 .*: cpuset io\): .*Delegate=yes"):
        share(limits, own_cgroups("0::/\n", v2_mount(tmp_path)))


@pytest.mark.parametrize("field", ["memory_max_bytes", "pids_max", "cpu_percent"])
@pytest.mark.parametrize("value", [0, -1])
def test_zero_does_not_mean_no_limit(field: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"{field} is {value}: .*leave it out"):
        Limits(**{field: value})


def test_a_folder_that_turns_out_to_be_no_cgroup_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    for files in ("memory", "memory-type"):
        own = v2(tmp_path / files, "memory")
        if "type" in files:
            (own / "cgroup.type").write_text("domain\n")
        before = sorted(own.iterdir())
        with pytest.raises(PrivilegeError, match=r"memory.*No such file.*Delegate=yes"):
            CgroupTrees(share(Limits(memory_max_bytes=1 << 30), own_cgroups("0::/\n", v2_mount(own))))
        assert sorted(own.iterdir()) == before


async def test_a_tree_without_cgroup_kill_does_not_pretend_to_kill(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    tree = CgroupTree([str(tmp_path / "task")], kills=False)
    with pytest.raises(RuntimeError, match="no cgroup"):
        await tree.kill()
    await tree.remove()
    assert not (tmp_path / "task").exists()


def test_figures_of_both_versions(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    tree = CgroupTree([str(one), str(two)], kills=False)
    assert tree.oom_kills() == 0
    (two / "memory.max_usage_in_bytes").write_text("4096\n")
    (two / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert tree.oom_kills() == 3
    (one / "memory.peak").write_text("8192\n")
    (one / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 5\noom_kill 2\noom_group_kill 1\n")
    assert tree.oom_kills() == 2
