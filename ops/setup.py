"""Build the operators into one library that every torch from 2.10 loads.

``RECON_OPS_CUDA=0`` builds for the CPU alone and ``RECON_OPS_CUDA=1`` insists on CUDA; otherwise
CUDA is built where a toolkit with its compiler is found and torch has CUDA. ``CUDA_HOME`` names
the toolkit and ``TORCH_CUDA_ARCH_LIST`` the GPU architectures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
TARGET = 0x020A000000000000  # the stable interface of torch 2.10
CXX_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
NVCC_FLAGS = ["-O3", "-lineinfo", "--threads", "2", "-DUSE_CUDA"]


def stop(sentence: str) -> None:
    """End the build with one sentence."""
    sys.exit(f"recon-ray-ops: {sentence}")


def run(*command: str) -> str:
    """Give the standard output and error of a command, or nothing where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def cuda_home() -> Path | None:
    """Find the CUDA toolkit: CUDA_HOME, else where ``nvcc`` itself says that it lives."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        # An nvcc on the PATH may be a wrapper, whose folder has neither headers nor libraries.
        top = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
        return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]
    usual = Path("/usr/local/cuda")
    return usual if usual.exists() else None


def nvcc_version(home: Path) -> str | None:
    """Give the toolkit's version, such as "13.0"."""
    found = re.search(r"release (\d+\.\d+)", run(str(home / "bin" / "nvcc"), "--version"))
    return found[1] if found else None


def wants_cuda(home: Path | None, torch_cuda: str | None) -> bool:
    """Decide whether the CUDA kernels are built, or end with the reason why they cannot be."""
    asked = os.environ.get("RECON_OPS_CUDA")
    if asked not in (None, "", "0", "1"):
        stop(f"RECON_OPS_CUDA must be 0 or 1, found {asked!r}")
    version = nvcc_version(home) if home and asked != "0" else None
    if asked == "0" or (not asked and (version is None or torch_cuda is None)):
        sys.stdout.write("recon-ray-ops: building for the CPU alone\n")
        return False
    if torch_cuda is None:
        stop("RECON_OPS_CUDA=1 needs a torch built for CUDA, but the installed one is CPU only")
    if version is None:
        where = f"in {home}" if home else "on the PATH or in CUDA_HOME"
        stop(f"no working nvcc {where}; set CUDA_HOME to a toolkit, or RECON_OPS_CUDA=0")
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        stop(
            f"nvcc in {home} is CUDA {version} but torch was built for CUDA {torch_cuda}; "
            f"set CUDA_HOME to a CUDA {torch_cuda.split('.')[0]} toolkit, or RECON_OPS_CUDA=0"
        )
    line = f"recon-ray-ops: CUDA_HOME {home}, nvcc {version}, torch's CUDA {torch_cuda}\n"
    sys.stdout.write(line)
    return True


def require_torch() -> str | None:
    """Check the installed torch and give the CUDA version it was built for."""
    try:
        import torch
    except ModuleNotFoundError:
        stop(
            "torch is not installed where the build runs; install torch 2.10 or later and build "
            "with: pip install --no-build-isolation ./ops"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        stop(f"torch 2.10 or later is needed, found {torch.__version__}")
    return torch.version.cuda


def require_setuptools() -> None:
    """End the build where setuptools is too old; without build isolation nobody else checks."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        stop(
            f"setuptools 77 or later is needed, found {setuptools.__version__}; "
            "upgrade it: pip install -U setuptools"
        )


def require_compiler() -> None:
    """End the build where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        stop(f"no C++ compiler {compiler!r} found; install g++ (or clang++), or set CXX")


require_setuptools()
TORCH_CUDA = require_torch()
require_compiler()
HOME = cuda_home()
WITH_CUDA = wants_cuda(HOME, TORCH_CUDA)
if WITH_CUDA:
    os.environ["CUDA_HOME"] = str(HOME)  # read when the next line is imported

import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def name_architectures() -> None:
    """Without a GPU to build for, build for all architectures that torch itself was built for."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST") or torch.cuda.device_count():
        return
    numbers = [re.fullmatch(r"sm_(\d+)(\d)", name) for name in torch.cuda.get_arch_list()]
    names = [f"{number[1]}.{number[2]}" for number in numbers if number]
    if not names:
        stop(
            "no GPU is visible to build for; name the architectures, such as "
            'TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX", or set RECON_OPS_CUDA=0'
        )
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names) + "+PTX"


class Build(BuildExtension):
    """Compile, and record what was built beside the library."""

    def run(self) -> None:
        """Build the extension and write ``_build.json``."""
        super().run()
        info = {
            "torch": torch.__version__,
            "target_torch": f"{TARGET >> 56}.{TARGET >> 48 & 255}",
            "cuda": nvcc_version(HOME) if WITH_CUDA and HOME else None,
            "architectures": self.architectures(),
            "cpu_flags": " ".join(CXX_FLAGS),
        }
        folder = Path(self.get_ext_fullpath(self.extensions[0].name)).parent
        (folder / "_build.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    def architectures(self) -> list[str]:
        """List the GPU architectures that the compiler was asked for."""
        rules = Path(self.build_temp) / "build.ninja"
        text = rules.read_text(encoding="utf-8") if WITH_CUDA and rules.is_file() else ""
        codes = set(re.findall(r"code=(sm|compute)_(\d+\w*)", text))
        ordered = sorted(codes, key=lambda code: (int(re.sub(r"\D", "", code[1])), code))
        return [f"sm_{name}" if kind == "sm" else f"sm_{name}+PTX" for kind, name in ordered]


def extension() -> CppExtension:
    """Describe the library: every source in csrc, one file an operator family."""
    if WITH_CUDA:
        name_architectures()
    patterns = ("*.cpp", "*.cu") if WITH_CUDA else ("*.cpp",)
    sources = [path for pattern in patterns for path in sorted(ROOT.glob(f"csrc/{pattern}"))]
    target = f"-DTORCH_TARGET_VERSION={TARGET:#018x}"
    flags = {"cxx": [*CXX_FLAGS, target], "nvcc": [*NVCC_FLAGS, target]}
    kind = CUDAExtension if WITH_CUDA else CppExtension
    return kind(
        "recon_ops._C",
        [str(path.relative_to(ROOT)) for path in sources],
        extra_compile_args=flags if WITH_CUDA else {"cxx": flags["cxx"]},
        depends=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/*.h"))],
        py_limited_api=True,
    )


setuptools.setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
