"""Build the wheel, and check that it is complete and works outside this folder.

The wheel is installed into a new environment in a temporary folder. Its dependencies come from the
environment that runs this script, whose editable install of the project is not visible there.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "mlx_magic/demo/model/"
NEEDED = (
    "mlx_magic/py.typed",
    MODEL + "config.json",
    MODEL + "tokenizer.json",
    MODEL + "chat_template.jinja",
    MODEL + "model.safetensors",
)
WEIGHTS_LIMIT = 8_000_000
WHEEL_LIMIT = 12_000_000

PROOF = """
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import mlx_magic

home = Path(mlx_magic.__file__).resolve()
if not home.is_relative_to(Path(sys.prefix).resolve()):
    sys.exit(f"mlx_magic comes from {home}, not from the wheel")
if sys.argv[1] in sys.path:
    sys.exit("the source folder is on the path")
cells = [
    "%load_ext mlx_magic",
    "from PIL import Image, ImageDraw\\n"
    "image = Image.new('RGB', (256, 256), 'white')\\n"
    "ImageDraw.Draw(image).ellipse((72, 72, 184, 184), fill=(220, 40, 40))",
    "%%vision image -o answer\\nWhat colour is the circle?",
    "print(answer.text, answer.finish_reason, answer.usage.image_tokens, sep=' | ')",
]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
quiet = ["--log-level=ERROR"]
NotebookClient(notebook, timeout=300, kernel_name="python3", extra_arguments=quiet).execute()
said = notebook.cells[-1].outputs[0].text.strip()
print("%%vision in a kernel:", said)
text, reason, image_tokens = said.split(" | ")
if "red" not in text.lower() or reason != "stop" or int(image_tokens) < 1:
    sys.exit("that is not the answer to expect of a red circle")
"""


def main() -> None:
    """Build the wheel, check its content, install it, use it."""
    with tempfile.TemporaryDirectory(prefix="mlx-magic-wheel-") as folder:
        outside = Path(folder).resolve()
        wheel = build(outside)
        look_inside(wheel)
        python = install(wheel, outside / "venv")
        elsewhere = outside / "elsewhere"
        elsewhere.mkdir()
        run([sys.executable, "-m", "pip", "--python", str(python), "check"], elsewhere)
        proof = elsewhere / "proof.py"
        proof.write_text(PROOF)
        run([str(python), str(proof), str(ROOT)], elsewhere)
    print("The wheel is complete and works outside of its source folder.")


def build(folder: Path) -> Path:
    """Build the wheel with this environment's hatchling; return its path."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run([*command, str(ROOT)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def look_inside(wheel: Path) -> None:
    """Check that the wheel contains the whole package, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    metadata = {name for name in sizes if name.split("/")[0].endswith(".dist-info")}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "mlx_magic"]
    output = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    source = {name for name in output.splitlines() if (ROOT / name).is_file()}
    faults = [f"{name} is missing" for name in sorted({*source, *NEEDED} - sizes.keys())]
    faults += [f"{name} does not belong there" for name in sorted(sizes.keys() - source - metadata)]
    if not any(name.endswith("/licenses/LICENSE") for name in metadata):
        faults.append("the licence is missing")
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    size = wheel.stat().st_size
    if weights >= WEIGHTS_LIMIT:
        faults.append(f"the weights have {weights:,} bytes; the limit is {WEIGHTS_LIMIT:,}")
    if size >= WHEEL_LIMIT:
        faults.append(f"it has {size:,} bytes; the limit is {WHEEL_LIMIT:,}")
    print(
        f"{wheel.name}: {len(sizes)} files, {size:,} bytes, weights {weights:,} bytes", flush=True
    )
    if faults:
        sys.exit("\n".join(f"The wheel is wrong: {fault}." for fault in faults))


def install(wheel: Path, folder: Path) -> Path:
    """Create an environment with the wheel and the dependencies of this one; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path file adds one folder. Path files in that folder, such as the one of the editable
    # install, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(command: list[str], folder: Path) -> None:
    """Run a command in `folder`; exit if it fails."""
    done = subprocess.run(command, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"Failed ({done.returncode}): {' '.join(command)}")


if __name__ == "__main__":
    main()
