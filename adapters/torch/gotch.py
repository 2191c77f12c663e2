"""Fits a private copy of gotch to a libtorch that it was not generated for.

    python3 gotch.py SOURCE INCLUDE TARGET

Of gotch's 2,525 generated wrappers a few name operators whose arguments have changed. The compiler says which: their bodies
become one error that names the operator, and nothing else changes. Only the package libtch and go.mod are copied.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROUNDS = 6  # a fixed error may uncover another


def errors(folder: Path, include: Path) -> tuple[dict[str, set[int]], str]:
    """The lines of each file that the compiler refuses, and what it said."""
    run = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-w", "-fdiagnostics-color=never", f"-I{folder}", f"-I{include}",
         f"-I{include}/torch/csrc/api/include", str(folder / "torch_api.cpp")],
        capture_output=True, text=True, env=dict(os.environ, LC_ALL="C"), check=False)
    found: dict[str, set[int]] = {}
    for file, line in re.findall(r"^(\S+?):(\d+):\d+: error: ", run.stderr, re.M):
        found.setdefault(file, set()).add(int(line))
    if run.returncode and not found:
        sys.exit(f"gotch.py: the compiler failed:\n{run.stderr[-2000:]}")
    return found, run.stderr


def stub(path: Path, lines: set[int]) -> list[str]:
    """Replaces the bodies of the functions that hold these lines; functions begin and end in the first column."""
    text = path.read_text().split("\n")
    stubbed = []
    for line in sorted(lines, reverse=True):  # from the end: numbers before it stay
        start = line - 1
        while start >= 0 and not re.match(r"[a-z].*\w\(.*", text[start]):
            start -= 1
        end = start
        while end < len(text) and text[end] != "}":
            end += 1
        name = re.search(r"(\w+)\(", text[start])
        if start < 0 or end == len(text) or not name:
            sys.exit(f"gotch.py: {path.name}:{line} is in no function that could be stubbed")
        if stubbed and stubbed[-1] == name[1]:
            continue  # two errors in one function
        head = start
        while "{" not in text[head]:
            head += 1
        answer = "" if text[start].startswith("void ") else "\n  return {};"
        text[head + 1 : end] = [f'  PROTECT(throw std::runtime_error("{name[1]}: not with this libtorch");){answer}']
        stubbed.append(name[1])
    path.write_text("\n".join(text))
    return stubbed


def main() -> None:
    source, include, target = (Path(p) for p in sys.argv[1:])
    building = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(source / "libtch", building / "libtch")
    shutil.copy(source / "go.mod", building)
    for path in building.rglob("*"):  # the module cache is read-only
        path.chmod(0o755 if path.is_dir() else 0o644)
    stubbed = []
    for _ in range(ROUNDS):
        found, said = errors(building / "libtch", include)
        if not found:
            break
        for file, lines in found.items():
            if Path(file).parent != building / "libtch":
                sys.exit(f"gotch.py: {file} does not compile, and is not gotch's:\n{said[:2000]}")
            stubbed += stub(Path(file), lines)
    else:
        sys.exit(f"gotch.py: it still does not compile after {ROUNDS} rounds:\n{said[:2000]}")
    (building / "STUBBED").write_text("".join(f"{name}\n" for name in sorted(stubbed)))
    building.rename(target)
    print(f"gotch.py: {len(stubbed)} wrappers stubbed: {', '.join(sorted(stubbed)) or 'none'}", file=sys.stderr)


if __name__ == "__main__":
    main()
