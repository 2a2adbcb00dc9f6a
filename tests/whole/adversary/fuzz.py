"""Fuzz what clusterucb reads from others, guided by coverage.

    python tests/whole/adversary/fuzz.py [HARNESS…] [--seconds 600]

A harness (`whole.adversary.harnesses`) turns bytes into an input, uses it as a command does, and judges: the input is
accepted, or refused with an error of clusterucb; anything else is a fault. atheris changes the bytes that reach new
branches of clusterucb. The kernels are built with AddressSanitizer and UndefinedBehaviorSanitizer, and their branches
count, too. Runs every harness for so many seconds, one after the other, beginning with the committed corpus and what
earlier runs found (build/fuzz). Prints the number of cases, and each fault with the file that holds its shortened
input. Exits with 1 if there is a fault, and with 3 if atheris is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from whole.adversary.harnesses.judged import Fault

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
HARNESSES = ("reading", "chats", "states", "manifests", "priors", "bindings")
CORPUS = HERE / "corpus"
WORK = ROOT / "build" / "fuzz"
SANITIZED = ROOT / "build" / "sanitized"
_LIMIT, _MEMORY = 60, 4096  # seconds and MB that a case may take
_TRIES = 2000  # shorter inputs that are tried for a fault
_COUNTED = 100  # cases between two records of how many there were


def harness(name: str) -> Callable[[bytes], str]:
    """Return the function of a harness. It returns "" for an input that is accepted, and else the refusal."""
    case: Callable[[bytes], str] = importlib.import_module(f"whole.adversary.harnesses.{name}").case
    return case


def fault(case: Callable[[bytes], str], data: bytes) -> tuple[str, str]:
    """Return a name for the fault of an input, the same for all faults at one place, and its traceback; or ("", "")."""
    try:
        case(data)
    except Exception as error:
        ours = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "clusterucb" in frame.filename
        ]
        place = f"{Path(ours[-1].filename).stem}-{ours[-1].name}" if ours else "harness"
        said = re.sub(r"\W+", "-", str(error))[:20] if isinstance(error, Fault) else ""
        return re.sub(r"[^\w-]", "", f"{type(error).__name__}-{place}-{said}"), traceback.format_exc()
    return "", ""


def minimised(case: Callable[[bytes], str], data: bytes) -> bytes:
    """Return a shorter input with the same fault, as far as removing pieces leads to one."""
    name, tries, size = fault(case, data)[0], _TRIES, max(len(data) // 2, 1)
    while size and tries:
        at = 0
        while at < len(data) and tries:
            tries -= 1
            shorter = data[:at] + data[at + size :]
            if fault(case, shorter)[0] == name:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def _instrumented(name: str) -> Callable[[bytes], str]:
    """Import a harness with instrumented modules of clusterucb."""
    import atheris

    # The finder of an editable installation comes first, and would hide modules from atheris.
    sys.meta_path.sort(key=lambda finder: type(finder).__module__.startswith("_editable"))
    with atheris.instrument_imports(include=["clusterucb"]):
        case = harness(name)
        for path in sorted((CORPUS / name).glob("*")):
            fault(case, path.read_bytes())  # so that modules that are imported late are instrumented, too
    return case


def _use_sanitized() -> Any:
    """Put the sanitised extension in the place of the installed one."""
    (path,) = SANITIZED.glob("_core*.so")
    spec = importlib.util.spec_from_file_location("clusterucb.kernels._core", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module
    return path


def _count_edges(path: Path) -> None:
    """Give libFuzzer the counters of the sanitised extension."""
    import ctypes

    import atheris

    (fuzzer,) = Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so")
    library, extension = ctypes.CDLL(str(fuzzer)), ctypes.CDLL(str(path))
    for table, size, function in (
        ("clusterucb_counters", 1 << 13, "__sanitizer_cov_8bit_counters_init"),
        ("clusterucb_edges", 1 << 17, "__sanitizer_cov_pcs_init"),
    ):
        begin = ctypes.addressof((ctypes.c_uint8 * size).in_dll(extension, table))
        getattr(library, function)(ctypes.c_void_p(begin), ctypes.c_void_p(begin + size))


def child(name: str, arguments: list[str]) -> None:
    """Fuzz in this process, until libFuzzer ends it. Keep the shortest input of each fault that is an exception."""
    import atheris

    path = _use_sanitized() if name == "bindings" else None
    case, found = _instrumented(name), WORK / name / "faults"
    shortest: dict[str, int] = {}
    counts = {"accepted": 0, "refused": 0, "faults": 0}

    def one(data: bytes) -> None:
        try:
            counts["refused" if case(data) else "accepted"] += 1
        except Exception:
            counts["faults"] += 1
            kind, shown = fault(case, data)
            if kind and len(data) < shortest.get(kind, sys.maxsize):
                shortest[kind] = len(data)
                (found / kind).write_bytes(data)
                (found / f"{kind}.txt").write_text(shown, errors="replace")
        if not sum(counts.values()) % _COUNTED:
            (WORK / name / "counts.json").write_text(json.dumps(counts))

    atheris.Setup([sys.argv[0], *arguments], one)
    if path is not None:
        _count_edges(path)
    atheris.Fuzz()


def build_sanitized() -> None:
    """Build the extension with sanitizers into build/sanitized."""
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": places}
    pybind = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for command in (
        ["cmake", "-S", ROOT, "-B", SANITIZED, "-G", "Ninja", "-DCLUSTERUCB_SANITIZE=ON",
         f"-Dpybind11_DIR={pybind}", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", SANITIZED],
    ):  # fmt: skip
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def _environment(name: str) -> dict[str, str]:
    """Return the environment of a harness's process: temporary files in memory, and libasan before all libraries."""
    memory = Path("/dev/shm")
    chosen = {"TMPDIR": str(memory)} if memory.is_dir() and "TMPDIR" not in os.environ else {}
    chosen |= {"OMP_NUM_THREADS": "1", "CLUSTERUCB_CACHE_LIMIT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    if name == "bindings":
        build_sanitized()
        asked = ["g++", "-print-file-name=libasan.so"], ["g++", "-print-file-name=libstdc++.so"]
        libraries = [
            subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in asked
        ]
        chosen |= {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
        }
    return {**os.environ, **chosen}


def fuzz(name: str, seconds: int) -> int:
    """Fuzz a harness, begin again after each crash, and print what was found. Returns the number of faults."""
    place = WORK / name
    for folder in ("corpus", "faults", "crashes"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for old in (place / "faults", place / "crashes"):
        for path in old.iterdir():
            path.unlink()
    environment, until, log = _environment(name), time.monotonic() + seconds, place / "log.txt"
    log.write_bytes(b"")
    total: dict[str, int] = {}
    while (left := int(until - time.monotonic())) > 0:
        options = [
            f"-max_total_time={left}",
            f"-timeout={_LIMIT}",
            f"-rss_limit_mb={_MEMORY}",
            "-max_len=65536",
        ]
        options += [f"-artifact_prefix={place / 'crashes'}/", "-print_final_stats=1"]
        folders = [str(place / "corpus"), str(CORPUS / name)]
        with log.open("ab") as out:
            command = [sys.executable, __file__, "--child", name, *options, *folders]
            code = subprocess.run(command, env=environment, stdout=out, stderr=out, check=False).returncode
        if (place / "counts.json").exists():
            for key, count in json.loads((place / "counts.json").read_bytes()).items():
                total[key] = total.get(key, 0) + count
            (place / "counts.json").unlink()
        elif code:
            break  # it did not begin
        if not code:
            break
    crashes = [path for path in (place / "crashes").iterdir() if not path.name.startswith("slow-unit")]
    return _reported(name, total, log.read_text(errors="replace"), crashes, code)


def _reported(name: str, total: dict[str, int], log: str, crashes: list[Path], code: int) -> int:
    """Print what a harness found, with shortened inputs. Returns the number of faults."""
    coverage = re.findall(r"cov: (\d+)", log) or ["0"]
    counted = ", ".join(f"{count:,} {key}" for key, count in total.items())
    print(f"{name}: {counted or 'no cases'}; branches {coverage[0]} to {coverage[-1]}", flush=True)
    faults = [path for path in (WORK / name / "faults").iterdir() if path.suffix != ".txt"]
    if faults:
        subprocess.run([sys.executable, __file__, "--minimise", name], env=_environment(name), check=False)
    for path in crashes:
        print(f"  {path}: the process ended; see {WORK / name / 'log.txt'}")
    if code and not crashes:
        print(f"  the process ended with {code}: {log[-2000:]}")
    return len(faults) + len(crashes) + bool(code and not crashes)


def minimise(name: str) -> None:
    """Shorten the inputs of a harness's faults, and print each with the end of its traceback."""
    if name == "bindings":
        _use_sanitized()
    case = harness(name)
    for path in sorted((WORK / name / "faults").iterdir()):
        if path.suffix != ".txt":
            path.write_bytes(minimised(case, path.read_bytes()))
            print(f"  {path}: {path.stat().st_size} bytes: {fault(case, path.read_bytes())[1][-700:]}")


def main() -> int:
    """Fuzz the harnesses that the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("harness", nargs="*", choices=[[], *HARNESSES], default=[], metavar="HARNESS")
    parser.add_argument("--seconds", type=int, default=600, help="seconds for each harness")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(
            "fuzz.py: atheris is not installed, so nothing was fuzzed; `make fuzz` installs it. It has wheels for "
            "CPython 3.11 to 3.13 on Linux (x86-64); elsewhere, tests/whole/adversary/test_fuzz.py replays the corpora",
            file=sys.stderr,
        )
        return 3
    return int(sum([fuzz(name, given.seconds) for name in given.harness or HARNESSES]) > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["--minimise"]:
        minimise(sys.argv[2])
    else:
        sys.exit(main())
