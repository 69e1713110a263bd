# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A driver on hosts that boot systemd, over ssh: installed by apt or dnf, held, kept, and never changed under a run.

GPUs and NVIDIA's repository are stand-ins (tests/hosts/nvidia.sh); apt, dnf, systemd, sudo and reboots are real, and so
are the packages of the last host, which are Debian's own. The tests go on from each other, in their order.
"""

from __future__ import annotations

import re
import shutil
import typing as t
from dataclasses import dataclass

import pytest

from . import machines
from .conftest import BASE, KEEP, REPOSITORY, Outcome, World
from .machines import hosts

BY_APT, BY_DNF, DEBIANS = machines.NAMES
DRIVER = "580.178.04"
SET = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced", "nvidia-fabricmanager-580")
PLAYBOOK = "- hosts: trainers\n  gather_facts: false\n  roles: [llmops.finetune.cuda]\n"


@dataclass
class Host:
    name: str
    pin: str = ""

    world = World(REPOSITORY, BASE / "root", BASE / "leases")

    def sh(self, command: str, check: bool = True) -> str:
        return machines.sh(self.name, command, check)

    def stand_in(self, kind: str) -> None:
        script = (REPOSITORY / "tests" / "hosts" / "nvidia.sh").read_text(encoding="utf-8")
        self.sh(f"cat > /srv/nvidia.sh << 'STAND_INS'\n{script}\nSTAND_INS")
        self.sh(f"test -e /srv/cuda/pin || sh /srv/nvidia.sh {kind} < /dev/null")
        self.pin = self.sh("cat /srv/cuda/pin")

    def play(self, *arguments: str, **asked: t.Any) -> Outcome:
        given = {
            "cuda_sysfs": "/srv/recorded",
            "cuda_repository": "file:///srv/cuda",
            "cuda_repository_pin": self.pin,
            "cuda_lease_dir": "/srv/leases",
            **asked,
        }
        asked_of = [*arguments, "--limit", self.name]
        return self.world.play(str(BASE / "cuda.yml"), *asked_of, variables=given, inventory=machines.INVENTORY)

    def paths(self) -> set[str]:
        """Every path on its disks, but for what a login leaves."""
        logs = r"/(home/admin/\.ansible|var/log|var/lib/sudo)(/|$)"
        return {path for path in self.sh("find / /data -xdev").splitlines() if not re.match(logs, path)}

    def boot(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id")

    def versions(self) -> set[str]:
        ask = "dpkg-query -W -f '${Package} ${Version}\\n' 'nvidia-*' libcuda1"
        if self.name == BY_DNF:
            ask = "rpm -qa --qf '%{NAME} %{VERSION}-%{RELEASE}\\n' 'nvidia-*' kmod-nvidia-open-dkms libcuda1"
        return {row.split()[1] for row in self.sh(ask).splitlines()}

    def restart(self) -> None:
        assert hosts("kill", self.name).returncode == 0 and hosts("start", self.name).returncode == 0


@pytest.fixture(scope="module")
def up() -> t.Iterator[None]:
    usable = hosts("check")
    assert usable.returncode == 0, usable.stderr
    BASE.mkdir(parents=True, exist_ok=True)
    shutil.copytree(REPOSITORY / "tests" / "e2e" / "callbacks", BASE / "callbacks", dirs_exist_ok=True)
    shutil.rmtree(BASE / "runner", ignore_errors=True)
    (BASE / "cuda.yml").write_text(PLAYBOOK, encoding="utf-8")
    if not KEEP:
        hosts("down")
    started = hosts("up", "3")
    assert started.returncode == 0, started.stderr
    yield
    if not KEEP:
        hosts("down")
        shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(scope="module")
def host(up: None) -> Host:
    found = Host(BY_APT)
    found.stand_in("deb")
    return found


@pytest.fixture(scope="module")
def rocky(up: None) -> Host:
    found = Host(BY_DNF)
    found.stand_in("rpm")
    return found


def test_a_host_without_gpus_is_left_alone(host: Host) -> None:
    before = host.paths()
    done = host.play(cuda_sysfs="/sys")
    assert done.rc == 0, done.text
    assert done.changed == [] and done.on_node == ["cuda_driver"] and "no NVIDIA GPU: nothing to do" in done.text
    assert host.paths() == before


def test_a_key_that_is_not_known_is_not_trusted(host: Host) -> None:
    before = host.paths()
    done = host.play(cuda_repository_pin="")
    assert done.rc != 0 and "The key of a package repository is not the one that is known" in done.message
    assert host.pin in done.message and "cuda_repository_pin" in done.message
    left = {path for path in host.paths() ^ before if not path.startswith(("/srv/leases", "/var/lib/llmops-cuda"))}
    assert left == set()


def test_check_mode_predicts_what_an_apply_does(host: Host) -> None:
    before, boot = host.paths(), host.boot()
    predicted = host.play("--check")
    assert predicted.rc == 0, predicted.text
    assert host.paths() == before and host.boot() == boot
    applied = host.play()
    assert applied.rc == 0, applied.text
    assert [task.rpartition(" : ")[2] for task in applied.changed] == ["Have the driver", "Reboot"]
    assert predicted.changes[: len(predicted.changes) // 2] == applied.changes[: len(predicted.changes) // 2]
    assert host.boot() != boot and host.sh("systemctl is-system-running", check=False) == "running"
    assert host.versions() == {f"{DRIVER}-1"}, "though the repository has a newer branch"


def test_the_same_again_changes_nothing_and_is_one_call(host: Host) -> None:
    boot = host.boot()
    again = host.play()
    assert again.rc == 0, again.text
    assert again.changed == [] and again.on_node == ["cuda_driver"] and host.boot() == boot
    assert host.play(cuda_state="verified", cuda_become=False).changed == []


def test_upgrades_leave_it_alone(host: Host) -> None:
    assert set(host.sh("apt-mark showhold").split()) == set(SET)
    host.sh("rm /etc/apt/preferences.d/llmops-cuda")
    assert "nvidia-driver-cuda" not in re.findall(r"^Inst (\S+)", host.sh("apt-get -s dist-upgrade"), re.MULTILINE)
    assert ("create", "/etc/apt/preferences.d/llmops-cuda") in host.play().changes


def test_nothing_is_changed_under_a_run(host: Host) -> None:
    host.sh("apt-mark unhold nvidia-persistenced")
    lock = "import fcntl, json, time; f = open('/srv/leases/cpu', 'r+'); fcntl.flock(f, fcntl.LOCK_EX); f.truncate(0)"
    lock += "; json.dump({'run': 'demo-1', 'user': 'admin', 'pid': 1}, f); f.flush(); time.sleep(600)"
    host.sh(f'systemd-run --quiet --unit=holder python3 -c "{lock}"; sleep 1')
    refused = [host.play(*arguments) for arguments in (["--check"], [])]
    host.sh("systemctl stop holder")
    for done in refused:
        assert done.rc != 0 and "held by run demo-1" in done.message and "stop" in done.message
    assert "nvidia-persistenced" not in host.sh("apt-mark showhold").split()
    assert host.play().changes[-1] == ("hold", "nvidia-persistenced")


def test_what_others_changed_is_put_right_without_a_reboot(host: Host) -> None:
    boot = host.boot()
    host.sh("apt-get -q -y --allow-change-held-packages install nvidia-persistenced=595.91.07-1")
    host.sh("systemctl disable --now nvidia-fabricmanager 2>&1")
    done = host.play()
    assert done.rc == 0, done.text
    assert host.versions() == {f"{DRIVER}-1"} and host.boot() == boot
    assert host.sh("systemctl is-active nvidia-fabricmanager") == "active"
    assert host.play().changed == []


def test_a_host_that_the_play_does_not_reboot_goes_on_after_its_reboot(host: Host) -> None:
    asked: dict[str, t.Any] = {"cuda_version": "580.200.01", "cuda_reboot": False}
    done = host.play(**asked)
    assert done.rc != 0 and "has to be rebooted: kernel module 580.178.04 is loaded" in done.message
    assert host.versions() == {"580.200.01-1"}
    again = host.play(**asked)
    assert again.rc != 0 and again.changed == [] and "the same command again" in again.message
    host.restart()
    after = host.play(**asked)
    assert after.rc == 0 and after.changed == [], after.text
    kept = host.play()
    assert kept.changed == [] and f"cuda_version: {DRIVER} takes it" in kept.text


def test_a_toolkit_comes_beside_it(host: Host) -> None:
    assert host.play(cuda_toolkit="12.8").changes[-1] == ("install", "cuda-toolkit-12-8")
    assert host.play(cuda_toolkit="12.8").changed == []


def test_dnf_installs_one_set_of_a_module_stream(rocky: Host) -> None:
    before, boot = rocky.paths(), rocky.boot()
    predicted = rocky.play("--check")
    assert predicted.rc == 0, predicted.text
    assert {path for path in rocky.paths() ^ before if "/dnf" not in path and "rpm" not in path} == set()
    applied = rocky.play()
    assert applied.rc == 0, applied.text
    assert predicted.changes[: len(predicted.changes) // 2] == applied.changes[: len(predicted.changes) // 2]
    assert ("enable", "module stream nvidia-driver:580-open") in applied.changes
    assert rocky.versions() == {f"{DRIVER}-1"} and rocky.boot() != boot
    assert "580-open" in rocky.sh("cat /etc/dnf/modules.d/nvidia-driver.module")
    assert rocky.play().changed == []


def test_dnf_leaves_it_alone(rocky: Host) -> None:
    rocky.sh("dnf -y -q upgrade")
    assert rocky.versions() == {f"{DRIVER}-1"}, "580.200.01 is in the stream"
    rocky.sh("dnf -y -q versionlock delete nvidia-persistenced && dnf -y -q upgrade nvidia-persistenced")
    assert rocky.versions() == {f"{DRIVER}-1", "580.200.01-1"}
    assert rocky.play().rc == 0 and rocky.versions() == {f"{DRIVER}-1"} and rocky.play().changed == []


def test_dnf_takes_another_branch(rocky: Host) -> None:
    done = rocky.play(cuda_branch=595)
    assert done.rc == 0, done.text
    assert rocky.versions() == {"595.91.07-1"} and rocky.play().changed == []


def test_debians_own_packages_are_real(up: None) -> None:
    """There is no GPU and no kernel of Debian's here: it ends where the module would be loaded, with what is wrong."""
    debian = Host(DEBIANS)
    debian.stand_in("deb")
    debian.sh("rm -rf /srv/recorded/bus/pci/devices/0000:1[89ab]:00.0")  # Debian has no fabric manager for switches
    debian.sh("find /srv/recorded/bus/pci/devices -name driver -delete")  # nobody would take them from nouveau
    debian.sh("printf 'deb [trusted=yes] file:/srv/cuda/debian12/x86_64 /\\n' > /etc/apt/sources.list.d/headers.list")
    debian.sh(
        "printf 'Package: *nvidia* libcuda1\\nPin: release l=NVIDIA CUDA\\nPin-Priority: -1\\n' > /etc/apt/preferences"
    )
    boot = debian.boot()
    done = debian.play(cuda_source="distribution")
    assert done.rc != 0 and "was rebooted, and still the kernel module does not load" in done.message
    told = "modprobe: ERROR: could not insert 'nvidia'"  # an alias of Debian's for modules that were not built here
    assert told in done.message and debian.boot() != boot
    assert "535." in debian.sh("dpkg-query -W -f '${Version}' nvidia-open-kernel-dkms")
    held = set(debian.sh("apt-mark showhold").split())
    assert held == {"nvidia-open-kernel-dkms", "nvidia-smi", "libcuda1", "nvidia-persistenced"}
