"""Which image files can be read: found out once, when a data set is opened, not during training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import PIL
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from models.files import write_text

CACHE = ".image-check.json"  # in the folder of the images
RULES = f"1, Pillow {PIL.__version__}"  # what was found by other rules is found again
MODES = {"L": "grey", "1": "grey", "LA": "grey", "P": "palette", "RGBA": "transparent"}
NO_PERMISSION = "not permitted to be read"  # not kept: it says nothing about the file
SHOWN = 3  # names in a summary, for each remark


@dataclass(frozen=True)
class Finding:
    """``usable``: the file can be decoded to RGB; ``remark``: what is wrong or unusual, or ""."""

    usable: bool
    remark: str = ""


def check(root: Path, paths: Sequence[str]) -> list[Finding]:
    """A finding for each of ``paths`` (relative to ``root``), by decoding every file whole.

    What was found is kept in ``root`` (where that can be written) and holds as long as a file's
    size and time of change stay the same.
    """
    known = _read_cache(root / CACHE)
    stamps = {path: _stamp(root / path) for path in paths}
    new = [
        path
        for path, stamp in stamps.items()
        if stamp and known.get(path, {}).get("stamp") != stamp
    ]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # decoding releases the GIL
        found = pool.map(lambda path: examine(root / path), new)
        bar = tqdm(found, "checking image files", len(new), leave=False, disable=None)
        findings = dict(zip(new, bar, strict=True))
    for path, finding in findings.items():
        known[path] = {"stamp": stamps[path], **asdict(finding)}
    if new:
        lasting = {path: kept for path, kept in known.items() if kept["remark"] != NO_PERMISSION}
        _write_cache(root / CACHE, lasting)
    return [
        Finding(known[path]["usable"], known[path]["remark"])
        if stamps[path]
        else Finding(False, "missing")
        for path in paths
    ]


def examine(path: Path) -> Finding:
    """Decode one file whole: damage often shows in the last rows only."""
    try:
        with Image.open(path) as image:
            image.load()
            kind, mode = str(image.format), image.mode
    except UnidentifiedImageError:
        return Finding(False, _what_else(path))
    except Image.DecompressionBombError:
        return Finding(False, "too large")
    except PermissionError:
        return Finding(False, NO_PERMISSION)
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        return Finding(False, "damaged")
    if mode.startswith(("I", "F")):
        return Finding(False, "more than 8 bits a channel")
    remarks = [] if mode == "RGB" else [MODES.get(mode, mode)]
    if Image.registered_extensions().get(path.suffix.lower()) != kind:
        remarks.append(f"{kind} named {path.suffix}")
    return Finding(True, ", ".join(remarks))


def summarise(paths: Sequence[str], findings: Sequence[Finding]) -> dict[str, str]:
    """What was skipped and what is converted: the total and the first names, for each remark."""
    lines = {}
    for title, usable in (("skipped", False), ("converted to RGB", True)):
        names: dict[str, list[str]] = {}
        for path, finding in zip(paths, findings, strict=True):
            if finding.remark and finding.usable == usable:
                names.setdefault(finding.remark, []).append(path)
        if names:
            parts = [f"{len(who)} {remark} ({_first(who)})" for remark, who in names.items()]
            count = sum(map(len, names.values()))
            lines[title] = f"{count} file{'s' if count > 1 else ''}: {'; '.join(parts)}"
    return lines


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN] + ["..."] * (len(names) > SHOWN))


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(1024).lstrip().lower()
    if not start:
        return "empty"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    return "not an image"


def _stamp(path: Path) -> list[int] | None:
    """Size and time of change of a file, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_cache(path: Path) -> dict[str, dict]:
    try:
        cache = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(cache, dict) or cache.get("rules") != RULES:
        return {}
    return dict(cache["files"])


def _write_cache(path: Path, files: dict[str, dict]) -> None:
    with suppress(OSError):  # a folder that cannot be written to is checked every time
        write_text(path, json.dumps({"rules": RULES, "files": files}))
