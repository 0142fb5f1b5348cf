"""Files are written whole or not at all; what is read is a file, of a size that is meant."""

import errno
import os
import stat
from pathlib import Path

import pytest

import vramtune
from tests.cli.cli_runner import run
from tests.reports import examples
from vramtune.errors import FileError, UsageError
from vramtune.reports import html, plots
from vramtune.reports.svg import Picture
from vramtune.schema import Plan, Profile, read_file, write_file

OLD = b"old"


def save_plan(path: Path) -> None:
    examples.sdxl_plan().save(path)


def save_profile(path: Path) -> None:
    examples.sdxl().save(path)


PLAN = vramtune.plan(examples.sdxl(), 6)


def save_report(path: Path) -> None:
    vramtune.report(examples.sdxl(), PLAN, path)


def save_picture(path: Path) -> None:
    plots.save(examples.sdxl().plot(), path)


def by_command(option: str):
    def save(path: Path) -> None:
        profile = path.parent.parent / "profile.json"
        examples.sdxl().save(profile)
        result = run("plan", profile, "--vram-gb", 6, option, path)
        if result.exit_code:
            assert result.exit_code == 2
            raise FileError(result.stderr)

    return save


WAYS = {
    "plan": (save_plan, "out.json"),
    "profile": (save_profile, "out.json"),
    "report": (save_report, "out.html"),
    "picture": (save_picture, "out.png"),
    "--save": (by_command("--save"), "out.json"),
    "--plot": (by_command("--plot"), "out.svg"),
    "--report": (by_command("--report"), "out.html"),
    "--trace": (by_command("--trace"), "out.json"),
}
EACH_WAY = pytest.mark.parametrize(("save", "name"), WAYS.values(), ids=WAYS)


@pytest.fixture(autouse=True)
def _page_without_pictures(monkeypatch):
    """Which take seconds."""
    monkeypatch.setattr(html, "svg_of", lambda plot, *, name: Picture(name=name, caption=name, svg="<svg/>"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@EACH_WAY
def test_a_full_disk_keeps_the_old_file(save, name, folder, monkeypatch):
    (folder / name).write_bytes(OLD)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # the saved profile is written before the disk is full
    monkeypatch.setattr(os, "fsync", lambda descriptor: full(descriptor) if "out/" in _name(descriptor) else None)
    with pytest.raises(FileError, match=r"out\..*No space left on device"):
        save(folder / name)
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [(name, OLD)]


def _name(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


@EACH_WAY
def test_a_file_is_replaced_and_nothing_is_left_beside_it(save, name, folder):
    (folder / name).write_bytes(OLD)
    save(folder / name)
    assert [file.name for file in folder.iterdir()] == [name]
    assert (folder / name).stat().st_size > 100


def test_an_interrupt_keeps_the_old_file(folder, monkeypatch):
    (folder / "out").write_bytes(OLD)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(folder / "out", b"new")
    assert [file.read_bytes() for file in folder.iterdir()] == [OLD]


def test_a_link_and_the_files_mode_stay(folder):
    (folder / "out").write_bytes(OLD)
    (folder / "out").chmod(0o640)
    (folder / "link").symlink_to("out")
    write_file(folder / "link", b"new")
    assert (folder / "link").is_symlink()
    assert (folder / "out").read_bytes() == b"new"
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_of_any_other(folder):
    (folder / "other").touch()
    write_file(folder / "out", b"new")
    assert (folder / "out").stat().st_mode == (folder / "other").stat().st_mode


def test_a_device_is_written_to_and_not_replaced():
    write_file(os.devnull, b"new")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_the_longest_name_can_be_written(folder):
    name = "n" * 250 + ".json"
    save_plan(folder / name)
    assert Plan.load(folder / name) == examples.sdxl_plan()


@pytest.mark.parametrize("path", ["n" * 300 + ".json", "a\0b.json", "missing/out.json", "."])
def test_a_place_that_cannot_be_written_is_an_error_of_ours(path, folder):
    with pytest.raises(FileError, match="Cannot write"):
        save_plan(folder / path)
    with pytest.raises(FileError, match="Cannot read"):
        Plan.load(folder / path)


@pytest.mark.parametrize("path", [None, 3, b"plan.json", "", ["plan.json"]])
def test_what_is_no_path_is_an_error_of_ours(path):
    for act in (Plan.load, Profile.load, save_plan, save_report, save_picture):
        with pytest.raises(UsageError, match="named by a str or a Path"):
            act(path)


def test_what_is_no_file_is_not_read(folder):
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    for path in (folder / "pipe", folder, "/dev/zero", folder / "loop"):
        with pytest.raises(FileError, match="Cannot read"):
            read_file(path)


def test_a_file_larger_than_any_of_its_kind_is_not_read(folder):
    with (folder / "large.json").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(FileError, match="at most"):
        Plan.load(folder / "large.json")


def test_a_picture_in_an_unknown_format_is_refused(folder):
    with pytest.raises(UsageError, match=r"\.png or \.svg or \.pdf"):
        plots.save(examples.sdxl().plot(), folder / "out.xyz")
